"""Runs parts of the engine on the CPU and on an imitated CUDA device, and compares the results.

    TRITON_INTERPRET=1 python tests/imitated/cases.py EMULATED_EXTENSION [CASE...] [--write]

Prints a line of JSON for each case: its name, the largest difference, the launches, and the lines
that made the host wait. With --write the list of these lines is written.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from reid_kernels import BankIndex
from torch import Tensor
from torch.utils._pytree import tree_map_only

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "native"))

import build_native  # noqa: E402

from fastreid_al.clustering import dbscan, jaccard_graph  # noqa: E402
from fastreid_al.clustering.kmedoids import kmedoids_many  # noqa: E402
from fastreid_al.config import BatchConfig, NNCTConfig, RunConfig  # noqa: E402
from fastreid_al.memory import (  # noqa: E402
    ClusterMemory,
    InstanceMemory,
    PseudoLabelMemoryBank,
)
from fastreid_al.methods import NNCT  # noqa: E402
from fastreid_al.metrics import rank_gallery, rerank_gallery  # noqa: E402
from fastreid_al.runs.train import run_training  # noqa: E402
from tests.imitated import waits  # noqa: E402
from tests.support.imitated_cuda import Record, content_of, imitated_cuda  # noqa: E402
from tests.support.operators import example_inputs, examples  # noqa: E402
from tests.support.tiny import tiny_config  # noqa: E402

#: Images, width of features, and images of a batch.
N, DIM, BATCH = 96, 32, 8
IDENTITIES = torch.arange(N) // 6
#: A case returns values to be compared. It gets the device, and the record on the imitated one.
Case = Callable[[str, Record | None], list[Any]]


def planted() -> Tensor:
    """Unit-norm features (N, DIM) around one centre for each identity."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(N // 6, DIM, generator=generator)
    noise = torch.randn(N, DIM, generator=generator)
    return F.normalize(centres[IDENTITIES] + 0.5 * noise)


def operator(name: str) -> Case:
    """The example of an operator of `reid_kernels`."""

    def case(device: str, record: Record | None) -> list[Any]:
        import reid_kernels
        from reid_kernels import sharded

        places = ((reid_kernels, f"{name}_"), (reid_kernels, name), (sharded, name))
        call = next(getattr(*place) for place in places if callable(getattr(*place, None)))
        x, bank = (rows.to(device) for rows in example_inputs())
        return _flat(examples()[name](_with_ids_on(call, device), x, bank))

    return case


def bank_index(device: str, record: Record | None) -> list[Any]:
    """An index of a bank that is searched, changed and searched again."""
    bank = planted().to(device)
    index = BankIndex(bank)
    query = bank[:BATCH] + 0.1
    before = index.search(query, 4)
    changed = torch.arange(3, 9).to(device)
    bank[changed] = query[: len(changed)]
    index.update(changed)
    return [*before, *index.search(query, 4, exclude=torch.arange(BATCH).to(device))]


def _with_ids_on(call: Callable[..., Any], device: str) -> Callable[..., Any]:
    """Move the ids that an example makes to the device of its rows."""

    def moved(*args: Any, **kwargs: Any) -> Any:
        return call(*on_device(device, args), **on_device(device, kwargs))

    return moved


def on_device(device: str, x: Any) -> Any:
    """Move the tensors of nested containers to a device."""
    return tree_map_only(Tensor, lambda y: y.to(device), x)


def _flat(x: Any) -> list[Any]:
    if isinstance(x, tuple | list):
        return [value for part in x for value in _flat(part)]
    return [x]


def instance_memory(device: str, record: Record | None) -> list[Any]:
    return _contrast_step(InstanceMemory(0.2, 0.05), device, record)


def cluster_memory(hardest: bool) -> Case:
    """A step of UCAL over centroids, all or the hardest of whose images update them."""

    def case(device: str, record: Record | None) -> list[Any]:
        return _contrast_step(ClusterMemory(0.1, 0.05, hardest), device, record)

    return case


def _contrast_step(memory: Any, device: str, record: Record | None) -> list[Any]:
    """A step of UCAL over a memory. Waits outside the step are not counted."""
    features = planted().to(device)
    memory.start(features)
    memory.begin_epoch(features, IDENTITIES.clone())
    rows = torch.arange(0, N, N // BATCH)[:BATCH].to(device)
    embeddings = (2 * features[rows]).clone().requires_grad_()
    if record is not None:
        record.clear()
    loss = memory.loss(F.normalize(embeddings), rows)
    loss.backward()
    memory.update(F.normalize(embeddings.detach()), rows)
    return [loss.detach(), embeddings.grad, memory.bank]


def nnct_step(device: str, record: Record | None) -> list[Any]:
    """Two steps of NNCT with predicted labels and two neighbours."""
    settings = NNCTConfig(single_label=0)
    method = NNCT(N, 2, settings, BatchConfig(size=BATCH, iterations=2), 10, 0)
    features = planted().to(device)
    method.label_images(5, lambda: torch.empty(0))
    method._allocate(features[:1])
    method.memory.bank.copy_(features)
    got: list[Any] = []
    for shift in (0, 1):
        rows = (torch.arange(0, N, N // BATCH)[:BATCH] + shift).to(device)
        embeddings = (2 * features[rows]).clone().requires_grad_()
        if record is not None and shift == 0:
            record.clear()
        loss = method.loss(embeddings, rows)
        loss.backward()
        method.update(embeddings.detach(), rows)
        got += [loss.detach(), embeddings.grad]
    if record is not None:
        record.stop()
    return [*got, method.memory.bank, *method.label_memory.lookup(torch.arange(N).to(device))]


def clustering(device: str, record: Record | None) -> list[Any]:
    graph = jaccard_graph(planted().to(device), k1=10, k2=3)
    return [graph.indptr, graph.indices, graph.distances, dbscan(graph, [0.4, 0.5])]


def medoids(device: str, record: Record | None) -> list[Any]:
    return list(kmedoids_many(planted().to(device), torch.arange(0, N + 1, 6), torch.arange(N), 3))


def ranking(device: str, record: Record | None) -> list[Any]:
    features = planted().to(device)
    cameras = torch.arange(N) % 3
    ids = IDENTITIES
    sets = (features[:20], ids[:20], cameras[:20], features[20:], ids[20:], cameras[20:])
    got: list[Any] = []
    for rank in (rank_gallery, rerank_gallery):
        scores = rank(*sets)
        got += [scores.mAP, scores.mINP, scores.cmc, scores.queries]
    return got


def label_memory(layout: str, most: int | None = None) -> Case:
    """PLMB: update and lookup, the latter with or without room for a known number of labels."""

    def case(device: str, record: Record | None) -> list[Any]:
        bank = PseudoLabelMemoryBank(200, layout, 8, device)
        rows, indptr = (torch.tensor(x).to(device) for x in ([3, 5, 3], [0, 3, 5, 16]))
        indices = torch.arange(16).mul(7).remainder(200).to(device)
        wanted = torch.tensor([5, 3, 0]).to(device)
        if record is not None:
            record.clear()
        bank.update(rows, indptr, indices)
        return [*bank.lookup(wanted, most), bank.lookup_bits(wanted)]

    return case


def training(method: str) -> Case:
    """A whole run: extraction, labels, steps, checkpoints, evaluation."""

    def case(device: str, record: Record | None) -> list[Any]:
        with tempfile.TemporaryDirectory() as folder:
            config = tiny_run(Path(folder) / "run", method, device)
            run_training(config)
            lines = (Path(config.run_dir) / "metrics.jsonl").read_text().splitlines()
        kept = ("loss", "clusters", "mAP", "rank1", "label_precision", "memory_momentum")
        return [value for line in lines for key, value in json.loads(line).items() if key in kept]

    return case


def tiny_run(folder: Path, method: str, device: str) -> RunConfig:
    config = tiny_config(folder)
    return replace(
        config,
        method=method,
        device=device,
        epochs=2,
        neighbours_k=1,
        data_root=str(folder.parent / "data"),
        network=replace(config.network, bn_group=0),
        batch=replace(config.batch, iterations=2),
        nnct=replace(config.nnct, single_label=1),
        engine=replace(config.engine, precision="float32", compile="none"),
    )


CASES: dict[str, Case] = {
    **{f"operator {name}": operator(name) for name in sorted(examples())},
    "index of a bank": bank_index,
    "step of ucal, images": instance_memory,
    "step of ucal, clusters": cluster_memory(False),
    "step of ucal, hardest": cluster_memory(True),
    "step of nnct": nnct_step,
    "clustering": clustering,
    "k-medoids": medoids,
    "ranking": ranking,
    "label memory, bits": label_memory("bits"),
    "label memory, sparse": label_memory("sparse"),
    "label memory with room, bits": label_memory("bits", 24),
    "label memory with room, sparse": label_memory("sparse", 24),
    "run of ucal": training("ucal"),
    "run of nnct": training("nnct"),
}


def difference(a: Any, b: Any) -> float:
    """Largest difference of two results; infinite if their shapes or dtypes differ."""
    a, b = content_of(a), content_of(b)
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return float("inf")
        if not a.numel():
            return 0.0
        return float((a.detach().double() - b.detach().double()).abs().nan_to_num(9e9).max())
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b)
    return 0.0 if a == b else float("inf")


def run(name: str, extension: Any) -> dict[str, Any]:
    """Run a case on both devices."""
    torch.manual_seed(0)
    expected = CASES[name]("cpu", None)
    torch.manual_seed(0)
    with imitated_cuda(extension) as record:
        got = CASES[name]("cuda", record)
        got = [content_of(x) for x in got]
    assert len(got) == len(expected) > 0, (len(got), len(expected))
    return {
        "case": name,
        "difference": max(map(difference, got, expected)),
        "launches": dict(record.launches),
        "waits": sorted(map(str, record.waits)),
    }


def main(arguments: list[str]) -> None:
    """Run the cases of the command line; with --write all, and write the list of waits."""
    extension = build_native.load(Path(arguments[0]))
    torch.set_num_threads(1)
    writes = "--write" in arguments
    names = [name for name in arguments[1:] if name != "--write"] or list(CASES)
    found = {}
    for name in names:
        result = run(name, extension)
        found[name] = result["waits"]
        print(json.dumps(result), flush=True)
    if writes:
        waits.write(found)


if __name__ == "__main__":
    main(sys.argv[1:])
