"""Pseudo-labels over ranks: lists, graph and labels are those of a single process."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastreid_al import native
from fastreid_al.clustering import (
    Graph,
    dbscan,
    jaccard_graph,
    jaccard_sharded,
    nearest_neighbours,
    neighbours,
    self_paced_labels,
)
from fastreid_al.distributed.world import World
from tests.support.features import clustered_features
from tests.support.process_pool import Pool

K1, K2, EPS, GAP = 30, 6, 0.6, 0.02


def clustered(n: int, dim: int, dtype: torch.dtype = torch.float32, spread: float = 0.6) -> Tensor:
    """Rows of multiples of 2^-11: products are exact in any order of summation."""
    rows = torch.from_numpy(clustered_features(n, max(1, n // 12), dim=dim, spread=spread, seed=n))
    return (rows * 2048).round().div(2048).to(dtype)


def signs(n: int, dim: int) -> Tensor:
    """Similarities are a few multiples of 2 / dim, so that there are many ties."""
    return torch.from_numpy(
        np.random.default_rng(n).choice([-1.0, 1.0], (n, dim)) / math.sqrt(dim)
    ).float()


def copies(n: int, dim: int) -> Tensor:
    """Most rows are equal; some of two other kinds are among them."""
    rows = clustered(n, dim)
    rows[n // 8 : n - n // 8] = rows[0].clone()
    rows[n // 2 : n // 2 + 9] = rows[-1].clone()
    return rows


CASES = {
    "clustered": clustered(301, 64),
    "float64": clustered(150, 24, torch.float64),
    "ties": signs(230, 16),
    "ties in bfloat16": signs(190, 64),
    "copies": copies(260, 64),
    "one point, many times": torch.tensor([[1.0, 0.0]]).repeat(70, 1),
    "fewer on a rank than k1": clustered(41, 64),
    "fewer than k1": clustered(13, 16),
    "as many as ranks": clustered(4, 16),
    "an empty shard": clustered(5, 16),
    "one": torch.ones(1, 1),
    "none": torch.ones(0, 8),
}


def labels_of(
    features: Tensor, world: World, k1: int, k2: int
) -> tuple[Tensor, Graph, Tensor, float | None]:
    lists = nearest_neighbours(features, k1, world)
    graph = jaccard_graph(features, k1, k2, EPS + GAP, neighbours=lists, world=world)
    labels, threshold = self_paced_labels(graph, EPS, GAP, world=world)
    return (
        lists,
        graph,
        torch.cat([labels[None], dbscan(graph, (0.3, 0.5), 3, world=world)]),
        threshold,
    )


def labels_on_rank(
    world: World, features: Tensor, k1: int, k2: int, settings: dict[str, Any]
) -> tuple[Any, ...]:
    with pytest.MonkeyPatch.context() as patch:
        set_up(patch, **settings)
        own = features[world.local_slice(len(features))]
        lists, graph, labels, threshold = labels_of(own, world, k1, k2)
        return [x.numpy() for x in (lists, *graph[:3], labels)], threshold


def set_up(
    patch: pytest.MonkeyPatch, block: int = 2**23, compiled: bool = True, low: bool | None = None
) -> None:
    patch.setattr(jaccard_sharded, "_BLOCK", block)
    if not compiled:
        patch.setattr(native, "extension", lambda: None)
    if low is not None:
        patch.setattr(neighbours, "has_bf16_units", lambda: low)


def check(
    pool: Pool, size: int, features: Tensor, k1: int = K1, k2: int = K2, **settings: Any
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        set_up(patch, **settings)
        lists, graph, labels, threshold = labels_of(features, World(), k1, k2)
    got = pool.run(labels_on_rank, size, features, k1, k2, settings)
    parts = list(zip(*(arrays for arrays, _ in got), strict=True))
    assert np.array_equal(np.concatenate(parts[0]), lists)
    assert np.array_equal(np.concatenate([np.diff(p) for p in parts[1]]), graph.indptr.diff())
    assert np.array_equal(np.concatenate(parts[2]), graph.indices)
    assert np.concatenate(parts[3]).tobytes() == graph.distances.numpy().tobytes()
    for rank_labels, (_, rank_threshold) in zip(parts[4], got, strict=True):
        assert np.array_equal(rank_labels, labels)
        assert rank_threshold == threshold


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *(pytest.param(name, 4, marks=pytest.mark.slow) for name in CASES),
        ("clustered", 2),
        ("copies", 3),
        ("ties", 3),
        ("an empty shard", 3),
    ],
)
def test_lists_graph_and_labels_are_those_of_a_single_process(
    pool: Pool, name: str, size: int
) -> None:
    check(pool, size, CASES[name])


@pytest.mark.parametrize(
    ("k1", "k2"), [(1, 1), (7, 9), pytest.param(140, 20, marks=pytest.mark.slow)]
)
def test_results_are_the_same_for_lists_of_other_lengths(pool: Pool, k1: int, k2: int) -> None:
    check(pool, 3, CASES["clustered"], k1, k2)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("block", [1, 3000])
def test_results_are_the_same_in_blocks_of_any_size(pool: Pool, block: int, compiled: bool) -> None:
    check(pool, 3, CASES["fewer on a rank than k1"], block=block, compiled=compiled)


@pytest.mark.parametrize(
    "name",
    [
        "an empty shard",
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("float64", "ties", "copies", "none")),
    ],
)
def test_results_are_the_same_without_the_extension(pool: Pool, name: str) -> None:
    check(pool, 4, CASES[name], compiled=False)


@pytest.mark.parametrize("low", [True, False])
def test_lists_are_exact_from_float32_and_bfloat16_tiles(pool: Pool, low: bool) -> None:
    """Arbitrary rows: similarities are the float32 nearest to the exact values."""
    features = torch.from_numpy(clustered_features(700, 30, dim=64, spread=0.3)).float()
    check(pool, 2, features, 20, low=low)
    features[100:600] = features[99] + 1e-4 * features[100:600]
    check(pool, 3, torch.nn.functional.normalize(features), 20, low=low)


@pytest.mark.slow
def test_random_sets_of_any_size(pool: Pool) -> None:
    random = np.random.default_rng(5)
    for _ in range(6):
        n, k1 = int(random.integers(0, 60)), int(random.integers(1, 24))
        dtype = torch.float64 if random.integers(2) else torch.float32
        features = clustered(
            n, int(random.choice([2, 16, 64])), dtype, float(random.choice([0.1, 0.6, 2.0]))
        )
        lengths = torch.linalg.vector_norm(features, dim=1)
        assert not len(features) or float((lengths - 1).abs().max()) < 1e-2
        check(pool, int(random.integers(2, 5)), features, k1, int(random.integers(1, 10)))


def refused(world: World, name: str) -> str:
    features = clustered(20, 16)[world.local_slice(20)]
    last, options = world.rank == world.size - 1, {}
    if name == "lists":
        lists = nearest_neighbours(clustered(20, 16), 6)[world.local_slice(20)]
        options = {"neighbours": lists[:, :5] if last else lists}
    elif last and name in ("not finite", "long"):
        features[1, 0] = torch.nan if name == "not finite" else 2.0
    elif last:
        features = {
            "dtype": features.half(),
            "width": features[:, :3],
            "rows": features[2:],
            "shape": features[0],
        }[name]
    try:
        jaccard_graph(features, 6, world=world, **options)
    except ValueError as error:
        return str(error)
    return "accepted"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("not finite", "1 of 20 rows are not finite, the first is row 15"),
        ("long", "1 of 20 rows are not unit-norm, the first is row 15 of length 2"),
        ("lists", "got shape (6, 5)"),
        ("dtype", "got dtype torch.float16"),
        ("width", "expected one kind"),
        ("rows", "got [7, 7, 4] rows on them, expected [6, 6, 6]"),
        ("shape", "got shape (16,)"),
    ],
)
def test_an_error_on_one_rank_is_raised_on_all(pool: Pool, name: str, message: str) -> None:
    said = pool.run(refused, 3, name)
    assert len(set(said)) == 1
    assert message in said[0]
