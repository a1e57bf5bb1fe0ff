"""The Jaccard graph over ranks: each rank holds its rows of features, lists, weights and graph.

What a row needs of images on other ranks is fetched for a block of rows at a time. Ranks may have
different numbers of blocks, but take part in the same number of rounds. Weights are in fixed point,
so the graph does not depend on which rank sums them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import native
from ..distributed.world import World
from . import jaccard_torch
from .csr import indptr_of, ranges
from .jaccard_torch import SparseWeights
from .sharding import Lists, concatenate_lists, fetch_lists, rounds, select_lists

#: Entries of lists and matrices that are fetched at a time: 8 MiB for the extension, twice that in
#: PyTorch, and about 40 MiB during the exchange.
_BLOCK = 2**20
_MOST_ROWS = 2**31 - 1


class _Sets(NamedTuple):
    """Sets of images in CSR form: indptr (rows + 1,) int64 and columns, numbered over all ranks."""

    indptr: Tensor
    columns: Tensor


class _Context(NamedTuple):
    """Number of rows of all ranks, the ranks, and the implementation of the steps."""

    n: int
    world: World
    steps: _CompiledSteps | _TorchSteps

    @property
    def own(self) -> slice:
        """The rows of this rank."""
        return self.world.local_slice(self.n)


def jaccard_edges(
    features: Tensor, lists: Tensor, half: int, k2: int, max_distance: float, n: int, world: World
) -> tuple[Tensor, Tensor, Tensor]:
    """This rank's rows of the graph; the arguments are those that `jaccard_graph` has checked.

    Args:
        features: (own rows, D) unit-norm rows.
        lists: (own rows, k1) int64 neighbours, numbered over all ranks.
        half: Length of the lists of R(i, k1 / 2).
        k2: Entries of a list over which weights are averaged.
        max_distance: Greatest distance to keep.
        n: Number of rows of all ranks.
        world: The ranks.

    Returns:
        indptr (own rows + 1,), indices and distances (edges,).

    Raises:
        ValueError: n does not fit in 31 bits.
    """
    if n > _MOST_ROWS:
        raise ValueError(f"features: got {n} rows on all ranks, expected {_MOST_ROWS} at most")
    # All ranks use one implementation, because the types of what they exchange differ.
    compiled = not world.any_true(not features.is_cpu or native.extension() is None)
    k1 = lists.shape[1]
    width = k1 * (1 + half)  # the most members of an expanded set
    steps = _CompiledSteps(features.dtype, n) if compiled else _TorchSteps(features.dtype, n, width)
    context = _Context(n, world, steps)
    members, halves = _reciprocal_sets(context, lists, half)
    sets = _expand_sets(context, members, halves, k1, half)
    weights = SparseWeights(*sets, _softmax_weights(context, sets, features))
    # Rows of one cluster tend to have the same lowest member. In this order a block has few
    # different columns to fetch.
    order = sets.columns[sets.indptr[:-1]].argsort(stable=True)
    averaged = _averaged_weights(context, weights, lists[order, :k2], width)
    del members, halves, sets, weights
    columns = _columns_of_all(context, averaged, order)
    edges = _near_edges(context, averaged, columns, order, max_distance)
    indptr, indices, distances = select_lists(edges, order.argsort())
    return indptr, indices, distances


def _reciprocal_sets(context: _Context, lists: Tensor, half: int) -> tuple[_Sets, _Sets]:
    """R(i, k1) and R(i, k1 / 2) of this rank's rows, in the order of the lists.

    Every row i sends to the owner of each of its neighbours j that i lists j. The owner of j then
    knows which neighbours of j list j.
    """
    n = context.n
    world = context.world
    own = context.own
    k1 = lists.shape[1]
    device = lists.device
    in_full = torch.zeros(lists.shape, dtype=torch.bool, device=device)  # (own rows, k1)
    in_half = torch.zeros(lists.shape, dtype=torch.bool, device=device)  # (own rows, k1)
    position = torch.arange(k1, device=device)
    for block in rounds(_even_blocks(len(lists), 4 * k1), world):
        rows = torch.arange(block.start, block.stop, device=device) + own.start
        # One message is one int64: the neighbour j in bits 32 to 62, the row i in bits 1 to 31, and
        # in bit 0 whether j lies in the first half of i's list. Sorted, they are grouped by owner.
        messages = lists[block] << 32 | rows[:, None] << 1 | (position < half)
        messages = messages.flatten().sort().values
        counts = torch.bincount(world.owner_ranks(messages >> 32, n), minlength=world.size)
        received, _ = world.all_to_all_rows(messages, counts.tolist())
        for part in received.split(max(1, _BLOCK // (4 * k1))):
            row = (part >> 32) - own.start
            sender = (part & 0xFFFFFFFF) >> 1
            sender_in_half = (part & 1).bool()
            message, at = (lists[row] == sender[:, None]).nonzero(as_tuple=True)
            in_full[row[message], at] = True
            in_half[row[message], at] = sender_in_half[message] & (at < half)
    index = context.steps.index
    full_sets = _Sets(indptr_of(in_full.sum(1)), lists[in_full].to(index))
    half_sets = _Sets(indptr_of(in_half.sum(1)), lists[in_half].to(index))
    return full_sets, half_sets


def _expand_sets(context: _Context, members: _Sets, halves: _Sets, k1: int, half: int) -> _Sets:
    """Each row's R(i, k1), expanded by R(q, k1 / 2) of its members; ascending."""
    parts: list[Lists] = [(members.indptr[:1], members.columns[:0])]
    for block in rounds(_even_blocks(len(members.indptr) - 1, k1 * half), context.world):
        sets = _Sets(*_slice_lists(members, block))
        needed, position = sets.columns.long().unique(return_inverse=True)
        fetched = _Sets(*fetch_lists(halves, needed, context.n, context.world))
        parts.append(context.steps.expand(sets, position, fetched))
    return _Sets(*concatenate_lists(parts))


def _softmax_weights(context: _Context, sets: _Sets, features: Tensor) -> Tensor:
    """The softmax of the similarities of each row to its set, (entries,) in fixed point."""
    similarities = features.new_empty(len(sets.columns))
    for other, shard in context.world.broadcast_each(features, context.n):
        context.steps.products(sets, features, shard, other.start, similarities)
    return context.steps.softmax_weights(sets.indptr, similarities)


def _averaged_weights(
    context: _Context, weights: SparseWeights, lists: Tensor, width: int
) -> SparseWeights:
    """For each list the mean of the rows that it names; rows have at most `width` weights."""
    parts: list[Lists] = [(weights.indptr[:1], weights.columns[:0], weights.weights[:0])]
    for block in rounds(_even_blocks(len(lists), lists.shape[1] * width), context.world):
        needed, position = lists[block].unique(return_inverse=True)
        fetched = SparseWeights(*fetch_lists(weights, needed, context.n, context.world))
        parts.append(context.steps.averaged(position, fetched))
    return SparseWeights(*concatenate_lists(parts))


def _columns_of_all(context: _Context, weights: SparseWeights, order: Tensor) -> SparseWeights:
    """This rank's columns of the weights of all ranks.

    A rank owns as many columns as rows, those of the same numbers.

    Args:
        context: The ranks.
        weights: This rank's rows, in the order of `order`.
        order: (own rows,) int64, the rank's rows, numbered from 0.
    """
    world = context.world
    own = context.own
    ids = (order + own.start).to(context.steps.index)
    rows = ids.repeat_interleave(weights.indptr.diff())  # (entries,) the row of each entry
    # Sorting takes about fifty bytes an entry, so entries are exchanged in turns: in each turn a
    # different part of every rank's columns.
    step = max(1, -(-context.n // world.size))
    blocks = world.all_gather_counts(-(-len(rows) // _BLOCK))
    turns = min(step, max(1, *blocks))
    turn = weights.columns % step // -(-step // turns)
    lengths = torch.zeros(own.stop - own.start, dtype=torch.int64, device=order.device)
    parts: list[Lists] = []
    for x in range(turns):
        entry = (turn == x).nonzero()[:, 0]
        columns, sort = weights.columns[entry].sort()
        entry = entry[sort]
        counts = torch.bincount(world.owner_ranks(columns, context.n), minlength=world.size)
        sent = counts.tolist()
        columns, received = world.all_to_all_rows(columns, sent)
        row_ids, _ = world.all_to_all_rows(rows[entry], sent, received)
        values, _ = world.all_to_all_rows(weights.weights[entry], sent, received)
        # By column, then by row.
        sort = ((columns.long() - own.start) << 32 | row_ids).argsort()
        lengths += torch.bincount(columns - own.start, minlength=len(lengths))
        parts.append((row_ids[sort], values[sort]))
    row_ids, values = map(torch.cat, zip(*parts, strict=True))
    return SparseWeights(indptr_of(lengths), row_ids, values)


def _near_edges(
    context: _Context,
    weights: SparseWeights,
    columns: SparseWeights,
    order: Tensor,
    max_distance: float,
) -> Lists:
    """The edges of this rank's rows, in the order of `order`.

    Args:
        context: The ranks.
        weights: This rank's rows, in the order of `order`.
        columns: This rank's columns.
        order: (own rows,) int64, the rank's rows, numbered from 0.
        max_distance: Greatest distance to keep.
    """
    n = context.n
    world = context.world
    steps = context.steps
    device = order.device
    lengths = world.all_gather_rows(columns.indptr.diff())  # (n,) entries of each column
    position = torch.empty(n, dtype=torch.int64, device=device)
    ids = order + context.own.start
    parts: list[Lists] = [(weights.indptr[:1], order[:0], steps.no_distances(device))]
    blocks = _light_blocks(weights, lengths, slice(0, len(order)))
    for block in rounds(blocks, world):
        indptr, named, values = _slice_lists(weights, block)
        needed = _mark(named, n).nonzero()[:, 0]
        # Number the fetched columns from 0; other entries of `position` are not read.
        position[needed] = torch.arange(len(needed), device=device)
        fetched = SparseWeights(*fetch_lists(columns, needed, n, world))
        rows = SparseWeights(indptr, position[named.long()], values)
        parts.append(steps.near_pairs(ids[block], rows, fetched, max_distance))
    return concatenate_lists(parts)


def _light_blocks(weights: SparseWeights, lengths: Tensor, block: slice) -> list[slice]:
    """Split a block of rows until the columns of each part have at most `_BLOCK` entries.

    A part of a single row may have more.
    """
    rows = block.stop - block.start
    if not rows:
        return []
    _, named, _ = _slice_lists(weights, block)
    light = len(named) <= _BLOCK and int(lengths[_mark(named, len(lengths))].sum()) <= _BLOCK
    if rows == 1 or light:
        return [block]
    middle = block.start + rows // 2
    first = _light_blocks(weights, lengths, slice(block.start, middle))
    return first + _light_blocks(weights, lengths, slice(middle, block.stop))


def _mark(columns: Tensor, n: int) -> Tensor:
    """(n,) bool: which columns occur."""
    marks = torch.zeros(n, dtype=torch.bool, device=columns.device)
    marks[columns.long()] = True
    return marks


def _even_blocks(rows: int, entries: int) -> list[slice]:
    """Blocks of rows that have at most `_BLOCK` entries together, one row at least."""
    step = max(1, _BLOCK // max(1, entries))
    return [slice(start, min(rows, start + step)) for start in range(0, rows, step)]


def _slice_lists(lists: Lists, block: slice) -> Lists:
    """The lists of a block of rows."""
    indptr, *arrays = lists
    start, stop = indptr[[block.start, block.stop]].tolist()
    return indptr[block.start : block.stop + 1] - start, *(x[start:stop] for x in arrays)


class _CompiledSteps:
    """The steps on rows in C++, on a CPU.

    Weights of float32 features are uint32, held as int32 tensors with the same bits.
    """

    index = torch.int32

    def __init__(self, dtype: torch.dtype, n: int) -> None:
        self.dtype = dtype
        self.n = n
        self.module: Any = native.extension()
        self.weight = torch.int32 if dtype == torch.float32 else torch.int64

    def no_distances(self, device: torch.device) -> Tensor:
        """An empty tensor of distances."""
        return torch.empty(0, dtype=self.dtype, device=device)

    def expand(self, sets: _Sets, position: Tensor, halves: _Sets) -> _Sets:
        """Expand reciprocal sets; `position` is the row of `halves` of each member."""
        arrays = (sets.indptr, sets.columns, position.to(torch.int32), *halves)
        rows = len(sets.indptr) - 1
        addresses = map(native.address, arrays)
        made = self.module.expanded_sets(rows, *addresses, self.n, native.threads())
        indptr, columns, _ = _read(made.write, made.count, rows, torch.int32, torch.uint8)
        return _Sets(indptr, columns)

    def products(
        self, sets: _Sets, features: Tensor, others: Tensor, first: int, out: Tensor
    ) -> None:
        """Write the dot products with members in [first, first + len(others))."""
        self._call("products")(
            native.address(sets.indptr),
            native.address(sets.columns),
            len(features),
            native.address(features),
            native.address(others),
            first,
            len(others),
            features.shape[1],
            native.address(out),
            native.threads(),
        )

    def softmax_weights(self, indptr: Tensor, similarities: Tensor) -> Tensor:
        """The softmax of each row's similarities in fixed point."""
        out = torch.empty(len(similarities), dtype=self.weight)
        self._call("softmax_weights")(
            native.address(indptr),
            len(indptr) - 1,
            native.address(similarities),
            native.address(out),
            native.threads(),
        )
        return out

    def averaged(self, position: Tensor, weights: SparseWeights) -> SparseWeights:
        """For each list of positions (rows, k2) the mean of these rows of `weights`."""
        rows, k2 = position.shape
        made = self._call("averaged")(
            native.address(position),
            rows,
            k2,
            *map(native.address, weights),
            self.n,
            native.threads(),
        )
        return SparseWeights(*_read(made.write, made.count, rows, torch.int32, self.weight))

    def near_pairs(
        self, ids: Tensor, rows: SparseWeights, columns: SparseWeights, max_distance: float
    ) -> Lists:
        """The edges of `rows`, numbered `ids` over all ranks; their columns index `columns`."""
        arrays = (rows.indptr, rows.columns.to(torch.int32), rows.weights, *columns)
        made = self._call("near_pairs")(
            native.address(ids),
            len(ids),
            *map(native.address, arrays),
            self.n,
            max_distance,
            native.threads(),
        )
        return _read(made.write_rows, made.count, len(ids), torch.int64, self.dtype)

    def _call(self, name: str) -> Any:
        return getattr(self.module, f"{name}_{str(self.dtype).removeprefix('torch.')}")


def _read(
    write: Any, count: int, rows: int, index: torch.dtype, value: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """indptr, columns and values of rows that the extension made."""
    indptr = torch.empty(rows + 1, dtype=torch.int64)
    columns = torch.empty(count, dtype=index)
    values = torch.empty(count, dtype=value)
    write(native.address(indptr), native.address(columns), native.address(values))
    return indptr, columns, values


class _TorchSteps:
    """The steps on rows in PyTorch, on any device; methods as in `_CompiledSteps`."""

    index = torch.int64

    def __init__(self, dtype: torch.dtype, n: int, width: int) -> None:
        self.dtype = dtype
        self.n = n
        self.width = width

    def no_distances(self, device: torch.device) -> Tensor:
        """An empty tensor of distances."""
        return torch.empty(0, dtype=self.dtype, device=device)

    def expand(self, sets: _Sets, position: Tensor, halves: _Sets) -> _Sets:
        """Expand reciprocal sets; `position` is the row of `halves` of each member."""
        half_table = self._table(halves.indptr, halves.columns, self.n)
        # A last row of padding only: the set of an index that is not a member.
        half_table = torch.nn.functional.pad(half_table, (0, 0, 0, 1), value=self.n)
        members, order = self._table(sets.indptr, sets.columns, self.n).sort(1)
        position = self._table(sets.indptr, position, len(half_table) - 1).gather(1, order)
        expanded, valid = jaccard_torch.expanded(members, half_table[position], self.n)
        return _Sets(indptr_of(valid.sum(1)), expanded[valid])

    def products(
        self, sets: _Sets, features: Tensor, others: Tensor, first: int, out: Tensor
    ) -> None:
        """Write the dot products with members in [first, first + len(others))."""
        inside = (sets.columns >= first) & (sets.columns < first + len(others))
        entry = inside.nonzero()[:, 0]
        row = torch.searchsorted(sets.indptr, entry, right=True) - 1
        out[entry] = jaccard_torch.pair_products(features, others, row, sets.columns[entry] - first)

    def softmax_weights(self, indptr: Tensor, similarities: Tensor) -> Tensor:
        """The softmax of each row's similarities in fixed point."""
        counts = indptr.diff()
        out = [indptr[:0]]
        for block in _even_blocks(len(counts), self.width):
            values = similarities[indptr[block.start] : indptr[block.stop]]
            out.append(jaccard_torch.softmax_weights(values, counts[block], self.width))
        return torch.cat(out)

    def averaged(self, position: Tensor, weights: SparseWeights) -> SparseWeights:
        """For each list of positions (rows, k2) the mean of these rows of `weights`."""
        return jaccard_torch.averaged(weights, position, self.n)

    def near_pairs(
        self, ids: Tensor, rows: SparseWeights, columns: SparseWeights, max_distance: float
    ) -> Lists:
        """The edges of `rows`, numbered `ids` over all ranks; their columns index `columns`."""
        first = columns.indptr[rows.columns]
        overlapping = columns.indptr[rows.columns + 1] - first
        i, j, distance = jaccard_torch.near_pairs(
            rows, columns, first, overlapping, self.n, self.dtype, max_distance
        )
        other = ids[i] != j
        return indptr_of(torch.bincount(i[other], minlength=len(ids))), j[other], distance[other]

    @staticmethod
    def _table(indptr: Tensor, values: Tensor, padding: int) -> Tensor:
        """Lists as rows of a dense table, padded to the longest, one column at least."""
        counts = indptr.diff()
        width = int(counts.max().clamp(min=1)) if len(counts) else 1
        table = values.new_full((len(counts), width), padding)
        row = torch.arange(len(counts), device=counts.device)
        row = row.repeat_interleave(counts, output_size=len(values))
        table[row, ranges(torch.zeros_like(counts), counts, len(values))] = values
        return table
