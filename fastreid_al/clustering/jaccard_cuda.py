"""The overlaps of the Jaccard graph by the extension's CUDA kernels."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from .. import native
from .csr import both_directions
from .jaccard_torch import Shares, averaged_weights, by_column, distances, least_overlap

#: Places of a row's table in shared memory, 8 bytes each: partners of a row are some hundreds.
_SLOTS = 2048
#: Pairs of a row that there is room for at first, 12 bytes each.
_PAIRS_PER_ROW = 64
#: Sums that exist at a time for rows whose partners fit no table: 256 MiB.
_POOL = 2**26


def jaccard_edges(
    extension: ModuleType,
    features: Tensor,
    neighbours: Tensor,
    half: int,
    k2: int,
    max_distance: float,
    stream: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """indptr, indices and distances of the graph of float32 features; arguments as `jaccard_graph` has checked them."""
    n = len(features)
    weights = averaged_weights(features, neighbours, half, k2)
    columns, _ = by_column(weights, n)
    i, j, overlap = overlapping_pairs(
        extension, weights, columns, least_overlap(max_distance, features.dtype), stream
    )
    distance = distances(overlap, features.dtype)
    near = distance <= max_distance
    return both_directions(i[near], j[near], distance[near], n)


def overlapping_pairs(
    extension: ModuleType, weights: Shares, columns: Shares, least: int, stream: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows i < j, ascending, that share at least `least`, and how much: int64 each.

    Args:
        extension: The module with its CUDA part.
        weights: Shares by row, in units of 2^-31.
        columns: The same by column.
        least: Overlaps below are left out.
        stream: Address of the CUDA stream.
    """
    n = len(weights.indptr) - 1
    device = weights.shares.device
    parts = [
        part
        for s in (weights, columns)
        for part in (s.indptr, s.columns.to(torch.int32), _low_words(s.shares))
    ]
    spilled = torch.empty(n, dtype=torch.int32, device=device)
    capacity = _PAIRS_PER_ROW * n
    while True:
        # Pairs found, and rows spilled.
        counts = torch.zeros(2, dtype=torch.int64, device=device)
        keys = torch.empty(capacity, dtype=torch.int64, device=device)
        overlaps = torch.empty(capacity, dtype=torch.int32, device=device)
        places = [native.address(part) for part in parts]
        arguments = extension.OverlapArguments(
            *places,
            n,
            least,
            native.address(keys),
            native.address(overlaps),
            capacity,
            counts[:1].data_ptr(),
        )
        extension.overlaps_cuda(
            arguments, _SLOTS, native.address(spilled), counts[1:].data_ptr(), stream
        )
        spills = int(counts[1])
        if spills:
            pools = min(spills, max(1, _POOL // n))
            sums = torch.zeros(pools * n, dtype=torch.int32, device=device)
            extension.spilled_overlaps_cuda(
                arguments, native.address(spilled), spills, native.address(sums), pools, stream
            )
        found = int(counts[0])
        if found <= capacity:
            break
        capacity = found
    keys, order = keys[:found].sort()
    # The sums are unsigned.
    overlap = overlaps[:found][order].long() & 0xFFFFFFFF
    return keys // n, keys % n, overlap


def _low_words(x: Tensor) -> Tensor:
    """int64 values below 2^32 as 32 bits each."""
    return x.view(torch.int32)[::2].contiguous()
