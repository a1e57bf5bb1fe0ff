"""The sparse clustering engine against dense float64 references and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from sklearn.cluster import DBSCAN

from fastreid_al.clustering import (
    Graph,
    dbscan,
    jaccard_graph,
    nearest_neighbours,
    self_paced_labels,
)
from tests.support.features import clustered_features, unit
from tests.support.references import (
    reference_dbscan,
    reference_jaccard,
    reference_neighbours,
    reference_self_paced,
)


def random_features(n: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(n, dim)))


def tied_features(n: int, seed: int = 0) -> np.ndarray:
    """Unit rows of four entries +-1/2: every similarity is a multiple of 1/4, exactly, and many rows are equal."""
    random = np.random.default_rng(seed)
    features = np.zeros((n, 6))
    for row in features:
        row[random.choice(6, 4, replace=False)] = random.choice([-0.5, 0.5], 4)
    return features


FEATURES = {
    "random": random_features(300),
    "clustered": clustered_features(500, 40),
    "tight": clustered_features(240, 12, spread=0.1, seed=3),
    "tied and duplicate rows": tied_features(200),
    "one point, many times": np.tile(random_features(1), (50, 1)),
    "fewer than k1": random_features(11, seed=5),
    "one": random_features(1),
}
SETTINGS = [(30, 6), (15, 6), (20, 1), (7, 3), (1, 1)]


def dense(graph: Graph) -> np.ndarray:
    """Distances, 1 where the graph has no edge, 0 on the diagonal."""
    out = np.ones((graph.n, graph.n))
    rows = np.repeat(np.arange(graph.n), np.diff(graph.indptr.numpy()))
    out[rows, graph.indices.numpy()] = graph.distances.numpy()
    np.fill_diagonal(out, 0)
    return out


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("k", [1, 6, 30])
def test_neighbours_equal_a_stable_sort_with_the_image_itself_first(name: str, k: int) -> None:
    features = FEATURES[name]
    if name == "one point, many times":
        features = np.tile([[1.0, 0.0]], (50, 1))
    found = nearest_neighbours(torch.from_numpy(features), k)
    assert np.array_equal(found.numpy(), reference_neighbours(features, k))


def test_neighbours_do_not_depend_on_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.from_numpy(tied_features(200))
    whole = nearest_neighbours(features, 12)
    monkeypatch.setattr("reid_kernels.topk_cpu._BLOCK", 7 * 4 * 200)
    assert torch.equal(whole, nearest_neighbours(features, 12))


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize(("k1", "k2"), SETTINGS)
def test_graph_equals_the_dense_distance(name: str, k1: int, k2: int) -> None:
    features = FEATURES[name]
    if name == "one point, many times":
        features = np.tile([[1.0, 0.0]], (50, 1))
    graph = jaccard_graph(torch.from_numpy(features), k1, k2, max_distance=0.62)
    expected = reference_jaccard(features, k1, k2)
    found = dense(graph)
    near = expected <= 0.62
    np.fill_diagonal(expected, 0)
    assert np.allclose(found[near], expected[near], atol=1e-12)
    assert (found[~near] == 1).all()
    assert graph.distances.dtype == torch.float64
    assert graph.indptr.dtype == torch.int64


def test_graph_is_symmetric_sorted_and_without_loops() -> None:
    graph = jaccard_graph(torch.from_numpy(FEATURES["clustered"]).float())
    matrix = sp.csr_array(
        (graph.distances.numpy(), graph.indices.numpy(), graph.indptr.numpy()), shape=(graph.n,) * 2
    )
    assert graph.distances.dtype == torch.float32
    assert np.array_equal(dense(graph), dense(graph).T)
    assert matrix.has_canonical_format
    rows = np.repeat(np.arange(graph.n), np.diff(graph.indptr.numpy()))
    assert (rows != graph.indices.numpy()).all()
    assert graph.distances.max() <= 0.62


def test_graph_does_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastreid_al.native.extension", lambda: None)
    features = torch.from_numpy(FEATURES["clustered"])
    whole = jaccard_graph(features)
    monkeypatch.setattr("fastreid_al.clustering.jaccard_torch._BLOCK", 13 * 500)
    parts = jaccard_graph(features)
    assert all(torch.equal(a, b) for a, b in zip(whole[:3], parts[:3], strict=True))


def test_float32_graph_is_the_float64_graph_to_rounding() -> None:
    features = torch.from_numpy(FEATURES["clustered"])
    exact, found = jaccard_graph(features), jaccard_graph(features.float())
    assert torch.equal(exact.indices, found.indices)
    assert torch.allclose(exact.distances, found.distances.double(), atol=1e-5)


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("eps", [0.3, 0.5, 0.6])
@pytest.mark.parametrize("min_samples", [1, 2, 4])
def test_dbscan_equals_the_reference_and_scikit_learn(
    name: str, eps: float, min_samples: int
) -> None:
    graph = jaccard_graph(torch.from_numpy(FEATURES[name]), k1=20)
    distance = dense(graph)
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


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize(("eps", "gap"), [(0.6, 0.02), (0.5, 0.1)])
def test_self_paced_labels_equal_the_reference(name: str, eps: float, gap: float) -> None:
    graph = jaccard_graph(torch.from_numpy(FEATURES[name]), k1=20)
    labels, threshold = self_paced_labels(graph, eps, gap)
    expected, expected_threshold = reference_self_paced(dense(graph), eps, gap)
    assert threshold == expected_threshold
    assert np.array_equal(labels.numpy(), expected)
    again, kept = self_paced_labels(graph, eps, gap, threshold=0.05)
    assert kept == 0.05
    assert np.array_equal(
        again.numpy(), reference_self_paced(dense(graph), eps, gap, threshold=0.05)[0]
    )


def test_self_paced_selection_leaves_out_unreliable_clusters() -> None:
    graph = jaccard_graph(torch.from_numpy(clustered_features(500, 40, spread=0.9)), k1=20)
    plain = dbscan(graph, 0.6)
    labels, _ = self_paced_labels(graph)
    assert (labels >= 0).sum() < (plain >= 0).sum()
    assert labels.max() >= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k1": 0}, "k1 and k2"),
        ({"max_distance": 1.0}, "max_distance"),
        ({"max_distance": -0.1}, "max_distance"),
        ({"features": torch.zeros(3)}, "shape"),
        ({"features": torch.tensor([[1.0, 0.0], [float("nan"), 0.0]])}, "first is row 1"),
        (
            {"features": torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 1.0]])},
            "1 of 3 rows are not of length one.*row 1 of length 3",
        ),
        ({"features": torch.eye(4).half()}, "float16"),
        ({"features": np.eye(4)}, "got a ndarray, expected a torch.Tensor"),
        ({"neighbours": "all"}, "got 'all', expected 'exact' or"),
        ({"neighbours": (torch.zeros(4, 4), 1.0)}, "got a tuple, expected 'exact' or"),
        ({"neighbours": torch.zeros(4, 3, dtype=torch.int64)}, r"expected \(4, 4\)"),
        ({"neighbours": torch.tensor([[0, 1], [1, 2], [2, 2], [3, 0]]), "k1": 2}, "row 2"),
        ({"neighbours": torch.tensor([[0, 1], [1, 4], [2, 1], [3, 0]]), "k1": 2}, "row 1"),
        ({"neighbours": torch.tensor([[1, 0], [1, 2], [2, 1], [3, 0]]), "k1": 2}, "row 0"),
    ],
)
def test_bad_input_is_named(arguments: dict, message: str) -> None:
    features = arguments.pop("features", torch.eye(4))
    with pytest.raises(ValueError, match=message):
        jaccard_graph(features, **arguments)


def test_radius_past_the_graph_is_refused() -> None:
    graph = jaccard_graph(torch.eye(4), max_distance=0.5)
    with pytest.raises(ValueError, match="reach of the graph"):
        dbscan(graph, 0.6)
    with pytest.raises(ValueError, match="min_samples"):
        dbscan(graph, 0.3, 0)


def test_empty_features_give_an_empty_graph() -> None:
    graph = jaccard_graph(torch.zeros(0, 8))
    assert graph.n == 0
    assert len(dbscan(graph, 0.5)) == 0


def test_a_list_longer_than_the_search_goes_is_named() -> None:
    features = torch.from_numpy(random_features(1100))
    with pytest.raises(ValueError, match="k1: got 1026, expected 1025 at most"):
        jaccard_graph(features, k1=1026)
    assert jaccard_graph(features[:40], k1=1026).n == 40


@pytest.mark.parametrize(
    ("features", "k", "message"),
    [
        (torch.eye(4), 0, "k: got 0, expected 1 or more"),
        (torch.ones(4), 2, r"got \(4,\) torch.float32, expected a tensor \(n, D\)"),
        (torch.eye(4).half(), 2, "float16"),
        (np.eye(4), 2, "got ndarray"),
    ],
)
def test_neighbours_of_what_are_no_rows_are_refused(features: object, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nearest_neighbours(features, k)


def test_a_negative_gap_is_refused() -> None:
    with pytest.raises(ValueError, match=r"eps_gap: got -0\.1"):
        self_paced_labels(jaccard_graph(torch.eye(4)), 0.4, -0.1)
