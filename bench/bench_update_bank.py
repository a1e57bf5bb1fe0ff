"""`update_bank_` next to the published loop over the batch.

Where no row is the target of two features, also next to one indexed assignment.
"""

from __future__ import annotations

from typing import NamedTuple

import harness
import pytest
import torch
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture
from reid_kernels import update_bank_, update_bank_reference
from torch import Tensor

#: Batch, different rows that it updates, bank rows, width.
SIZES = {
    scale: [(batch, batch, n, dim), (batch, batch // 4, n, dim)]
    for scale, batch, n, dim in (
        ("tiny", 8, 40, 32),
        ("small", 64, 5_000, 512),
        ("market", 64, 12_936, 2_048),
        ("msmt17", 64, 32_621, 2_048),
        ("million", 64, 1_000_000, 2_048),
    )
}
MOMENTUM = 0.2


class Problem(NamedTuple):
    """A bank, which calls change, features of a batch, and the rows that they update."""

    bank: Tensor
    features: Tensor
    targets: Tensor


def make(device: str, dtype: str, batch: int, named: int, n: int, dim: int) -> Problem:
    bank, _ = harness.unit_rows(device, dtype, n, dim)
    targets = (torch.arange(batch, device=device) % named) * (n // named)
    return Problem(bank, harness.near(bank, targets), targets)


def ours(bank: Tensor, features: Tensor, targets: Tensor) -> Tensor:
    return update_bank_(bank, features, targets, MOMENTUM)


def loop(bank: Tensor, features: Tensor, targets: Tensor) -> Tensor:
    for feature, target in zip(features, targets, strict=True):
        bank[target] = MOMENTUM * bank[target] + (1 - MOMENTUM) * feature
        bank[target] /= bank[target].norm()
    return bank


def indexed(bank: Tensor, features: Tensor, targets: Tensor) -> Tensor:
    bank[targets] = F.normalize(MOMENTUM * bank[targets] + (1 - MOMENTUM) * features)
    return bank


FORMS = {"eager loop": loop, "indexed": indexed, "ours": ours}


def work(dtype: str, batch: int, named: int, n: int, dim: int) -> harness.Work:
    """Three operations to move each value and three to normalise it.

    Features and rows are read, rows are written, and there are 8 bytes per target.
    """
    values = (batch + 2 * named) * dim
    return harness.Work(
        6.0 * batch * dim, values * getattr(torch, dtype).itemsize + 8.0 * batch, "float32"
    )


@pytest.mark.parametrize("form", FORMS)
def test_update_bank(
    benchmark: BenchmarkFixture, size: tuple[int, int, int, int], dtype: str, form: str, device: str
) -> None:
    batch, named, n, dim = size
    if form == "indexed" and named < batch:
        pytest.skip("an indexed assignment applies one of several features of a row")
    harness.measure_operator(
        benchmark,
        FORMS[form],
        harness.Inputs(make, (dtype, *size)),
        device,
        operator="update_bank_",
        form=form,
        size=f"{batch} to {named} of {n:,} x {dim:,}",
        dtype=dtype,
        work=work(dtype, *size),
    )
    bank, features, targets = make(device, dtype, *size)
    rows, places = targets.unique(return_inverse=True)
    by_loop, operators = (call(*make(device, dtype, *size))[rows] for call in (loop, ours))
    found = FORMS[form](*make(device, dtype, *size))
    reference = update_bank_reference(bank[rows].double(), features.double(), places, MOMENTUM)
    error = harness.relative_error(found[rows], reference)
    error_of_eager = harness.relative_error(by_loop, reference)
    harness.check(benchmark, error, error_of_eager, [found[rows]], [operators])
    changed = (found != bank).any(1).nonzero()[:, 0]
    assert torch.isin(changed, rows).all()
