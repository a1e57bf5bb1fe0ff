"""The Jaccard graph over ranks: each holds its rows of the features, the lists, the weights and the graph.

What an image's row needs of images on other ranks is fetched for a block of rows at a time. Ranks may have different numbers of
blocks; all go through as many rounds. Weights are whole numbers, so that it cannot be seen in the graph who summed what.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import native
from ..distributed.world import World
from . import jaccard_torch
from .csr import indptr_of, ranges
from .jaccard_torch import Shares
from .sharding import Lists, fetch_lists, joined, rounds, some_lists

#: Entries of lists and matrices that are fetched at a time: 8 MiB in the extension's form, twice that in PyTorch's, and some
#: 40 MiB on the way.
_BLOCK = 2**20
_MOST_ROWS = 2**31 - 1


class _Sets(NamedTuple):
    """Sets of images in CSR form: (rows + 1,) int64 and columns, numbered among all."""

    indptr: Tensor
    columns: Tensor


class _Run(NamedTuple):
    """What all steps share."""

    n: int
    world: World
    form: _Compiled | _Plain

    @property
    def where(self) -> slice:
        """This rank's rows."""
        return self.world.local_slice(self.n)


def jaccard_edges(
    features: Tensor, lists: Tensor, half: int, k2: int, max_distance: float, n: int, world: World
) -> tuple[Tensor, Tensor, Tensor]:
    """indptr, indices and distances of this rank's rows of the graph; arguments as `jaccard_graph` has checked them.

    Raises:
        ValueError: More images than 31 bits count.
    """
    if n > _MOST_ROWS:
        raise ValueError(f"features: got {n} rows on all ranks, expected {_MOST_ROWS} at most")
    # One form on all: they send each other what only it reads.
    compiled = not world.any_true(not features.is_cpu or native.extension() is None)
    width = lists.shape[1] * (1 + half)
    form = _Compiled(features.dtype, n) if compiled else _Plain(features.dtype, n, width)
    run = _Run(n, world, form)
    members, halves = _reciprocal(run, lists, half)
    sets = _expanded(run, members, halves, lists.shape[1], half)
    weights = Shares(*sets, _shares(run, sets, features))
    # Rows of one cluster share the lowest of their sets: blocks in this order have few columns to fetch.
    order = sets.columns[sets.indptr[:-1]].argsort(stable=True)
    averaged = _averaged(run, weights, lists[order, :k2], width)
    del members, halves, sets, weights
    found = _edges(run, averaged, _by_column(run, averaged, order), order, max_distance)
    indptr, indices, distances = some_lists(found, order.argsort())
    return indptr, indices, distances


def _reciprocal(run: _Run, lists: Tensor, half: int) -> tuple[_Sets, _Sets]:
    """R(i, k1) and R(i, half) of this rank's rows: those who name i, out of those whom i names."""
    n, world, where = run.n, run.world, run.where
    k1 = lists.shape[1]
    both, short = (
        torch.zeros(lists.shape, dtype=torch.bool, device=lists.device) for _ in range(2)
    )
    place = torch.arange(k1, device=lists.device)
    for block in rounds(_even(len(lists), 4 * k1), world):
        own = torch.arange(block.start, block.stop, device=lists.device) + where.start
        # Who is named, who names it, and whether in the first half.
        named = (lists[block] << 32 | own[:, None] << 1 | (place < half)).flatten().sort().values
        counts = torch.bincount(world.owner_ranks(named >> 32, n), minlength=world.size).tolist()
        came, _ = world.all_to_all_rows(named, counts)
        for some in came.split(max(1, _BLOCK // (4 * k1))):
            row, who, near = (some >> 32) - where.start, (some & 0xFFFFFFFF) >> 1, (some & 1).bool()
            edge, at = (lists[row] == who[:, None]).nonzero(as_tuple=True)
            both[row[edge], at] = True
            short[row[edge], at] = near[edge] & (at < half)
    full, part = (
        _Sets(indptr_of(mask.sum(1)), lists[mask].to(run.form.index)) for mask in (both, short)
    )
    return full, part


def _expanded(run: _Run, members: _Sets, halves: _Sets, k1: int, half: int) -> _Sets:
    """The reciprocal sets with the short sets of their members that lie in them by more than two thirds, ascending."""
    parts: list[Lists] = [(members.indptr[:1], members.columns[:0])]
    for block in rounds(_even(len(members.indptr) - 1, k1 * half), run.world):
        indptr, columns = _part(members, block)
        wanted, place = columns.long().unique(return_inverse=True)
        theirs = _Sets(*fetch_lists(halves, wanted, run.n, run.world))
        parts.append(run.form.expanded(_Sets(indptr, columns), place, theirs))
    return _Sets(*joined(parts))


def _shares(run: _Run, sets: _Sets, features: Tensor) -> Tensor:
    """The softmax of the similarities of each image to those in its set."""
    similarities = features.new_empty(len(sets.columns))
    for other, shard in run.world.broadcast_each(features, run.n):
        run.form.products(sets, features, shard, other.start, similarities)
    return run.form.shares(sets.indptr, similarities)


def _averaged(run: _Run, weights: Shares, lists: Tensor, width: int) -> Shares:
    """The mean of the weights of those that each list names, `width` weights at most."""
    parts: list[Lists] = [(weights.indptr[:1], weights.columns[:0], weights.shares[:0])]
    for block in rounds(_even(len(lists), lists.shape[1] * width), run.world):
        wanted, place = lists[block].unique(return_inverse=True)
        theirs = Shares(*fetch_lists(weights, wanted, run.n, run.world))
        parts.append(run.form.averaged(place, theirs))
    return Shares(*joined(parts))


def _by_column(run: _Run, averaged: Shares, order: Tensor) -> Shares:
    """This rank's columns of the weights of all ranks, of which it has rows in this order; some of every rank's at a time."""
    world, where, step = run.world, run.where, max(1, -(-run.n // run.world.size))
    rows = (order + where.start).to(run.form.index).repeat_interleave(averaged.indptr.diff())
    # Sorting takes some fifty bytes an entry.
    turns = min(step, max(1, *world.all_gather_counts(-(-len(rows) // _BLOCK))))
    turn = averaged.columns % step // -(-step // turns)
    lengths = torch.zeros(where.stop - where.start, dtype=torch.int64, device=order.device)
    parts: list[Lists] = []
    for x in range(turns):
        entry = (turn == x).nonzero()[:, 0]
        columns, sort = averaged.columns[entry].sort()
        entry = entry[sort]
        counts = torch.bincount(world.owner_ranks(columns, run.n), minlength=world.size).tolist()
        columns, came = world.all_to_all_rows(columns, counts)
        named, shares = (
            world.all_to_all_rows(held[entry], counts, came)[0] for held in (rows, averaged.shares)
        )
        sort = ((columns.long() - where.start) << 32 | named).argsort()
        lengths += torch.bincount(columns - where.start, minlength=len(lengths))
        parts.append((named[sort], shares[sort]))
    named, shares = map(torch.cat, zip(*parts, strict=True))
    return Shares(indptr_of(lengths), named, shares)


def _edges(
    run: _Run, averaged: Shares, columns: Shares, order: Tensor, max_distance: float
) -> Lists:
    """The edges of the rows of the weights, in their order."""
    n, world, device = run.n, run.world, order.device
    lengths = world.all_gather_rows(columns.indptr.diff())
    place = torch.empty(n, dtype=torch.int64, device=device)
    ids = order + run.where.start
    parts: list[Lists] = [(averaged.indptr[:1], order[:0], run.form.no_distances(device))]
    for block in rounds(_light(averaged, lengths, slice(0, len(order))), world):
        indptr, named, shares = _part(averaged, block)
        wanted = _marked(named, n).nonzero()[:, 0]
        place[wanted] = torch.arange(len(wanted), device=device)
        theirs = Shares(*fetch_lists(columns, wanted, n, world))
        rows = Shares(indptr, place[named.long()], shares)
        parts.append(run.form.near_pairs(ids[block], rows, theirs, max_distance))
    return joined(parts)


def _light(averaged: Shares, lengths: Tensor, block: slice) -> list[slice]:
    """Parts of a block of rows whose columns are not too long together; single rows may be."""
    rows = block.stop - block.start
    if not rows:
        return []
    _, named, _ = _part(averaged, block)
    if rows == 1 or (
        len(named) <= _BLOCK and int(lengths[_marked(named, len(lengths))].sum()) <= _BLOCK
    ):
        return [block]
    middle = block.start + rows // 2
    return [
        part
        for some in ((block.start, middle), (middle, block.stop))
        for part in _light(averaged, lengths, slice(*some))
    ]


def _marked(columns: Tensor, n: int) -> Tensor:
    marks = torch.zeros(n, dtype=torch.bool, device=columns.device)
    marks[columns.long()] = True
    return marks


def _even(rows: int, each: int) -> list[slice]:
    """Blocks of rows with so many entries each at most; a row at least."""
    step = max(1, _BLOCK // max(1, each))
    return [slice(start, min(rows, start + step)) for start in range(0, rows, step)]


def _part(lists: Lists, block: slice) -> Lists:
    """Lists of a block of rows."""
    indptr, *held = lists
    start, stop = indptr[[block.start, block.stop]].tolist()
    return indptr[block.start : block.stop + 1] - start, *(x[start:stop] for x in held)


class _Compiled:
    """The steps on a row in C++; shares of float32 are the bits of its uint32."""

    index = torch.int32

    def __init__(self, dtype: torch.dtype, n: int) -> None:
        self.dtype, self.n = dtype, n
        self.module: Any = native.extension()
        self.share = torch.int32 if dtype == torch.float32 else torch.int64

    def no_distances(self, device: torch.device) -> Tensor:
        return torch.empty(0, dtype=self.dtype, device=device)

    def expanded(self, sets: _Sets, place: Tensor, halves: _Sets) -> _Sets:
        arrays = (sets.indptr, sets.columns, place.to(torch.int32), *halves)
        made = self.module.expanded_sets(
            len(sets.indptr) - 1, *map(native.address, arrays), self.n, native.threads()
        )
        return _Sets(
            *_written(made.write, made.count, len(sets.indptr), torch.int32, torch.uint8)[:2]
        )

    def products(
        self, sets: _Sets, features: Tensor, others: Tensor, first: int, out: Tensor
    ) -> None:
        addresses = map(native.address, (*sets, features, others, out))
        starts, columns, mine, theirs, to = addresses
        self._call("products")(
            starts,
            columns,
            len(features),
            mine,
            theirs,
            first,
            len(others),
            features.shape[1],
            to,
            native.threads(),
        )

    def shares(self, indptr: Tensor, similarities: Tensor) -> Tensor:
        out = torch.empty(len(similarities), dtype=self.share)
        self._call("softmax_weights")(
            native.address(indptr),
            len(indptr) - 1,
            *map(native.address, (similarities, out)),
            native.threads(),
        )
        return out

    def averaged(self, place: Tensor, weights: Shares) -> Shares:
        rows, k2 = place.shape
        addresses = map(native.address, weights)
        made = self._call("averaged")(
            native.address(place), rows, k2, *addresses, self.n, native.threads()
        )
        return Shares(*_written(made.write, made.count, rows + 1, torch.int32, self.share))

    def near_pairs(self, ids: Tensor, rows: Shares, columns: Shares, max_distance: float) -> Lists:
        arrays = (rows.indptr, rows.columns.to(torch.int32), rows.shares, *columns)
        made = self._call("near_pairs")(
            native.address(ids),
            len(ids),
            *map(native.address, arrays),
            self.n,
            max_distance,
            native.threads(),
        )
        return _written(made.write_rows, made.count, len(rows.indptr), torch.int64, self.dtype)

    def _call(self, name: str) -> Any:
        return getattr(self.module, f"{name}_{str(self.dtype).removeprefix('torch.')}")


def _written(
    write: Any, count: int, starts: int, index: torch.dtype, value: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    arrays = (
        torch.empty(starts, dtype=torch.int64),
        torch.empty(count, dtype=index),
        torch.empty(count, dtype=value),
    )
    write(*map(native.address, arrays))
    return arrays


class _Plain:
    """The same in PyTorch, on any device."""

    index = torch.int64

    def __init__(self, dtype: torch.dtype, n: int, width: int) -> None:
        self.dtype, self.n, self.width = dtype, n, width

    def no_distances(self, device: torch.device) -> Tensor:
        return torch.empty(0, dtype=self.dtype, device=device)

    def expanded(self, sets: _Sets, place: Tensor, halves: _Sets) -> _Sets:
        halves_of = self._table(halves.indptr, halves.columns, self.n)
        # A list of its own for what is no member, all of it padding.
        halves_of = torch.nn.functional.pad(halves_of, (0, 0, 0, 1), value=self.n)
        members, order = self._table(sets.indptr, sets.columns, self.n).sort(1)
        place = self._table(sets.indptr, place, len(halves_of) - 1).gather(1, order)
        together, fresh = jaccard_torch.expanded(members, halves_of[place], self.n)
        return _Sets(indptr_of(fresh.sum(1)), together[fresh])

    def products(
        self, sets: _Sets, features: Tensor, others: Tensor, first: int, out: Tensor
    ) -> None:
        entry = ((sets.columns >= first) & (sets.columns < first + len(others))).nonzero()[:, 0]
        row = torch.searchsorted(sets.indptr, entry, right=True) - 1
        out[entry] = jaccard_torch.pair_products(features, others, row, sets.columns[entry] - first)

    def shares(self, indptr: Tensor, similarities: Tensor) -> Tensor:
        counts = indptr.diff()
        out = [indptr[:0]]
        for block in _even(len(counts), self.width):
            some = similarities[indptr[block.start] : indptr[block.stop]]
            out.append(jaccard_torch.whole_shares(some, counts[block], self.width))
        return torch.cat(out)

    def averaged(self, place: Tensor, weights: Shares) -> Shares:
        return jaccard_torch.averaged(weights, place, self.n)

    def near_pairs(self, ids: Tensor, rows: Shares, columns: Shares, max_distance: float) -> Lists:
        first = columns.indptr[rows.columns]
        meetings = columns.indptr[rows.columns + 1] - first
        i, j, distance = jaccard_torch.near_pairs(
            rows, columns, first, meetings, self.n, self.dtype, max_distance
        )
        other = ids[i] != j
        return indptr_of(torch.bincount(i[other], minlength=len(ids))), j[other], distance[other]

    @staticmethod
    def _table(indptr: Tensor, values: Tensor, padding: int) -> Tensor:
        """Lists side by side, as long as the longest, of one place at least."""
        counts = indptr.diff()
        table = values.new_full(
            (len(counts), int(counts.max().clamp(min=1)) if len(counts) else 1), padding
        )
        row = torch.arange(len(counts), device=counts.device).repeat_interleave(
            counts, output_size=len(values)
        )
        table[row, ranges(torch.zeros_like(counts), counts, len(values))] = values
        return table
