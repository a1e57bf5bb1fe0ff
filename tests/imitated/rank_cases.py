"""Runs parts of the engine with two ranks, on CPUs and on imitated CUDA devices, and compares.

    TRITON_INTERPRET=1 python tests/imitated/rank_cases.py EMULATED_EXTENSION [CASE...] [--write]

Prints a line of JSON for each case, as cases.py does; a difference is the largest, and a wait
counts if it is on any rank. With --write the lists of the cases are replaced in waits.txt. The
ranks of the CPUs use gloo, those of the devices the stand-in for NCCL of
tests/support/imitated_nccl.py; both join as torchrun's processes do.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "native"))

import build_native  # noqa: E402

from fastreid_al.clustering import dbscan, jaccard_graph  # noqa: E402
from fastreid_al.config import BatchConfig, EngineConfig, NNCTConfig  # noqa: E402
from fastreid_al.data.loader import BatchLoader  # noqa: E402
from fastreid_al.data.pixels import PixelStore  # noqa: E402
from fastreid_al.distributed.launch import joined  # noqa: E402
from fastreid_al.distributed.world import World  # noqa: E402
from fastreid_al.engine.extract import extract_features  # noqa: E402
from fastreid_al.engine.network import Network  # noqa: E402
from fastreid_al.engine.sharded_checkpoint import load_shards, save_shards  # noqa: E402
from fastreid_al.memory import ClusterMemory, InstanceMemory  # noqa: E402
from fastreid_al.memory.label_bank_sharded import ShardedLabelBank  # noqa: E402
from fastreid_al.methods import NNCT  # noqa: E402
from fastreid_al.metrics import rank_gallery, rerank_gallery  # noqa: E402
from fastreid_al.models import build_model  # noqa: E402
from fastreid_al.runs import train  # noqa: E402
from tests.imitated import waits  # noqa: E402
from tests.imitated.cases import (  # noqa: E402
    IDENTITIES,
    N,
    difference,
    planted,
    tiny_run,
)
from tests.support.imitated_cuda import Record, content_of, imitated_cuda  # noqa: E402
from tests.support.imitated_nccl import imitated_nccl  # noqa: E402
from tests.support.tiny import MODEL  # noqa: E402

SIZE = 2
#: Images of a rank's part of a batch.
PART = 4
#: A case gets the ranks, the device, a folder that all ranks see, and the record on an imitated
#: device.
Case = Callable[[World, str, Path, Record | None], list[Any]]


def shard(x: Tensor, world: World) -> Tensor:
    """This rank's rows."""
    return x[world.local_slice(len(x))].clone()


def contrast_step(kind: type[InstanceMemory] | type[ClusterMemory], **options: Any) -> Case:
    """A step of UCAL over a memory. Waits outside the step are not counted."""

    def case(world: World, device: str, folder: Path, record: Record | None) -> list[Any]:
        memory = kind(0.2, 0.05, world=world, **options)
        features = shard(planted(), world).to(device)
        memory.start(features)
        memory.begin_epoch(features, IDENTITIES.clone())
        rows = batch_rows(world)
        embeddings = (2 * planted()[rows]).to(device).requires_grad_()
        rows = rows.to(device)
        if record is not None:
            record.clear()
        loss = memory.loss(F.normalize(embeddings), rows)
        loss.backward()
        memory.update(F.normalize(embeddings.detach()), rows)
        if record is not None:
            record.stop()
        return [loss.detach(), embeddings.grad, memory.bank, memory.state_dict()["bank"].rows]

    return case


def batch_rows(world: World, shift: int = 0) -> Tensor:
    """This rank's part of a batch of images, spread over all of them."""
    step = N // (SIZE * PART)
    return (torch.arange(0, N, step)[: SIZE * PART] + shift).chunk(SIZE)[world.rank]


def nnct_step(world: World, device: str, folder: Path, record: Record | None) -> list[Any]:
    """A step of NNCT with predicted labels and a neighbour. Waits outside are not counted."""
    settings = NNCTConfig(single_label=0)
    batch = BatchConfig(size=SIZE * PART, iterations=2)
    method = NNCT(N, 1, settings, batch, 10, 0, world=world)
    features = shard(planted(), world).to(device)
    method.label_images(5, lambda: torch.empty(0))
    method._allocate(features[:1])
    method.memory.bank.copy_(features)
    rows = batch_rows(world)
    embeddings = (2 * planted()[rows]).to(device).requires_grad_()
    rows = rows.to(device)
    if record is not None:
        record.clear()
    loss = method.loss(embeddings, rows)
    loss.backward()
    method.update(embeddings.detach(), rows)
    if record is not None:
        record.stop()
    labels = method.label_memory.lookup(torch.arange(N).to(device))
    return [loss.detach(), embeddings.grad, method.memory.bank, *labels]


def extraction(world: World, device: str, folder: Path, record: Record | None) -> list[Any]:
    """Features of images that the host reads."""
    torch.manual_seed(0)
    model = build_model(MODEL, "none", bn_group=0).to(device)
    pixels = torch.randint(0, 256, (13, 3, 48, 24), dtype=torch.uint8)
    store = PixelStore(pixels, torch.arange(13), ["0"] * 13, [])
    settings = EngineConfig(precision="float32", compile="none", extract_batch=4)
    network = Network(model, settings, torch.device(device))
    loader = BatchLoader(store, torch.device(device), "host")
    features = extract_features(network, loader, settings, world=world)
    return [features, world.all_gather_rows(features)]


def clustering(world: World, device: str, folder: Path, record: Record | None) -> list[Any]:
    graph = jaccard_graph(shard(planted(), world).to(device), k1=10, k2=3, world=world)
    labels = dbscan(graph, [0.4, 0.5], world=world)
    return [graph.indptr, graph.indices, graph.distances, labels]


def ranking(world: World, device: str, folder: Path, record: Record | None) -> list[Any]:
    features = planted()
    cameras = torch.arange(N) % 3
    query, gallery = (shard(x, world).to(device) for x in (features[:21], features[21:]))
    ids = IDENTITIES
    sides = (query, ids[:21], cameras[:21], gallery, ids[21:], cameras[21:])
    got: list[Any] = []
    for rank in (rank_gallery, rerank_gallery):
        scores = rank(*sides, world=world)
        got += [scores.mAP, scores.mINP, scores.cmc, scores.queries]
    return got


def label_memory(layout: str) -> Case:
    """PLMB: update, lookup with room and without, and state."""

    def case(world: World, device: str, folder: Path, record: Record | None) -> list[Any]:
        bank = ShardedLabelBank(201, layout, 8, world).to(device)
        rows, indptr = (torch.tensor(x).to(device) for x in ([3, 195, 3], [0, 3, 5, 16]))
        indices = torch.arange(16).mul(7).remainder(201).to(device)
        wanted = torch.tensor([195, 3, 0]).to(device)
        if record is not None:
            record.clear()
        bank.update(rows, indptr, indices)
        got = [*bank.lookup(wanted, 24), *bank.lookup(wanted), bank.lookup_bits(wanted)]
        state = bank.state_dict()
        other = ShardedLabelBank(201, layout, 8, world).to(device)
        other.load_state_dict(state)
        return [*got, *other.lookup(wanted), bank.dropped, other.dropped]

    return case


def checkpoint(world: World, device: str, folder: Path, record: Record | None) -> list[Any]:
    """A checkpoint of rows on the devices, saved twice and loaded."""
    whole = {"memory": planted(), "words": torch.arange(15, dtype=torch.int32).view(5, 3)}
    method: dict[str, Any] = {}
    for name, x in whole.items():
        method[name] = world.shard(shard(x, world).to(device), len(x))
    state = {"method": method, "model": {"w": torch.ones(2).to(device)}, "epoch": 3}
    folder.mkdir(exist_ok=True)
    for _ in range(2):
        save_shards(folder, state, world)
    got = load_shards(folder, world)
    rows = [got["method"][name].rows for name in whole]
    for name, own in zip(whole, rows, strict=True):
        assert torch.equal(own, shard(whole[name], world))
    return [*rows, got["model"]["w"], got["epoch"]]


def training(method: str) -> Case:
    """A whole run: extraction, labels, steps, checkpoints, evaluation."""

    def case(world: World, device: str, folder: Path, record: Record | None) -> list[Any]:
        config = tiny_run(folder / "run", method, device)
        config = replace(config, batch=replace(config.batch, size=2 * PART, iterations=1))
        history = train.run_training(config, world=world).history
        kept = ("loss", "clusters", "mAP", "rank1", "label_precision", "memory_momentum")
        return [value for line in history for key, value in line.items() if key in kept]

    return case


CASES: dict[str, Case] = {
    "step of ucal, images": contrast_step(InstanceMemory),
    "step of ucal, clusters": contrast_step(ClusterMemory, hardest=True),
    "step of nnct": nnct_step,
    "extraction": extraction,
    "clustering": clustering,
    "ranking": ranking,
    "label memory, bits": label_memory("bits"),
    "label memory, sparse": label_memory("sparse"),
    "checkpoint": checkpoint,
    "run of ucal": training("ucal"),
    "run of nnct": training("nnct"),
}


def on_cpu(names: Sequence[str], folder: Path) -> dict[str, list[Any]]:
    """The results of the cases on a CPU, for this rank."""
    expected = {}
    with joined(torch.device("cpu")) as (world, line):
        assert line == f"{SIZE} ranks over gloo"
        for name in names:
            torch.manual_seed(0)
            expected[name] = CASES[name](world, "cpu", folder / f"cpu {name}", None)
    return expected


def compared(
    names: Sequence[str], expected: dict[str, list[Any]], extension: Any, folder: Path
) -> list[dict[str, Any]]:
    """The results of the cases on an imitated device against those on a CPU, for this rank."""
    results = []
    with contextlib.ExitStack() as stack:
        record = stack.enter_context(imitated_cuda(extension))
        stand = stack.enter_context(imitated_nccl())
        world, line = stack.enter_context(joined(torch.device("cuda:0")))
        assert line == f"{SIZE} ranks over nccl"
        for name in names:
            torch.manual_seed(0)
            stand.calls.clear()
            record.start()
            got = CASES[name](world, "cuda:0", folder / f"cuda {name}", record)
            got = [content_of(x) for x in got]
            assert len(got) == len(expected[name]) > 0
            result = {
                "difference": max(map(difference, got, expected[name])),
                "launches": dict(record.launches),
                "waits": sorted(map(str, record.waits)),
                "collectives": dict(stand.calls),
            }
            results.append(result)
    return results


def rank_process(
    rank: int, ports: Sequence[int], names: Sequence[str], extension: Any, folder: Path
) -> None:
    """Run the cases as one rank, and write the results into a file."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(SIZE), MASTER_ADDR="127.0.0.1")
    os.environ["FASTREID_AL_CACHE"] = str(folder / "cache")
    train.draw_curves = lambda *_: None  # type: ignore[assignment]
    os.environ["MASTER_PORT"] = str(ports[0])
    expected = on_cpu(names, folder)
    os.environ["MASTER_PORT"] = str(ports[1])
    results = compared(names, expected, extension, folder)
    (folder / f"rank {rank}").write_text(json.dumps(results))


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nothing listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [x.getsockname()[1] for x in sockets]
    for x in sockets:
        x.close()
    return ports


def run(names: Sequence[str], extension: Any) -> list[dict[str, Any]]:
    """Run the cases in processes of their own, and join the results of the ranks."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        ports = free_ports(2)
        # Forked, because the imports take longer than most cases.
        children = []
        for rank in range(SIZE):
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    rank_process(rank, ports, names, extension, folder)
                    status = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(status)
            children.append(child)
        failed = [child for child in children if os.waitpid(child, 0)[1]]
        assert not failed, f"{len(failed)} ranks failed"
        by_rank = [json.loads((folder / f"rank {rank}").read_text()) for rank in range(SIZE)]
    return [joined_results(name, parts) for name, *parts in zip(names, *by_rank, strict=True)]


def joined_results(name: str, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The results of a case from those of the ranks."""
    return {
        **parts[0],
        "case": waits.TWO_RANKS + name,
        "difference": max(part["difference"] for part in parts),
        "waits": sorted({wait for part in parts for wait in part["waits"]}),
    }


def main(arguments: list[str]) -> None:
    """Run the cases of the command line; with --write, write their lists of waits."""
    extension = build_native.load(Path(arguments[0]))
    names = [name for name in arguments[1:] if name != "--write"] or list(CASES)
    results = run(names, extension)
    for result in results:
        print(json.dumps(result), flush=True)
    if "--write" in arguments:
        waits.write({result["case"]: result["waits"] for result in results})


if __name__ == "__main__":
    main(sys.argv[1:])
