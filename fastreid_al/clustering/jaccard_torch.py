"""The Jaccard graph in PyTorch, by blocks of images: without the extension, and on a GPU up to the overlaps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .csr import both_directions, indptr_of, ranges

#: Elements of an array that exists at a time: 64 MiB of int64 on a CPU, 1 GiB on a GPU.
_BLOCK, _BLOCK_GPU = 2**23, 2**27
#: Bits of the whole numbers that stand for shares of one.
BITS = {torch.float32: 31, torch.float64: 52}


class Shares(NamedTuple):
    """A sparse matrix of shares of one, in CSR form: (n + 1,) int64, and int64 columns, ascending, and shares."""

    indptr: Tensor
    columns: Tensor
    shares: Tensor


def jaccard_edges(
    features: Tensor, neighbours: Tensor, half: int, k2: int, max_distance: float
) -> tuple[Tensor, Tensor, Tensor]:
    """indptr, indices and distances of the graph; arguments as `jaccard_graph` has checked them."""
    if len(features) == 0:
        empty = neighbours.new_zeros(0)
        return neighbours.new_zeros(1), empty, features.new_empty(0)
    n = len(features)
    averaged = averaged_weights(features, neighbours, half, k2)
    columns, order = by_column(averaged, n)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    # Every entry (i, t) meets the entries (j, t) that stand below it in column t.
    meetings = columns.indptr[averaged.columns + 1] - place - 1
    return both_directions(
        *near_pairs(averaged, columns, place + 1, meetings, n, features.dtype, max_distance), n
    )


def averaged_weights(features: Tensor, neighbours: Tensor, half: int, k2: int) -> Shares:
    """V: softmax weights over the expanded k-reciprocal sets, averaged over k2 neighbours."""
    return averaged(_weights(features, neighbours, half), neighbours[:, :k2], len(neighbours))


def distances(overlap: Tensor, dtype: torch.dtype) -> Tensor:
    """1 - m / (2 - m), at least 0, of overlaps m in whole numbers."""
    m = overlap.double() / 2.0 ** BITS[dtype]
    return (1 - m / (2 - m)).clamp_(min=0).to(dtype)


def least_overlap(max_distance: float, dtype: torch.dtype) -> int:
    """No overlap below this is at most `max_distance` apart; a little less than exact, since distances are rounded."""
    return max(1, int((2 * (1 - max_distance) / (2 - max_distance) - 1e-6) * 2.0 ** BITS[dtype]))


def _blocks(n: int, each: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """Ranges of rows with so many elements each that stay below a block; a row at least."""
    rows = max(1, (_BLOCK if device.type == "cpu" else _BLOCK_GPU) // max(1, each))
    return ((start, min(n, start + rows)) for start in range(0, n, rows))


def _short_lists(neighbours: Tensor, half: int) -> Tensor:
    """R(i, half) in the order of the list, n in the places of those that are not in it: (n, half)."""
    n = len(neighbours)
    out = neighbours[:, :half].clone()
    for start, stop in _blocks(n, half * half, neighbours.device):
        own = torch.arange(start, stop, device=neighbours.device)
        theirs = neighbours[out[start:stop], :half]
        out[start:stop].masked_fill_(~(theirs == own[:, None, None]).any(2), n)
    return out


def _weights(features: Tensor, neighbours: Tensor, half: int) -> Shares:
    """The softmax of similarities over R(i, k1) and R_half(q) of each q in it that lies in it by more than two thirds."""
    n, k1 = neighbours.shape
    halves = _short_lists(neighbours, half)
    counts, columns, shares = [], [], []
    for start, stop in _blocks(n, k1 * (k1 + 4 * half), neighbours.device):
        own = torch.arange(start, stop, device=neighbours.device)
        members = neighbours[start:stop]
        members = (
            members.masked_fill(~(neighbours[members] == own[:, None, None]).any(2), n)
            .sort(1)
            .values
        )
        # A list of its own for what is no member, all of it padding.
        theirs = torch.nn.functional.pad(halves, (0, 0, 0, 1), value=n)[members]
        together, fresh = expanded(members, theirs, n)
        count = fresh.sum(1)
        row, place = fresh.nonzero(as_tuple=True)
        column = together[row, place]
        similarity = pair_products(features[start:stop], features, row, column)
        whole = whole_shares(similarity, count, k1 * (1 + half))
        counts.append(count - torch.bincount(row[whole == 0], minlength=stop - start))
        columns.append(column[whole > 0])
        shares.append(whole[whole > 0])
    return Shares(indptr_of(torch.cat(counts)), torch.cat(columns), torch.cat(shares))


def expanded(members: Tensor, halves: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Reciprocal sets with the short sets of their members that lie in them by more than two thirds.

    Args:
        members: (rows, k1) ascending, n in the places of no member.
        halves: (rows, k1, half) short sets of the members, n in the places of none.
        n: Number of images.

    Returns:
        (rows, k1 + k1 half) ascending, and which of them are the first of their kind, and no padding.
    """
    k1, half = halves.shape[1:]
    theirs = halves.flatten(1)
    place = torch.searchsorted(members, theirs).clamp_(max=k1 - 1)
    real = theirs < n
    inside = (members.gather(1, place) == theirs) & real
    common, size = (x.view(-1, k1, half).sum(2) for x in (inside, real))
    # In whole numbers: the test is strict, and 2/3 is not a float.
    taken = (3 * common > 2 * size).repeat_interleave(half, 1)
    together = torch.cat([members, theirs.masked_fill(~taken, n)], 1).sort(1).values
    fresh = together < n
    fresh[:, 1:] &= together[:, 1:] != together[:, :-1]
    return together, fresh


def whole_shares(similarity: Tensor, counts: Tensor, width: int) -> Tensor:
    """The softmax of so many similarities a row, `width` at most, in whole numbers."""
    share = torch.exp(2 * similarity.double() - 2)
    row = torch.arange(len(counts), device=counts.device).repeat_interleave(
        counts, output_size=len(share)
    )
    place = ranges(torch.zeros_like(counts), counts, len(share))
    # Row by row, over the same width: sums by index have no order on a GPU.
    table = share.new_zeros(len(counts), width)
    table[row, place] = share
    return (share / table.sum(1)[row] * 2.0 ** BITS[similarity.dtype]).round().long()


def pair_products(features: Tensor, others: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Dot products of single pairs, summed in double and rounded to the features' own dtype."""
    out = features.new_empty(len(rows))
    for start, stop in _blocks(len(rows), 2 * features.shape[1], features.device):
        products = features[rows[start:stop]].double() * others[columns[start:stop]].double()
        out[start:stop] = products.sum(1)
    return out


def averaged(weights: Shares, lists: Tensor, n: int) -> Shares:
    """The mean of the rows that each list names, rounded half up; n columns."""
    rows, k2 = lists.shape
    lengths = weights.indptr.diff()
    counts, columns, shares = [lengths[:0]], [weights.columns[:0]], [weights.shares[:0]]
    each = k2 * -(-len(weights.columns) // max(1, len(lengths)))
    for start, stop in _blocks(rows, 4 * each, lists.device):
        named = lists[start:stop].flatten()
        length = lengths[named]
        total = int(length.sum())
        entry = ranges(weights.indptr[named], length, total)
        row = torch.arange(stop - start, device=lists.device).repeat_interleave(k2)
        key = row.repeat_interleave(length, output_size=total) * n + weights.columns[entry]
        key, order = key.sort()
        key, which = key.unique_consecutive(return_inverse=True)
        sums = torch.zeros_like(key).index_add_(0, which, weights.shares[entry[order]])
        whole = (sums + k2 // 2) // k2
        key, whole = key[whole > 0], whole[whole > 0]
        counts.append(torch.bincount(key // n, minlength=stop - start))
        columns.append(key % n)
        shares.append(whole)
    return Shares(indptr_of(torch.cat(counts)), torch.cat(columns), torch.cat(shares))


def by_column(weights: Shares, n: int) -> tuple[Shares, Tensor]:
    """The matrix by columns, rows ascending, and which entry each of its own is."""
    order = weights.columns.argsort(stable=True)
    rows = torch.arange(n, device=order.device).repeat_interleave(
        weights.indptr.diff(), output_size=len(order)
    )
    indptr = indptr_of(torch.bincount(weights.columns, minlength=n))
    return Shares(indptr, rows[order], weights.shares[order]), order


def near_pairs(
    weights: Shares,
    columns: Shares,
    first: Tensor,
    meetings: Tensor,
    n: int,
    dtype: torch.dtype,
    max_distance: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs (row of weights, partner) and their distance.

    Every entry of the weights meets so many entries of the columns from `first` on; the smaller shares are summed by pair.
    """
    rows = len(weights.indptr) - 1
    total = torch.nn.functional.pad(meetings.cumsum(0), (1, 0))[weights.indptr].tolist()
    least = least_overlap(max_distance, dtype)
    device = first.device
    block = _BLOCK if device.type == "cpu" else _BLOCK_GPU
    sums = torch.zeros(max(n, min(block, rows * n)), dtype=torch.int64, device=device)
    none = first.new_zeros(0)
    found: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([none], [none], [none.to(dtype)])
    start = 0
    while start < rows:
        stop = start + 1
        while (
            stop < rows
            and (stop + 1 - start) * n <= block
            and total[stop + 1] - total[start] <= block
        ):
            stop += 1
        begin, end = weights.indptr[[start, stop]].tolist()
        count = meetings[begin:end]
        number = total[stop] - total[start]
        partner = ranges(first[begin:end], count, number)
        smaller = weights.shares[begin:end].repeat_interleave(count, output_size=number)
        smaller = torch.minimum(smaller, columns.shares[partner])
        row = torch.arange(stop - start, device=device)
        row = row.repeat_interleave(
            weights.indptr[start : stop + 1].diff(), output_size=end - begin
        )
        key = (row * n).repeat_interleave(count, output_size=number) + columns.columns[partner]
        some = sums[: (stop - start) * n]
        some.scatter_add_(0, key, smaller)
        near = (some >= least).nonzero()[:, 0]
        distance = distances(some[near], dtype)
        some.zero_()
        kept = distance <= max_distance
        for out, part in zip(found, (start + near // n, near % n, distance), strict=True):
            out.append(part[kept])
        start = stop
    i, j, distance = (torch.cat(parts) for parts in found)
    return i, j, distance
