"""The Jaccard graph in PyTorch, by blocks of images, on any device.

It is used without the extension, and on a GPU for all steps before the overlaps.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .csr import both_directions, indptr_of, ranges

#: Elements of an array that exists at a time: 64 MiB of int64 on a CPU, 1 GiB on a GPU.
_BLOCK = 2**23
_BLOCK_GPU = 2**27
#: Fractional bits of fixed-point weights, by the dtype of the features.
BITS = {torch.float32: 31, torch.float64: 52}


class SparseWeights(NamedTuple):
    """A sparse matrix V of weights in fixed point, in CSR form.

    Args:
        indptr: (rows + 1,) int64.
        columns: (entries,), ascending in each row.
        weights: (entries,), in units of 2^-31 (float32 features) or 2^-52 (float64).
    """

    indptr: Tensor
    columns: Tensor
    weights: Tensor


def jaccard_edges(
    features: Tensor, neighbours: Tensor, half: int, k2: int, max_distance: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The graph; its arguments are those that `jaccard_graph` has checked.

    Args:
        features: (n, D) unit-norm rows.
        neighbours: (n, k1) int64; each list starts with the row's own index.
        half: Length of the lists of R(i, k1 / 2).
        k2: Entries of a list over which weights are averaged.
        max_distance: Greatest distance to keep.

    Returns:
        indptr (n + 1,), indices and distances (edges,).
    """
    n = len(features)
    if n == 0:
        return neighbours.new_zeros(1), neighbours.new_zeros(0), features.new_empty(0)
    weights = averaged_weights(features, neighbours, half, k2)
    columns, order = by_column(weights, n)
    position = torch.empty_like(order)  # of each entry in its column
    position[order] = torch.arange(len(order), device=order.device)
    # Entry (i, t) overlaps with the entries (j, t) that follow it in column t, so that j > i.
    overlapping = columns.indptr[weights.columns + 1] - position - 1
    i, j, distance = near_pairs(
        weights, columns, position + 1, overlapping, n, features.dtype, max_distance
    )
    return both_directions(i, j, distance, n)


def averaged_weights(features: Tensor, neighbours: Tensor, half: int, k2: int) -> SparseWeights:
    """V: softmax weights over the expanded k-reciprocal sets, averaged over k2 neighbours."""
    weights = _reciprocal_weights(features, neighbours, half)
    return averaged(weights, neighbours[:, :k2], len(neighbours))


def distances(overlap: Tensor, dtype: torch.dtype) -> Tensor:
    """max(0, 1 - m / (2 - m)) of overlaps m in fixed point; `dtype` is that of the features."""
    m = overlap.double() / 2.0 ** BITS[dtype]
    return (1 - m / (2 - m)).clamp_(min=0).to(dtype)


def least_overlap(max_distance: float, dtype: torch.dtype) -> int:
    """A bound in fixed point: every smaller overlap has a distance above `max_distance`.

    It is a little less than the exact bound, because distances are rounded.
    """
    return max(1, int((2 * (1 - max_distance) / (2 - max_distance) - 1e-6) * 2.0 ** BITS[dtype]))


def _blocks(n: int, elements: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """Ranges of rows that have at most a block of elements together, one row at least."""
    rows = max(1, (_BLOCK if device.type == "cpu" else _BLOCK_GPU) // max(1, elements))
    return ((start, min(n, start + rows)) for start in range(0, n, rows))


def _short_lists(neighbours: Tensor, half: int) -> Tensor:
    """R(i, k1 / 2) in the order of the list; n in place of other neighbours: (n, half)."""
    n = len(neighbours)
    out = neighbours[:, :half].clone()
    for start, stop in _blocks(n, half * half, neighbours.device):
        own = torch.arange(start, stop, device=neighbours.device)
        lists = neighbours[out[start:stop], :half]  # (B, half, half)
        reciprocal = (lists == own[:, None, None]).any(2)  # (B, half)
        out[start:stop].masked_fill_(~reciprocal, n)
    return out


def _reciprocal_weights(features: Tensor, neighbours: Tensor, half: int) -> SparseWeights:
    """The softmax of the similarities over each row's expanded k-reciprocal set."""
    n, k1 = neighbours.shape
    # Row n is padding: the set of an index that is not a member.
    halves = torch.nn.functional.pad(_short_lists(neighbours, half), (0, 0, 0, 1), value=n)
    counts = []
    columns = []
    weights = []
    for start, stop in _blocks(n, k1 * (k1 + 4 * half), neighbours.device):
        own = torch.arange(start, stop, device=neighbours.device)
        lists = neighbours[start:stop]  # (B, k1)
        reciprocal = (neighbours[lists] == own[:, None, None]).any(2)  # (B, k1)
        members = lists.masked_fill(~reciprocal, n).sort(1).values  # (B, k1)
        sets, valid = expanded(members, halves[members], n)
        set_sizes = valid.sum(1)  # (B,)
        row, position = valid.nonzero(as_tuple=True)
        column = sets[row, position]
        similarity = pair_products(features[start:stop], features, row, column)
        weight = softmax_weights(similarity, set_sizes, k1 * (1 + half))
        # A weight may round to zero; then it is left out.
        counts.append(set_sizes - torch.bincount(row[weight == 0], minlength=stop - start))
        columns.append(column[weight > 0])
        weights.append(weight[weight > 0])
    return SparseWeights(indptr_of(torch.cat(counts)), torch.cat(columns), torch.cat(weights))


def expanded(members: Tensor, halves: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Expand reciprocal sets R(i, k1) by R(q, k1 / 2) of each member q.

    R(q, k1 / 2) is added if more than two thirds of it lie in R(i, k1).

    Args:
        members: (rows, k1) ascending, padded with n.
        halves: (rows, k1, half), R(q, k1 / 2) of each member, padded with n.
        n: Number of images.

    Returns:
        Sets (rows, k1 + k1 * half), ascending, and a mask of the same shape: False for repeated
        entries and for padding.
    """
    k1, half = halves.shape[1:]
    added = halves.flatten(1)  # (rows, k1 * half)
    position = torch.searchsorted(members, added).clamp_(max=k1 - 1)
    real = added < n
    inside = (members.gather(1, position) == added) & real
    common = inside.view(-1, k1, half).sum(2)  # (rows, k1)
    size = real.view(-1, k1, half).sum(2)  # (rows, k1)
    # In integers: the test is strict, and 2/3 is not a float.
    accepted = (3 * common > 2 * size).repeat_interleave(half, 1)
    sets = torch.cat([members, added.masked_fill(~accepted, n)], 1).sort(1).values
    valid = sets < n
    valid[:, 1:] &= sets[:, 1:] != sets[:, :-1]
    return sets, valid


def softmax_weights(similarity: Tensor, counts: Tensor, width: int) -> Tensor:
    """The softmax of each row's similarities in fixed point.

    Args:
        similarity: (entries,), row by row.
        counts: (rows,) int64, entries of each row.
        width: The most entries of a row.

    Returns:
        (entries,) int64.
    """
    exponential = torch.exp(2 * similarity.double() - 2)
    row = torch.arange(len(counts), device=counts.device)
    row = row.repeat_interleave(counts, output_size=len(exponential))
    position = ranges(torch.zeros_like(counts), counts, len(exponential))
    # Sum rows of a dense table of fixed width: sums by index have no fixed order on a GPU.
    table = exponential.new_zeros(len(counts), width)
    table[row, position] = exponential
    softmax = exponential / table.sum(1)[row]
    return (softmax * 2.0 ** BITS[similarity.dtype]).round().long()


def pair_products(features: Tensor, others: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Dot products of pairs, summed in float64 and rounded to the dtype of the features.

    Args:
        features: (n, D).
        others: (m, D).
        rows: (pairs,) int64, rows of `features`.
        columns: (pairs,) int64, rows of `others`.

    Returns:
        (pairs,).
    """
    out = features.new_empty(len(rows))
    for start, stop in _blocks(len(rows), 2 * features.shape[1], features.device):
        products = features[rows[start:stop]].double() * others[columns[start:stop]].double()
        out[start:stop] = products.sum(1)
    return out


def averaged(weights: SparseWeights, lists: Tensor, n: int) -> SparseWeights:
    """The mean of the rows that each list names, rounded half up.

    Args:
        weights: Rows, in fixed point.
        lists: (rows, k2) int64, rows of `weights`.
        n: Number of columns.
    """
    rows, k2 = lists.shape
    lengths = weights.indptr.diff()
    counts = [lengths[:0]]
    columns = [weights.columns[:0]]
    means = [weights.weights[:0]]
    mean_length = -(-len(weights.columns) // max(1, len(lengths)))
    for start, stop in _blocks(rows, 4 * k2 * mean_length, lists.device):
        named = lists[start:stop].flatten()  # (B * k2,)
        length = lengths[named]
        total = int(length.sum())
        entry = ranges(weights.indptr[named], length, total)
        row = torch.arange(stop - start, device=lists.device).repeat_interleave(k2)
        # One key per (row, column); sums of equal keys are sums of integers, so their order is
        # irrelevant.
        key = row.repeat_interleave(length, output_size=total) * n + weights.columns[entry]
        key, order = key.sort()
        key, which = key.unique_consecutive(return_inverse=True)
        sums = torch.zeros_like(key).index_add_(0, which, weights.weights[entry[order]])
        mean = (sums + k2 // 2) // k2
        key = key[mean > 0]
        counts.append(torch.bincount(key // n, minlength=stop - start))
        columns.append(key % n)
        means.append(mean[mean > 0])
    return SparseWeights(indptr_of(torch.cat(counts)), torch.cat(columns), torch.cat(means))


def by_column(weights: SparseWeights, n: int) -> tuple[SparseWeights, Tensor]:
    """Transpose a square matrix.

    Returns:
        The matrix by columns, with ascending rows; and (entries,) int64, the entry of `weights`
        that each of its entries is.
    """
    order = weights.columns.argsort(stable=True)
    rows = torch.arange(n, device=order.device)
    rows = rows.repeat_interleave(weights.indptr.diff(), output_size=len(order))
    indptr = indptr_of(torch.bincount(weights.columns, minlength=n))
    return SparseWeights(indptr, rows[order], weights.weights[order]), order


def near_pairs(
    weights: SparseWeights,
    columns: SparseWeights,
    first: Tensor,
    overlapping: Tensor,
    n: int,
    dtype: torch.dtype,
    max_distance: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of rows within a distance: the smaller weights of shared columns are summed by pair.

    Args:
        weights: Rows of weights.
        columns: Columns of weights, whose entries name the partner rows, 0 to n - 1.
        first: (entries of `weights`,) int64, the first entry of `columns` with which each entry
            overlaps.
        overlapping: (entries of `weights`,) int64, the number of these entries.
        n: Number of partner rows.
        dtype: Of the features.
        max_distance: Greatest distance to keep.

    Returns:
        Row of `weights`, partner and distance of each pair, sorted by row, then partner.
    """
    least = least_overlap(max_distance, dtype)
    device = first.device
    rows = len(weights.indptr) - 1
    block = _BLOCK if device.type == "cpu" else _BLOCK_GPU
    # Dense sums of a block of rows, reused: scatter_add is much faster than sorting keys.
    sums = torch.zeros(max(n, min(block, rows * n)), dtype=torch.int64, device=device)
    none = first.new_zeros(0)
    parts = [(none, none, none.to(dtype))]
    total = indptr_of(overlapping)[weights.indptr].tolist()
    for start, stop in _pair_blocks(total, n, block):
        begin, end = weights.indptr[[start, stop]].tolist()
        count = overlapping[begin:end]
        pairs = total[stop] - total[start]
        partner = ranges(first[begin:end], count, pairs)
        smaller = weights.weights[begin:end].repeat_interleave(count, output_size=pairs)
        smaller = torch.minimum(smaller, columns.weights[partner])
        row = torch.arange(stop - start, device=device)
        lengths = weights.indptr[start : stop + 1].diff()
        row = row.repeat_interleave(lengths, output_size=end - begin)
        key = (row * n).repeat_interleave(count, output_size=pairs) + columns.columns[partner]
        block_sums = sums[: (stop - start) * n]
        block_sums.scatter_add_(0, key, smaller)
        near = (block_sums >= least).nonzero()[:, 0]
        distance = distances(block_sums[near], dtype)
        block_sums.zero_()
        near = near[distance <= max_distance]
        parts.append((start + near // n, near % n, distance[distance <= max_distance]))
    i, j, distance = (torch.cat(part) for part in zip(*parts, strict=True))
    return i, j, distance


def _pair_blocks(total: list[int], n: int, block: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows with at most `block` sums and `block` overlapping entries, one row at least.

    Args:
        total: Overlapping entries of all rows before each row, and of all rows.
        n: Sums of a row.
        block: The limit.
    """
    rows = len(total) - 1
    start = 0
    while start < rows:
        stop = start + 1
        while (
            stop < rows
            and (stop + 1 - start) * n <= block
            and total[stop + 1] - total[start] <= block
        ):
            stop += 1
        yield start, stop
        start = stop
