"""`label_prediction` next to MPLP as published.

The published form sorts each image's list, and the list of every candidate that is visited.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import harness
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from reid_kernels import label_prediction, label_prediction_reference
from torch import Tensor

#: Batch, bank rows, width.
SIZES = {
    "tiny": [(2, 40, 16)],
    "small": [(32, 3_000, 512)],
    "market": [(64, 12_936, 2_048)],
    "msmt17": [(64, 32_621, 2_048)],
    "million": [(64, 1_000_000, 2_048)],
}
THRESHOLD = 0.6
AT_LEAST = 10
#: Images of one centre are about 0.7 similar, so that a label or two dozen is found for each.
SPREAD = 0.65
#: Images that are compared with float64, and the largest bank for which the comparison is with the
#: reference, which computes n x n similarities.
COMPARED = 8
REFERENCE_UP_TO = 5_000

Found = tuple[Tensor, Tensor]


def make(device: str, dtype: str, batch: int, n: int, dim: int) -> Found:
    """The bank and the batch's rows.

    Dot products are exact in float32, so all forms see the same order.
    """
    bank, _ = harness.unit_rows(device, dtype, n, dim, spread=SPREAD, exact=True)
    return bank, torch.arange(batch, device=device) * (n // batch)


def ours(bank: Tensor, rows: Tensor) -> Found:
    return label_prediction(bank, rows, threshold=THRESHOLD, at_least=AT_LEAST)


def published(bank: Tensor, rows: Tensor) -> Found:
    indptr: list[int] = [0]
    parts: list[Tensor] = []
    for i in rows.tolist():
        listed, order = (bank @ bank[i]).sort(descending=True, stable=True)
        above = int((listed > THRESHOLD).sum())
        bound = max(above, AT_LEAST)
        last = -1
        for place, candidate in enumerate(order[:bound].tolist()):
            similarity = bank @ bank[candidate]
            ranked = similarity.sort(descending=True).values
            if int((ranked == similarity[i]).nonzero()[0]) > bound:
                break
            last = place
        positives = order[: min(max(1, last) + 1, above)]
        if not bool((positives == i).any()):
            positives = torch.cat([positives, positives.new_tensor([i])])
        parts.append(positives)
        indptr.append(indptr[-1] + len(positives))
    return torch.tensor(indptr, device=bank.device), torch.cat(parts)


FORMS = {"eager, as published": published, "ours": ours}


def work(dtype: str, batch: int, n: int, dim: int, positives: int) -> harness.Work:
    """A product of the bank and each image that is in the batch or a positive.

    The bank is read twice: candidates are known only after the first pass.
    """
    itemsize = getattr(torch, dtype).itemsize
    return harness.Work(
        2.0 * positives * n * dim, 2.0 * n * dim * itemsize + 8.0 * (batch + positives), dtype
    )


class Expected(NamedTuple):
    """Reference results of a problem.

    Args:
        found: Labels by the operator.
        reference: Pairs of the first images by the reference in float64.
        error_of_eager: Fraction of eager's pairs that are wrong.
    """

    found: Found
    reference: Tensor
    error_of_eager: float


@functools.lru_cache(maxsize=1)
def expected(device: str, dtype: str, size: tuple[int, int, int]) -> Expected:
    bank, rows = make(device, dtype, *size)
    some = rows[:COMPARED]
    by = label_prediction_reference if len(bank) <= REFERENCE_UP_TO else published
    reference = pairs(by(bank.double(), some), len(bank))
    return Expected(
        ours(bank, rows), reference, wrong(pairs(published(bank, some), len(bank)), reference)
    )


def pairs(found: Found, n: int, images: int | None = None) -> Tensor:
    """Batch index and positive, as one number, of all images or of the first ones."""
    indptr, indices = found
    place = torch.arange(len(indptr) - 1, device=indptr.device).repeat_interleave(indptr.diff())
    kept = place < (len(indptr) if images is None else images)
    return place[kept] * n + indices[kept]


def wrong(found: Tensor, reference: Tensor) -> float:
    """Number of pairs that are in one of the two only, divided by the size of the second."""
    alone = (~torch.isin(found, reference)).sum() + (~torch.isin(reference, found)).sum()
    return float(alone / len(reference))


@pytest.mark.parametrize("form", FORMS)
def test_label_prediction(
    benchmark: BenchmarkFixture, size: tuple[int, int, int], dtype: str, form: str, device: str
) -> None:
    batch, n, dim = size
    wanted = expected(device, dtype, size)
    rows = make(device, dtype, *size)[1]
    images = len(torch.cat([wanted.found[1], rows]).unique())
    found = harness.measure_operator(
        benchmark,
        FORMS[form],
        harness.Inputs(make, (dtype, *size)),
        device,
        operator="label_prediction",
        form=form,
        size=f"{batch} of {n:,} x {dim:,}",
        dtype=dtype,
        work=work(dtype, *size, positives=images),
    )
    error = wrong(pairs(found, n, COMPARED), wanted.reference)
    benchmark.extra_info.update(
        labels_per_image=round(len(wanted.found[1]) / batch, 2),
        error_vs_float64=error,
        error_of_eager=wanted.error_of_eager,
    )
    # PyTorch rounds similarities of bfloat16 rows to bfloat16, which changes some ranks.
    if dtype == "float32" or form == "ours":
        assert error == 0
        assert wrong(pairs(found, n), pairs(wanted.found, n)) == 0
