"""Graphs of distances for tests, and scikit-learn's DBSCAN as an independent reference."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
import torch
from sklearn.cluster import DBSCAN

from fastreid_al.clustering import Graph


def graph_of(
    distance: np.ndarray, dtype: torch.dtype = torch.float64, max_distance: float = 0.62
) -> Graph:
    """The graph of all pairs up to max_distance, including pairs at distance zero."""
    near = distance <= max_distance
    np.fill_diagonal(near, False)
    indptr = np.concatenate([[0], near.sum(1).cumsum()]).astype(np.int64)
    arrays = indptr, near.nonzero()[1].astype(np.int64), distance[near]
    return Graph(
        *map(torch.from_numpy, arrays[:2]), torch.from_numpy(arrays[2]).to(dtype), max_distance
    )


def random_distances(n: int, seed: int, levels: int = 8, density: float = 0.3) -> np.ndarray:
    """A symmetric matrix with many ties, zeros, and pairs at distance 1."""
    random = np.random.default_rng(seed)
    steps = np.triu(random.integers(0, levels, (n, n)) * 0.1, 1)
    steps[np.triu(random.random((n, n)) >= density, 1)] = 1
    return steps + steps.T


def dense_distances(graph: Graph) -> np.ndarray:
    """Distances (n, n), 1 if the graph has no edge, 0 on the diagonal."""
    out = np.ones((graph.n, graph.n))
    rows = np.repeat(np.arange(graph.n), np.diff(graph.indptr.numpy()))
    out[rows, graph.indices.numpy()] = graph.distances.numpy()
    np.fill_diagonal(out, 0)
    return out


def scikit_learn_labels(graph: Graph, eps: Sequence[float], min_samples: int) -> np.ndarray:
    """scikit-learn's labels (len(eps), n) of a sparse precomputed graph."""
    indptr, indices, distances = (x.numpy() for x in graph[:3])
    matrix = sp.csr_matrix((distances, indices, indptr), shape=(graph.n, graph.n))
    # Radii are compared in the dtype of the graph.
    radii = torch.tensor(list(eps), dtype=graph.distances.dtype).tolist()
    return _fit(matrix, radii, min_samples, "precomputed")


def scikit_learn_cosine_labels(
    features: np.ndarray, eps: Sequence[float], min_samples: int
) -> np.ndarray:
    """scikit-learn's labels (len(eps), n) of unit-norm rows, by Euclidean distance.

    Its square is twice the cosine distance.
    """
    return _fit(features, [float(np.sqrt(2 * e)) for e in eps], min_samples, "euclidean")


def _fit(
    x: np.ndarray | sp.csr_matrix, radii: Sequence[float], min_samples: int, metric: str
) -> np.ndarray:
    got = np.empty((len(radii), x.shape[0]), dtype=np.int64)
    if not x.shape[0]:
        return got
    for labels, radius in zip(got, radii, strict=True):
        # A radius of zero is refused; the least number above it includes the same pairs.
        eps = max(radius, np.nextafter(0.0, 1.0))
        model = DBSCAN(eps=eps, min_samples=min_samples, metric=metric)
        with warnings.catch_warnings():
            # It warns that sorting a sparse graph is slow.
            warnings.simplefilter("ignore")
            labels[:] = model.fit(x).labels_
    return got
