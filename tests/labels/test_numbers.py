"""Identities keep the numbers of an earlier table, one each, and new ones get new numbers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from fastreid_al.labels.numbers import keep_numbers


def numbered(groups: list[int], old: list[int], first_new: int = 100) -> list[int]:
    return keep_numbers(np.array(groups), np.array(old), first_new).tolist()


def test_the_same_identities_keep_their_numbers() -> None:
    assert numbered([0, 0, 1, 1, -1], [7, 7, 3, 3, -1]) == [7, 7, 3, 3, -1]
    assert numbered([1, 1, 0, 0, -1], [7, 7, 3, 3, -1]) == [7, 7, 3, 3, -1]


def test_an_identity_that_was_split_keeps_its_number_in_the_larger_part() -> None:
    assert numbered([0, 0, 1, 1, 1], [4] * 5) == [100, 100, 4, 4, 4]


def test_identities_that_were_joined_keep_the_number_of_most_images() -> None:
    assert numbered([0] * 5, [1, 1, 2, 2, 2]) == [2] * 5


def test_new_identities_get_new_numbers_in_the_order_of_their_images() -> None:
    assert numbered([2, 2, 0, 0, 1, 1], [-1] * 6) == [100, 100, 101, 101, 102, 102]
    assert numbered([-1, -1], [3, 4]) == [-1, -1]
    assert numbered([], []) == []


def test_a_number_goes_to_one_identity_so_that_most_images_keep_theirs() -> None:
    # The first shares 3 images with 1 and 2 with 2; the second 3 with 1 and none with 2.
    groups = [0] * 5 + [1] * 3
    assert numbered(groups, [1, 1, 1, 2, 2, 1, 1, 1]) == [2] * 5 + [1] * 3


@pytest.mark.parametrize("seed", range(20))
def test_the_assignment_is_a_maximum(seed: int) -> None:
    draw = np.random.default_rng(seed)
    groups = draw.integers(-1, 8, 60)
    old = draw.integers(-1, 10, 60)
    kept = keep_numbers(groups, old, 100)
    table = np.zeros((8, 10), dtype=int)
    for group, number in zip(groups, old, strict=True):
        if group >= 0 <= number:
            table[group, number] += 1
    best = table[linear_sum_assignment(table, maximize=True)].sum()
    assert ((kept == old) & (kept >= 0)).sum() == best
    pairs = {(g, k) for g, k in zip(groups.tolist(), kept.tolist(), strict=True) if g >= 0}
    assert len(pairs) == len({g for g, _ in pairs}) == len({k for _, k in pairs})
    assert (keep_numbers(groups, old, 100) == kept).all()
    assert ((kept < 0) == (groups < 0)).all()
