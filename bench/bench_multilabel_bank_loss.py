"""`multilabel_bank_loss`, forward and backward, next to MMCL's dense form: all similarities and a
sort.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import harness
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from reid_kernels.multilabel import multilabel_bank_loss, multilabel_bank_loss_reference
from torch import Tensor

#: Batch, bank rows, width.
SIZES = {
    "tiny": [(1, 40, 32)],
    "small": [(64, 5_000, 512)],
    "market": [(64, 12_936, 2_048)],
    "msmt17": [(64, 32_621, 2_048)],
    "million": [(64, n, 2_048) for n in (100_000, 1_000_000)],
}
DELTA, HARD_RATIO = 5.0, 0.01
#: Features that are compared with float64.
COMPARED = 8

Found = tuple[Tensor, Tensor]


class Problem(NamedTuple):
    """Features, bank and positives: CSR for the operator, a (B, n) mask for the dense form."""

    features: Tensor
    bank: Tensor
    indptr: Tensor
    indices: Tensor
    mask: Tensor


def make(device: str, dtype: str, batch: int, n: int, dim: int) -> Problem:
    bank, identities = harness.unit_rows(device, dtype, n, dim)
    places = torch.arange(batch, device=device) * (n // batch)
    mask = identities[places, None] == identities
    indptr = torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0))
    return Problem(harness.near(bank, places), bank, indptr, mask.nonzero()[:, 1], mask)


def ours(features: Tensor, bank: Tensor, indptr: Tensor, indices: Tensor, mask: Tensor) -> Found:
    loss = functools.partial(multilabel_bank_loss, delta=DELTA, hard_ratio=HARD_RATIO)
    return harness.value_and_gradient(loss, features, bank, (indptr, indices))


def dense(features: Tensor, bank: Tensor, mask: Tensor) -> Tensor:
    similarity = features @ bank.T
    positives = mask.sum(1)
    near = (mask * (1 - similarity).square()).sum(1) / positives
    hard = (HARD_RATIO * (len(bank) - positives)).long().clamp(min=1)
    listed = similarity.masked_fill(mask, -torch.inf).topk(int(hard.max()), dim=1).values
    counted = torch.arange(listed.shape[1], device=mask.device) < hard[:, None]
    far = (counted * (1 + listed).square()).sum(1) / hard
    return (DELTA * near + far).mean()


def eager(features: Tensor, bank: Tensor, indptr: Tensor, indices: Tensor, mask: Tensor) -> Found:
    return harness.value_and_gradient(dense, features, bank, mask)


FORMS = {"eager": eager, "ours": ours}


def work(dtype: str, batch: int, n: int, dim: int) -> harness.Work:
    """The product, and one over the hard negatives for the gradient.

    Bank and features are read once, the gradient is written.
    """
    operations = 2.0 * batch * n * dim + 2.0 * batch * int(HARD_RATIO * n) * dim
    return harness.Work(
        operations, float((n + 2 * batch) * dim * getattr(torch, dtype).itemsize), dtype
    )


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
def expected(device: str, dtype: str, size: tuple[int, int, int]) -> Expected:
    problem = make(device, dtype, *size)
    features, bank, indptr, indices, mask = problem
    some, starts = features[:COMPARED], indptr[: COMPARED + 1]
    loss = functools.partial(
        multilabel_bank_loss_reference, delta=DELTA, hard_ratio=HARD_RATIO, reduction="sum"
    )
    _, reference = harness.value_and_gradient(
        loss, some.double(), bank.double(), (starts, indices[: starts[-1]])
    )
    _, plain = harness.value_and_gradient(dense, some, bank, mask[:COMPARED])
    return Expected(ours(*problem), reference, harness.relative_error(plain * len(some), reference))


@pytest.mark.parametrize("form", FORMS)
def test_multilabel_bank_loss(
    benchmark: BenchmarkFixture, size: tuple[int, int, int], dtype: str, form: str, device: str
) -> None:
    batch, n, dim = size
    found = harness.measure_operator(
        benchmark,
        FORMS[form],
        harness.Inputs(make, (dtype, *size)),
        device,
        operator="multilabel_bank_loss",
        form=form,
        size=f"{batch} x {n:,} x {dim:,}",
        dtype=dtype,
        work=work(dtype, *size),
    )
    wanted = expected(device, dtype, size)
    error = harness.relative_error(found[1][:COMPARED] * batch, wanted.reference)
    harness.check(benchmark, error, wanted.error_of_eager, found, wanted.found)
