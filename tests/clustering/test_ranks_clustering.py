"""Pseudo-labels over ranks: the lists, the graph and the labels that a process alone finds."""

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
    ivf_neighbours,
    jaccard_graph,
    jaccard_sharded,
    nearest_neighbours,
    neighbours,
    self_paced_labels,
)
from fastreid_al.distributed.world import World
from tests.support.features import clustered_features
from tests.support.process_pool import Pool

SIZES = [2, 3, 4]
K1, K2, EPS, GAP = 30, 6, 0.6, 0.02


def clustered(n: int, dim: int, dtype: torch.dtype = torch.float32, spread: float = 0.6) -> Tensor:
    """Multiples of 2^-11: products are exact in whatever order they are summed."""
    rows = torch.from_numpy(clustered_features(n, max(1, n // 12), dim=dim, spread=spread, seed=n))
    return (rows * 2048).round().div(2048).to(dtype)


def signs(n: int, dim: int) -> Tensor:
    """Similarities are few whole multiples of 2 / dim: ties everywhere."""
    return torch.from_numpy(
        np.random.default_rng(n).choice([-1.0, 1.0], (n, dim)) / math.sqrt(dim)
    ).float()


def copies(n: int, dim: int) -> Tensor:
    """Most rows equal, some of two other kinds among them."""
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


def on_ranks(
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
    found = pool.run(on_ranks, size, features, k1, k2, settings)
    parts = list(zip(*(arrays for arrays, _ in found), strict=True))
    assert np.array_equal(np.concatenate(parts[0]), lists)
    assert np.array_equal(np.concatenate([np.diff(p) for p in parts[1]]), graph.indptr.diff())
    assert np.array_equal(np.concatenate(parts[2]), graph.indices)
    assert np.concatenate(parts[3]).tobytes() == graph.distances.numpy().tobytes()
    for some, (_, theirs) in zip(parts[4], found, strict=True):
        assert np.array_equal(some, labels)
        assert theirs == threshold


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *((name, 4) for name in CASES),
        ("clustered", 2),
        ("copies", 3),
        ("ties", 3),
        ("an empty shard", 3),
    ],
)
def test_lists_graph_and_labels_are_those_of_a_process_alone(
    pool: Pool, name: str, size: int
) -> None:
    check(pool, size, CASES[name])


@pytest.mark.parametrize(("k1", "k2"), [(1, 1), (7, 9), (140, 20)])
def test_they_are_for_lists_of_other_lengths(pool: Pool, k1: int, k2: int) -> None:
    check(pool, 3, CASES["clustered"], k1, k2)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("block", [1, 3000])
def test_they_are_the_same_in_blocks_of_any_size(pool: Pool, block: int, compiled: bool) -> None:
    check(pool, 3, CASES["fewer on a rank than k1"], block=block, compiled=compiled)


@pytest.mark.parametrize("name", ["float64", "ties", "copies", "an empty shard", "none"])
def test_they_are_without_the_extension(pool: Pool, name: str) -> None:
    check(pool, 4, CASES[name], compiled=False)


@pytest.mark.parametrize("low", [True, False])
def test_lists_are_exact_from_either_product(pool: Pool, low: bool) -> None:
    """Rows that are no multiples of anything: similarities are the float32 nearest to the exact ones."""
    features = torch.from_numpy(clustered_features(700, 30, dim=64, spread=0.3)).float()
    check(pool, 2, features, 20, low=low)
    features[100:600] = features[99] + 1e-4 * features[100:600]
    check(pool, 3, torch.nn.functional.normalize(features), 20, low=low)


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
    return "taken"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("not finite", "1 of 20 rows are not finite, the first is row 15"),
        ("long", "1 of 20 rows are not of length one, the first is row 15 of length 2"),
        ("lists", "got shape (6, 5)"),
        ("dtype", "got dtype torch.float16"),
        ("width", "expected one kind"),
        ("rows", "got [7, 7, 4] rows on them, expected [6, 6, 6]"),
        ("shape", "got shape (16,)"),
    ],
)
def test_what_is_wrong_on_one_rank_is_said_on_all(pool: Pool, name: str, message: str) -> None:
    said = pool.run(refused, 3, name)
    assert len(set(said)) == 1
    assert message in said[0]


def wrong_neighbours(world: World) -> str:
    features = clustered(20, 16)[world.local_slice(20)]
    if world.rank == 1:
        features[2, 0] = torch.nan
    with pytest.raises(ValueError, match="row 9 is not finite") as raised:
        nearest_neighbours(features, 4, world)
    return str(raised.value)


def test_rows_that_are_not_finite_are_named_by_their_number_among_all(pool: Pool) -> None:
    assert len(set(pool.run(wrong_neighbours, 3))) == 1


def wrong_graph(world: World) -> str:
    """Two rows a rank, which name node 1; on the last a node that is not there."""
    index = 1 if world.rank < world.size - 1 else 6
    graph = Graph(torch.tensor([0, 1, 1]), torch.tensor([index]), torch.tensor([0.2]), 0.5)
    with pytest.raises(ValueError, match="got an index 6, expected 0 to 5") as raised:
        dbscan(graph, 0.4, world=world)
    for backend in ("sklearn", "cuml"):
        with pytest.raises(ValueError, match=f"got '{backend}', expected 'graph' on 3 ranks"):
            dbscan(graph, 0.4, backend=backend, world=world)
    with pytest.raises(ValueError, match="got ivf on 3 ranks, expected exact"):
        ivf_neighbours(torch.ones(2, 2), 1, world=world)
    return str(raised.value)


def test_what_runs_on_one_process_alone_is_refused_and_so_is_a_graph_that_names_no_node(
    pool: Pool,
) -> None:
    assert len(set(pool.run(wrong_graph, 3))) == 1


def chained(world: World, n: int, paths: list[Tensor]) -> Tensor:
    """The clusters of paths through the nodes: each of their edges may join two ranks."""
    a, b = (torch.cat([path[some] for path in paths]) for some in (slice(None, -1), slice(1, None)))
    rows, columns = torch.cat([a, b]), torch.cat([b, a])
    where = world.local_slice(n)
    own = (rows >= where.start) & (rows < where.stop)
    rows, columns = rows[own], columns[own]
    sort = (rows * n + columns).argsort()
    counts = torch.bincount(rows - where.start, minlength=where.stop - where.start)
    indptr = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    return dbscan(
        Graph(indptr, columns[sort], torch.full((len(sort),), 0.1), 0.5), 0.4, 2, world=world
    )


@pytest.mark.parametrize("size", SIZES)
def test_clusters_that_wind_through_all_ranks_are_whole(pool: Pool, size: int) -> None:
    n = 97
    for seed in range(3):
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        paths = list(order.split(40))
        lead = torch.tensor([int(path.min()) for path in paths])
        numbers = lead.argsort().argsort()
        for labels in pool.run(chained, size, n, paths):
            assert all(
                (labels[path] == number).all() for path, number in zip(paths, numbers, strict=True)
            )
        assert pool.run(chained, size, n, [order])[0].tolist() == [0] * n
