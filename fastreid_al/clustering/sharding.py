"""Rows and lists that are sharded over ranks: each rank holds those of its own slice."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..distributed.world import World
from .csr import indptr_of, ranges

#: Lists in CSR form: indptr (n + 1,) int64, then one or more arrays of entries.
Lists = tuple[Tensor, ...]


def rows_of_all(rows: Tensor, world: World) -> int:
    """Count the rows of all ranks.

    Raises:
        ValueError: On every rank, if the ranks' numbers of rows are not those of
            `World.local_slice`, or if their widths or dtypes differ.
    """
    kinds = world.all_gather_objects((tuple(rows.shape[1:]), rows.dtype))
    counts = world.all_gather_counts(len(rows))
    n = sum(counts)
    expected = [len(range(n)[world.local_slice(n, rank)]) for rank in range(world.size)]
    if counts != expected:
        raise ValueError(f"ranks: got {counts} rows on them, expected {expected}")
    if len(set(kinds)) > 1:
        different = " and ".join(sorted(map(str, set(kinds))))
        raise ValueError(f"ranks: got rows of {different} on them, expected one kind")
    return n


def rounds(blocks: list[slice], world: World) -> Iterator[slice]:
    """Yield this rank's blocks, then empty ones until every rank is done.

    Each round contains collectives, so all ranks must take part in the same number of rounds.
    """
    for x in range(max(world.all_gather_counts(len(blocks)))):
        yield blocks[x] if x < len(blocks) else slice(0, 0)


def fetch_lists(lists: Lists, rows: Tensor, n: int, world: World) -> Lists:
    """Fetch the lists of rows of any rank.

    Args:
        lists: The lists of this rank's own rows.
        rows: (R,) int64, ascending, numbered over all ranks.
        n: Number of rows of all ranks.
        world: The ranks.

    Returns:
        The lists of `rows`, in their order.
    """
    indptr, *arrays = lists
    counts = torch.bincount(world.owner_ranks(rows, n), minlength=world.size).tolist()
    # Send each owner the rows that are needed of it; `asked` are the own rows that others need.
    asked, asked_counts = world.all_to_all_rows(rows, counts)
    asked = asked - world.local_slice(n).start
    lengths = indptr[asked + 1] - indptr[asked]
    received_lengths, _ = world.all_to_all_rows(lengths, asked_counts, counts)
    # Entries for each rank, and from each rank.
    sent = [int(part.sum()) for part in lengths.split(asked_counts)]
    received = [int(part.sum()) for part in received_lengths.split(counts)]
    entries = ranges(indptr[asked], lengths, sum(sent))
    fetched = [world.all_to_all_rows(x[entries], sent, received)[0] for x in arrays]
    return indptr_of(received_lengths), *fetched


def select_lists(lists: Lists, rows: Tensor) -> Lists:
    """The lists of these rows, in their order."""
    indptr, *arrays = lists
    lengths = indptr[rows + 1] - indptr[rows]
    entries = ranges(indptr[rows], lengths)
    return indptr_of(lengths), *(x[entries] for x in arrays)


def concatenate_lists(parts: list[Lists]) -> Lists:
    """Concatenate parts of lists, row after row."""
    lengths = torch.cat([part[0].diff() for part in parts])
    arrays = zip(*(part[1:] for part in parts), strict=True)
    return indptr_of(lengths), *map(torch.cat, arrays)
