"""The k-reciprocal Jaccard distance as a sparse graph.

Re-ranking with k-reciprocal encoding (Zhong et al., CVPR 2017) in the form that SpCL and Cluster Contrast cluster with. Pairs
whose weights share no support have distance 1 exactly, so the pairs below any max_distance < 1 are few and nothing here is
n x n.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from reid_kernels.topk import MAX_K
from torch import Tensor

from .neighbours import nearest_neighbours

#: Overlap sums that exist at a time, in elements: 64 MiB of float64.
_BLOCK = 2**23
#: Feature values gathered at a time for similarities of single pairs: 64 MiB of float32, twice.
_GATHER = 2**24


class Graph(NamedTuple):
    """A sparse symmetric graph of distances, in CSR form, without loops.

    Args:
        indptr: (n + 1,) int64.
        indices: (edges,) int64, ascending in each row.
        distances: (edges,) float32 or float64, the dtype of the features; every pair at most `max_distance` apart is here.
        max_distance: The greatest distance kept.
    """

    indptr: Tensor
    indices: Tensor
    distances: Tensor
    max_distance: float

    @property
    def n(self) -> int:
        """Number of nodes."""
        return len(self.indptr) - 1


def jaccard_graph(features: Tensor, k1: int = 30, k2: int = 6, max_distance: float = 0.62) -> Graph:
    """Jaccard distances between images, from their k-reciprocal neighbours.

    Args:
        features: (n, D) float32 or float64, unit rows, on any device; similarities are computed there, the graph on the CPU.
        k1: Length of a neighbour list, the image itself at place 0.
        k2: The weights of an image are averaged over the first k2 of its list.
        max_distance: Pairs further apart are left out; below 1.

    Returns:
        The graph, on the CPU: 16 bytes an edge, some tens of edges an image. Measured over the features, 450 MB at
        n = 32,621 with D = 2,048; it grows with n, to some 10 GB at 1e6, besides blocks of fixed size. Where a large part of
        the features are equal the edges are every pair of these.

    Raises:
        ValueError: Wrong shape, k1 or k2 below 1, k1 above 1,025, max_distance outside [0, 1), or features that are not finite.
    """
    if features.ndim != 2:
        raise ValueError(f"features: found shape {tuple(features.shape)}, wanted (n, D)")
    if k1 < 1 or k2 < 1:
        raise ValueError(f"k1 and k2: found {k1} and {k2}, wanted at least 1")
    if min(k1, len(features)) > MAX_K + 1:
        raise ValueError(f"k1: found {k1}, wanted {MAX_K + 1} at most")
    if not 0 <= max_distance < 1:
        raise ValueError(f"max_distance: found {max_distance}, wanted a number in [0, 1)")
    bad = (~torch.isfinite(features).all(1)).nonzero()[:, 0]
    if len(bad):
        raise ValueError(f"features: {len(bad)} of {len(features)} rows are not finite, the first is row {int(bad[0])}")
    ranks = nearest_neighbours(features, k1).cpu().numpy()
    support = _expanded_neighbours(ranks, half=round(k1 / 2) + 1)
    weights = _weights(features, support)
    averaged = _pattern(ranks[:, :k2]).astype(weights.dtype) @ weights
    averaged.data /= min(k2, ranks.shape[1])
    return _graph(averaged, max_distance)


def _pattern(lists: np.ndarray) -> sp.csr_array:
    """Lists of column indices (n, k) -> n x n matrix of ones."""
    n, k = lists.shape
    ones = np.ones(n * k, dtype=np.int32)
    matrix = sp.csr_array((ones, lists.flatten(), np.arange(0, n * k + 1, max(k, 1))[: n + 1]), shape=(n, n))
    matrix.sort_indices()
    return matrix


def _reciprocal(ranks: np.ndarray, k: int) -> sp.csr_array:
    """R(i, k): the j in the first k of i's list with i in the first k of j's."""
    pattern = _pattern(ranks[:, :k])
    return pattern.multiply(pattern.T).tocsr()


def _expanded_neighbours(ranks: np.ndarray, half: int) -> sp.csr_array:
    """R(i, k1), and R_half(q) for each q in it whose half list lies in R(i, k1) by more than two thirds."""
    full, halves = _reciprocal(ranks, ranks.shape[1]), _reciprocal(ranks, half)
    overlap = (full @ halves.T).multiply(full).tocsr()
    half_sizes = np.diff(halves.indptr)
    # In whole numbers: the test is strict, and 2/3 is not a float.
    overlap.data = (3 * overlap.data > 2 * half_sizes[overlap.indices]).astype(np.int32)
    expanded = (full + overlap @ halves).tocsr()
    expanded.eliminate_zeros()
    expanded.sort_indices()
    return expanded


def _weights(features: Tensor, support: sp.csr_array) -> sp.csr_array:
    """V: softmax of -(2 - 2 s_ij) over each row's support."""
    rows = np.repeat(np.arange(support.shape[0]), np.diff(support.indptr))
    pairs = max(1, _GATHER // max(1, features.shape[1]))
    similarity = np.concatenate(
        [
            _pair_similarity(features, rows[start : start + pairs], support.indices[start : start + pairs])
            for start in range(0, max(1, len(rows)), pairs)
        ]
    )
    weights = np.exp(2 * similarity - 2)
    totals = np.bincount(rows, weights, minlength=support.shape[0])
    weights = (weights / totals[rows]).astype(similarity.dtype)
    return sp.csr_array((weights, support.indices, support.indptr), shape=support.shape)


def _pair_similarity(features: Tensor, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    left = features[torch.from_numpy(rows).to(features.device)]
    right = features[torch.from_numpy(columns.astype(np.int64)).to(features.device)]
    return (left * right).sum(1).cpu().numpy()


def _graph(weights: sp.csr_array, max_distance: float) -> Graph:
    """Edges with 1 - m / (2 - m) <= max_distance, m the sum of the smaller weights of two rows."""
    n = weights.shape[0]
    columns = weights.tocsc()
    columns.sort_indices()
    by_row = _places_in_columns(weights, columns)
    meetings = columns.indptr[weights.indices + 1].astype(np.int64) - by_row - 1
    upper = [
        _upper_edges(weights, columns, by_row, start, stop, max_distance)
        for start, stop in _blocks(np.add.reduceat(np.append(meetings, 0), weights.indptr[:-1]) if n else meetings)
    ]
    empty = np.zeros(0, dtype=np.int64)
    i, j, d = (np.concatenate(parts) for parts in zip(*upper, strict=True)) if upper else (empty, empty, empty)
    return _symmetric(i, j, d.astype(weights.dtype), n, max_distance)


def _blocks(meetings: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of rows whose dense sums, and whose meetings of two entries, stay below a block; a single row at least."""
    n = len(meetings)
    total = np.concatenate([[0], np.cumsum(meetings)])
    start = 0
    while start < n:
        fits = int(np.searchsorted(total, total[start] + _BLOCK, side="right")) - 1
        stop = max(start + 1, min(fits, start + max(1, _BLOCK // n)))
        yield start, stop
        start = stop


def _places_in_columns(weights: sp.csr_array, columns: sp.csc_array) -> np.ndarray:
    """Where each entry of the CSR form lies in the CSC form."""
    numbered = sp.csc_array((np.arange(columns.nnz), columns.indices, columns.indptr), shape=columns.shape).tocsr()
    numbered.sort_indices()
    weights.sort_indices()
    return numbered.data


def _upper_edges(
    weights: sp.csr_array, columns: sp.csc_array, places: np.ndarray, start: int, stop: int, max_distance: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Edges (i, j) with start <= i < stop and j > i.

    Every entry (i, t) meets the entries (j, t) that stand below it in column t; the smaller weights are summed by (i, j).
    """
    n = weights.shape[0]
    entries = slice(weights.indptr[start], weights.indptr[stop])
    rows = np.repeat(np.arange(stop - start), np.diff(weights.indptr[start : stop + 1]))
    first = places[entries] + 1
    counts = columns.indptr[weights.indices[entries] + 1] - first
    partners = np.repeat(first - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
    smaller = np.minimum(np.repeat(weights.data[entries], counts), columns.data[partners])
    keys = np.repeat(rows.astype(np.int64) * n, counts) + columns.indices[partners]
    overlap = np.bincount(keys, smaller, minlength=(stop - start) * n)
    hits = np.flatnonzero(overlap)
    overlap = overlap[hits]
    distance = np.maximum(1 - overlap / (2 - overlap), 0).astype(weights.dtype)
    near = distance <= max_distance
    return start + hits[near] // n, hits[near] % n, distance[near]


def _symmetric(i: np.ndarray, j: np.ndarray, distance: np.ndarray, n: int, max_distance: float) -> Graph:
    """CSR of both directions. Sorted by hand: a distance of zero is an edge, which sparse sums would drop."""
    rows, indices = np.concatenate([i, j]), np.concatenate([j, i])
    order = np.lexsort((indices, rows))
    indptr = np.zeros(n + 1, dtype=np.int64)
    np.cumsum(np.bincount(rows, minlength=n), out=indptr[1:])
    both = np.concatenate([distance, distance])[order]
    return Graph(torch.from_numpy(indptr), torch.from_numpy(indices[order]), torch.from_numpy(both), max_distance)
