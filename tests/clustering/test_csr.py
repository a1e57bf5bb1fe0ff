"""CSR helpers against plain lists."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastreid_al.clustering.csr import both_directions, indptr_of, ranges


@pytest.mark.parametrize("known", [True, False])
def test_ranges_are_concatenated_in_order(known: bool) -> None:
    first = torch.tensor([5, 0, 9, 2])
    counts = torch.tensor([3, 0, 1, 2])
    total = 6 if known else None
    assert ranges(first, counts, total).tolist() == [5, 6, 7, 9, 2, 3]
    assert indptr_of(counts).tolist() == [0, 3, 3, 4, 6]


def test_no_ranges_are_empty() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert ranges(none, none).tolist() == []
    assert indptr_of(none).tolist() == [0]


@pytest.mark.parametrize("n", [1, 2, 30])
def test_both_directions_keep_edges_of_distance_zero_and_ascend(n: int) -> None:
    random = np.random.default_rng(n)
    upper = np.triu(random.random((n, n)) < 0.4, 1)
    i, j = (torch.from_numpy(x) for x in upper.nonzero())
    distance = torch.from_numpy(random.integers(0, 3, len(i)) * 0.5)
    indptr, indices, distances = both_directions(i, j, distance, n)
    matrix = np.full((n, n), np.nan)
    matrix[i, j] = distance
    matrix[j, i] = distance
    rows, columns = (~np.isnan(matrix)).nonzero()
    assert indptr.tolist() == [0, *np.bincount(rows, minlength=n).cumsum().tolist()]
    assert indices.tolist() == columns.tolist()
    assert distances.tolist() == matrix[rows, columns].tolist()
