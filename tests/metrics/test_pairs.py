"""Pair scores against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fastreid_al.metrics import changed_pairs, list_scores, pair_scores
from tests.support.references import reference_pairs


@pytest.mark.parametrize("seed", range(10))
def test_pair_scores_equal_brute_force(seed: int) -> None:
    random = np.random.default_rng(seed)
    labels, identities = random.integers(-1, 1 + seed * 2, 60), random.integers(0, 8, 60)
    got = pair_scores(torch.from_numpy(labels), torch.from_numpy(identities))
    assert got == pytest.approx(reference_pairs(labels, identities), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_changed_pairs_equal_brute_force(seed: int) -> None:
    random = np.random.default_rng(seed)
    before, after = random.integers(-1, 2 + 2 * seed, (2, 50))
    got = changed_pairs(torch.from_numpy(before), torch.from_numpy(after))
    together = [(x[:, None] == x) & (x >= 0) for x in (before, after)]
    assert got == np.triu(together[0] != together[1], 1).sum()
    assert changed_pairs(torch.from_numpy(before), torch.from_numpy(before)) == 0


def test_pair_scores_of_no_pairs() -> None:
    assert pair_scores(torch.tensor([-1, -1]), torch.tensor([0, 1])) == (1, 1, 1)


@pytest.mark.parametrize(
    ("labels", "identities", "message"),
    [
        (None, [0], "labels: got None"),
        ([0, 1.5], [0, 1], "labels: got 1.5 in a list, expected integers"),
        ([0, -2], [0, 1], "labels: got -2 at index 1, expected -1 or more"),
        ([0, 1], [0], r"identities: got shape \(1,\), expected \(2,\)"),
        (torch.zeros(2, 1), [0, 0], r"labels: got shape \(2, 1\)"),
        (torch.zeros(2, dtype=torch.bool), [0, 0], "labels: got dtype torch.bool"),
    ],
)
def test_what_pair_scores_cannot_compare_is_named(
    labels: object, identities: object, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pair_scores(labels, identities)  # type: ignore[arg-type]


def lists(*entries: int, indptr: tuple[int, ...] = (0, 2, 3, 4)) -> tuple[Tensor, Tensor]:
    return torch.tensor(indptr), torch.tensor(entries)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lists(0, 1, 1, -1), "indices: got -1 at index 3"),
        (lists(0, 1, 1, 3), "indices: got 3 at index 3"),
        (lists(1, 1, 1, 2), "indices: got 1 twice in the list of image 0"),
        (lists(0, 1, 1, 2, indptr=(0, 3, 2, 4)), "indptr: got 3 before 2"),
        (lists(0, 1, 1, 2, indptr=(1, 2, 3, 4)), "indptr: got 1 first and 4 last"),
        (lists(0, 1, 1, 2, indptr=(0, 4)), r"indptr: got shape \(2,\), expected \(4,\)"),
    ],
)
def test_malformed_lists_are_named(given: tuple[Tensor, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list_scores(*given, torch.tensor([0, 0, 1]))


def test_lists_in_any_order_are_scored() -> None:
    assert list_scores(*lists(1, 0, 1, 2), [0, 0, 1]) == (1.0, 0.5)  # type: ignore[arg-type]
