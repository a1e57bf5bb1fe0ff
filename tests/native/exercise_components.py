"""DBSCAN on a graph, for several radii and numbers of threads, against a graph search."""

from __future__ import annotations

from types import ModuleType

import numpy as np


def run(module: ModuleType) -> None:
    """Graphs with ties, chains, isolated nodes and no edges, and more radii than one pass takes."""
    for seed, (n, edges) in enumerate(((1, 0), (40, 0), (60, 90), (300, 700), (2000, 1999))):
        for kind in (np.float32, np.float64):
            check(module, seed, n, edges, kind)


def check(module: ModuleType, seed: int, n: int, edges: int, kind: type) -> None:
    random = np.random.default_rng(seed)
    near = {}
    for a in range(edges):
        # The last graph is a chain in random order: long paths to one root.
        pair = (
            (a, a + 1) if n == 2000 else tuple(sorted(random.choice(n, 2, replace=False).tolist()))
        )
        near[pair] = random.integers(0, 9) / 8
    order = random.permutation(n)
    i, j = np.array([order[list(pair)] for pair in near] or np.zeros((0, 2)), np.int64).T
    rows, columns = np.concatenate([i, j]), np.concatenate([j, i])
    distances = np.tile(np.array(list(near.values())), 2).astype(kind)
    by_row = np.lexsort((columns, rows))
    rows, columns, distances = rows[by_row], columns[by_row].copy(), distances[by_row].copy()
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n))]).astype(np.int64)
    eps = np.array([0.5, 0.0, 0.25, 1.0, 0.1, 0.75, 0.3, 0.6, 0.9, 0.125], kind)
    for min_samples in (1, 2, 4, n + 1):
        got = []
        for threads in (1, 4):
            labels = np.empty((len(eps), n), np.int64)
            dbscan = module.dbscan_float64 if kind is np.float64 else module.dbscan_float32
            dbscan(
                *(x.ctypes.data for x in (indptr, columns, distances)),
                n,
                eps.ctypes.data,
                len(eps),
                min_samples,
                labels.ctypes.data,
                threads,
            )
            got.append(labels)
        assert np.array_equal(*got)
        for e, labels in zip(eps, got[0], strict=True):
            assert np.array_equal(labels, expected(rows, columns, distances <= e, n, min_samples))


def expected(
    rows: np.ndarray, columns: np.ndarray, near: np.ndarray, n: int, min_samples: int
) -> np.ndarray:
    neighbours: list[list[int]] = [[] for _ in range(n)]
    for a, b in zip(rows[near].tolist(), columns[near].tolist(), strict=True):
        neighbours[a].append(b)
    core = [len(row) + 1 >= min_samples for row in neighbours]
    labels = np.full(n, -1, np.int64)
    clusters = 0
    for start in range(n):
        if not core[start] or labels[start] >= 0:
            continue
        labels[start] = clusters
        open_nodes = [start]
        while open_nodes:
            for b in neighbours[open_nodes.pop()]:
                if core[b] and labels[b] < 0:
                    labels[b] = clusters
                    open_nodes.append(b)
        clusters += 1
    for a in range(n):
        clusters_nearby = [labels[b] for b in neighbours[a] if core[b]]
        if not core[a] and clusters_nearby:
            labels[a] = min(clusters_nearby)
    return labels
