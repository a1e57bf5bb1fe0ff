"""`bank_contrast_loss` in Triton: attention over the bank with keys and values alike.

A row of 2,048 values is too wide for the registers that one program has for the weighted sum, and splitting the width over
programs would repeat the logits in each. So a piece of the bank that fits the L2 cache is taken at a time: one launch leaves
the exponentials of its logits, below each tile's maximum, in a block that stays in L2 as well; the next sums the piece's rows
with them, one part of the width a program. Maxima and sums of all tiles are combined in a fixed order.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._ops import unit_stride
from ._triton import Operands, operands, product, product_options, rounded
from .tiles import WEIGHTED_SPLITS, product_tile, weighted_tile

#: Bytes of class means that exist at a time.
_MEANS = 2**25


def contrast_triton(
    features: Tensor,
    bank: Tensor,
    targets: Tensor,
    order: Tensor | None,
    starts: Tensor | None,
    temperature: float,
    ignore_index: int,
    gradient: bool,
    precision: str,
    piece: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses (B,), log-sum-exps (B,) and gradients (B, D) or (0, D), on checked arguments, none of them empty.

    `piece` is the number of bank rows taken at a time, a multiple of every tile.
    """
    bank, targets = unit_stride(bank), targets.contiguous()
    work = _over_bank(
        features, bank, targets, order, starts, temperature, gradient, precision, piece
    )
    # A class is subtracted as the mean of its rows.
    chosen = (
        bank if order is None or starts is None else _means_of_targets(bank, order, starts, targets)
    )
    return work.finish(chosen, ignore_index)


def shares_triton(
    features: Tensor,
    bank: Tensor,
    targets: Tensor,
    order: Tensor | None,
    starts: Tensor | None,
    temperature: float,
    ignore_index: int,
    gradient: bool,
    precision: str,
    piece: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses (B,), log-sum-exps (B,), weighted means and vectors of the targets, (B, D) or (0, D), likewise."""
    bank, targets = unit_stride(bank), targets.contiguous()
    work = _over_bank(
        features, bank, targets, order, starts, temperature, gradient, precision, piece
    )
    losses, log_sums, means = work.finish(bank, ignore_index, shares=True)
    if not gradient:
        return losses, log_sums, means, torch.empty_like(means)
    if order is not None and starts is not None:
        return losses, log_sums, means, _means_of_targets(bank, order, starts, targets)
    inside = (targets >= 0) & (targets < len(bank))
    chosen = bank[torch.where(inside, targets, 0)].to(torch.float32)
    return losses, log_sums, means, chosen.masked_fill_(~inside[:, None], 0.0)


def _over_bank(
    features: Tensor,
    bank: Tensor,
    targets: Tensor,
    order: Tensor | None,
    starts: Tensor | None,
    temperature: float,
    gradient: bool,
    precision: str,
    piece: int | None,
) -> Contrast:
    """The passes over the pieces of the bank."""
    features, how = unit_stride(features), operands(features.dtype, precision)
    if order is None or starts is None:
        work = Contrast(features, targets, None, len(bank), temperature, gradient, how, piece)
        for number, first, stop in work.pieces():
            work.take(rounded(bank[first:stop], how), number, first, stop)
        return work
    order, starts = order.contiguous(), starts.contiguous()
    work = Contrast(features, targets, starts, len(starts) - 1, temperature, gradient, how, piece)
    for number, first, stop in work.pieces():
        work.take(
            rounded(means_of_classes(bank, order, starts[first : stop + 1]), how),
            number,
            first,
            stop,
        )
    return work


class Contrast:
    """What the launches over the pieces of a bank leave to each other.

    Args:
        features: (B, D).
        targets: (B,) int64.
        starts: (C + 1,) int64 where the pieces hold means of classes, some without rows.
        count: Bank rows, or classes.
        temperature: tau.
        gradient: Whether the gradient is wanted.
        how: Precision of the products.
        piece: Bank rows taken at a time.
    """

    def __init__(
        self,
        features: Tensor,
        targets: Tensor,
        starts: Tensor | None,
        count: int,
        temperature: float,
        gradient: bool,
        how: Operands,
        piece: int | None,
    ) -> None:
        self.batch, self.dim = features.shape
        self.targets, self.starts, self.count, self.gradient, self.how = (
            targets,
            starts,
            count,
            gradient,
            how,
        )
        self.scale = 1.0 / temperature
        # Means of classes are float32 whatever the bank is.
        memory = features.dtype if starts is None else torch.float32
        self.tile = product_tile(how.dtype, how.precision, self.batch, memory)
        self.sums = weighted_tile(how.dtype, how.precision, self.batch, memory)
        # The block of exponentials takes no more than two gradients do.
        piece = piece or max(1024, triton.next_power_of_2(8 * self.dim // how.dtype.itemsize))
        if starts is not None:
            piece = min(piece, max(1024, _MEANS // (4 * self.dim) // 1024 * 1024))
        self.piece = min(piece, triton.cdiv(count, self.tile.columns) * self.tile.columns)
        self.tiles = triton.cdiv(self.piece, self.tile.columns)
        self.splits = WEIGHTED_SPLITS if self.batch <= 128 else 1
        self.features = rounded(features, how)

        rows = self.batch if gradient else 0
        new = functools.partial(torch.full, dtype=torch.float32, device=features.device)
        self.shares = torch.empty(rows, self.piece, device=features.device, dtype=how.dtype)
        # Maxima and sums of the tiles of a piece; running ones before and after each piece.
        self.tile_top, self.tile_sum = (new((self.batch, self.tiles), torch.nan) for _ in range(2))
        self.top = new((triton.cdiv(count, self.piece) + 1, self.batch), -torch.inf)
        self.total = torch.zeros_like(self.top)
        self.own = new((self.batch,), torch.nan)
        self.running = new((self.splits, rows, self.dim), 0.0)

    def pieces(self) -> Iterator[tuple[int, int, int]]:
        """Number, first and last row of each piece."""
        for number, first in enumerate(range(0, self.count, self.piece)):
            yield number, first, min(first + self.piece, self.count)

    def take(self, rows: Tensor, number: int, first: int, stop: int) -> None:
        """Go over one piece, (stop - first, D)."""
        here = triton.cdiv(stop - first, self.tile.columns)
        shares_kernel[(triton.cdiv(self.batch, self.tile.rows) * here,)](
            self.features,
            rows,
            self.targets,
            self.targets if self.starts is None else self.starts,
            self.shares,
            self.tile_top,
            self.tile_sum,
            self.own,
            self.batch,
            first,
            stop,
            self.dim,
            self.tiles,
            self.piece,
            self.features.stride(0),
            rows.stride(0),
            self.scale,
            CLASSES=self.starts is not None,
            SHARES=self.gradient,
            **product_options(self.how, self.tile),
        )
        tops = self.tile_top, self.tile_sum, self.top, self.total
        running_kernel[(self.batch,)](
            *tops, self.batch, here, self.tiles, number, BLOCK_T=256, num_warps=1
        )
        if self.gradient:
            self._add(rows, number)

    def _add(self, rows: Tensor, number: int) -> None:
        """Add the rows of a piece, weighted with their exponentials."""
        blocks, parts = (
            triton.cdiv(self.batch, self.sums.rows),
            triton.cdiv(self.dim, self.sums.columns),
        )
        weighted_kernel[(blocks * parts * self.splits,)](
            self.shares,
            rows,
            self.tile_top,
            self.top,
            self.running,
            self.batch,
            len(rows),
            self.dim,
            self.tiles,
            self.piece,
            rows.stride(0),
            number,
            SPLITS=self.splits,
            OPERAND=self.how.kernel_dtype,
            PRECISION=self.how.precision,
            TILE=self.tile.columns,
            BLOCK_M=self.sums.rows,
            BLOCK_N=self.sums.columns,
            BLOCK_K=self.sums.depth,
            num_warps=self.sums.warps,
            num_stages=self.sums.stages,
        )

    def finish(
        self, chosen: Tensor, ignore_index: int, shares: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Losses, log-sum-exps and gradients, or weighted means where `shares` are wanted.

        `chosen` is the bank, or with classes the mean of each feature's (B, D). It is not read for shares.
        """
        losses, log_sums = (torch.empty_like(self.own) for _ in range(2))
        finish_kernel[(self.batch,)](
            self.running,
            chosen,
            self.targets,
            self.own,
            self.top,
            self.total,
            losses,
            log_sums,
            self.batch,
            self.count,
            self.dim,
            len(self.top) - 1,
            chosen.stride(0),
            ignore_index,
            self.scale,
            CLASSES=self.starts is not None,
            GRADIENT=self.gradient,
            ONLY_MEANS=shares,
            SPLITS=self.splits,
            BLOCK_D=min(1024, triton.next_power_of_2(self.dim)),
            num_warps=4,
        )
        return losses, log_sums, self.running[0]


def means_of_classes(bank: Tensor, order: Tensor, starts: Tensor) -> Tensor:
    """Mean of the rows of each class, (C, D) float32; 0 for a class without rows."""
    bank = unit_stride(bank)
    count, dim = len(starts) - 1, bank.shape[1]
    out = torch.empty(count, dim, device=bank.device, dtype=torch.float32)
    if out.numel():
        _launch_means(bank, order, starts, starts[1:], out)
    return out


def _means_of_targets(bank: Tensor, order: Tensor, starts: Tensor, targets: Tensor) -> Tensor:
    """Mean of the rows of each feature's class, (B, D) float32; 0 where the target is no class."""
    order, starts = order.contiguous(), starts.contiguous()
    inside = (targets >= 0) & (targets < len(starts) - 1)
    place = torch.where(inside, targets, 0)
    begin, end = starts[place], torch.where(inside, starts[place + 1], starts[place])
    out = torch.empty(len(targets), bank.shape[1], device=bank.device, dtype=torch.float32)
    _launch_means(bank, order, begin, end, out)
    return out


def _launch_means(bank: Tensor, order: Tensor, begin: Tensor, end: Tensor, out: Tensor) -> None:
    count, dim = out.shape
    means_kernel[(count * triton.cdiv(dim, 128),)](
        bank,
        order,
        begin.contiguous(),
        end.contiguous(),
        out,
        dim,
        bank.stride(0),
        BLOCK_N=16,
        BLOCK_D=128,
        num_warps=4,
    )


@triton.jit
def means_kernel(
    bank_ptr,  # (n, D)
    order_ptr,  # (n,)
    begin_ptr,  # (C,)
    end_ptr,  # (C,)
    out_ptr,  # (C, D)
    dim,
    stride,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Mean of the rows of one class, a part of the width a program."""
    parts = tl.cdiv(dim, BLOCK_D)
    number = (tl.program_id(0) // parts).to(tl.int64)
    d = (tl.program_id(0) % parts) * BLOCK_D + tl.arange(0, BLOCK_D)
    begin, end = tl.load(begin_ptr + number), tl.load(end_ptr + number)
    total = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
    for start in range(begin, end, BLOCK_N):
        place = start + tl.arange(0, BLOCK_N)
        row = tl.load(order_ptr + place, mask=place < end, other=0)
        mask = (place < end)[:, None] & (d < dim)[None, :]
        total += tl.load(bank_ptr + row[:, None] * stride + d[None, :], mask=mask, other=0.0).to(
            tl.float32
        )
    mean = tl.sum(total, axis=0) / tl.maximum(end - begin, 1).to(tl.float32)
    tl.store(out_ptr + number * dim + d, mean, mask=d < dim)


@triton.jit(do_not_specialize=["first", "stop", "tiles"])
def shares_kernel(
    features_ptr,  # (B, D)
    rows_ptr,  # (stop - first, D)
    targets_ptr,  # (B,)
    starts_ptr,  # (C + 1,)
    shares_ptr,  # (B, piece)
    tile_top_ptr,  # (B, tiles)
    tile_sum_ptr,  # (B, tiles)
    own_ptr,  # (B,)
    batch,
    first,
    stop,
    dim,
    tiles,
    piece,
    features_stride,
    rows_stride,
    scale,
    CLASSES: tl.constexpr,
    SHARES: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A tile of logits: their maximum a feature, the exponentials below it, the sum of these, the target's logit."""
    blocks = tl.cdiv(batch, BLOCK_M)
    b = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    number = (tl.program_id(0) // blocks).to(tl.int64)
    place = number * BLOCK_N + tl.arange(0, BLOCK_N)
    begin = first + number * BLOCK_N
    depth = dim
    if CLASSES:
        # A tile of classes that do not exist takes no product.
        rows = tl.load(starts_ptr + tl.minimum(begin + BLOCK_N, stop)) - tl.load(starts_ptr + begin)
        depth = tl.where(rows > 0, dim, 0)
    logits = scale * product(
        features_ptr,
        rows_ptr,
        b,
        place,
        b < batch,
        first + place < stop,
        depth,
        features_stride,
        rows_stride,
        OPERAND,
        PRECISION,
        BLOCK_M,
        BLOCK_N,
        BLOCK_D,
    )
    # Places in the tile from here on, and one address with offsets: int64 columns would not fit the registers.
    local = tl.arange(0, BLOCK_N)
    exists = local < stop - begin
    if CLASSES:
        start = starts_ptr + begin + local
        exists = exists & (
            tl.load(start + 1, mask=exists, other=0) > tl.load(start, mask=exists, other=0)
        )
    logits = tl.where(exists[None, :], logits, float("-inf"))
    target = tl.load(targets_ptr + b, mask=b < batch, other=-1) - begin
    inside = (target >= 0) & (target < BLOCK_N)
    hit = local[None, :] == tl.where(inside, target, -1).to(tl.int32)[:, None]
    own = tl.sum(tl.where(hit, logits, 0.0), axis=1)
    # No such row: -inf here, NaN for who asks.
    tl.store(
        own_ptr + b, tl.where(own == float("-inf"), float("nan"), own), mask=(b < batch) & inside
    )
    top = tl.max(logits, axis=1)
    share = tl.exp(logits - tl.where(top == float("-inf"), 0.0, top)[:, None])
    tl.store(tile_top_ptr + b * tiles + number, top, mask=b < batch)
    tl.store(tile_sum_ptr + b * tiles + number, tl.sum(share, axis=1), mask=b < batch)
    if SHARES:
        mask = (b < batch)[:, None] & (place < piece)[None, :]
        tl.store(
            shares_ptr + b[:, None] * piece + place[None, :],
            share.to(shares_ptr.dtype.element_ty),
            mask=mask,
        )


@triton.jit(do_not_specialize=["number", "here", "tiles"])
def running_kernel(
    tile_top_ptr,  # (B, tiles)
    tile_sum_ptr,  # (B, tiles)
    top_ptr,  # (pieces + 1, B)
    total_ptr,  # (pieces + 1, B)
    batch,
    here,
    tiles,
    number,
    BLOCK_T: tl.constexpr,
):
    """Maximum and sum of exponentials up to this piece, from those before it and from its tiles."""
    b = tl.program_id(0).to(tl.int64)
    before = tl.load(top_ptr + number * batch + b)
    top = before
    for start in range(0, here, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        top = tl.maximum(
            top,
            tl.max(
                tl.load(tile_top_ptr + b * tiles + t, mask=t < here, other=float("-inf")), axis=0
            ),
        )
    shift = tl.where(top == float("-inf"), 0.0, top)
    total = tl.load(total_ptr + number * batch + b) * tl.exp(before - shift)
    for start in range(0, here, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        tile_top = tl.load(tile_top_ptr + b * tiles + t, mask=t < here, other=float("-inf"))
        tile_sum = tl.load(tile_sum_ptr + b * tiles + t, mask=t < here, other=0.0)
        total += tl.sum(tile_sum * tl.exp(tile_top - shift), axis=0)
    tl.store(top_ptr + (number + 1) * batch + b, top)
    tl.store(total_ptr + (number + 1) * batch + b, total)


@triton.jit(do_not_specialize=["number", "count", "tiles"])
def weighted_kernel(
    shares_ptr,  # (B, piece)
    rows_ptr,  # (count, D)
    tile_top_ptr,  # (B, tiles)
    top_ptr,  # (pieces + 1, B)
    running_ptr,  # (SPLITS, B, D)
    batch,
    count,
    dim,
    tiles,
    piece,
    rows_stride,
    number,
    SPLITS: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Add the piece's rows, weighted with their exponentials, to a part of the running sums."""
    blocks, parts = tl.cdiv(batch, BLOCK_M), tl.cdiv(dim, BLOCK_N)
    b = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = (tl.program_id(0) // blocks % parts) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = (tl.program_id(0) // (blocks * parts)).to(tl.int64)
    before = tl.load(top_ptr + number * batch + b, mask=b < batch, other=0.0)
    top = tl.load(top_ptr + (number + 1) * batch + b, mask=b < batch, other=0.0)
    shift = tl.where(top == float("-inf"), 0.0, top)
    sums = running_ptr + split * batch * dim + b[:, None] * dim + d[None, :]
    mask = (b < batch)[:, None] & (d < dim)[None, :]
    total = tl.load(sums, mask=mask, other=0.0) * tl.exp(before - shift)[:, None]
    for start in range(split * BLOCK_K, count, SPLITS * BLOCK_K):
        j = start + tl.arange(0, BLOCK_K).to(tl.int64)
        share = tl.load(
            shares_ptr + b[:, None] * piece + j[None, :],
            mask=(b < batch)[:, None] & (j < count)[None, :],
            other=0.0,
        )
        row = tl.load(
            rows_ptr + j[:, None] * rows_stride + d[None, :],
            mask=(j < count)[:, None] & (d < dim)[None, :],
            other=0.0,
        )
        # BLOCK_K divides TILE: these shares lie below one maximum.
        tile_top = tl.load(
            tile_top_ptr + b * tiles + start // TILE, mask=b < batch, other=float("-inf")
        )
        part = tl.dot(share.to(OPERAND), row.to(OPERAND), input_precision=PRECISION)
        total += part * tl.exp(tile_top - shift)[:, None]
    tl.store(sums, total, mask=mask)


@triton.jit(do_not_specialize=["count", "pieces"])
def finish_kernel(
    running_ptr,  # (SPLITS, B, D)
    chosen_ptr,  # (n, D), or (B, D) with CLASSES
    targets_ptr,  # (B,)
    own_ptr,  # (B,)
    top_ptr,  # (pieces + 1, B)
    total_ptr,  # (pieces + 1, B)
    losses_ptr,  # (B,)
    log_sums_ptr,  # (B,)
    batch,
    count,
    dim,
    pieces,
    chosen_stride,
    ignore_index,
    scale,
    CLASSES: tl.constexpr,
    GRADIENT: tl.constexpr,
    ONLY_MEANS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Loss and gradient of one feature; 0 where it is ignored, NaN where its target does not exist.

    With ONLY_MEANS the weighted mean of the bank in the gradient's place, whatever the target.
    """
    b = tl.program_id(0).to(tl.int64)
    target = tl.load(targets_ptr + b)
    counted = target != ignore_index
    inside = (target >= 0) & (target < count)
    total = tl.load(total_ptr + pieces * batch + b)
    top = tl.load(top_ptr + pieces * batch + b)
    own = tl.load(own_ptr + b)
    tl.store(log_sums_ptr + b, top + tl.log(total))
    # In this order: where the target's logit is all but the sum, what is left is small beside either.
    tl.store(losses_ptr + b, tl.where(counted, tl.log(total) + (top - own), 0.0))
    if GRADIENT:
        place = b
        if not CLASSES:
            place = tl.where(inside, target, 0)
        for start in range(0, dim, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            sums = tl.zeros((BLOCK_D,), dtype=tl.float32)
            for split in tl.static_range(SPLITS):
                sums += tl.load(
                    running_ptr + split * batch * dim + b * dim + d, mask=d < dim, other=0.0
                )
            if ONLY_MEANS:
                # Nothing to weigh is a mean of zero.
                mean = sums / tl.where(total == 0.0, 1.0, total)
                tl.store(running_ptr + b * dim + d, mean, mask=d < dim)
            else:
                chosen = tl.load(
                    chosen_ptr + place * chosen_stride + d, mask=d < dim, other=0.0
                ).to(tl.float32)
                # The target's logit is NaN where no such row exists; so is then the gradient.
                slope = (sums / total - chosen) * scale + 0.0 * own
                tl.store(running_ptr + b * dim + d, tl.where(counted, slope, 0.0), mask=d < dim)
