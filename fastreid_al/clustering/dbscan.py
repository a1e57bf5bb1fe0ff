"""DBSCAN on a sparse graph of distances."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from .jaccard import Graph


def dbscan(graph: Graph, eps: float, min_samples: int = 4) -> Tensor:
    """Density-based clusters (Ester et al., KDD 1996), numbered as scikit-learn numbers them.

    Args:
        graph: Distances; pairs that are not in it count as further than eps.
        eps: Radius, at most the graph's max_distance.
        min_samples: Points within eps that make a core point, itself counted.

    Returns:
        (n,) int64: clusters numbered by their lowest core index, a border point in the lowest-numbered cluster among its core
        neighbours, -1 for noise. Linear in the edges: 9 bytes an edge while it runs.

    Raises:
        ValueError: eps is negative or above the graph's max_distance, or min_samples is below 1.
    """
    if not 0 <= eps <= graph.max_distance:
        raise ValueError(f"eps: found {eps}, wanted a number in [0, {graph.max_distance}], the reach of the graph")
    if min_samples < 1:
        raise ValueError(f"min_samples: found {min_samples}, wanted at least 1")
    n = graph.n
    near = graph.distances.numpy() <= eps
    rows = np.repeat(np.arange(n), np.diff(graph.indptr.numpy()))[near]
    columns = graph.indices.numpy()[near]
    core = np.bincount(rows, minlength=n) + 1 >= min_samples
    labels = _number_by_first_core(_components(rows, columns, core, n), core)
    to_core = core[columns] & ~core[rows]
    border = np.full(n, n, dtype=np.int64)
    np.minimum.at(border, rows[to_core], labels[columns[to_core]])
    labels[border < n] = border[border < n]
    return torch.from_numpy(labels)


def _components(rows: np.ndarray, columns: np.ndarray, core: np.ndarray, n: int) -> np.ndarray:
    both = core[rows] & core[columns]
    links = sp.csr_array((np.ones(both.sum(), dtype=bool), (rows[both], columns[both])), shape=(n, n))
    return connected_components(links, directed=False)[1]


def _number_by_first_core(components: np.ndarray, core: np.ndarray) -> np.ndarray:
    labels = np.full(len(core), -1, dtype=np.int64)
    labels[core] = numbered_by_first(components[core])
    return labels


def numbered_by_first(values: np.ndarray) -> np.ndarray:
    """Replace each value by its place in the order of first appearance: (m,) -> (m,) int64."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    numbers = np.empty(len(first), dtype=np.int64)
    numbers[np.argsort(first)] = np.arange(len(first))
    return numbers[inverse]
