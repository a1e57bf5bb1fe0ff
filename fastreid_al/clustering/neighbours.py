"""Exact nearest neighbours of unit-norm rows."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import torch
from reid_kernels import similarity_topk
from reid_kernels.numerics import full_precision, has_bf16_units, select_topk
from torch import Tensor

from .. import native
from ..arguments import SINGLE_AND_DOUBLE, as_features, as_integer, as_world
from ..distributed.world import SINGLE_PROCESS, World
from .sharding import rows_of_all

#: Longest list for which tiles and candidates are used. Longer lists are rare and use
#: `similarity_topk`.
_LONGEST = 128
#: Values of a tile of similarities: 8 MiB of bfloat16.
_TILE = 2**22
#: Rows of a tile: enough for a fast product, few enough that the square tile on the diagonal wastes
#: little.
_ROWS = 1024
#: Below any norm whose square float32 can hold, so that no bound is zero because a square
#: underflowed.
_SMALLEST_NORM = 1e-17
#: Rows of this norm have products that float32 and bfloat16 cannot hold.
_TOO_LONG = 1e19


def nearest_neighbours(features: Tensor, k: int, world: World = SINGLE_PROCESS) -> Tensor:
    """Find the k nearest rows of every row by dot product; the row itself is the first.

    The others follow by descending similarity, ties to the lowest index. On a CPU with the
    extension, a similarity of float32 rows is the float32 nearest to the exact value. Half of the
    products are computed (s_ij = s_ji), in bfloat16 if the CPU has units for it, and those that the
    error bound cannot rule out are computed again exactly. The lists do not depend on the number of
    threads. Otherwise `reid_kernels.similarity_topk` is used, whose float32 sums may order
    neighbours differently if their similarities differ only by rounding.

    Args:
        features: (n, D) float32 or float64, unit-norm rows, on any device.
        k: Number of neighbours including the row itself, at most 1,025; n if there are fewer rows.
        world: The ranks, each with its rows of the features. Each gets the lists of its rows, with
            indices over all ranks. The shards are broadcast one after the other, so that n/W rows
            of one other rank are held at a time.

    Returns:
        (n, min(k, n)) int64, on the device of the features: 7.8 MB at n = 32,621 and 240 MB at 1e6
        for k = 30. On a CPU it also needs, while it runs, candidates of 8 (2 k + 62) bytes a row
        (32 MB and 1 GB), a bfloat16 copy of the features and a tile of 8 MB; otherwise what
        `similarity_topk` needs.

    Raises:
        ValueError: Wrong shape or dtype, k below 1 or above 1,025, or, on a CPU, features that are
            not finite. If it is so on one rank, all ranks raise.
    """
    as_world(world)
    features = world.raise_together(
        lambda: as_features("features", features, SINGLE_AND_DOUBLE, finite=world.size == 1)
    )
    k = as_integer("k", k, 1)
    if world.size > 1:
        with full_precision(features):
            return _neighbours_sharded(features.contiguous(), k, world)
    k = min(k, len(features))
    own = torch.arange(len(features), device=features.device)
    if k <= 1:
        return own[:, None][:, :k]
    if _has_tiles(features, k):
        with full_precision(features):
            return _neighbours_from_tiles(features.contiguous(), k)
    others = similarity_topk(features, features, k - 1, normalize=False, exclude=own)[1]
    return torch.cat([own[:, None], others], dim=1)


def _has_tiles(features: Tensor, k: int) -> bool:
    """Whether the search by tiles applies."""
    return (
        features.is_cpu
        and features.dtype == torch.float32
        and k <= _LONGEST
        and native.extension() is not None
    )


def _neighbours_from_tiles(features: Tensor, k: int) -> Tensor:
    """The lists from tiles of the upper half of the similarities, (n, k)."""
    n, width = features.shape
    low = _uses_bfloat16(features)
    operand = _tile_operand(features, low)
    candidates = _collect_candidates(
        operand.rows,
        operand.rows,
        margins=_margins(operand, operand, width),
        thresholds=features.new_full((n,), -torch.inf),
        k=k - 1,
        low=low,
    )
    neighbours = features.new_empty((n, k), dtype=torch.int64)
    candidates.extension.finish(
        candidates.handle,
        low,
        native.address(features),
        width,
        native.address(neighbours),
        native.threads(),
    )
    # Rows with more nearly equal candidates than fit are searched exactly.
    given_up = (neighbours[:, 1] < 0).nonzero()[:, 0]
    for rows in given_up.split(max(16, _TILE // n)):
        exact = _exact_similarities(features, rows, features, rows)
        neighbours[rows, 1:] = select_topk(exact, k - 1)[1]
    return neighbours


def _neighbours_sharded(features: Tensor, k: int, world: World) -> Tensor:
    """The lists of this rank's rows: all ranks' shards in turn, merged into the best so far."""
    n = rows_of_all(features, world)
    own_slice = world.local_slice(n)
    own = torch.arange(own_slice.start, own_slice.stop, device=features.device)
    low = _uses_bfloat16(features)
    operand = world.raise_together(lambda: _tile_operand(features, low, own_slice.start))
    k = min(k, n)
    if k <= 1:
        return own[:, None][:, :k]
    best = _Best(
        similarities=features.new_full((len(own), k - 1), -torch.inf),
        columns=own.new_full((len(own), k - 1), -1),
    )
    for other, shard in world.broadcast_each(features, n):
        if not len(own) or not len(shard):
            continue
        same = other == own_slice
        if _has_tiles(features, k):
            shard_operand = operand if same else _tile_operand(shard, low)
            _merge_tiles(best, features, operand, shard, shard_operand, other.start, same, low)
            continue
        exclude = own - other.start if same else None
        similarities, columns = similarity_topk(
            features, shard, min(k - 1, len(shard)), normalize=False, exclude=exclude
        )
        best.merge(similarities, columns, other.start)
    return torch.cat([own[:, None], best.columns], dim=1)


class _Best(NamedTuple):
    """The best neighbours so far.

    Args:
        similarities: (n, k), descending, padded with -inf.
        columns: (n, k) int64, numbered over all ranks, padded with -1.
    """

    similarities: Tensor
    columns: Tensor

    def merge(self, similarities: Tensor, columns: Tensor, offset: int) -> None:
        """Merge neighbours, numbered from `offset` on, in place; ties go to the lowest column."""
        k = self.similarities.shape[1]
        # -inf is the row itself, or padding.
        columns = torch.where(similarities > -torch.inf, columns + offset, -1)
        columns, order = torch.cat([self.columns, columns], 1).sort(1)
        similarities = torch.cat([self.similarities, similarities], 1).gather(1, order)
        # Stable, after a sort by column: equal similarities keep their columns ascending.
        similarities, best = similarities.sort(dim=1, descending=True, stable=True)
        self.similarities.copy_(similarities[:, :k])
        self.columns.copy_(columns.gather(1, best[:, :k]))


def _merge_tiles(
    best: _Best,
    features: Tensor,
    operand: _Operand,
    shard: Tensor,
    shard_operand: _Operand,
    offset: int,
    same: bool,
    low: bool,
) -> None:
    """Merge the neighbours in a shard into the best so far, by tiles.

    Args:
        best: The best so far; changed.
        features: (n, D), this rank's rows.
        operand: Their operand.
        shard: (m, D), rows of a rank.
        shard_operand: Their operand; `operand` itself if the shard is this rank's.
        offset: Number of the shard's first row over all ranks.
        same: Whether the shard is this rank's.
        low: Whether products are in bfloat16.
    """
    width = features.shape[1]
    k = best.similarities.shape[1]
    margins = _margins(operand, shard_operand, width)
    # A column whose exact similarity reaches the last one of a full list has an approximate
    # similarity of at least this. Rounded down, so that no candidate is lost.
    thresholds = best.similarities[:, -1] - margins
    thresholds = torch.nextafter(thresholds, thresholds.new_tensor(-torch.inf))
    thresholds = thresholds.bfloat16().float() if low else thresholds
    candidates = _collect_candidates(
        operand.rows, shard_operand.rows, margins=margins, thresholds=thresholds, k=k, low=low
    )
    candidates.extension.merge(
        candidates.handle,
        native.address(features),
        native.address(shard),
        offset,
        width,
        native.address(best.similarities),
        native.address(best.columns),
        native.threads(),
    )
    # Rows with more nearly equal candidates than fit are searched exactly.
    given_up = (candidates.counts < 0).nonzero()[:, 0]
    for rows in given_up.split(max(16, _TILE // len(shard))):
        exact = _exact_similarities(features, rows, shard, rows if same else None)
        best_of_rows = _Best(best.similarities[rows], best.columns[rows])
        best_of_rows.merge(*select_topk(exact, min(k, len(shard))), offset)
        best.similarities[rows] = best_of_rows.similarities
        best.columns[rows] = best_of_rows.columns


class _Candidates(NamedTuple):
    """Candidates as the extension knows them.

    Args:
        extension: The compiled module.
        handle: Its `Candidates`, which points to the arrays.
        counts: (n,) int32, number of candidates of each row, -1 for a row that was given up.
        arrays: The arrays, which must live as long as the handle.
    """

    extension: ModuleType
    handle: Any
    counts: Tensor
    arrays: tuple[Tensor, ...]


def _collect_candidates(
    rows: Tensor, others: Tensor, *, margins: Tensor, thresholds: Tensor, k: int, low: bool
) -> _Candidates:
    """Collect the candidates of rows among others, tile by tile.

    Args:
        rows: (n, D).
        others: (m, D); the same tensor as `rows` to use only the upper half of the similarities.
        margins: (n,), see `_margins`.
        thresholds: (n,), below which a similarity is not a candidate; changed.
        k: Number of neighbours.
        low: Whether rows and tiles are in bfloat16.
    """
    extension = native.extension()
    assert extension is not None
    threads = native.threads()
    n = len(rows)
    capacity = 2 * k + 64
    symmetric = rows is others
    values = margins.new_empty(n, capacity)
    columns = margins.new_empty((n, capacity), dtype=torch.int32)
    counts = margins.new_zeros(n, dtype=torch.int32)
    arrays = (values, columns, counts, thresholds, margins)
    handle = extension.Candidates(*map(native.address, arrays), n, capacity, k, symmetric)
    tile_rows = min(_ROWS, max(64, n // 16))
    buffer = rows.new_empty(_TILE)
    for row in range(0, n, tile_rows):
        block = rows[row : row + tile_rows]  # (B, D)
        for column in range(row if symmetric else 0, len(others), _TILE // tile_rows):
            other_block = others[column : column + _TILE // tile_rows]  # (C, D)
            b = len(block)
            c = len(other_block)
            tile = torch.mm(block, other_block.T, out=buffer[: b * c].view(b, c))  # (B, C)
            extension.add_tile(handle, native.address(tile), low, row, b, column, c, threads)
    return _Candidates(extension, handle, counts, arrays)


def _exact_similarities(
    features: Tensor, rows: Tensor, others: Tensor, exclude: Tensor | None
) -> Tensor:
    """Similarities of some rows to others, each the float32 nearest to the exact value.

    Args:
        features: (n, D).
        rows: (R,) int64, rows of `features`.
        others: (m, D).
        exclude: (R,) int64, a column for each row that gets -inf, or None.

    Returns:
        (R, m) float32.
    """
    selected = features[rows].double()
    out = features.new_empty(len(rows), len(others))
    for start in range(0, len(others), _ROWS):
        out[:, start : start + _ROWS] = selected @ others[start : start + _ROWS].double().T
    if exclude is not None:
        out[torch.arange(len(rows)), exclude] = -torch.inf
    return out


def _uses_bfloat16(features: Tensor) -> bool:
    return (
        features.is_cpu
        and features.dtype == torch.float32
        and has_bf16_units()
        and features.shape[1] >= 64
    )


class _Operand(NamedTuple):
    """What the tiles are products of.

    Args:
        rows: (n, D) float32, or bfloat16.
        norm: (n,) an upper bound of the norm of each row.
        error: (n,) an upper bound of the norm of what rounding the row to bfloat16 removes.
    """

    rows: Tensor
    norm: Tensor
    error: Tensor


def _tile_operand(features: Tensor, low: bool, first: int = 0) -> _Operand:
    """Round the features if `low`, and bound norms and errors.

    Raises:
        ValueError: A row is not finite or far too long; it is named by its index plus `first`.
    """
    n, width = features.shape
    rows = features.new_empty((n, width), dtype=torch.bfloat16) if low else features
    norm = features.new_empty(n)
    error = features.new_zeros(n)
    step = max(1, _TILE // max(1, width))
    for start in range(0, n, step):
        now = slice(start, start + step)
        torch.linalg.vector_norm(features[now], dim=1, out=norm[now])
        if low:
            rows[now] = features[now]
            torch.linalg.vector_norm(features[now] - rows[now].float(), dim=1, out=error[now])
    # Written so that NaN counts as bad.
    bad = (~(norm < _TOO_LONG)).nonzero()[:, 0]
    if len(bad):
        raise ValueError(
            f"features: row {first + int(bad[0])} is not finite or far too long "
            f"({len(bad)} such rows), expected unit rows"
        )
    # The norms are themselves rounded: enlarge them a little.
    norm = norm * 1.001 + _SMALLEST_NORM
    error = error * 1.001 + _SMALLEST_NORM if low else error
    return _Operand(rows, norm, error)


def _margins(own: _Operand, others: _Operand, width: int) -> Tensor:
    """Differences of approximate similarities above which their order is exact: (n,).

    The norms of what rounding removes bound its effect on a product (Cauchy-Schwarz). The last term
    bounds the rounding of the float32 sums. Two similarities are compared, hence the factor 2.
    """
    longest = float(others.norm.max())
    worst = float(others.error.max())
    bound = (
        own.error * longest
        + own.norm * worst
        + own.error * worst
        + width * 2.0**-22 * own.norm * longest
    )
    return 2.002 * bound
