"""`bank_contrast_loss` in Triton: attention over the bank, whose rows are both keys and values.

A row of 2,048 values is too wide for the registers that one program has for the weighted sum, and
splitting the width over programs would repeat the logits in each. So the bank is processed in
pieces that fit the L2 cache. For each piece one launch writes the exponentials of its logits,
relative to each tile's maximum, to a block that stays in L2 as well; the next launch sums the
piece's rows weighted with them, one part of the width in each program. Maxima and sums of all tiles
are combined in a fixed order.
"""

# Kernels are not typed Python.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._ops import unit_stride
from ._triton import operands, product, product_options, rounded
from .bank_loss import ClassIndex, ContrastProblem
from .tiles import WEIGHTED_SPLITS, product_tile, weighted_tile

#: Bytes of class means that exist at a time.
_MEANS = 2**25


class _Piece(NamedTuple):
    """Some consecutive classes.

    Args:
        number: Number of the piece.
        first: Its first class.
        stop: The class after its last.
    """

    number: int
    first: int
    stop: int


def contrast_triton(
    problem: ContrastProblem, piece: int | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the outputs of `bank_contrast`'s custom op, on checked arguments, none of them empty.

    Args:
        problem: The loss.
        piece: Classes in a piece, a multiple of every tile; by default as many as fit the caches.
    """
    index = problem.classes()
    if index is not None:
        index = ClassIndex(index.order.contiguous(), index.starts.contiguous())
    problem = problem._replace(
        features=unit_stride(problem.features),
        bank=unit_stride(problem.bank),
        targets=problem.targets.contiguous(),
    )
    contrast = _Contrast(problem, index, piece)
    for part in contrast.pieces():
        contrast.add(part)
    if not problem.partial:
        # The gradient subtracts the target's vector: a bank row, or the mean of the class's rows.
        chosen = problem.bank if index is None else _means_of_targets(problem, index)
        losses, log_sums, slopes = contrast.finish(chosen)
        return losses, log_sums, slopes, slopes.new_empty(0, slopes.shape[1])
    losses, log_sums, means = contrast.finish(problem.bank)
    if not problem.gradient:
        return losses, log_sums, means, torch.empty_like(means)
    if index is not None:
        return losses, log_sums, means, _means_of_targets(problem, index)
    return losses, log_sums, means, _rows_of_targets(problem)


class _Contrast:
    """State of one loss between the launches over the pieces of the bank.

    Args:
        problem: The loss; rows of features and bank have stride 1 inside.
        index: The classes, contiguous; None where each bank row is a class of its own.
        piece: Classes in a piece.
    """

    def __init__(
        self, problem: ContrastProblem, index: ClassIndex | None, piece: int | None
    ) -> None:
        self.problem = problem
        self.index = index
        self.batch, self.dim = problem.features.shape
        self.count = problem.class_count()
        self.gradient = problem.gradient
        self.scale = 1.0 / problem.temperature
        self.operands = operands(problem.features.dtype, problem.precision)
        self.features = rounded(problem.features, self.operands)  # (B, D)
        # Means of classes are float32 whatever the dtype of the bank is.
        memory = problem.features.dtype if index is None else torch.float32
        choice = (self.operands.dtype, self.operands.precision, self.batch, memory)
        self.product_tile = product_tile(*choice)
        if index is not None:
            # The starts of the classes would not fit into fewer registers.
            self.product_tile = replace(self.product_tile, registers=None)
        self.sum_tile = weighted_tile(*choice)
        self.piece = self._piece_length(piece)
        self.tiles = triton.cdiv(self.piece, self.product_tile.columns)
        self.splits = WEIGHTED_SPLITS if self.batch <= 128 else 1
        self._allocate()

    def _piece_length(self, piece: int | None) -> int:
        """Return the number of classes in a piece."""
        # By default the block of exponentials takes no more bytes than two gradients.
        size = self.operands.dtype.itemsize
        piece = piece or max(1024, triton.next_power_of_2(8 * self.dim // size))
        if self.index is not None:
            piece = min(piece, max(1024, _MEANS // (4 * self.dim) // 1024 * 1024))
        columns = self.product_tile.columns
        return min(piece, triton.cdiv(self.count, columns) * columns)

    def _allocate(self) -> None:
        """Allocate what the launches write."""
        device = self.features.device
        rows = self.batch if self.gradient else 0
        pieces = triton.cdiv(self.count, self.piece)
        per_tile = (self.batch, self.tiles)
        # Exponentials of a piece, relative to the maximum of their tile.
        self.exponentials = torch.empty(
            rows, self.piece, dtype=self.operands.dtype, device=device
        )  # (B, piece)
        # Maximum and sum of exponentials of each tile of a piece.
        self.tile_top = torch.full(per_tile, torch.nan, dtype=torch.float32, device=device)
        self.tile_sum = torch.full(per_tile, torch.nan, dtype=torch.float32, device=device)
        # Running maximum and sum of exponentials before the first piece and after each piece.
        self.top = torch.full(
            (pieces + 1, self.batch), -torch.inf, dtype=torch.float32, device=device
        )
        self.total = torch.zeros_like(self.top)  # (pieces + 1, B)
        # Logits of the targets. They stay NaN where the target does not exist.
        self.own = torch.full((self.batch,), torch.nan, dtype=torch.float32, device=device)
        # Running weighted sums of the vectors.
        self.running = torch.zeros(
            self.splits, rows, self.dim, dtype=torch.float32, device=device
        )  # (splits, B, D)

    def pieces(self) -> Iterator[_Piece]:
        """Yield the pieces of the bank in order."""
        for number, first in enumerate(range(0, self.count, self.piece)):
            yield _Piece(number, first, min(first + self.piece, self.count))

    def add(self, piece: _Piece) -> None:
        """Add one piece to the running maxima and sums."""
        vectors = self._vectors(piece)  # (stop - first, D)
        tiles = triton.cdiv(piece.stop - piece.first, self.product_tile.columns)
        starts = self.problem.targets if self.index is None else self.index.starts
        exponentials_kernel[(triton.cdiv(self.batch, self.product_tile.rows) * tiles,)](
            self.features,
            vectors,
            self.problem.targets,
            starts,
            self.exponentials,
            self.tile_top,
            self.tile_sum,
            self.own,
            self.batch,
            piece.first,
            piece.stop,
            self.dim,
            self.tiles,
            self.piece,
            self.features.stride(0),
            vectors.stride(0),
            self.scale,
            CLASSES=self.index is not None,
            STORE=self.gradient,
            **product_options(self.operands, self.product_tile),
        )
        running_kernel[(self.batch,)](
            self.tile_top,
            self.tile_sum,
            self.top,
            self.total,
            self.batch,
            tiles,
            self.tiles,
            piece.number,
            BLOCK_T=256,
            num_warps=1,
        )
        if self.gradient:
            self._add_vectors(vectors, piece.number)

    def _vectors(self, piece: _Piece) -> Tensor:
        """Vectors of a piece: bank rows, or means of classes."""
        bank = self.problem.bank
        if self.index is None:
            return rounded(bank[piece.first : piece.stop], self.operands)
        starts = self.index.starts[piece.first : piece.stop + 1]
        return rounded(means_of_classes(bank, self.index.order, starts), self.operands)

    def _add_vectors(self, vectors: Tensor, number: int) -> None:
        """Add the vectors of a piece, weighted with their exponentials, to the running sums."""
        tile = self.sum_tile
        batch_tiles = triton.cdiv(self.batch, tile.rows)
        width_tiles = triton.cdiv(self.dim, tile.columns)
        weighted_kernel[(batch_tiles * width_tiles * self.splits,)](
            self.exponentials,
            vectors,
            self.tile_top,
            self.top,
            self.running,
            self.batch,
            len(vectors),
            self.dim,
            self.tiles,
            self.piece,
            vectors.stride(0),
            number,
            SPLITS=self.splits,
            OPERAND=self.operands.kernel_dtype,
            PRECISION=self.operands.precision,
            TILE=self.product_tile.columns,
            BLOCK_M=tile.rows,
            BLOCK_N=tile.columns,
            BLOCK_K=tile.depth,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )

    def finish(self, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the results after the last piece.

        Args:
            chosen: (n, D) the bank, or with classes (B, D) the mean of each feature's class. A
                partial loss does not read it.

        Returns:
            Losses (B,), log-sum-exps (B,), and (B, D) gradients, or softmax means of a partial
            loss.
        """
        losses = torch.empty_like(self.own)
        log_sums = torch.empty_like(self.own)
        finish_kernel[(self.batch,)](
            self.running,
            chosen,
            self.problem.targets,
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
            self.problem.ignore_index,
            self.scale,
            CLASSES=self.index is not None,
            GRADIENT=self.gradient,
            ONLY_MEANS=self.problem.partial,
            SPLITS=self.splits,
            BLOCK_D=min(1024, triton.next_power_of_2(self.dim)),
            num_warps=4,
        )
        return losses, log_sums, self.running[0]


def means_of_classes(bank: Tensor, order: Tensor, starts: Tensor) -> Tensor:
    """Mean of the rows of each class, 0 for a class without rows.

    Args:
        bank: (n, D).
        order: (n,) int64, bank rows by class, contiguous.
        starts: (C + 1,) int64, where each class starts in `order`.

    Returns:
        (C, D) float32.
    """
    bank = unit_stride(bank)
    out = torch.empty(len(starts) - 1, bank.shape[1], device=bank.device, dtype=torch.float32)
    if out.numel():
        _launch_means(bank, order, starts, starts[1:], out)
    return out


def _means_of_targets(problem: ContrastProblem, index: ClassIndex) -> Tensor:
    """Mean of the rows of each feature's class, (B, D) float32; 0 where there is no such class."""
    bank = problem.bank
    targets = problem.targets
    inside = (targets >= 0) & (targets < problem.class_count())
    number = torch.where(inside, targets, 0)
    begin = index.starts[number]
    end = torch.where(inside, index.starts[number + 1], begin)
    out = torch.empty(len(targets), bank.shape[1], device=bank.device, dtype=torch.float32)
    _launch_means(bank, index.order, begin, end, out)
    return out


def _rows_of_targets(problem: ContrastProblem) -> Tensor:
    """Bank row of each feature's target, (B, D) float32; 0 where the target does not exist."""
    inside = (problem.targets >= 0) & (problem.targets < len(problem.bank))
    rows = problem.bank[torch.where(inside, problem.targets, 0)].to(torch.float32)
    return rows.masked_fill_(~inside[:, None], 0.0)


def _launch_means(bank: Tensor, order: Tensor, begin: Tensor, end: Tensor, out: Tensor) -> None:
    """Write the mean of the bank rows order[begin[c]:end[c]] to each row c of `out` (C, D)."""
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
    """Compute the mean of the rows of one class. A program computes one part of the width."""
    parts = tl.cdiv(dim, BLOCK_D)
    number = (tl.program_id(0) // parts).to(tl.int64)  # of the class
    d = (tl.program_id(0) % parts) * BLOCK_D + tl.arange(0, BLOCK_D)
    begin = tl.load(begin_ptr + number)
    end = tl.load(end_ptr + number)
    total = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
    for start in range(begin, end, BLOCK_N):
        place = start + tl.arange(0, BLOCK_N)
        row = tl.load(order_ptr + place, mask=place < end, other=0)
        mask = (place < end)[:, None] & (d < dim)[None, :]
        values = tl.load(bank_ptr + row[:, None] * stride + d[None, :], mask=mask, other=0.0)
        total += values.to(tl.float32)
    mean = tl.sum(total, axis=0) / tl.maximum(end - begin, 1).to(tl.float32)
    tl.store(out_ptr + number * dim + d, mean, mask=d < dim)


@triton.jit
def store_target_logit(
    logits,  # (BLOCK_M, BLOCK_N)
    targets_ptr,  # (B,)
    own_ptr,  # (B,)
    b,  # (BLOCK_M,) int64
    batch,
    begin,
    BLOCK_N: tl.constexpr,
):
    """Store the target's logit of each feature whose target lies in this tile."""
    target = tl.load(targets_ptr + b, mask=b < batch, other=-1) - begin
    inside = (target >= 0) & (target < BLOCK_N)
    column = tl.where(inside, target, -1).to(tl.int32)
    hit = tl.arange(0, BLOCK_N)[None, :] == column[:, None]
    own = tl.sum(tl.where(hit, logits, 0.0), axis=1)
    # A target without rows has the logit -inf here; its loss must be NaN.
    own = tl.where(own == float("-inf"), float("nan"), own)
    tl.store(own_ptr + b, own, mask=(b < batch) & inside)


@triton.jit(do_not_specialize=["first", "stop", "tiles"])
def exponentials_kernel(
    features_ptr,  # (B, D)
    rows_ptr,  # (stop - first, D)
    targets_ptr,  # (B,)
    starts_ptr,  # (C + 1,)
    exponentials_ptr,  # (B, piece)
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
    STORE: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Compute one tile of logits.

    Writes the maximum of each feature's logits, their exponentials relative to it, the sum of
    these, and the target's logit.
    """
    blocks = tl.cdiv(batch, BLOCK_M)
    b = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    number = (tl.program_id(0) // blocks).to(tl.int64)
    place = number * BLOCK_N + tl.arange(0, BLOCK_N)
    begin = first + number * BLOCK_N
    depth = dim
    if CLASSES:
        # A tile of classes without rows needs no product: its depth is 0.
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
    # From here on columns are numbered within the tile, with one base address: int64 columns would
    # not fit the registers.
    local = tl.arange(0, BLOCK_N)
    exists = local < stop - begin
    if CLASSES:
        start = starts_ptr + begin + local
        class_end = tl.load(start + 1, mask=exists, other=0)
        exists = exists & (class_end > tl.load(start, mask=exists, other=0))
    logits = tl.where(exists[None, :], logits, float("-inf"))
    store_target_logit(logits, targets_ptr, own_ptr, b, batch, begin, BLOCK_N)
    top = tl.max(logits, axis=1)
    # Without any class in the tile the maximum is -inf, and -inf - (-inf) would be NaN.
    exponential = tl.exp(logits - tl.where(top == float("-inf"), 0.0, top)[:, None])
    tl.store(tile_top_ptr + b * tiles + number, top, mask=b < batch)
    tl.store(tile_sum_ptr + b * tiles + number, tl.sum(exponential, axis=1), mask=b < batch)
    if STORE:
        # A piece has whole tiles.
        tl.store(
            (exponentials_ptr + b * piece + number * BLOCK_N)[:, None] + local[None, :],
            exponential.to(exponentials_ptr.dtype.element_ty),
            mask=(b < batch)[:, None],
        )


@triton.jit(do_not_specialize=["number", "used", "tiles"])
def running_kernel(
    tile_top_ptr,  # (B, tiles)
    tile_sum_ptr,  # (B, tiles)
    top_ptr,  # (pieces + 1, B)
    total_ptr,  # (pieces + 1, B)
    batch,
    used,  # tiles of this piece, at most `tiles`
    tiles,
    number,
    BLOCK_T: tl.constexpr,
):
    """Update one feature's running maximum and sum of exponentials with the tiles of a piece."""
    b = tl.program_id(0).to(tl.int64)
    before = tl.load(top_ptr + number * batch + b)
    top = before
    for start in range(0, used, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        tile_top = tl.load(tile_top_ptr + b * tiles + t, mask=t < used, other=float("-inf"))
        top = tl.maximum(top, tl.max(tile_top, axis=0))
    shift = tl.where(top == float("-inf"), 0.0, top)
    total = tl.load(total_ptr + number * batch + b) * tl.exp(before - shift)
    for start in range(0, used, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        tile_top = tl.load(tile_top_ptr + b * tiles + t, mask=t < used, other=float("-inf"))
        tile_sum = tl.load(tile_sum_ptr + b * tiles + t, mask=t < used, other=0.0)
        total += tl.sum(tile_sum * tl.exp(tile_top - shift), axis=0)
    tl.store(top_ptr + (number + 1) * batch + b, top)
    tl.store(total_ptr + (number + 1) * batch + b, total)


@triton.jit(do_not_specialize=["number", "count", "tiles"])
def weighted_kernel(
    exponentials_ptr,  # (B, piece)
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
    """Add the vectors of a piece, weighted with their exponentials, to one tile of the running
    sums.
    """
    blocks = tl.cdiv(batch, BLOCK_M)
    parts = tl.cdiv(dim, BLOCK_N)
    b = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = (tl.program_id(0) // blocks % parts) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = (tl.program_id(0) // (blocks * parts)).to(tl.int64)
    before = tl.load(top_ptr + number * batch + b, mask=b < batch, other=0.0)
    top = tl.load(top_ptr + (number + 1) * batch + b, mask=b < batch, other=0.0)
    shift = tl.where(top == float("-inf"), 0.0, top)
    sums = running_ptr + split * batch * dim + b[:, None] * dim + d[None, :]
    mask = (b < batch)[:, None] & (d < dim)[None, :]
    # The sums so far are relative to the maximum before this piece: move them below the new
    # maximum.
    total = tl.load(sums, mask=mask, other=0.0) * tl.exp(before - shift)[:, None]
    for start in range(split * BLOCK_K, count, SPLITS * BLOCK_K):
        j = start + tl.arange(0, BLOCK_K).to(tl.int64)
        # They are 0 from `count` to the end of its tile. A mask that varies along the row would
        # turn the load into one for each value.
        exponential = tl.load(
            exponentials_ptr + b[:, None] * piece + j[None, :],
            mask=(b < batch)[:, None],
            other=0.0,
        )
        row = tl.load(
            rows_ptr + j[:, None] * rows_stride + d[None, :],
            mask=(j < count)[:, None] & (d < dim)[None, :],
            other=0.0,
        )
        # BLOCK_K divides TILE, so all these exponentials are relative to the maximum of one tile.
        tile_top = tl.load(
            tile_top_ptr + b * tiles + start // TILE, mask=b < batch, other=float("-inf")
        )
        part = tl.dot(exponential.to(OPERAND), row.to(OPERAND), input_precision=PRECISION)
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
    """Compute loss and gradient of one feature: 0 where it is ignored, NaN where its target does
    not exist.

    With ONLY_MEANS the softmax mean of the vectors takes the place of the gradient, whatever the
    target is.
    """
    b = tl.program_id(0).to(tl.int64)
    target = tl.load(targets_ptr + b)
    counted = target != ignore_index
    inside = (target >= 0) & (target < count)
    total = tl.load(total_ptr + pieces * batch + b)
    top = tl.load(top_ptr + pieces * batch + b)
    own = tl.load(own_ptr + b)
    tl.store(log_sums_ptr + b, top + tl.log(total))
    # log(total) + (top - own), in this order: where the target's logit is nearly the whole sum,
    # both terms are small and nothing cancels.
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
                # Without any class the mean is zero.
                mean = sums / tl.where(total == 0.0, 1.0, total)
                tl.store(running_ptr + b * dim + d, mean, mask=d < dim)
            else:
                vector = chosen_ptr + place * chosen_stride + d
                chosen = tl.load(vector, mask=d < dim, other=0.0).to(tl.float32)
                # The target's logit is NaN where the target does not exist; adding 0 * NaN makes
                # the gradient NaN as well.
                slope = (sums / total - chosen) * scale + 0.0 * own
                tl.store(running_ptr + b * dim + d, tl.where(counted, slope, 0.0), mask=d < dim)
