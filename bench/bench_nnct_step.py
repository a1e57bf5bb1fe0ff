"""One step of NNCT with one neighbour.

What it does over its memories, beside the same as published, and the network.

As published: every similarity of the batch, full sorts of n in a loop over images, labels as a
matrix of n x n floats. The network is the same for both, so it is measured once, and the whole step
is the sum of the two.
"""

from __future__ import annotations

import functools
import os
import statistics
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias
from unittest import mock

import harness
import pytest
import torch
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from fastreid_al.config import BatchConfig, NNCTConfig

# Imported by the forms that need them: each is measured in a process of its own, which need not
# wait for the others'.
if TYPE_CHECKING:
    from fastreid_al.methods.nnct import NNCT

#: Backbone, its width, height and width of an image, batch, images.
SIZES = {
    "tiny": [("resnet18", 512, 32, 16, 2, 60)],
    "small": [("resnet18", 512, 96, 48, 32, 2_000)],
    "market": [("resnet50", 2_048, 256, 128, 64, 12_936)],
    "msmt17": [("resnet50", 2_048, 256, 128, 64, 32_621)],
}
SETTINGS, NEIGHBOURS, EPOCH, EPOCHS = NNCTConfig(), 1, 30, 60
#: Images of one centre are about 0.7 similar, so that a label or two dozen is found for each.
SPREAD = 0.65
#: Length of what a feature is away from its row of the memory.
MOVED = 0.2
#: Share of a memory that the matrix of n x n floats may take.
SHARE = 0.5
#: Rows of that matrix that are filled at a time.
BLOCK = 1_024
ROUNDS = 3
#: Most that the forms may differ, relatively. Rounding may take another negative at the end of the
#: hardest into the gradient.
ERRORS = {"loss": 1e-5, "gradient": 1e-3, "moved": 1e-6}
PARTS = ("labels_s", "neighbours_s", "losses_s", "updates_s")

Size = tuple[str, int, int, int, int, int]


class Matrix:
    """PLMB as published: a row of zeros and ones for each image."""

    def __init__(self, identities: Tensor) -> None:
        n = len(identities)
        self.rows = torch.zeros(n, n, device=identities.device)
        for block, some in zip(self.rows.split(BLOCK), identities.split(BLOCK), strict=True):
            block.copy_(some[:, None] == identities)

    @property
    def nbytes(self) -> int:
        """Bytes of the matrix."""
        return self.rows.nbytes

    def update(self, rows: Tensor, labels: Tensor) -> None:
        """Replace rows."""
        self.rows[rows] = labels


class Published:
    """The step's part over the memories, image by image."""

    def __init__(self, bank: Tensor, identities: Tensor, momentum: float) -> None:
        self.memory = SimpleNamespace(bank=bank)
        self.label_memory = Matrix(identities)
        self.momentum = momentum

    def loss(self, embeddings: Tensor, rows: Tensor) -> Tensor:
        """Eq. 2 from all similarities of the batch, which are computed once."""
        labels = self.predict(rows)
        self.label_memory.update(rows, labels)
        similarity = F.normalize(embeddings) @ self.memory.bank.T
        loss = mmcl(similarity, labels)
        for neighbour in self.neighbours(similarity.detach(), rows).unbind(1):
            loss = loss + SETTINGS.lambda_n * mmcl(similarity, self.label_memory.rows[neighbour])
        return loss

    def predict(self, rows: Tensor) -> Tensor:
        """MPLP as rows of zeros and ones.

        The list of each image sorted, and those of all its candidates.
        """
        listed, order = (self.memory.bank[rows] @ self.memory.bank.T).sort(
            dim=1, descending=True, stable=True
        )
        labels = torch.zeros_like(listed)
        for b, i in enumerate(rows.tolist()):
            above = int((listed[b] > SETTINGS.threshold).sum())
            bound, last = max(above, SETTINGS.at_least), -1
            similarity = self.memory.bank[order[b, :bound]] @ self.memory.bank.T
            ranked = similarity.sort(dim=1, descending=True).values
            for place in range(bound):
                if int((ranked[place] == similarity[place, i]).nonzero()[0]) > bound:
                    break
                last = place
            labels[b, order[b, : min(max(1, last) + 1, above)]] = 1
            labels[b, i] = 1
        return labels

    def neighbours(self, similarity: Tensor, rows: Tensor) -> Tensor:
        """NNR by a full sort."""
        similarity = similarity.scatter(1, rows[:, None], -torch.inf)
        return similarity.sort(dim=1, descending=True, stable=True).indices[:, :NEIGHBOURS]

    def update(self, embeddings: Tensor, rows: Tensor) -> None:
        """The feature memory, one row after the other."""
        for feature, row in zip(F.normalize(embeddings), rows, strict=True):
            moved = self.momentum * self.memory.bank[row] + (1 - self.momentum) * feature
            self.memory.bank[row] = moved / moved.norm()


def mmcl(similarity: Tensor, labels: Tensor) -> Tensor:
    """MMCL in a loop over the batch, with a sort of each image's negatives."""
    losses = []
    for s, label in zip(similarity, labels, strict=True):
        far = s[label == 0].sort(descending=True).values
        hard = far[: max(1, int(SETTINGS.hard_ratio * len(far)))]
        losses.append(
            SETTINGS.delta * (1 - s[label == 1]).square().mean() + (1 + hard).square().mean()
        )
    return torch.stack(losses).mean()


Form: TypeAlias = "NNCT | Published"


class Problem(NamedTuple):
    """Memories, and what the network gave for a batch."""

    form: Form
    embeddings: Tensor
    rows: Tensor


def make(device: str, form: str, size: Size) -> Problem:
    """Products of the memory's rows are exact in float32, so both forms see the same lists.

    The labels of all are known.
    """
    _, dim, _, _, batch, n = size
    bank, identities = harness.unit_rows(device, "float32", n, dim, spread=SPREAD, exact=True)
    rows = torch.arange(batch, device=device) * (n // batch)
    embeddings = harness.near(bank, rows, MOVED)
    if form == "ours":
        from fastreid_al.methods.nnct import NNCT

        method = NNCT(n, NEIGHBOURS, SETTINGS, BatchConfig(batch), EPOCHS, 0)
        method.label_images(EPOCH, bank.clone)
        method.memory.bank = bank
        method.label_memory.to(torch.device(device))
        method.label_memory.update(torch.arange(n, device=device), *members(identities))
        return Problem(method, embeddings, rows)
    return Problem(
        Published(bank, identities, SETTINGS.momentum * EPOCH / EPOCHS), embeddings, rows
    )


def members(identities: Tensor) -> tuple[Tensor, Tensor]:
    """Of each image all images of its identity, as CSR lists."""
    counts = identities.bincount()
    sizes = counts[identities]
    indptr = F.pad(sizes.cumsum(0), (1, 0))
    shift = (counts.cumsum(0) - counts)[identities] - indptr[:-1]
    places = torch.arange(int(indptr[-1]), device=identities.device) + shift.repeat_interleave(
        sizes
    )
    return indptr, identities.argsort(stable=True)[places]


def step(form: Form, embeddings: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of the batch and its gradient for the network; both memories move on."""
    found = harness.value_and_gradient(form.loss, embeddings, rows)
    form.update(embeddings, rows)
    return found


class First(NamedTuple):
    """What the first step gives.

    The labels (CSR, ascending), loss, gradient, and rows of the memory.
    """

    indptr: Tensor
    indices: Tensor
    loss: Tensor
    gradient: Tensor
    moved: Tensor


def parts(problem: Problem, rounds: int) -> tuple[dict[str, float], First]:
    """Medians of the parts' seconds over some steps, and what the first of these gave."""
    form, embeddings, rows = problem
    taken: dict[str, list[float]] = {part: [] for part in PARTS}
    predicted: list[Any] = []

    def timed(part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed_call(*arguments: Any) -> Any:
            result, seconds = harness.clocked(call, *arguments)
            taken[part].append(seconds)
            if part == "labels_s":
                predicted.append(result)
            return result

        return timed_call

    first: list[tuple[Tensor, Tensor, Tensor]] = []
    memory = form.label_memory
    with (
        mock.patch.object(form, "predict", timed("labels_s", form.predict)),
        mock.patch.object(form, "neighbours", timed("neighbours_s", form.neighbours)),
        mock.patch.object(memory, "update", timed("updates_s", memory.update)),
    ):
        for _ in range(rounds):
            found, seconds = harness.clocked(
                harness.value_and_gradient, form.loss, embeddings, rows
            )
            # The rest of the loss, forward and backward.
            taken["losses_s"].append(
                seconds - sum(taken[part][-1] for part in PARTS if part != "losses_s")
            )
            taken["updates_s"][-1] += harness.clocked(form.update, embeddings, rows)[1]
            first = first or [(*found, form.memory.bank[rows])]
    return {part: statistics.median(seconds) for part, seconds in taken.items()}, First(
        *lists(predicted[0]), *first[0]
    )


def lists(labels: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Labels of either form as CSR lists, ascending."""
    if isinstance(labels, Tensor):
        place, indices = labels.nonzero(as_tuple=True)
        return F.pad(place.bincount(minlength=len(labels)).cumsum(0), (1, 0)), indices
    indptr, indices = labels
    return indptr, torch.cat([some.sort().values for some in indices.split(indptr.diff().tolist())])


@functools.lru_cache(maxsize=1)
def expected(device: str, size: Size) -> First:
    return parts(make(device, "ours", size), 1)[1]


def skip_what_does_not_fit(device: str, n: int) -> None:
    here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if device == "cuda":
        here = torch.cuda.get_device_properties(0).total_memory
    if 4 * n * n > SHARE * here:
        pytest.skip(
            f"a matrix of floats needs {4 * n * n / 1e9:.1f} GB, "
            f"and half the memory is {SHARE * here / 1e9:.1f}"
        )


def note(benchmark: BenchmarkFixture, size: Size, form: str) -> None:
    name, _, height, width, batch, n = size
    benchmark.group = f"NNCT step, {name} {height} x {width}, {batch} of {n:,}"
    benchmark.extra_info.update(step="NNCT", form=form, problem=benchmark.group.partition(", ")[2])


@pytest.mark.parametrize("form", ["ours", "eager, as published"])
def test_memories(benchmark: BenchmarkFixture, size: Size, form: str, device: str) -> None:
    _, dim, _, _, _, n = size
    if form != "ours":
        skip_what_does_not_fit(device, n)
    note(benchmark, size, form)
    inputs = harness.Inputs(make, (form, size))
    harness.measure(
        benchmark, step, inputs, device, n=n, dim=dim, rounds=ROUNDS, warmup=int(device == "cuda")
    )
    problem = make(device, form, size)
    benchmark.extra_info["label_memory_MB"] = round(problem.form.label_memory.nbytes / 1e6, 1)
    rounds = 1 if benchmark.disabled else min(ROUNDS, harness._ROUNDS)
    seconds, found = parts(problem, rounds)
    if not benchmark.disabled:
        benchmark.extra_info.update(seconds)
    wanted = expected(device, size)
    assert torch.equal(found.indptr, wanted.indptr)
    assert torch.equal(found.indices, wanted.indices)
    errors = {
        f"{name}_error": harness.relative_error(getattr(found, name), getattr(wanted, name))
        for name in ERRORS
    }
    benchmark.extra_info.update(
        labels_per_image=round(len(found.indices) / len(found.moved), 2), **errors
    )
    for name, most in ERRORS.items():
        assert errors[f"{name}_error"] <= most, f"{name} differs from ours"


class Network:
    """A backbone and its optimizer.

    Each call is forward, backward from a gradient that is given, and the step.
    """

    def __init__(self, device: str, size: Size) -> None:
        from fastreid_al.models import build_model

        name, _, height, width, batch, _ = size
        torch.manual_seed(0)
        self.model = (
            build_model(name, "none", bn_group=0).to(device).to(memory_format=torch.channels_last)
        )
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(
            parameters, lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True
        )
        images = torch.randn(batch, 3, height, width, device=device)
        self.images = images.contiguous(memory_format=torch.channels_last)

    def __call__(self) -> Tensor:
        """The features."""
        features = self.model(self.images)
        self.optimizer.zero_grad(set_to_none=True)
        features.backward(features.detach() / features.numel())
        self.optimizer.step()
        return features.detach()


def make_network(device: str, size: Size) -> tuple[Network]:
    return (Network(device, size),)


def train(network: Network) -> Tensor:
    return network()


def test_network(benchmark: BenchmarkFixture, size: Size, device: str) -> None:
    note(benchmark, size, "network")
    _, dim, _, _, batch, n = size
    rounds, warmup = (20, 3) if device == "cuda" else (1, 0)
    inputs = harness.Inputs(make_network, (size,))
    features = harness.measure(
        benchmark, train, inputs, device, n=n, dim=dim, rounds=rounds, warmup=warmup
    )
    assert features.shape == (batch, dim)
    assert features.isfinite().all()
