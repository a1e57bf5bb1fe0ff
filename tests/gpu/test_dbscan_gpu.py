"""DBSCAN on CUDA, and cuML's if it is installed, against the CPU, label by label."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from torch import Tensor

from fastreid_al.clustering import (
    Graph,
    cosine_dbscan,
    dbscan,
    ivf_neighbours,
    jaccard_graph,
    nearest_neighbours,
    radius_graph,
    self_paced_labels,
)
from tests.support.features import clustered_features

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
needs_cuml = pytest.mark.skipif(
    importlib.util.find_spec("cuml") is None, reason="cuML is not installed"
)
needs_cuvs = pytest.mark.skipif(
    importlib.util.find_spec("cuvs") is None, reason="cuVS is not installed"
)
EPS = (0.6, 0.58, 0.62, 0.3)


def on_gpu(graph: Graph) -> Graph:
    return Graph(*(x.cuda() for x in graph[:3]), graph.max_distance)


def on_cpu(graph: Graph) -> Graph:
    return Graph(*(x.cpu() for x in graph[:3]), graph.max_distance)


def jaccard(dtype: torch.dtype, spread: float = 0.9) -> Graph:
    return on_cpu(
        jaccard_graph(
            torch.from_numpy(clustered_features(2000, 120, spread=spread)).to(dtype), k1=20
        )
    )


def signs(n: int, seed: int = 0) -> Tensor:
    """Unit-norm rows whose similarities are exact multiples of 1/8; many rows are equal."""
    random = np.random.default_rng(seed)
    centres = random.choice([-0.25, 0.25], (60, 16))
    rows = centres[random.integers(60, size=n)] * random.choice([-1, 1], (n, 16), p=[0.06, 0.94])
    return torch.from_numpy(rows).float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("min_samples", [1, 4, 10])
def test_labels_equal_those_of_the_cpu(dtype: torch.dtype, min_samples: int) -> None:
    graph = jaccard(dtype)
    expected = dbscan(graph, EPS, min_samples)
    got = dbscan(on_gpu(graph), EPS, min_samples)
    assert got.is_cuda
    assert torch.equal(got.cpu(), expected)


def test_a_long_chain_is_one_cluster() -> None:
    n = 300_000
    names = torch.from_numpy(np.random.default_rng(0).permutation(n))
    rows, columns = torch.cat([names[:-1], names[1:]]), torch.cat([names[1:], names[:-1]])
    order = (rows * n + columns).argsort()
    indptr = torch.cat(
        [torch.zeros(1, dtype=torch.int64), torch.bincount(rows, minlength=n).cumsum(0)]
    )
    graph = Graph(indptr, columns[order], torch.full((len(rows),), 0.5), 0.62)
    assert (dbscan(on_gpu(graph), 0.5, 2) == 0).all()


def test_self_paced_labels_equal_those_of_the_cpu() -> None:
    graph = jaccard(torch.float32)
    labels, threshold = self_paced_labels(graph)
    got, other = self_paced_labels(on_gpu(graph))
    assert got.is_cuda
    assert torch.equal(got.cpu(), labels)
    assert other == threshold
    assert int(labels.max()) > 10


def test_a_malformed_graph_on_cuda_is_refused() -> None:
    graph = on_gpu(jaccard(torch.float32))
    beyond = graph.indices.clone()
    beyond[5] = 2000
    with pytest.raises(ValueError, match="got an index 2000"):
        dbscan(graph._replace(indices=beyond), 0.5)
    with pytest.raises(ValueError, match="expected one device"):
        dbscan(graph._replace(indptr=graph.indptr.cpu()), 0.5)


def test_radius_graph_and_cosine_labels_equal_those_of_the_cpu() -> None:
    rows = signs(3000)
    expected, got = radius_graph(rows, 0.3), radius_graph(rows.cuda(), 0.3)
    assert all(torch.equal(a, b.cpu()) for a, b in zip(expected[:3], got[:3], strict=True))
    labels = cosine_dbscan(rows.cuda(), (0.06, 0.2, 0.3), 4)
    assert labels.is_cuda
    assert torch.equal(labels.cpu(), cosine_dbscan(rows, (0.06, 0.2, 0.3), 4))


@needs_cuml
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("min_samples", [2, 4, 10])
def test_cuml_returns_the_same_labels_of_a_graph(dtype: torch.dtype, min_samples: int) -> None:
    graph = jaccard(dtype)
    expected = dbscan(graph, EPS, min_samples)
    assert torch.equal(dbscan(graph, EPS, min_samples, "cuml"), expected)
    assert torch.equal(dbscan(on_gpu(graph), EPS, min_samples, "cuml").cpu(), expected)
    assert torch.equal(self_paced_labels(graph, backend="cuml")[0], self_paced_labels(graph)[0])


@needs_cuml
@pytest.mark.parametrize("seed", range(3))
def test_cuml_returns_the_same_labels_of_cosine_distances(seed: int) -> None:
    rows = signs(3000, seed)
    for eps in (0.06, 0.2, 0.3):
        expected = cosine_dbscan(rows, eps, 4)
        assert torch.equal(cosine_dbscan(rows, eps, 4, "cuml"), expected)
        assert torch.equal(cosine_dbscan(rows.cuda(), eps, 4, "cuml").cpu(), expected)


@needs_cuml
def test_cuml_does_not_change_the_rows() -> None:
    rows = signs(500).cuda()
    before = rows.clone()
    cosine_dbscan(rows, 0.2, backend="cuml")
    assert torch.equal(rows, before)


@needs_cuvs
def test_approximate_neighbours_on_cuda_have_the_reported_recall() -> None:
    rows = torch.from_numpy(clustered_features(5000, 250)).float().cuda()
    got, exact = ivf_neighbours(rows, 30), nearest_neighbours(rows, 30)
    assert got.neighbours.is_cuda
    assert got.recall >= 0.98
    recall = np.mean(
        [
            np.isin(a, b).mean()
            for a, b in zip(exact[:, 1:].cpu(), got.neighbours[:, 1:].cpu(), strict=True)
        ]
    )
    assert got.recall == pytest.approx(recall, abs=0.01)
    assert torch.equal(got.neighbours, ivf_neighbours(rows, 30).neighbours)
