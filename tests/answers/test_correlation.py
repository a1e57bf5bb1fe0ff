"""Correlation clustering against all partitions of small graphs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastreid_al.answers.correlation import correlation_clusters, support_of


def partitions(count: int) -> Iterator[list[int]]:
    """Every partition of the nodes, as the number of each node's group."""

    def extend(groups: list[int]) -> Iterator[list[int]]:
        if len(groups) == count:
            yield groups
            return
        for group in range(max(groups, default=-1) + 2):
            yield from extend([*groups, group])

    return extend([])


def best_support(count: int, weights: dict[tuple[int, int], float]) -> float:
    return max(support_of(part, weights) for part in partitions(count))


def random_graph(seed: int, count: int, share: float) -> dict[tuple[int, int], float]:
    draw = random.Random(seed)
    pairs = [(i, j) for i in range(count) for j in range(i)]
    return {pair: draw.gauss(0, 2) for pair in pairs if draw.random() < share}


def planted_graph(
    seed: int, count: int, groups: int, share: float, wrong: float
) -> tuple[list[int], dict[tuple[int, int], float]]:
    """Planted groups and weights of 3 or -3, some of which have the wrong sign."""
    draw = random.Random(seed)
    planted = [node % groups for node in range(count)]
    weights = {}
    for i in range(count):
        for j in range(i):
            if draw.random() < share:
                agrees = (planted[i] == planted[j]) != (draw.random() < wrong)
                weights[j, i] = 3.0 if agrees else -3.0
    return planted, weights


def same_partition(a: list[int], b: list[int]) -> bool:
    return len(set(zip(a, b, strict=True))) == len(set(a)) == len(set(b))


@pytest.mark.parametrize("share", [0.3, 0.6, 1.0])
def test_the_optimum_of_small_graphs_is_nearly_always_found(share: float) -> None:
    found = 0
    for seed in range(60):
        weights = random_graph(seed, 7, share)
        got = support_of(correlation_clusters(7, weights), weights)
        best = best_support(7, weights)
        assert got <= best + 1e-9
        assert got >= 0.85 * best
        found += got > best - 1e-9
    assert found >= 54


def test_planted_groups_survive_wrong_weights() -> None:
    for seed in range(10):
        planted, weights = planted_graph(seed, 60, 6, share=1.0, wrong=0.1)
        assert same_partition(correlation_clusters(60, weights), planted)


def test_hardly_a_planted_partition_is_better() -> None:
    # With fewer weights and more wrong ones the planted groups need not be the best.
    ratios = []
    for seed in range(20):
        planted, weights = planted_graph(seed, 60, 6, share=0.4, wrong=0.15)
        got = support_of(correlation_clusters(60, weights), weights)
        ratios.append(got / support_of(planted, weights))
    assert min(ratios) > 0.9
    assert sum(ratios) / len(ratios) > 1.02


def test_a_chain_is_cut_at_its_weakest_contradiction() -> None:
    # 0 = 1 = 2 = 3, and 0 is not 3: the weakest of the three links gives way.
    weights = {(0, 1): 3.0, (1, 2): 1.0, (2, 3): 3.0, (0, 3): -2.0}
    assert correlation_clusters(4, weights) == [0, 0, 2, 2]
    weights[0, 3] = -0.5
    assert correlation_clusters(4, weights) == [0, 0, 0, 0]


def test_a_node_leaves_a_group_that_greedy_joining_put_it_into() -> None:
    # The strongest pair is (0, 1), but 1 belongs to 2 and 3 against 0.
    weights = {(0, 1): 3.0, (1, 2): 2.0, (1, 3): 2.0, (2, 3): 2.5, (0, 2): -5.0, (0, 3): -5.0}
    assert correlation_clusters(4, weights) == [0, 1, 1, 1]


def test_without_evidence_every_node_is_alone() -> None:
    assert correlation_clusters(3, {}) == [0, 1, 2]
    assert correlation_clusters(0, {}) == []
    assert correlation_clusters(3, {(0, 1): -1.0, (1, 2): 0.0}) == [0, 1, 2]


@settings(deadline=None)
@given(st.data())
def test_the_result_has_no_better_move_and_depends_on_the_weights_alone(data: Any) -> None:
    count = data.draw(st.integers(1, 9))
    pairs = [(i, j) for i in range(count) for j in range(i)]
    chosen = data.draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    weights = {pair: data.draw(st.integers(-4, 4)) / 2 for pair in chosen}
    part = correlation_clusters(count, weights)
    assert part == [min(i for i in range(count) if part[i] == group) for group in part]
    support = support_of(part, weights)
    for node in range(count):
        for group in {*part, count}:
            moved = [group if i == node else g for i, g in enumerate(part)]
            assert support_of(moved, weights) <= support + 1e-6
    shuffled = list(weights.items())
    random.Random(0).shuffle(shuffled)
    turned = {(j, i): weight for (i, j), weight in shuffled}
    assert correlation_clusters(count, turned) == part


@pytest.mark.parametrize(
    ("count", "weights", "message"),
    [
        (2, {(0, 2): 1.0}, "weights: got 2"),
        (2, {(0, 0): 1.0}, r"got the pair \(0, 0\)"),
        (2, {(0, 1): 1.0, (1, 0): 1.0}, "each pair once"),
        (2, {(0, 1): float("nan")}, "weights: got nan"),
        (-1, {}, "count: got -1"),
        (2, [1.0], "expected weights by pair"),
    ],
)
def test_wrong_arguments_are_refused(count: int, weights: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        correlation_clusters(count, weights)
