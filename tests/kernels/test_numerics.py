"""The numerical building blocks that other code uses."""

from __future__ import annotations

import pytest
import torch
from reid_kernels import numerics
from reid_kernels.numerics import accumulator, full_precision, select_topk

from tests.support.kernels import on_grid


@pytest.mark.parametrize("k", [1, 5, 40])
def test_select_topk_equals_a_stable_sort(k: int) -> None:
    similarity = on_grid(30, 6) @ on_grid(40, 6, seed=1).T
    expected, order = similarity.sort(dim=1, descending=True, stable=True)
    values, indices = select_topk(similarity, k)
    assert torch.equal(values, expected[:, :k])
    assert torch.equal(indices, order[:, :k])


def test_select_topk_does_not_depend_on_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    similarity = on_grid(30, 2) @ on_grid(40, 2, seed=1).T
    whole = select_topk(similarity, 7)
    monkeypatch.setattr(numerics, "_BLOCK", 1)
    assert all(map(torch.equal, whole, select_topk(similarity, 7)))


def test_select_topk_ranks_a_nan_first() -> None:
    similarity = torch.tensor([[1.0, torch.nan, 1.0, 1.0]])
    assert select_topk(similarity, 2)[1].tolist() == [[1, 0]]


def test_full_precision_turns_autocast_off_inside() -> None:
    x = torch.randn(8, 64)
    expected = x @ x.T
    with torch.autocast("cpu", torch.bfloat16):
        with full_precision(x):
            assert torch.equal(x @ x.T, expected)
        assert (x @ x.T).dtype == torch.bfloat16


def test_only_float64_is_summed_in_float64() -> None:
    assert accumulator(torch.float64) == torch.float64
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert accumulator(dtype) == torch.float32
