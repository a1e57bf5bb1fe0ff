"""The pseudo-label memory bank beside the published matrix of n x n floats."""

from __future__ import annotations

import functools
from typing import NamedTuple

import harness
import pytest
import torch
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from fastreid_al.memory import PseudoLabelMemoryBank

#: Batch, labels of each image, images.
SIZES = {
    "tiny": [(8, 3, 50)],
    "small": [(64, 20, 5_000)],
    "market": [(64, 20, 12_936)],
    "msmt17": [(64, 20, 32_621)],
    "million": [(64, 20, 1_000_000), (64, 20, 5_000_000)],
}
#: Most images that a matrix of floats is made for: 6.4 GB.
DENSE_UP_TO = 40_000

Answer = tuple[Tensor, ...]


class Labels(NamedTuple):
    """Images of a batch, none twice, and their labels."""

    rows: Tensor
    indptr: Tensor
    indices: Tensor


class Dense:
    """The published form: a row of zeros and ones for each image."""

    def __init__(self, n: int, device: str) -> None:
        # Written, so that every page is there.
        self.bank = torch.full((n, n), 0.0, device=device).fill_diagonal_(1)

    @property
    def nbytes(self) -> int:
        """Bytes of the matrix."""
        return self.bank.nbytes

    def update(self, rows: Tensor, indptr: Tensor, indices: Tensor) -> None:
        """Rows of zeros, then the ones."""
        self.bank[rows] = 0
        places = rows.repeat_interleave(indptr.diff(), output_size=len(indices))
        self.bank.index_put_((places, indices), self.bank.new_ones(()))

    def lookup(self, rows: Tensor) -> Answer:
        """Labels in CSR form."""
        place, indices = self.bank[rows].nonzero(as_tuple=True)
        return F.pad(torch.bincount(place, minlength=len(rows)).cumsum(0), (1, 0)), indices

    def lookup_bits(self, rows: Tensor) -> Tensor:
        """Labels as rows of floats."""
        return self.bank[rows]


Bank = Dense | PseudoLabelMemoryBank


def make(device: str, form: str, batch: int, labels: int, n: int) -> tuple[Bank, Labels]:
    """A bank that knows the batch, and the batch."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(n, generator=generator)[:batch]
    indices = torch.randint(n, (batch * labels,), generator=generator)
    given = Labels(*(x.to(device) for x in (rows, torch.arange(batch + 1) * labels, indices)))
    bank: Bank = (
        Dense(n, device) if form.startswith("eager") else PseudoLabelMemoryBank(n, device=device)
    )
    bank.update(*given)
    return bank, given


def update(bank: Bank, given: Labels) -> Answer:
    bank.update(*given)
    return ()


def lookup(bank: Bank, given: Labels) -> Answer:
    return bank.lookup(given.rows)


def lookup_bits(bank: Bank, given: Labels) -> Answer:
    return (bank.lookup_bits(given.rows),)


def both(bank: Bank, given: Labels) -> Answer:
    bank.update(*given)
    return bank.lookup(given.rows)


FORMS = ("eager, dense float32", "ours")
CALLS = {"update": update, "lookup": lookup, "lookup_bits": lookup_bits, "update + lookup": both}


def work(call: str, row: int, batch: int, labels: int, n: int) -> harness.Work:
    """An operation for each label.

    Rows of the bank in or out, ids as CSR in or out, bit rows out.
    """
    ids = 8.0 * batch * (labels + 2)
    words = 4.0 * batch * ((n + 31) // 32)
    moved = {
        "update": batch * row + ids,
        "lookup": batch * row + ids,
        "lookup_bits": batch * row + words,
        "update + lookup": 2 * (batch * row + ids),
    }
    return harness.Work(float(batch * labels), moved[call], "float32")


@functools.lru_cache(maxsize=1)
def expected(device: str, size: tuple[int, int, int]) -> Answer:
    """The labels of each row, ascending."""
    rows, indptr, indices = make(device, "ours", *size)[1]
    pairs = (
        torch.arange(len(rows), device=device).repeat_interleave(indptr.diff()) * size[2] + indices
    )
    pairs = pairs.unique()
    counts = torch.bincount(pairs // size[2], minlength=len(rows))
    return F.pad(counts.cumsum(0), (1, 0)), pairs % size[2]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("form", FORMS)
def test_plmb(
    benchmark: BenchmarkFixture, size: tuple[int, int, int], form: str, call: str, device: str
) -> None:
    batch, labels, n = size
    if form.startswith("eager") and n > DENSE_UP_TO:
        pytest.skip(f"a matrix of floats needs {4 * n * n / 1e9:,.0f} GB at n = {n:,}")
    ours, _ = make(device, "ours", *size)
    harness.measure_operator(
        benchmark,
        CALLS[call],
        harness.Inputs(make, (form, *size)),
        device,
        operator=f"pseudo-label memory bank: {call}",
        form=form,
        size=f"{batch} x {labels} labels of {n:,}",
        dtype="int32",
        work=work(call, ours.nbytes // n, *size),
    )
    bank, given = make(device, form, *size)
    benchmark.extra_info["bank_MB"] = round(bank.nbytes / 1e6, 1)
    for found, wanted in zip(both(bank, given), expected(device, size), strict=True):
        assert torch.equal(found, wanted)
