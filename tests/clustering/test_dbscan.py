"""DBSCAN on graphs against a reference and scikit-learn: C++, PyTorch, several ranks, bad input."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import DBSCAN
from torch import Tensor

from fastreid_al import native
from fastreid_al.clustering import (
    Graph,
    dbscan,
    ivf_neighbours,
    jaccard_graph,
    self_paced_labels,
)
from fastreid_al.distributed.world import World
from tests.support.features import FEATURE_SETS
from tests.support.graphs import (
    dense_distances,
    graph_of,
    random_distances,
    scikit_learn_labels,
)
from tests.support.process_pool import Pool
from tests.support.references import reference_dbscan, reference_self_paced

EPS = (0.3, 0.1, 0.0, 0.6)


@pytest.fixture(params=["extension", "PyTorch"])
def _implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extension, or PyTorch without it."""
    if request.param == "extension" and native.extension() is None:
        pytest.skip("the extension is not built")
    if request.param == "PyTorch":
        monkeypatch.setattr(native, "extension", lambda: None)


@pytest.fixture
def _four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_implementation")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("min_samples", [1, 2, 4, 100])
@pytest.mark.parametrize(
    ("n", "density"), [(1, 1.0), (2, 1.0), (40, 0.15), (90, 0.05), (60, 1.0), (50, 0.0)]
)
def test_labels_of_several_radii_equal_the_reference(
    n: int,
    density: float,
    min_samples: int,
    dtype: torch.dtype,
) -> None:
    for seed in range(4):
        distance = random_distances(n, seed, density=density)
        if dtype == torch.float32:
            distance = distance.astype(np.float32).astype(np.float64)
        got = dbscan(graph_of(distance, dtype), EPS, min_samples)
        assert got.shape == (len(EPS), n)
        assert got.dtype == torch.int64
        graph = graph_of(distance, dtype)
        assert np.array_equal(got.numpy(), scikit_learn_labels(graph, EPS, min_samples))
        for eps, labels in zip(EPS, got, strict=True):
            rounded = float(torch.tensor(eps, dtype=dtype))
            assert np.array_equal(labels.numpy(), reference_dbscan(distance, rounded, min_samples))


ANY_GRAPH = {
    "n": st.integers(0, 30),
    "seed": st.integers(0, 2**32 - 1),
    "density": st.sampled_from([0.0, 0.05, 0.1, 0.2, 0.5, 1.0]),
    "min_samples": st.integers(1, 6),
    "eps": st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.35, 0.5, 0.6, 0.62]), max_size=10),
}


def check_labels(n: int, seed: int, density: float, min_samples: int, eps: list[float]) -> None:
    distance = random_distances(n, seed, density=density)
    graph = graph_of(distance)
    expected = [reference_dbscan(distance, e, min_samples) for e in eps]
    got = [dbscan(graph, eps, min_samples, "graph").numpy()]
    got.append(scikit_learn_labels(graph, eps, min_samples))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "extension", lambda: None)
        got.append(dbscan(graph, eps, min_samples).numpy())
    for labels in got:
        assert labels.shape == (len(eps), n)
        assert np.array_equal(labels, np.array(expected, dtype=np.int64).reshape(len(eps), n))


@settings(max_examples=30, deadline=None)
@given(**ANY_GRAPH)
def test_all_implementations_and_scikit_learn_label_random_graphs_alike(
    n: int, seed: int, density: float, min_samples: int, eps: list[float]
) -> None:
    check_labels(n, seed, density, min_samples, eps)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(**ANY_GRAPH)
def test_all_implementations_and_scikit_learn_label_many_random_graphs_alike(
    n: int, seed: int, density: float, min_samples: int, eps: list[float]
) -> None:
    check_labels(n, seed, density, min_samples, eps)


@pytest.mark.usefixtures("_four_threads")
def test_labels_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    # Long chains, whose unions meet, and cliques.
    random = np.random.default_rng(0)
    n = 20_000
    names = random.permutation(n)
    pairs = np.concatenate(
        [
            np.stack([names[:-1], names[1:]], 1)[random.random(n - 1) < 0.9],
            random.integers(n, size=(n, 2)),
        ]
    )
    pairs = np.unique(np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1), axis=0)
    both = np.concatenate([pairs, pairs[:, ::-1]])
    weights = np.tile(random.integers(1, 7, len(pairs)) * 0.1, 2)
    order = np.lexsort((both[:, 1], both[:, 0]))
    indptr = np.concatenate([[0], np.bincount(both[:, 0], minlength=n).cumsum()])
    graph = Graph(*map(torch.from_numpy, (indptr, both[order, 1].copy(), weights[order])), 0.62)
    eps = [0.1, 0.2, 0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.61]
    expected = torch.from_numpy(scikit_learn_labels(graph, eps, 3))
    assert len({int(labels.max()) for labels in expected}) > 3
    for threads in (1, 2, 4, 7):
        monkeypatch.setattr(native, "threads", lambda threads=threads: threads)
        for _ in range(3):
            assert torch.equal(dbscan(graph, eps, 3), expected)
    monkeypatch.setattr(native, "extension", lambda: None)
    assert torch.equal(dbscan(graph, eps, 3), expected)


@pytest.mark.usefixtures("_implementation")
def test_a_radius_is_compared_in_the_dtype_of_the_graph() -> None:
    # float32(0.6) is above 0.6, so a comparison in float64 would leave the pair apart.
    graph = graph_of(np.array([[0, 0.6], [0.6, 0]]), torch.float32)
    assert dbscan(graph, 0.6, 2).tolist() == [0, 0]


@pytest.mark.usefixtures("_implementation")
def test_pairs_at_distance_zero_are_near() -> None:
    graph = graph_of(np.zeros((5, 5)))
    assert dbscan(graph, 0.0, 5).tolist() == [0] * 5
    assert dbscan(graph, 0.0, 6).tolist() == [-1] * 5


@pytest.mark.usefixtures("_implementation")
def test_one_radius_gives_one_row() -> None:
    graph = graph_of(random_distances(30, 0))
    assert dbscan(graph, 0.5, 3).shape == (30,)
    assert torch.equal(dbscan(graph, 0.5, 3), dbscan(graph, [0.5], 3)[0])
    assert dbscan(graph, [], 3).shape == (0, 30)


@pytest.mark.usefixtures("_implementation")
def test_graphs_without_nodes_or_edges() -> None:
    for n in (0, 3):
        graph = Graph(
            torch.zeros(n + 1, dtype=torch.int64),
            torch.zeros(0, dtype=torch.int64),
            torch.zeros(0),
            0.62,
        )
        assert dbscan(graph, 0.5, 2).tolist() == [-1] * n
        assert dbscan(graph, (0.5, 0.4), 1).tolist() == [list(range(n))] * 2
        labels, threshold = self_paced_labels(graph)
        assert labels.tolist() == [-1] * n
        assert threshold is None


@pytest.mark.usefixtures("_implementation")
def test_arrays_may_be_views() -> None:
    graph = graph_of(random_distances(40, 1))
    strided = [torch.stack([x, x + 1], dim=1)[:, 0] for x in graph[:3]]
    assert torch.equal(dbscan(Graph(*strided, 0.62), 0.5, 3), dbscan(graph, 0.5, 3))


@pytest.mark.usefixtures("_implementation")
@pytest.mark.parametrize("n", [7, 60])
def test_self_paced_labels_equal_the_reference_with_either_implementation(n: int) -> None:
    for seed in range(6):
        distance = random_distances(n, seed, density=0.12)
        labels, threshold = self_paced_labels(graph_of(distance), 0.45, 0.15, 3)
        expected, expected_threshold = reference_self_paced(distance, 0.45, 0.15, 3)
        assert threshold == expected_threshold
        assert np.array_equal(labels.numpy(), expected)


@pytest.mark.parametrize("name", FEATURE_SETS)
@pytest.mark.parametrize("eps", [0.3, 0.5, 0.6])
@pytest.mark.parametrize("min_samples", [1, 2, 4])
def test_dbscan_equals_the_reference_and_scikit_learn(
    name: str, eps: float, min_samples: int
) -> None:
    graph = jaccard_graph(torch.from_numpy(FEATURE_SETS[name]), k1=20)
    distance = dense_distances(graph)
    labels = dbscan(graph, eps, min_samples)
    assert labels.dtype == torch.int64
    assert np.array_equal(labels.numpy(), reference_dbscan(distance, eps, min_samples))
    sklearn = DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit(distance).labels_
    assert np.array_equal(labels.numpy(), sklearn)


def test_dbscan_puts_a_border_point_into_the_lowest_numbered_cluster() -> None:
    # 0-3 and 5-8 are cliques; 4 touches one core of each and is no core itself.
    distance = np.ones((9, 9))
    distance[:4, :4] = distance[5:, 5:] = 0.1
    for core in (3, 5):
        distance[4, core] = distance[core, 4] = 0.2
    np.fill_diagonal(distance, 0)
    matrix = sp.csr_array(np.where(distance < 1, distance, 0))
    graph = Graph(
        *(
            torch.from_numpy(a)
            for a in (matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64), matrix.data)
        ),
        0.62,
    )
    assert dbscan(graph, 0.5, min_samples=4).tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]


MALFORMED: dict[str, tuple[Callable[[Graph], Graph], str]] = {
    "falling": (
        lambda g: g._replace(indptr=torch.tensor([0, 2, 1, 4])),
        "indptr decreases after node 1",
    ),
    "short": (
        lambda g: g._replace(indptr=torch.tensor([0, 1, 2, 3])),
        "indptr goes from 0 to 3, expected 0 to 4",
    ),
    "late": (lambda g: g._replace(indptr=torch.tensor([1, 2, 3, 4])), "indptr goes from 1 to 4"),
    "high": (
        lambda g: g._replace(indices=torch.tensor([1, 0, 3, 1])),
        "got an index 3, expected 0 to 2",
    ),
    "negative": (lambda g: g._replace(indices=torch.tensor([1, 0, -1, 1])), "got an index -1"),
    "no indptr": (
        lambda g: g._replace(indptr=torch.zeros(0, dtype=torch.int64)),
        "got shapes (0,)",
    ),
    "lengths": (lambda g: g._replace(distances=torch.zeros(3)), "got shapes (4,), (4,), (3,)"),
    "dtype": (lambda g: g._replace(indices=g.indices.int()), "got int64, int32, float64"),
    "half": (
        lambda g: g._replace(distances=g.distances.half()),
        "float16, expected int64, int64 and float32 or float64",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_graph_is_refused(name: str) -> None:
    graph = Graph(
        torch.tensor([0, 1, 3, 4]), torch.tensor([1, 0, 2, 1]), torch.full((4,), 0.1).double(), 0.62
    )
    assert dbscan(graph, 0.5, 2).tolist() == [0, 0, 0]
    spoil, message = MALFORMED[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        dbscan(spoil(graph), 0.5, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eps": -0.1}, "eps: got -0.1, expected a number in [0, 1)"),
        ({"eps": 1.0}, "eps: got 1.0, expected a number in [0, 1)"),
        ({"eps": float("nan")}, "eps: got nan"),
        ({"eps": (0.5, 0.63)}, "eps: got 0.63, expected at most 0.62, the graph's max_distance"),
        ({"min_samples": 0}, "min_samples: got 0, expected 1 or more"),
        ({"backend": "gpu"}, "backend: got 'gpu', expected one of auto, graph, cuml"),
    ],
)
def test_arguments_out_of_range_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        dbscan(graph_of(random_distances(5, 0)), **{"eps": 0.5, **arguments})


def test_radius_past_the_graph_is_refused() -> None:
    graph = jaccard_graph(torch.eye(4), max_distance=0.5)
    with pytest.raises(ValueError, match="the graph's max_distance"):
        dbscan(graph, 0.6)
    with pytest.raises(ValueError, match="min_samples"):
        dbscan(graph, 0.3, 0)


def test_radii_may_be_any_numbers() -> None:
    graph = Graph(torch.tensor([0, 1, 2]), torch.tensor([1, 0]), torch.tensor([0.25, 0.25]), 0.5)
    assert dbscan(graph, np.float32(0.25), 2).tolist() == [0, 0]
    assert dbscan(graph, torch.tensor(0.25), 2).tolist() == [0, 0]
    assert dbscan(graph, np.array([0.1, 0.3]), 2).tolist() == [[-1, -1], [0, 0]]


def wrong_graph(world: World) -> str:
    """Two rows a rank that name node 1; on the last rank a node that does not exist."""
    index = 1 if world.rank < world.size - 1 else 6
    graph = Graph(torch.tensor([0, 1, 1]), torch.tensor([index]), torch.tensor([0.2]), 0.5)
    with pytest.raises(ValueError, match="got an index 6, expected 0 to 5") as raised:
        dbscan(graph, 0.4, world=world)
    with pytest.raises(ValueError, match="got 'cuml', expected 'graph' on 3 ranks"):
        dbscan(graph, 0.4, backend="cuml", world=world)
    with pytest.raises(ValueError, match="got ivf on 3 ranks, expected exact"):
        ivf_neighbours(torch.ones(2, 2), 1, world=world)
    return str(raised.value)


def test_a_wrong_graph_and_single_process_backends_are_refused_on_ranks(
    pool: Pool,
) -> None:
    assert len(set(pool.run(wrong_graph, 3))) == 1


def chained(world: World, n: int, paths: list[Tensor]) -> Tensor:
    """The clusters of paths through the nodes, whose edges may join two ranks."""
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


@pytest.mark.parametrize("size", [3, *(pytest.param(x, marks=pytest.mark.slow) for x in (2, 4))])
def test_clusters_that_span_all_ranks_are_whole(pool: Pool, size: int) -> None:
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
