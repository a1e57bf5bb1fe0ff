"""Rows and lists of which each rank holds its own."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..distributed.world import World
from .csr import indptr_of, ranges

#: Lists in CSR form: (n + 1,) int64, where each begins, and arrays of what they hold.
Lists = tuple[Tensor, ...]


def rows_of_all(rows: Tensor, world: World) -> int:
    """How many rows all ranks hold, of one kind and cut as `Ranks.own` cuts them.

    Raises:
        ValueError: They are not; on all ranks.
    """
    kinds = world.all_gather_objects((tuple(rows.shape[1:]), rows.dtype))
    counts = world.all_gather_counts(len(rows))
    n = sum(counts)
    wanted = [len(range(n)[world.local_slice(n, rank)]) for rank in range(world.size)]
    if counts != wanted:
        raise ValueError(f"ranks: got {counts} rows on them, expected {wanted}")
    if len(set(kinds)) > 1:
        raise ValueError(
            f"ranks: got rows of {' and '.join(sorted(map(str, set(kinds))))} on them, expected one kind"
        )
    return n


def rounds(blocks: list[slice], world: World) -> Iterator[slice]:
    """This rank's blocks of rows, and empty ones behind them for as long as another rank has any: what sends is collective."""
    for x in range(max(world.all_gather_counts(len(blocks)))):
        yield blocks[x] if x < len(blocks) else slice(0, 0)


def fetch_lists(lists: Lists, rows: Tensor, n: int, world: World) -> Lists:
    """Lists of rows (R,) int64, ascending, of any ranks, where each rank holds those of its own rows of n."""
    indptr, *held = lists
    counts = torch.bincount(world.owner_ranks(rows, n), minlength=world.size).tolist()
    wanted, came = world.all_to_all_rows(rows, counts)
    wanted = wanted - world.local_slice(n).start
    lengths = indptr[wanted + 1] - indptr[wanted]
    theirs, _ = world.all_to_all_rows(lengths, came, counts)
    sent, received = (
        [int(part.sum()) for part in x.split(c)] for x, c in ((lengths, came), (theirs, counts))
    )
    entry = ranges(indptr[wanted], lengths, sum(sent))
    return indptr_of(theirs), *(world.all_to_all_rows(x[entry], sent, received)[0] for x in held)


def some_lists(lists: Lists, rows: Tensor) -> Lists:
    """Lists of some rows, in their order."""
    indptr, *held = lists
    lengths = indptr[rows + 1] - indptr[rows]
    entry = ranges(indptr[rows], lengths)
    return indptr_of(lengths), *(x[entry] for x in held)


def joined(parts: list[Lists]) -> Lists:
    """Lists behind lists."""
    indptr = indptr_of(torch.cat([part[0].diff() for part in parts]))
    return indptr, *map(torch.cat, zip(*(part[1:] for part in parts), strict=True))
