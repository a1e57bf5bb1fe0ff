"""DBSCAN on graphs and on cosine distances: every backend against the reference, any number of threads, bad input."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastreid_al import native
from fastreid_al.clustering import Graph, cosine_dbscan, dbscan, radius_graph, self_paced_labels
from fastreid_al.clustering.backends import numbered_by_core
from tests.support.features import clustered_features, unit
from tests.support.references import reference_dbscan, reference_self_paced

BACKENDS = ["extension", "PyTorch", "sklearn"]
EPS = (0.3, 0.1, 0.0, 0.6)


def graph_of(
    distance: np.ndarray, dtype: torch.dtype = torch.float64, max_distance: float = 0.62
) -> Graph:
    """Every pair up to max_distance, pairs at distance zero too."""
    near = distance <= max_distance
    np.fill_diagonal(near, False)
    indptr = np.concatenate([[0], near.sum(1).cumsum()]).astype(np.int64)
    arrays = indptr, near.nonzero()[1].astype(np.int64), distance[near]
    return Graph(
        *map(torch.from_numpy, arrays[:2]), torch.from_numpy(arrays[2]).to(dtype), max_distance
    )


def random_distances(n: int, seed: int, levels: int = 8, share: float = 0.3) -> np.ndarray:
    """Symmetric, with many ties; zeros among them, and pairs that are far."""
    random = np.random.default_rng(seed)
    steps = np.triu(random.integers(0, levels, (n, n)) * 0.1, 1)
    steps[np.triu(random.random((n, n)) >= share, 1)] = 1
    return steps + steps.T


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What `dbscan` is called with, after the extension has been taken away where it shall not be used."""
    return take(request.param, monkeypatch)


def take(name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    if name == "extension" and native.extension() is None:
        pytest.skip("the extension is not built")
    if name == "PyTorch":
        monkeypatch.setattr(native, "extension", lambda: None)
    return "sklearn" if name == "sklearn" else "graph"


@pytest.fixture
def _four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("min_samples", [1, 2, 4, 100])
@pytest.mark.parametrize(
    ("n", "share"), [(1, 1.0), (2, 1.0), (40, 0.15), (90, 0.05), (60, 1.0), (50, 0.0)]
)
def test_labels_of_several_radii_equal_the_reference(
    n: int, share: float, min_samples: int, dtype: torch.dtype, backend: str
) -> None:
    for seed in range(4):
        distance = random_distances(n, seed, share=share)
        if dtype == torch.float32:
            distance = distance.astype(np.float32).astype(np.float64)
        found = dbscan(graph_of(distance, dtype), EPS, min_samples, backend)
        assert found.shape == (len(EPS), n)
        assert found.dtype == torch.int64
        for eps, labels in zip(EPS, found, strict=True):
            rounded = float(torch.tensor(eps, dtype=dtype))
            assert np.array_equal(labels.numpy(), reference_dbscan(distance, rounded, min_samples))


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(0, 30),
    seed=st.integers(0, 2**32 - 1),
    share=st.sampled_from([0.0, 0.05, 0.1, 0.2, 0.5, 1.0]),
    min_samples=st.integers(1, 6),
    eps=st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.35, 0.5, 0.6, 0.62]), max_size=10),
)
def test_every_backend_labels_random_graphs_alike(
    n: int, seed: int, share: float, min_samples: int, eps: list[float]
) -> None:
    distance = random_distances(n, seed, share=share)
    graph = graph_of(distance)
    expected = [reference_dbscan(distance, e, min_samples) for e in eps]
    found = [dbscan(graph, eps, min_samples, "graph"), dbscan(graph, eps, min_samples, "sklearn")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "extension", lambda: None)
        found.append(dbscan(graph, eps, min_samples))
    for labels in found:
        assert labels.shape == (len(eps), n)
        assert np.array_equal(
            labels.numpy(), np.array(expected, dtype=np.int64).reshape(len(eps), n)
        )


@pytest.mark.usefixtures("_four_threads")
def test_labels_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    # Long chains, whose unions meet each other, beside cliques.
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
    expected = dbscan(graph, eps, 3, "sklearn")
    assert len({int(labels.max()) for labels in expected}) > 3
    for threads in (1, 2, 4, 7):
        monkeypatch.setattr(native, "threads", lambda threads=threads: threads)
        for _ in range(3):
            assert torch.equal(dbscan(graph, eps, 3), expected)
    monkeypatch.setattr(native, "extension", lambda: None)
    assert torch.equal(dbscan(graph, eps, 3), expected)


def test_a_radius_is_compared_in_the_dtype_of_the_graph(backend: str) -> None:
    # float32(0.6) is above 0.6, so a comparison in float64 would leave the pair apart.
    graph = graph_of(np.array([[0, 0.6], [0.6, 0]]), torch.float32)
    assert dbscan(graph, 0.6, 2, backend).tolist() == [0, 0]


def test_pairs_at_distance_zero_are_near(backend: str) -> None:
    graph = graph_of(np.zeros((5, 5)))
    assert dbscan(graph, 0.0, 5, backend).tolist() == [0] * 5
    assert dbscan(graph, 0.0, 6, backend).tolist() == [-1] * 5


def test_one_radius_gives_one_row(backend: str) -> None:
    graph = graph_of(random_distances(30, 0))
    assert dbscan(graph, 0.5, 3, backend).shape == (30,)
    assert torch.equal(dbscan(graph, 0.5, 3, backend), dbscan(graph, [0.5], 3, backend)[0])
    assert dbscan(graph, [], 3, backend).shape == (0, 30)


def test_graphs_without_nodes_or_edges(backend: str) -> None:
    for n in (0, 3):
        graph = Graph(
            torch.zeros(n + 1, dtype=torch.int64),
            torch.zeros(0, dtype=torch.int64),
            torch.zeros(0),
            0.62,
        )
        assert dbscan(graph, 0.5, 2, backend).tolist() == [-1] * n
        assert dbscan(graph, (0.5, 0.4), 1, backend).tolist() == [list(range(n))] * 2
        labels, threshold = self_paced_labels(graph, backend=backend)  # type: ignore[arg-type]
        assert labels.tolist() == [-1] * n
        assert threshold is None


def test_arrays_that_are_views_are_read_right(backend: str) -> None:
    graph = graph_of(random_distances(40, 1))
    strided = [torch.stack([x, x + 1], dim=1)[:, 0] for x in graph[:3]]
    assert torch.equal(dbscan(Graph(*strided, 0.62), 0.5, 3, backend), dbscan(graph, 0.5, 3))


@pytest.mark.parametrize("n", [7, 60])
def test_self_paced_labels_equal_the_reference_with_every_backend(n: int, backend: str) -> None:
    for seed in range(6):
        distance = random_distances(n, seed, share=0.12)
        labels, threshold = self_paced_labels(graph_of(distance), 0.45, 0.15, 3, backend=backend)  # type: ignore[arg-type]
        expected, wanted = reference_self_paced(distance, 0.45, 0.15, 3)
        assert threshold == wanted
        assert np.array_equal(labels.numpy(), expected)


MALFORMED: dict[str, tuple[Callable[[Graph], Graph], str]] = {
    "falling": (
        lambda g: g._replace(indptr=torch.tensor([0, 2, 1, 4])),
        "indptr falls behind node 1",
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
def test_a_malformed_graph_is_refused_before_it_is_followed(name: str) -> None:
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
        ({"eps": (0.5, 0.63)}, "eps: got 0.63, expected 0.62 at most, the reach of the graph"),
        ({"min_samples": 0}, "min_samples: got 0, expected at least 1"),
        ({"backend": "gpu"}, "backend: got 'gpu', expected one of auto, graph, cuml, sklearn"),
    ],
)
def test_settings_out_of_range_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        dbscan(graph_of(random_distances(5, 0)), **{"eps": 0.5, **arguments})


@pytest.mark.parametrize(("backend", "package"), [("cuml", "cuml"), ("sklearn", "scikit-learn")])
def test_a_backend_that_is_not_installed_says_what_to_install(
    backend: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for call in (
        lambda: dbscan(graph_of(random_distances(5, 0)), 0.5, backend=backend),  # type: ignore[arg-type]
        lambda: cosine_dbscan(torch.eye(4), 0.5, backend=backend),  # type: ignore[arg-type]
    ):
        with pytest.raises(
            ValueError, match=f"'{backend}' is not installed; pip install {package}"
        ):
            call()


def test_cuml_is_refused_where_its_dense_array_would_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    n = 50_000
    graph = Graph(
        torch.zeros(n + 1, dtype=torch.int64),
        torch.zeros(0, dtype=torch.int64),
        torch.zeros(0),
        0.62,
    )
    with pytest.raises(
        ValueError,
        match="dense array, 10 GB in float32 for 50000 nodes, and is refused past 40000; take 'graph'",
    ):
        dbscan(graph, 0.5, backend="cuml")


@pytest.mark.parametrize("seed", range(5))
def test_clusters_of_another_library_are_numbered_by_their_lowest_core(seed: int) -> None:
    distance = random_distances(80, seed, share=0.02)
    expected = dbscan(graph_of(distance), 0.5, 2)
    core = torch.from_numpy(np.flatnonzero((distance <= 0.5).sum(1) >= 2))
    shuffled = torch.randperm(int(expected.max()) + 1)
    assert len(shuffled) > 2
    given = torch.where(expected < 0, expected, shuffled[expected])
    filled_up = torch.cat([core[torch.randperm(len(core))], torch.tensor([-1, -1])])
    assert torch.equal(numbered_by_core(given, filled_up), expected)
    noise = torch.full((4,), -1)
    assert torch.equal(numbered_by_core(noise, noise), noise)


def cosine_distances(features: Tensor) -> np.ndarray:
    rows = features.double().numpy()
    return np.maximum(1 - rows @ rows.T, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [0, 1, 5, 300])
def test_radius_graph_holds_every_pair_within_the_radius(
    n: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = torch.from_numpy(clustered_features(n, 12, spread=0.6)).to(dtype)
    features[n // 2 : n // 2 + 2] = features[:1]
    distance = cosine_distances(features)
    for rows, columns in ((2048, 4096), (13, 13), (7, 40)):
        monkeypatch.setattr("fastreid_al.clustering.cosine._ROWS", rows)
        monkeypatch.setattr("fastreid_al.clustering.cosine._COLUMNS", columns)
        graph = radius_graph(features, 0.3)
        expected = graph_of(distance, dtype, 0.3)
        assert torch.equal(graph.indptr, expected.indptr)
        assert torch.equal(graph.indices, expected.indices)
        torch.testing.assert_close(graph.distances, expected.distances, rtol=0, atol=1e-6)
        assert graph.distances.dtype == dtype
        assert graph.max_distance == 0.3
        dense = torch.zeros(n, n, dtype=dtype)
        dense[torch.repeat_interleave(torch.arange(n), graph.indptr.diff()), graph.indices] = (
            graph.distances
        )
        assert torch.equal(dense, dense.T)


@pytest.mark.parametrize("seed", range(4))
def test_cosine_labels_equal_the_reference_with_every_backend(seed: int, backend: str) -> None:
    # Signs over a root of 16: similarities are multiples of 1/8, and many rows are equal; the radii lie between.
    random = np.random.default_rng(seed)
    centres = random.choice([-0.25, 0.25], (20, 16))
    features = centres[random.integers(20, size=150)] * random.choice(
        [-1, 1], (150, 16), p=[0.06, 0.94]
    )
    eps = (0.06, 0.2, 0.3, 0.43)
    for dtype in (torch.float32, torch.float64):
        rows = torch.from_numpy(features).to(dtype)
        found = cosine_dbscan(rows, eps, 3, backend)  # type: ignore[arg-type]
        for e, labels in zip(eps, found, strict=True):
            assert np.array_equal(labels.numpy(), reference_dbscan(cosine_distances(rows), e, 3))
        assert torch.equal(cosine_dbscan(rows, 0.2, 3, backend), found[1])  # type: ignore[arg-type]


def test_no_features_have_no_labels(backend: str) -> None:
    assert cosine_dbscan(torch.zeros(0, 8), (0.1, 0.2), 3, backend).shape == (2, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda x: x.index_fill_(0, torch.tensor(3), torch.nan),
            "1 of 20 rows .* the first is row 3 of length nan",
        ),
        (
            lambda x: x.index_fill_(0, torch.tensor(4), torch.inf),
            "the first is row 4 of length inf",
        ),
        (
            lambda x: x.mul_(1.01),
            "20 of 20 rows .* the first is row 0 of length 1.01; torch.nn.functional.normalize",
        ),
        (lambda x: x.index_fill_(0, torch.tensor(7), 0), "the first is row 7 of length 0"),
        (lambda x: x[0], "got shape"),
        (lambda x: x.half(), "expected float32 or float64"),
    ],
)
def test_rows_that_are_not_unit_rows_are_named(
    spoil: Callable[[Tensor], Tensor], message: str
) -> None:
    features = torch.from_numpy(unit(np.random.default_rng(0).normal(size=(20, 8)))).float()
    for call in (radius_graph, cosine_dbscan):
        with pytest.raises(ValueError, match=message):
            call(spoil(features.clone()), 0.3)


def test_a_radius_that_holds_too_many_pairs_is_refused_on_the_way() -> None:
    features = torch.nn.functional.normalize(torch.ones(100, 4))
    assert len(radius_graph(features, 0.1, most_edges=9900).indices) == 9900
    with pytest.raises(ValueError, match="more than 9899 edges; take a smaller one"):
        radius_graph(features, 0.1, most_edges=9899)
    with pytest.raises(ValueError, match=r"max_distance: got 1, expected a number in \[0, 1\)"):
        radius_graph(features, 1)
    with pytest.raises(ValueError, match=r"eps: got 1.5, expected a number in \[0, 1\)"):
        cosine_dbscan(features, (0.1, 1.5))


def test_similarities_are_not_rounded_where_lower_precision_is_chosen() -> None:
    features = torch.from_numpy(clustered_features(200, 10)).float()
    expected = radius_graph(features, 0.2)
    chosen = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16):
            found = radius_graph(features, 0.2)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(chosen)
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.distances, expected.distances)


def test_radii_may_be_any_numbers() -> None:
    graph = Graph(torch.tensor([0, 1, 2]), torch.tensor([1, 0]), torch.tensor([0.25, 0.25]), 0.5)
    assert dbscan(graph, np.float32(0.25), 2).tolist() == [0, 0]
    assert dbscan(graph, torch.tensor(0.25), 2).tolist() == [0, 0]
    assert dbscan(graph, np.array([0.1, 0.3]), 2).tolist() == [[-1, -1], [0, 0]]
