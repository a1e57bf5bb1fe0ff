"""The Jaccard graph against a dense float64 reference, and the arguments that it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from fastreid_al.clustering import Graph, dbscan, jaccard_graph, nearest_neighbours
from tests.support.features import FEATURE_SETS, clustered_rows, feature_set, random_features
from tests.support.graphs import dense_distances
from tests.support.references import reference_jaccard

LENGTHS = [(30, 6), (15, 6), (20, 1), (7, 3), (1, 1)]


@pytest.mark.parametrize("name", FEATURE_SETS)
@pytest.mark.parametrize(("k1", "k2"), LENGTHS)
def test_graph_equals_the_dense_distance(name: str, k1: int, k2: int) -> None:
    features = feature_set(name)
    graph = jaccard_graph(torch.from_numpy(features), k1, k2, max_distance=0.62)
    expected = reference_jaccard(features, k1, k2)
    got = dense_distances(graph)
    near = expected <= 0.62
    np.fill_diagonal(expected, 0)
    assert np.allclose(got[near], expected[near], atol=1e-12)
    assert (got[~near] == 1).all()
    assert graph.distances.dtype == torch.float64
    assert graph.indptr.dtype == torch.int64


def test_graph_is_symmetric_sorted_and_without_loops() -> None:
    graph = jaccard_graph(torch.from_numpy(FEATURE_SETS["clustered"]).float())
    matrix = sp.csr_array(
        (graph.distances.numpy(), graph.indices.numpy(), graph.indptr.numpy()), shape=(graph.n,) * 2
    )
    assert graph.distances.dtype == torch.float32
    assert np.array_equal(dense_distances(graph), dense_distances(graph).T)
    assert matrix.has_canonical_format
    rows = np.repeat(np.arange(graph.n), np.diff(graph.indptr.numpy()))
    assert (rows != graph.indices.numpy()).all()
    assert graph.distances.max() <= 0.62


def test_float32_graph_is_the_float64_graph_to_rounding() -> None:
    features = torch.from_numpy(FEATURE_SETS["clustered"])
    exact, got = jaccard_graph(features), jaccard_graph(features.float())
    assert torch.equal(exact.indices, got.indices)
    assert torch.allclose(exact.distances, got.distances.double(), atol=1e-5)


def test_float32_distances_are_within_rounding_of_the_reference() -> None:
    features = clustered_rows(6, 900, 48, 0.35, 30)
    graph = jaccard_graph(features, max_distance=0.9)
    expected = reference_jaccard(features.double().numpy(), 30, 6)
    i = torch.arange(graph.n).repeat_interleave(graph.indptr.diff())
    assert len(i) > 5000
    assert np.allclose(
        graph.distances.double(), expected[i.numpy(), graph.indices.numpy()], rtol=0, atol=3e-7
    )


def test_given_lists_are_used_as_they_are() -> None:
    features = clustered_rows(6, 900, 48, 0.35, 30)
    neighbours = nearest_neighbours(features, 30)
    expected = jaccard_graph(features)
    got = jaccard_graph(features, neighbours=neighbours)
    assert all(torch.equal(a, b) for a, b in zip(got[:3], expected[:3], strict=True))
    shifted = (torch.arange(900)[:, None] + torch.arange(30)) % 900
    got = jaccard_graph(features, neighbours=shifted)
    assert not torch.equal(got.indptr, expected.indptr)


def test_empty_features_give_an_empty_graph() -> None:
    graph = jaccard_graph(torch.zeros(0, 8))
    assert graph.n == 0
    assert len(graph.indices) == 0


def test_a_list_that_is_too_long_is_refused() -> None:
    features = torch.from_numpy(random_features(1100))
    with pytest.raises(ValueError, match="k1: got 1026, expected 1025 at most"):
        jaccard_graph(features, k1=1026)
    assert jaccard_graph(features[:40], k1=1026).n == 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k1": 0}, "k1: got 0, expected 1 or more"),
        ({"max_distance": 1.0}, "max_distance"),
        ({"max_distance": -0.1}, "max_distance"),
        ({"features": torch.zeros(3)}, "shape"),
        ({"features": torch.tensor([[1.0, 0.0], [float("nan"), 0.0]])}, "first is row 1"),
        (
            {"features": torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 1.0]])},
            "1 of 3 rows are not unit-norm.*row 1 of length 3",
        ),
        ({"features": torch.eye(4).half()}, "float16"),
        ({"features": [[1.0]]}, "got a list, expected a torch.Tensor"),
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [64, 2048])
@pytest.mark.parametrize("k1", [6, 12, 30])
@pytest.mark.parametrize("max_distance", [0.0, 1e-9, 0.62])
def test_exact_copies_are_at_distance_0(
    dtype: torch.dtype, dim: int, k1: int, max_distance: float
) -> None:
    generator = torch.Generator().manual_seed(dim)
    rows = torch.nn.functional.normalize(torch.randn(100, dim, generator=generator, dtype=dtype))
    graph = jaccard_graph(torch.cat([rows[:1].repeat(5, 1), rows]), k1, max_distance=max_distance)
    assert dbscan(graph, 0.0).tolist() == [0] * 6 + [-1] * 99
    assert graph.max_distance == max_distance


def test_arrays_are_taken_and_give_the_same_graph() -> None:
    features = FEATURE_SETS["clustered"][:200]
    expected = jaccard_graph(torch.from_numpy(features), 12)
    lists = nearest_neighbours(features[::-1][::-1], 12).numpy()  # type: ignore[arg-type]
    for array in (
        features,
        np.asfortranarray(features),
        features.astype(features.dtype.newbyteorder()),
    ):
        graph = jaccard_graph(array, 12, neighbours=lists)  # type: ignore[arg-type]
        assert all(torch.equal(a, b) for a, b in zip(graph[:3], expected[:3], strict=True))
    again = Graph(*(x.numpy() for x in expected[:3]), 0.62)  # type: ignore[arg-type]
    assert torch.equal(dbscan(again, np.float32(0.5)), dbscan(expected, 0.5))
