"""The Jaccard graph on a GPU: overlaps by the extension's CUDA kernels, the rest in PyTorch."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from .. import native
from .csr import both_directions
from .jaccard_torch import SparseWeights, averaged_weights, by_column, distances, least_overlap

#: Slots of a row's hash table in shared memory, 8 bytes each: a row has some hundreds of partners.
_SLOTS = 2048
#: Room for pairs per row in the first attempt, 12 bytes each.
_PAIRS_PER_ROW = 64
#: Sums that exist at a time for rows whose partners do not fit the table: 256 MiB.
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
    """The graph of float32 features; its arguments are those that `jaccard_graph` has checked.

    Args:
        extension: The module with its CUDA part.
        features: (n, D) float32 unit-norm rows.
        neighbours: (n, k1) int64; each list starts with the row's own index.
        half: Length of the lists of R(i, k1 / 2).
        k2: Entries of a list over which weights are averaged.
        max_distance: Greatest distance to keep.
        stream: Address of the CUDA stream.

    Returns:
        indptr (n + 1,), indices and distances (edges,).
    """
    n = len(features)
    weights = averaged_weights(features, neighbours, half, k2)
    columns, _ = by_column(weights, n)
    least = least_overlap(max_distance, features.dtype)
    i, j, overlap = overlapping_pairs(extension, weights, columns, least, stream)
    distance = distances(overlap, features.dtype)
    near = distance <= max_distance
    return both_directions(i[near], j[near], distance[near], n)


def overlapping_pairs(
    extension: ModuleType,
    weights: SparseWeights,
    columns: SparseWeights,
    least: int,
    stream: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of rows whose overlap is at least `least`.

    Args:
        extension: The module with its CUDA part.
        weights: Weights by row, in units of 2^-31.
        columns: The same weights by column.
        least: Smaller overlaps are left out.
        stream: Address of the CUDA stream.

    Returns:
        i, j and overlap of each pair i < j, sorted by (i, j), int64.
    """
    n = len(weights.indptr) - 1
    device = weights.weights.device
    matrices = []
    for matrix in (weights, columns):
        matrices += [matrix.indptr, matrix.columns.to(torch.int32), _low_words(matrix.weights)]
    capacity = _PAIRS_PER_ROW * n
    while True:
        keys = torch.empty(capacity, dtype=torch.int64, device=device)
        overlaps = torch.empty(capacity, dtype=torch.int32, device=device)
        found = _launch(extension, matrices, least, keys, overlaps, stream)
        if found <= capacity:
            break
        # The kernels count every pair but write only as many as fit: repeat with enough room.
        capacity = found
    keys, order = keys[:found].sort()
    # The kernels' sums are unsigned 32-bit integers.
    overlap = overlaps[:found][order].long() & 0xFFFFFFFF
    return keys // n, keys % n, overlap


def _launch(
    extension: ModuleType,
    matrices: list[Tensor],
    least: int,
    keys: Tensor,
    overlaps: Tensor,
    stream: int,
) -> int:
    """Write the keys and overlaps that fit, in any order; returns the number of all pairs."""
    n = len(matrices[0]) - 1
    device = keys.device
    spilled = torch.empty(n, dtype=torch.int32, device=device)
    counts = torch.zeros(2, dtype=torch.int64, device=device)  # pairs found, rows spilled
    arguments = extension.OverlapArguments(
        *map(native.address, matrices),
        n,
        least,
        native.address(keys),
        native.address(overlaps),
        len(keys),
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
    return int(counts[0])


def _low_words(x: Tensor) -> Tensor:
    """The lower 32 bits of int64 values, as int32."""
    return x.view(torch.int32)[::2].contiguous()
