"""Captures operators and steps as CUDA graphs on an imitated device.

    TRITON_INTERPRET=1 python tests/imitated/graph_cases.py EMULATED_EXTENSION [CASE...]

Prints a line of JSON for each case: its name, how often each kernel is launched, what ended the
capture, and what differs between two captures with other content. The label prediction of NNCT is
among the cases to show that it ends a capture: it waits for sizes.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "native"))

import build_native  # noqa: E402
import reid_kernels  # noqa: E402
from reid_kernels import sharded  # noqa: E402
from reid_kernels.update_bank import hardest_targets  # noqa: E402

from fastreid_al.config import BatchConfig, NNCTConfig  # noqa: E402
from fastreid_al.memory import ClusterMemory, InstanceMemory, PseudoLabelMemoryBank  # noqa: E402
from fastreid_al.methods import NNCT  # noqa: E402
from tests.imitated.cases import IDENTITIES, N, on_device, planted  # noqa: E402
from tests.support.imitated_cuda import imitated_cuda  # noqa: E402
from tests.support.imitated_graph import CaptureError, captured_twice, differences  # noqa: E402
from tests.support.operators import example_inputs, examples  # noqa: E402

DEVICE = "cuda"
BATCH = 4


class Prepared(NamedTuple):
    """A step on buffers that stay, and what puts other content into them."""

    step: Callable[[], object]
    renew: Callable[[], object]


def public(name: str) -> Callable[..., Any]:
    """The public function of an operator."""
    places = ((reid_kernels, f"{name}_"), (reid_kernels, name), (sharded, name))
    return next(getattr(*place) for place in places if callable(getattr(*place, None)))


def called(function: Callable[..., Any], example: Callable[..., Any], **more: Any) -> Prepared:
    """Forward and backward of an operator, with the arguments of an example."""
    given: list[tuple[Any, Any]] = []

    def keep(*args: Any, **kwargs: Any) -> None:
        given.append((on_device(DEVICE, args), on_device(DEVICE, {**kwargs, **more})))

    features, bank = (x.to(DEVICE) for x in example_inputs())
    features.requires_grad_()
    example(keep, features, bank)

    def step() -> None:
        for args, kwargs in given:
            features.grad = None
            for out in tree_leaves(function(*args, **kwargs)):
                if isinstance(out, Tensor) and out.requires_grad:
                    out.sum().backward()

    def renew() -> None:
        for x in tree_leaves(given):
            if isinstance(x, Tensor) and x.is_floating_point():
                fill(x)

    return Prepared(step, renew)


def fill(x: Tensor) -> None:
    """Put random unit-norm rows into a buffer."""
    x.detach().copy_(F.normalize(torch.randn(x.shape), dim=-1).to(DEVICE))


def operator(name: str) -> Callable[[], Prepared]:
    """The example of an operator of `reid_kernels`."""
    return lambda: called(public(name), examples()[name])


def exact_topk() -> Prepared:
    """The neighbours of NNR, at the precision that proves no candidates."""
    example = examples()["similarity_topk"]
    return called(public("similarity_topk"), example, precision="ieee", normalize=False)


def multilabel_of_bits() -> Prepared:
    def example(call: Callable[..., Any], x: Tensor, bank: Tensor) -> Any:
        return call(x, bank, torch.arange(18, dtype=torch.int32).view(9, 2), hard_ratio=0.1)

    return called(public("multilabel_bank_loss"), example)


def means_of_classes() -> Prepared:
    """The loss over means of rows of a class."""
    index = reid_kernels.class_index((torch.arange(40) % 7).to(DEVICE))

    def example(call: Callable[..., Any], x: Tensor, bank: Tensor) -> Any:
        return call(x, bank, torch.arange(9) * 3 % 7, 0.05)

    return called(public("bank_contrast_loss"), example, classes=index)


def hardest() -> Prepared:
    return called(hardest_targets, lambda call, x, bank: call(x, bank, torch.arange(9) * 3 % 7 - 1))


def step_of_ucal(memory: Any) -> Callable[[], Prepared]:
    """Loss, gradient and update of a memory of UCAL."""

    def prepare() -> Prepared:
        features = planted().to(DEVICE)
        memory.start(features)
        memory.begin_epoch(features, IDENTITIES.clone())
        embeddings, rows = batch_buffers()

        def step() -> None:
            embeddings.grad = None
            memory.loss(F.normalize(embeddings), rows).backward()
            memory.update(F.normalize(embeddings.detach()), rows)

        return Prepared(step, lambda: renew_batch(embeddings, rows))

    return prepare


def batch_buffers() -> tuple[Tensor, Tensor]:
    """Embeddings and image rows of a batch."""
    rows = torch.arange(0, N, N // BATCH)[:BATCH]
    return (2 * planted()[rows]).to(DEVICE).requires_grad_(), rows.to(DEVICE)


def renew_batch(embeddings: Tensor, rows: Tensor) -> None:
    """Other embeddings and other images, one of them twice."""
    fill(embeddings)
    rows.copy_(torch.tensor([5, 7, 5, 90]).to(DEVICE))


def label_memory(layout: str) -> Callable[[], Prepared]:
    """PLMB: update, bit lookup, and lookup into room for 24 labels."""

    def prepare() -> Prepared:
        bank = PseudoLabelMemoryBank(200, layout, 8, DEVICE)
        rows, indptr = (torch.tensor(x).to(DEVICE) for x in ([3, 5, 3], [0, 3, 5, 16]))
        indices = torch.arange(16).mul(7).remainder(200).to(DEVICE)

        def step() -> None:
            bank.update(rows, indptr, indices)
            bank.lookup_bits(rows)
            bank.lookup(rows, 24)

        def renew() -> None:
            rows.copy_(torch.tensor([9, 5, 1]).to(DEVICE))
            indptr.copy_(torch.tensor([0, 7, 7, 16]).to(DEVICE))
            indices.copy_(torch.arange(16).mul(11).remainder(200).to(DEVICE))

        return Prepared(step, renew)

    return prepare


def method_of_nnct(predicts: bool) -> tuple[NNCT, Tensor, Tensor]:
    """NNCT with filled memories, and the buffers of a batch."""
    settings = NNCTConfig(single_label=0 if predicts else 9)
    method = NNCT(N, 1, settings, BatchConfig(size=BATCH, iterations=2), 10, 0)
    features = planted().to(DEVICE)
    method.label_images(5, lambda: torch.empty(0))
    method._allocate(features[:1])
    method.memory.bank.copy_(features)
    return method, *batch_buffers()


def step_of_nnct(predicts: bool) -> Callable[[], Prepared]:
    """A whole step of NNCT, with single labels or with predicted ones."""

    def prepare() -> Prepared:
        method, embeddings, rows = method_of_nnct(predicts)

        def step() -> None:
            embeddings.grad = None
            method.loss(embeddings, rows).backward()
            method.update(embeddings.detach(), rows)

        return Prepared(step, lambda: renew_batch(embeddings, rows))

    return prepare


def losses_of_nnct() -> Prepared:
    """What follows the label prediction: Eq. 5, NNR, Eq. 4, Eq. 2 and the update."""
    method, embeddings, rows = method_of_nnct(True)
    indptr = torch.arange(0, 2 * BATCH + 1, 2).to(DEVICE)
    indices = torch.arange(2 * BATCH).to(DEVICE)

    def step() -> None:
        embeddings.grad = None
        features = F.normalize(embeddings)
        method.label_memory.update(rows, indptr, indices)
        neighbours = method.neighbours(features.detach(), rows)
        bits = method.label_memory.lookup_bits(neighbours.T.flatten())
        labels = [(indptr, indices), bits]
        loss = method.memory.loss(features, labels, [1.0, 0.5], delta=5.0, hard_ratio=0.1)
        loss.backward()
        method.update(embeddings.detach(), rows)

    return Prepared(step, lambda: renew_batch(embeddings, rows))


CASES: dict[str, Callable[[], Prepared]] = {
    **{f"operator {name}": operator(name) for name in sorted(examples())},
    "similarity_topk, ieee": exact_topk,
    "multilabel_bank_loss, bits": multilabel_of_bits,
    "bank_contrast_loss, classes": means_of_classes,
    "hardest_targets": hardest,
    "step of ucal, images": step_of_ucal(InstanceMemory(0.2, 0.05)),
    "step of ucal, clusters": step_of_ucal(ClusterMemory(0.1, 0.05)),
    "step of ucal, hardest": step_of_ucal(ClusterMemory(0.1, 0.05, True)),
    "label memory, bits": label_memory("bits"),
    "label memory, sparse": label_memory("sparse"),
    "step of nnct, single labels": step_of_nnct(False),
    "step of nnct, predicted labels": step_of_nnct(True),
    "losses of nnct": losses_of_nnct,
}


def run(name: str, extension: Any) -> dict[str, Any]:
    """Capture a case twice on the imitated device."""
    torch.manual_seed(0)
    found: dict[str, Any] = {"case": name, "launches": {}, "ended": "", "differences": []}
    with imitated_cuda(extension):
        prepared = CASES[name]()
        try:
            one, other = captured_twice(prepared.step, prepared.renew)
        except CaptureError as error:
            found["ended"] = str(error)
            return found
        names = Counter(kernels(launch.name for launch in one.launches))
        found["launches"] = dict(names)
        found["differences"] = differences(one.launches, other.launches)
    return found


def kernels(names: Iterator[str]) -> Iterator[str]:
    """The names of kernels and of functions of the extension."""
    return (name for name in names if name.endswith(("_kernel", "_cuda")))


def main(arguments: list[str]) -> None:
    """Run the cases of the command line."""
    extension = build_native.load(Path(arguments[0]))
    torch.set_num_threads(1)
    for name in arguments[1:] or list(CASES):
        print(json.dumps(run(name, extension)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
