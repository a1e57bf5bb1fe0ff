"""Nearest neighbours from tiles of rounded similarities, against a stable sort of exact ones."""

from __future__ import annotations

from types import ModuleType

import numpy as np


def run(module: ModuleType) -> None:
    """Check lists from float32 and from bfloat16 tiles, of spread rows and of nearly equal rows."""
    for n, width, k, spread, capacity in (
        (300, 24, 9, 0.4, 40),
        (200, 16, 5, 1e-3, 24),
        (3, 4, 2, 0.4, 20),
    ):
        for bfloat16 in (False, True):
            check(module, n, width, k, spread, capacity, bfloat16)


def check(
    module: ModuleType, n: int, width: int, k: int, spread: float, capacity: int, bfloat16: bool
) -> None:
    random = np.random.default_rng(n)
    rows = random.normal(size=(8, width))[random.integers(8, size=n)] + spread * random.normal(
        size=(n, width)
    )
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    exact = (rows.astype(np.float64) @ rows.T.astype(np.float64)).astype(np.float32)
    expected = np.argsort(-(exact.astype(np.float64) - 4 * np.eye(n)), axis=1, kind="stable")[:, :k]
    similarity = exact
    if bfloat16:
        # Only the products are rounded here, not the features.
        bits = exact.view(np.uint32)
        similarity = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    lists = []
    for threads in (1, 4):
        values, columns = np.zeros((n, capacity), np.float32), np.zeros((n, capacity), np.int32)
        counts, thresholds = np.zeros(n, np.int32), np.full(n, -np.inf, np.float32)
        margins = np.full(n, 1e-6, np.float32)
        places = (x.ctypes.data for x in (values, columns, counts, thresholds, margins))
        candidates = module.Candidates(*places, n, capacity, k)
        for row in range(0, n, 70):
            high = min(70, n - row)
            for column in range(row, n, 90):
                wide = min(90, n - column)
                tile = np.ascontiguousarray(similarity[row : row + high, column : column + wide])
                module.add_tile(
                    candidates, tile.ctypes.data, bfloat16, row, high, column, wide, threads
                )
        got = np.empty((n, k + 1), np.int64)
        module.finish(candidates, bfloat16, rows.ctypes.data, width, got.ctypes.data, threads)
        lists.append(got)
    assert np.array_equal(*lists)
    assert np.array_equal(got[:, 0], np.arange(n))
    complete = got[:, 1] >= 0
    assert np.array_equal(got[complete, 1:], expected[complete])
    if spread == 0.4:
        assert complete.all()
        for threads in (1, 4):
            assert np.array_equal(
                among_others(module, rows, exact, similarity, k + 1, bfloat16, threads), expected
            )


def among_others(
    module: ModuleType,
    rows: np.ndarray,
    exact: np.ndarray,
    similarity: np.ndarray,
    k: int,
    bfloat16: bool,
    threads: int,
) -> np.ndarray:
    """Lists merged from two parts of all rows; then each row is removed from its own list."""
    n, width = rows.shape
    capacity = n + 1
    known = np.full((n, k), -np.inf, np.float32)
    neighbours = np.full((n, k), -1, np.int64)
    for start, stop in ((n // 2, n), (0, n // 2)):
        values, columns = np.zeros((n, capacity), np.float32), np.zeros((n, capacity), np.int32)
        counts, thresholds = np.zeros(n, np.int32), known[:, -1] - np.float32(0.02)
        margins = np.full(n, 1e-6, np.float32)
        arrays = (x.ctypes.data for x in (values, columns, counts, thresholds, margins))
        candidates = module.Candidates(*arrays, n, capacity, k, False)
        tile = np.ascontiguousarray(similarity[:, start:stop])
        module.add_tile(candidates, tile.ctypes.data, bfloat16, 0, n, 0, stop - start, threads)
        others = rows[start:stop].copy()
        got = (x.ctypes.data for x in (known, neighbours))
        module.merge(candidates, rows.ctypes.data, others.ctypes.data, start, width, *got, threads)
    assert np.array_equal(known, np.take_along_axis(exact, neighbours, 1))
    return np.array([[j for j in row if j != i] for i, row in enumerate(neighbours.tolist())])
