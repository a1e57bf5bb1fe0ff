"""Exact nearest neighbours among unit vectors."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from reid_kernels import similarity_topk
from reid_kernels.numerics import full_precision, has_bf16_units, select_topk
from torch import Tensor

from .. import native
from ..distributed.world import SINGLE_PROCESS, World
from .sharding import rows_of_all

#: Longest list for which candidates are kept; longer ones are rare and searched for row by row.
_LONGEST = 128
#: Values of a tile of similarities: 8 MiB of bfloat16.
_TILE = 2**22
#: Rows of a tile: enough for the product to run at its rate, few enough that the square on the diagonal wastes little.
_ROWS = 1024
#: Below any length whose square float32 can hold, so that no bound is zero because squares were.
_SHORTEST = 1e-17
#: Rows as long as this have products that float32 and bfloat16 cannot hold.
_TOO_LONG = 1e19


def nearest_neighbours(features: Tensor, k: int, world: World = SINGLE_PROCESS) -> Tensor:
    """The k nearest rows of every row by dot product, itself at place 0.

    The others follow by descending similarity, ties to the lowest index. On a CPU with the extension a similarity of float32
    rows is the float32 nearest to the exact one: half the products are computed (s_ij = s_ji), in bfloat16 where the CPU has
    units for it, and what the bound of their error does not rule out is computed again. The same lists for any number of
    threads. Elsewhere it is `reid_kernels.similarity_topk`, whose float32 sums may order differently what differs by their
    rounding.

    Args:
        features: (n, D) float32 or float64, unit rows, on any device.
        k: Neighbours wanted, itself counted, 1,025 at most; n when there are fewer rows.
        world: Each gives its rows of the features and gets its rows of the lists, indices among all; the shards of the others
            pass by one after the other, so that n/W rows of another rank are here at a time.

    Returns:
        (n, min(k, n)) int64, on the device of the features. 7.8 MB at n = 32,621 and 240 MB at 1e6 for k = 30. On a CPU
        candidates of 8 (2 k + 62) bytes a row come with it while it runs (32 MB and 1 GB), a bfloat16 copy of the features
        and a tile of 8 MB; elsewhere what `similarity_topk` takes.

    Raises:
        ValueError: Wrong shape or dtype, k below 1 or above 1,025, or, on a CPU, features that are not finite; on all ranks
            where it is so on one.
    """
    world.raise_together(lambda: _check(features))
    if k < 1:
        raise ValueError(f"k: got {k}, expected 1 or more, the row itself counted")
    if world.size > 1:
        with full_precision(features):
            return _over_ranks(features.detach().contiguous(), k, world)
    k = min(k, len(features))
    own = torch.arange(len(features), device=features.device)
    if k <= 1:
        return own[:, None][:, :k]
    if _has_tiles(features, k):
        with full_precision(features):
            return _symmetric(features.detach().contiguous(), k)
    others = similarity_topk(features, features, k - 1, normalize=False, exclude=own)[1]
    return torch.cat([own[:, None], others], dim=1)


def _check(features: Tensor) -> None:
    if (
        not isinstance(features, Tensor)
        or features.ndim != 2
        or features.dtype not in (torch.float32, torch.float64)
    ):
        found = (
            f"{tuple(features.shape)} {features.dtype}"
            if isinstance(features, Tensor)
            else type(features).__name__
        )
        raise ValueError(f"features: got {found}, expected a tensor (n, D) of float32 or float64")


def _has_tiles(features: Tensor, k: int) -> bool:
    return (
        features.is_cpu
        and features.dtype == torch.float32
        and k <= _LONGEST
        and native.extension() is not None
    )


def _symmetric(features: Tensor, k: int) -> Tensor:
    """The lists from tiles of the upper half of the similarities."""
    low = _low(features)
    rows, length, error = _operand(features, low)
    thresholds = features.new_full((len(features),), -torch.inf)
    found = _collect(
        rows,
        rows,
        _margins((length, error), (length, error), features.shape[1]),
        thresholds,
        k - 1,
        low,
    )
    neighbours = features.new_empty((len(features), k), dtype=torch.int64)
    found.extension.finish(
        found.handle,
        low,
        native.address(features),
        features.shape[1],
        native.address(neighbours),
        native.threads(),
    )
    # Rows with more near equals than there is room for.
    for left in (neighbours[:, 1] < 0).nonzero()[:, 0].split(max(16, _TILE // len(features))):
        neighbours[left, 1:] = select_topk(_similarities(features, left, features, left), k - 1)[1]
    return neighbours


def _over_ranks(features: Tensor, k: int, world: World) -> Tensor:
    """This rank's lists: the shards of all ranks in turn, the best so far kept."""
    n = rows_of_all(features, world)
    where = world.local_slice(n)
    own, width = torch.arange(where.start, where.stop, device=features.device), features.shape[1]
    low = _low(features)
    rows, length, error = world.raise_together(lambda: _operand(features, low, where.start))
    k = min(k, n)
    if k <= 1:
        return own[:, None][:, :k]
    similarities = features.new_full((len(own), k - 1), -torch.inf)
    columns = own.new_full((len(own), k - 1), -1)
    for other, shard in world.broadcast_each(features, n):
        if not len(own) or not len(shard):
            continue
        mine = other == where
        if not _has_tiles(features, k):
            exclude = own - other.start if mine else None
            some = similarity_topk(
                features, shard, min(k - 1, len(shard)), normalize=False, exclude=exclude
            )
            _merge((similarities, columns), some, other.start)
            continue
        theirs, *sizes = (rows, length, error) if mine else _operand(shard, low)
        margins = _margins((length, error), sizes, width)
        # What is not below the last of a full list by its exact similarity is not below this by its approximate one.
        thresholds = torch.nextafter(
            similarities[:, -1] - margins, similarities.new_tensor(-torch.inf)
        )
        thresholds = thresholds.bfloat16().float() if low else thresholds
        found = _collect(rows, theirs, margins, thresholds, k - 1, low)
        places = (native.address(x) for x in (similarities, columns))
        found.extension.merge(
            found.handle,
            *map(native.address, (features, shard)),
            other.start,
            width,
            *places,
            native.threads(),
        )
        for left in (found.counts < 0).nonzero()[:, 0].split(max(16, _TILE // len(shard))):
            exact = _similarities(features, left, shard, left if mine else None)
            known = similarities[left], columns[left]
            _merge(known, select_topk(exact, min(k - 1, len(shard))), other.start)
            similarities[left], columns[left] = known
    return torch.cat([own[:, None], columns], dim=1)


def _merge(known: tuple[Tensor, Tensor], found: tuple[Tensor, Tensor], offset: int) -> None:
    """Put what was found among rows from `offset` on among the first that are known, in place; ties to the lowest column."""
    (similarities, columns), (more, places) = known, found
    k = similarities.shape[1]
    # What is -inf was no row of the bank, or the row itself.
    places = torch.where(more > -torch.inf, places + offset, -1)
    places, order = torch.cat([columns, places], 1).sort(1)
    more, best = (
        torch.cat([similarities, more], 1)
        .gather(1, order)
        .sort(dim=1, descending=True, stable=True)
    )
    similarities.copy_(more[:, :k])
    columns.copy_(places.gather(1, best[:, :k]))


class _Collected(NamedTuple):
    """Candidates as the extension knows them, their numbers, and what must live as long."""

    extension: ModuleType
    handle: Any
    counts: Tensor
    arrays: tuple[Tensor, ...]


def _collect(
    rows: Tensor, others: Tensor, margins: Tensor, thresholds: Tensor, k: int, low: bool
) -> _Collected:
    """Candidates of rows among others from tiles; of rows among themselves from the upper half."""
    extension, threads = native.extension(), native.threads()
    assert extension is not None
    n, capacity, symmetric = len(rows), 2 * k + 64, rows is others
    values = margins.new_empty(n, capacity)
    columns = margins.new_empty((n, capacity), dtype=torch.int32)
    counts = margins.new_zeros(n, dtype=torch.int32)
    arrays = (values, columns, counts, thresholds, margins)
    candidates = extension.Candidates(*map(native.address, arrays), n, capacity, k, symmetric)
    high = min(_ROWS, max(64, n // 16))
    room = rows.new_empty(_TILE)
    for row in range(0, n, high):
        block = rows[row : row + high]
        for column in range(row if symmetric else 0, len(others), _TILE // high):
            some = others[column : column + _TILE // high]
            tile = torch.mm(
                block, some.T, out=room[: len(block) * len(some)].view(len(block), len(some))
            )
            extension.add_tile(
                candidates, native.address(tile), low, row, len(block), column, len(some), threads
            )
    return _Collected(extension, candidates, counts, arrays)


def _similarities(features: Tensor, rows: Tensor, others: Tensor, exclude: Tensor | None) -> Tensor:
    """All similarities of some rows to others, each the float32 nearest to the exact one; -inf to those excluded."""
    some = features[rows].double()
    out = features.new_empty(len(rows), len(others))
    for start in range(0, len(others), _ROWS):
        out[:, start : start + _ROWS] = some @ others[start : start + _ROWS].double().T
    if exclude is not None:
        out[torch.arange(len(rows)), exclude] = -torch.inf
    return out


def _low(features: Tensor) -> bool:
    return (
        features.is_cpu
        and features.dtype == torch.float32
        and has_bf16_units()
        and features.shape[1] >= 64
    )


def _operand(features: Tensor, low: bool, first: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """What the tiles are products of, and of each row the length, and the length of what its rounding takes away."""
    n, width = features.shape
    rows = features.new_empty((n, width), dtype=torch.bfloat16) if low else features
    length, error = features.new_empty(n), features.new_zeros(n)
    step = max(1, _TILE // max(1, width))
    for start in range(0, n, step):
        now = slice(start, start + step)
        torch.linalg.vector_norm(features[now], dim=1, out=length[now])
        if low:
            rows[now] = features[now]
            torch.linalg.vector_norm(features[now] - rows[now].float(), dim=1, out=error[now])
    bad = (~(length < _TOO_LONG)).nonzero()[:, 0]
    if len(bad):
        raise ValueError(
            f"features: row {first + int(bad[0])} is not finite or far too long ({len(bad)} such rows), "
            "expected unit rows"
        )
    length = length * 1.001 + _SHORTEST
    return rows, length, error * 1.001 + _SHORTEST if low else error


def _margins(own: Sequence[Tensor], others: Sequence[Tensor], width: int) -> Tensor:
    """How far two similarities of a row to others may be from their exact order, by the lengths and errors of both.

    The lengths of what rounding a row takes away bound its effect on a product (Cauchy-Schwarz); float32 sums have a bound of
    their own.
    """
    (length, error), (longest, worst) = own, (float(x.max()) for x in others)
    bound = error * longest + length * worst + error * worst + width * 2.0**-22 * length * longest
    return 2.002 * bound
