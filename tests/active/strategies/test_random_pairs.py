"""The random strategy draws pairs of different images."""

from __future__ import annotations

from fastreid_al.active.strategies.random_pairs import random_pairs


def test_random_pairs_are_the_same_for_a_seed_and_never_an_image_with_itself() -> None:
    pairs = random_pairs(50, 200, seed=3)
    assert pairs == random_pairs(50, 200, seed=3)
    assert all(a < b for a, b in pairs)
    assert random_pairs(1, 5, 0) == []
