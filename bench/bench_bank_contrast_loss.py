"""`bank_contrast_loss`, forward and backward, next to cross-entropy of the whole matrix of logits.

The form over instances is compared with SpCL's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import harness
import pytest
import torch
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture
from reid_kernels import ClassIndex, bank_contrast_loss, bank_contrast_loss_reference, class_index
from torch import Tensor

from fastreid_al.memory.one_read import fits, one_read_contrast_loss

#: Batch, bank rows, width.
SIZES = {
    "tiny": [(8, 100, 32)],
    "small": [(64, 5_000, 512)],
    "market": [(256, 12_936, 2_048)],
    "msmt17": [(256, 32_621, 2_048)],
    "million": [(batch, n, 2_048) for n in (100_000, 1_000_000) for batch in (64, 256)],
}
TEMPERATURE = 0.05
#: Far enough from the targets that no softmax is nearly one-hot: its gradient would be a rounding
#: error.
SPREAD = 3.0
#: Features that are compared with float64.
COMPARED = 16

Found = tuple[Tensor, Tensor]


class Problem(NamedTuple):
    """Features, bank, and the bank rows to which the features are near."""

    features: Tensor
    bank: Tensor
    targets: Tensor


def make(device: str, dtype: str, batch: int, n: int, dim: int) -> Problem:
    bank, _ = harness.unit_rows(device, dtype, n, dim)
    targets = torch.arange(batch, device=device) * (n // batch)
    return Problem(harness.near(bank, targets, SPREAD), bank, targets)


def whole(features: Tensor, bank: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(features @ bank.T / TEMPERATURE, targets)


def eager(features: Tensor, bank: Tensor, targets: Tensor) -> Found:
    return harness.value_and_gradient(whole, features, bank, targets)


def compiled(features: Tensor, bank: Tensor, targets: Tensor) -> Found:
    return harness.value_and_gradient(harness.compiled(whole), features, bank, targets)


def ours(features: Tensor, bank: Tensor, targets: Tensor) -> Found:
    return harness.value_and_gradient(bank_contrast_loss, features, bank, targets, TEMPERATURE)


def one_read(features: Tensor, bank: Tensor, targets: Tensor) -> Found:
    return harness.value_and_gradient(one_read_contrast_loss, features, bank, targets, TEMPERATURE)


def need_one_read(device: str, dtype: str, size: tuple[int, int, int]) -> None:
    """Skip where the one-read form has no kernel, or rounds the rows first."""
    if dtype == "float32":
        pytest.skip("the one-read form is for 16-bit rows")
    problem = make(device, dtype, *size[:1], 2 * size[0], size[2])
    if not fits(problem.features, problem.bank):
        pytest.skip("the one-read form has no kernel for this shape")
    try:
        one_read(*problem)
    except RuntimeError as error:
        pytest.skip(str(error))


FORMS: dict[str, Callable[..., Found]] = {
    "eager": eager,
    "compiled": compiled,
    "ours": ours,
    "one read": one_read,
}


def make_classes(device: str, dtype: str, batch: int, n: int, dim: int) -> tuple[Any, ...]:
    """Some 20 images per class, and what is computed once per epoch: rows by class, and sizes."""
    bank, identities = harness.unit_rows(device, dtype, n, dim)
    classes = identities.unique(return_inverse=True)[1]
    places = torch.arange(batch, device=device) * (n // batch)
    return (
        harness.near(bank, places, SPREAD),
        bank,
        classes[places],
        classes,
        class_index(classes),
        classes.bincount(),
    )


def whole_classes(
    features: Tensor, bank: Tensor, targets: Tensor, classes: Tensor, sizes: Tensor
) -> Tensor:
    sums = bank.new_zeros(len(sizes), bank.shape[1]).index_add_(0, classes, bank)
    means = sums / sizes[:, None].to(sums.dtype)
    return F.cross_entropy(features @ means.T / TEMPERATURE, targets)


def eager_classes(
    features: Tensor,
    bank: Tensor,
    targets: Tensor,
    classes: Tensor,
    index: ClassIndex,
    sizes: Tensor,
) -> Found:
    return harness.value_and_gradient(whole_classes, features, bank, targets, classes, sizes)


def ours_classes(
    features: Tensor,
    bank: Tensor,
    targets: Tensor,
    classes: Tensor,
    index: ClassIndex,
    sizes: Tensor,
) -> Found:
    loss = functools.partial(bank_contrast_loss, classes=index)
    return harness.value_and_gradient(loss, features, bank, targets, TEMPERATURE)


FORMS_OF_CLASSES: dict[str, Callable[..., Found]] = {"eager": eager_classes, "ours": ours_classes}


def work(dtype: str, batch: int, n: int, dim: int, classes: int | None = None) -> harness.Work:
    """Two products, logits and gradient.

    Bank and features are read once, the gradient is written, and there are 8 bytes per target and
    class. Over means of classes the products are with the means, and each value of the bank is
    added once.
    """
    rows = n if classes is None else classes
    operations = 4.0 * batch * rows * dim + (0 if classes is None else n * dim)
    values = (n + 2 * batch) * dim * getattr(torch, dtype).itemsize
    return harness.Work(operations, values + 8.0 * (batch + (0 if classes is None else n)), dtype)


class Expected(NamedTuple):
    """Reference results of a problem.

    Args:
        found: Loss and gradient by the operator.
        reference: Gradients of the first features in float64.
        error_of_eager: Eager's error on these.
    """

    found: Found
    reference: Tensor
    error_of_eager: float


@functools.lru_cache(maxsize=1)
def expected(device: str, dtype: str, size: tuple[int, int, int], with_classes: bool) -> Expected:
    """Compute the reference results.

    The operator's loss is a mean over the batch, the reference's a sum over the first features, so
    their gradients differ by the factor B.
    """
    if with_classes:
        features, bank, targets, classes, index, sizes = make_classes(device, dtype, *size)
        found = ours_classes(features, bank, targets, classes, index, sizes)
        plain = eager_classes(features[:COMPARED], bank, targets[:COMPARED], classes, index, sizes)
    else:
        features, bank, targets = make(device, dtype, *size)
        classes = None
        found = ours(features, bank, targets)
        plain = eager(features[:COMPARED], bank, targets[:COMPARED])
    loss = functools.partial(bank_contrast_loss_reference, classes=classes, reduction="sum")
    some = features[:COMPARED].double()
    _, reference = harness.value_and_gradient(
        loss, some, bank.double(), targets[:COMPARED], TEMPERATURE
    )
    return Expected(found, reference, harness.relative_error(plain[1] * len(some), reference))


def check(benchmark: BenchmarkFixture, found: Found, wanted: Expected, batch: int) -> None:
    error = harness.relative_error(found[1][:COMPARED] * batch, wanted.reference)
    harness.check(benchmark, error, wanted.error_of_eager, found, wanted.found)


@pytest.mark.parametrize("form", FORMS)
def test_bank_contrast_loss(
    benchmark: BenchmarkFixture, size: tuple[int, int, int], dtype: str, form: str, device: str
) -> None:
    if form == "compiled":
        harness.need_compiler(device)
    if form == "one read":
        need_one_read(device, dtype, size)
    batch, n, dim = size
    found = harness.measure_operator(
        benchmark,
        FORMS[form],
        harness.Inputs(make, (dtype, *size)),
        device,
        operator="bank_contrast_loss",
        form=form,
        size=f"{batch} x {n:,} x {dim:,}",
        dtype=dtype,
        work=work(dtype, *size),
    )
    check(benchmark, found, expected(device, dtype, size, False), batch)


@pytest.mark.parametrize("form", FORMS_OF_CLASSES)
def test_bank_contrast_loss_of_classes(
    benchmark: BenchmarkFixture, size: tuple[int, int, int], dtype: str, form: str, device: str
) -> None:
    batch, n, dim = size
    found = harness.measure_operator(
        benchmark,
        FORMS_OF_CLASSES[form],
        harness.Inputs(make_classes, (dtype, *size)),
        device,
        operator="bank_contrast_loss, classes",
        form=form,
        size=f"{batch} x {n:,} x {dim:,}",
        dtype=dtype,
        work=work(dtype, *size, classes=n // 20),
    )
    check(benchmark, found, expected(device, dtype, size, True), batch)
