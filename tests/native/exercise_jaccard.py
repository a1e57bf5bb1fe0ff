"""The Jaccard graph in C++, and the overlaps on a GPU, against dense NumPy."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

UNIT = 2.0**31


def run(module: ModuleType) -> None:
    """Check the graph of small sets, and pairs of sparse rows."""
    for n, k1, k2 in ((150, 12, 4), (40, 40, 6), (1, 1, 1)):
        for kind in (np.float32, np.float64):
            check_graph(module, n, k1, k2, kind)
    if module.cuda:
        # Rows that fit the table, rows that do not, and capacity for fewer pairs than there are.
        for seed, per_row in enumerate((6, 40)):
            for capacity in (200_000, 100):
                check_overlaps(module, seed, 700, per_row, capacity)


def check_graph(module: ModuleType, n: int, k1: int, k2: int, kind: type) -> None:
    random = np.random.default_rng(n)
    features = random.normal(size=(10, 9))[random.integers(10, size=n)] + 0.3 * random.normal(
        size=(n, 9)
    )
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(kind)
    neighbours = np.argsort(-(features @ features.T) - 4 * np.eye(n), axis=1, kind="stable")[
        :, :k1
    ].copy()
    half = min(round(k1 / 2) + 1, k1)
    expected = dense_distance(features.astype(np.float64), neighbours, half, k2)
    np.fill_diagonal(expected, 1)
    form = module.jaccard_edges_float32 if kind is np.float32 else module.jaccard_edges_float64
    graphs = []
    for threads in (1, 4):
        edges = form(
            neighbours=neighbours.ctypes.data,
            n=n,
            k1=k1,
            half=half,
            k2=k2,
            features=features.ctypes.data,
            width=features.shape[1],
            max_distance=0.7,
            threads=threads,
        )
        indptr, indices = np.empty(n + 1, np.int64), np.empty(2 * edges.count, np.int64)
        distances = np.empty(2 * edges.count, kind)
        edges.write(indptr.ctypes.data, indices.ctypes.data, distances.ctypes.data)
        graphs.append((indptr, indices, distances))
    assert all(np.array_equal(a, b) for a, b in zip(*graphs, strict=True))
    rows = np.repeat(np.arange(n), np.diff(indptr))
    got = np.ones((n, n))
    got[rows, indices] = distances
    assert (np.diff(indices)[np.diff(rows) == 0] > 0).all()
    assert np.abs(np.where(expected <= 0.7, expected, 1) - got).max(initial=0) < (
        1e-6 if kind is np.float32 else 1e-12
    )
    for threads in (1, 4):
        parts = graph_in_parts(module, features, neighbours, half, k2, threads)
        assert all(
            np.array_equal(a, b) for a, b in zip(parts, (indptr, indices, distances), strict=True)
        )


def graph_in_parts(
    module: ModuleType,
    features: np.ndarray,
    neighbours: np.ndarray,
    half: int,
    k2: int,
    threads: int,
) -> tuple[np.ndarray, ...]:
    """The graph by the steps of a sharded run, with one rank that fetches all rows in reverse."""
    n, width = features.shape
    dtype = features.dtype.name
    weight = np.uint32 if dtype == "float32" else np.uint64
    listed, short = np.zeros((n, n), bool), np.zeros((n, n), bool)
    listed[np.arange(n)[:, None], neighbours] = True
    short[np.arange(n)[:, None], neighbours[:, :half]] = True
    members, halves = csr(listed & listed.T), csr((short & short.T)[::-1])
    places = (n - 1 - members[1]).astype(np.int32)
    made = module.expanded_sets(n, *addresses(*members, places, *halves), n, threads)
    starts, columns, _ = written(made.write, made.count, n, np.int32, np.uint8)
    similarities = np.empty(len(columns), features.dtype)
    for first in (0, n // 3):
        block = features[first:] if first else features[: n // 3]
        mine, theirs, out = addresses(features, block, similarities)
        products = getattr(module, f"products_{dtype}")
        products(
            *addresses(starts, columns), n, mine, theirs, first, len(block), width, out, threads
        )
    softmax = np.empty(len(columns), weight)
    getattr(module, f"softmax_weights_{dtype}")(
        *addresses(starts), n, *addresses(similarities, softmax), threads
    )
    lists = np.ascontiguousarray(neighbours[:, :k2])
    averaged = getattr(module, f"averaged_{dtype}")
    made = averaged(
        *addresses(lists), n, lists.shape[1], *addresses(starts, columns, softmax), n, threads
    )
    v = written(made.write, made.count, n, np.int32, weight)
    rows = np.repeat(np.arange(n, dtype=np.int32), np.diff(v[0]))
    order = np.lexsort((rows, -v[1]))
    reversed_starts = np.concatenate([[0], np.cumsum(np.bincount(v[1], minlength=n)[::-1])])
    by_column = (reversed_starts, rows[order], v[2][order])
    named = (v[0], (n - 1 - v[1]).astype(np.int32), v[2])
    ids = np.arange(n)
    near_pairs = getattr(module, f"near_pairs_{dtype}")
    made = near_pairs(*addresses(ids), n, *addresses(*named, *by_column), n, 0.7, threads)
    return written(made.write_rows, made.count, n, np.int64, features.dtype)


def csr(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.nonzero(matrix)
    counts = np.bincount(rows, minlength=len(matrix))
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), columns.astype(np.int32)


def addresses(*arrays: np.ndarray) -> list[int]:
    return [x.ctypes.data for x in arrays]


def written(write: Any, count: int, rows: int, index: Any, value: Any) -> tuple[np.ndarray, ...]:
    arrays = np.empty(rows + 1, np.int64), np.empty(count, index), np.empty(count, value)
    write(*addresses(*arrays))
    return arrays


def dense_distance(features: np.ndarray, neighbours: np.ndarray, half: int, k2: int) -> np.ndarray:
    n = len(features)
    listed = np.zeros((n, n), bool)
    listed[np.arange(n)[:, None], neighbours] = True
    short = np.zeros((n, n), bool)
    short[np.arange(n)[:, None], neighbours[:, :half]] = True
    full, short = listed & listed.T, short & short.T
    weights = np.zeros((n, n))
    for i in range(n):
        support = full[i].copy()
        for q in np.flatnonzero(full[i]):
            if 3 * (short[q] & full[i]).sum() > 2 * short[q].sum():
                support |= short[q]
        weights[i, support] = np.exp(2 * features[support] @ features[i] - 2)
        weights[i] /= weights[i].sum()
    weights = weights[neighbours[:, :k2]].mean(1)
    overlap = np.minimum(weights[:, None], weights[None]).sum(2)
    return np.maximum(1 - overlap / (2 - overlap), 0)


def check_overlaps(module: ModuleType, seed: int, n: int, per_row: int, capacity: int) -> None:
    random = np.random.default_rng(seed)
    weights = np.zeros((n, n), np.int64)
    for i in range(n):
        # Few columns, so that some rows overlap with hundreds of others.
        columns = random.choice(n if i % 3 else 60, size=random.integers(0, per_row), replace=False)
        weights[i, columns] = random.integers(1, int(UNIT) // (2 * per_row), size=len(columns))
    least = int(0.02 * UNIT)
    i, j = np.nonzero(np.triu(np.ones((n, n), bool), 1))
    overlap = np.concatenate([np.minimum(weights[a], weights[a + 1 :]).sum(1) for a in range(n)])
    keys = (i * n + j)[overlap >= least]
    overlap = overlap[overlap >= least]

    def sparse(matrix: np.ndarray) -> list[np.ndarray]:
        rows, columns = np.nonzero(matrix)
        starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n))]).astype(np.int64)
        return [starts, columns.astype(np.int32), matrix[rows, columns].astype(np.uint32)]

    parts = sparse(weights) + sparse(weights.T.copy())
    found_keys, found_overlaps = np.full(capacity, -1, np.int64), np.zeros(capacity, np.uint32)
    got, spills, spilled = np.zeros(1, np.uint64), np.zeros(1, np.uint64), np.zeros(n, np.int32)
    places = [x.ctypes.data for x in parts]
    arguments = module.OverlapArguments(
        *places,
        n,
        least,
        found_keys.ctypes.data,
        found_overlaps.ctypes.data,
        capacity,
        got.ctypes.data,
    )
    module.overlaps_cuda(arguments, 512, spilled.ctypes.data, spills.ctypes.data, 0)
    if per_row == 40:
        assert 0 < spills[0] < n
    pools = np.zeros((3, n), np.uint32)
    module.spilled_overlaps_cuda(
        arguments, spilled.ctypes.data, int(spills[0]), pools.ctypes.data, 3, 0
    )
    assert not pools.any()
    assert got[0] == len(keys)
    order = np.argsort(found_keys[: min(capacity, len(keys))])
    found_keys, found_overlaps = found_keys[order], found_overlaps[order]
    if capacity >= len(keys):
        assert np.array_equal(found_keys, keys)
        assert np.array_equal(found_overlaps, overlap)
    else:
        place = np.searchsorted(keys, found_keys)
        assert np.array_equal(keys[place], found_keys)
        assert np.array_equal(overlap[place], found_overlaps)
