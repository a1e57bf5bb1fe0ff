"""Average linkage on a sparse graph: ours, SciPy on all pairs, scikit-learn along the edges.

SciPy clusters the dense distances, in which a pair without an edge is at distance 1: the labels
must be ours. scikit-learn joins groups along edges only and averages over edges only, so that its
clusters are others; it is here for its time.
"""

from __future__ import annotations

import warnings
from unittest import mock

import harness
import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from fastreid_al import native
from fastreid_al.clustering import Graph, average_linkage, jaccard_graph
from fastreid_al.metrics import pair_scores
from fastreid_al.synthetic import planted_partition

#: Images and width of the features; with width 0 the graph itself is planted.
SIZES = {
    "tiny": [(60, 16)],
    "small": [(2_000, 64)],
    "market": [(12_936, 512)],
    "msmt17": [(32_621, 512)],
    "million": [(200_000, 0), (1_000_000, 0)],
}
THRESHOLD = 0.3
MAX_DISTANCE = 0.9
#: The most images of the forms that take all pairs, and of the form in Python.
DENSE_UP_TO = 13_000
IN_PYTHON_UP_TO = 40_000
#: Pairs that are planted for an image: of its own identity, and of similar ones.
PLANTED = 12


def make(device: str, n: int, dim: int) -> tuple[Graph]:
    if dim:
        features = planted_partition(n, dim, spread=0.9, camera_shift=0.2).features
        graph = jaccard_graph(features, max_distance=MAX_DISTANCE)
    else:
        graph = planted_graph(n)
    ours(jaccard_graph(planted_partition(500, 16).features))
    indptr, indices, distances = (x.to(device) for x in graph[:3])
    return (Graph(indptr, indices, distances, MAX_DISTANCE),)


def planted_graph(n: int) -> Graph:
    """Some 40 pairs an image, half of them of one identity, the others of similar ones."""
    random = np.random.default_rng(0)
    identities = planted_partition(n, 1).identities.numpy()
    by_identity = np.argsort(identities, kind="stable")
    counts = np.bincount(identities)
    ends = np.cumsum(counts)
    rows = np.repeat(np.arange(n), 2 * PLANTED)
    names = identities[rows]
    other = np.tile(np.arange(2 * PLANTED) >= PLANTED, n)
    names[other] = (names[other] + random.integers(1, 4, int(other.sum()))) % len(counts)
    inside = (random.random(len(names)) * counts[names]).astype(np.int64)
    columns = by_identity[ends[names] - 1 - inside]
    low, high = np.minimum(rows, columns), np.maximum(rows, columns)
    keys, chosen = np.unique((low * n + high)[low < high], return_index=True)
    spread = np.where(other, 0.75, 0.3) + 0.3 * random.random(len(rows))
    values = spread[low < high][chosen].clip(max=MAX_DISTANCE).astype(np.float32)
    both = np.concatenate([keys, keys % n * n + keys // n])
    order = np.argsort(both)
    indptr = np.searchsorted(both[order], n * np.arange(n + 1))
    columns = torch.from_numpy(both[order] % n)
    values = torch.from_numpy(np.tile(values, 2)[order])
    return Graph(torch.from_numpy(indptr), columns, values, MAX_DISTANCE)


def ours(graph: Graph) -> Tensor:
    return average_linkage(graph, THRESHOLD).labels


def in_python(graph: Graph) -> Tensor:
    with mock.patch.object(native, "extension", return_value=None):
        return ours(graph)


def scipy(graph: Graph) -> Tensor:
    from scipy.cluster.hierarchy import fcluster, linkage

    n = graph.n
    rows, columns, distances = edges(graph)
    # Pair (i, j) of the distances of all pairs i < j, row after row.
    condensed = np.ones(n * (n - 1) // 2)
    condensed[n * rows - rows * (rows + 1) // 2 + columns - rows - 1] = distances
    tree = linkage(condensed, method="average")
    return torch.from_numpy(fcluster(tree, 1 - THRESHOLD, criterion="distance"))


def scikit_learn(graph: Graph) -> Tensor:
    from scipy.sparse import coo_matrix
    from sklearn.cluster import AgglomerativeClustering

    n = graph.n
    rows, columns, distances = edges(graph)
    dense = np.ones((n, n))
    dense[rows, columns] = dense[columns, rows] = distances
    edge = coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(n, n))
    model = AgglomerativeClustering(
        n_clusters=None,
        metric="precomputed",
        linkage="average",
        connectivity=edge + edge.T,
        distance_threshold=1 - THRESHOLD,
    )
    with warnings.catch_warnings():
        # It warns that it connects the components of the graph.
        warnings.simplefilter("ignore")
        return torch.from_numpy(model.fit_predict(dense))


def edges(graph: Graph) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns and distances of the edges above the diagonal."""
    indptr, indices, distances = (x.cpu().numpy() for x in graph[:3])
    rows = np.repeat(np.arange(graph.n), np.diff(indptr))
    above = rows < indices
    return rows[above], indices[above], distances[above].astype(np.float64)


FORMS = {"ours": ours, "Python": in_python, "SciPy": scipy, "scikit-learn": scikit_learn}
LIMITS = {"Python": IN_PYTHON_UP_TO, "SciPy": DENSE_UP_TO, "scikit-learn": DENSE_UP_TO}


def with_singletons(labels: Tensor) -> Tensor:
    """The labels with each image outside every cluster as a class of its own."""
    n = len(labels)
    return torch.where(labels < 0, n + torch.arange(n), labels).long()


@pytest.mark.parametrize("form", FORMS)
def test_linkage(
    benchmark: BenchmarkFixture, size: tuple[int, int], form: str, device: str, rounds: int
) -> None:
    n, dim = size
    if n > LIMITS.get(form, n):
        pytest.skip(f"{form} takes too long or too much memory for {n:,} images")
    if form == "scikit-learn":
        pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    benchmark.group = f"linkage, {n:,} x {dim:,}"
    inputs = harness.Inputs(make, size)
    labels = harness.measure(
        benchmark, FORMS[form], inputs, device, n=n, dim=dim, rounds=rounds
    ).cpu()
    (graph,) = make("cpu", n, dim)
    expected = ours(graph)
    benchmark.extra_info["edges"] = len(graph.indices) // 2
    benchmark.extra_info["clusters"] = int(expected.max()) + 1
    if form != "scikit-learn":
        scores = pair_scores(with_singletons(labels), with_singletons(expected))
        # A mean may round to either side of the threshold in SciPy's sums.
        assert scores.f1 > 0.9999 if form == "SciPy" else torch.equal(labels, expected)
