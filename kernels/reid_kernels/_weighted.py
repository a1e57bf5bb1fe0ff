"""Weighted sums of the rows of a bank in Triton, bitwise repeatable: the gradient of losses whose classes are its rows."""

# Kernels are not typed Python.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._ops import unit_stride
from ._triton import Operands, rounded
from .tiles import Tile, weighted_tile

#: Programs that fill a GPU: with fewer tiles, the rows of the bank are split.
_PROGRAMS = 256
#: Steps that a split makes at least.
_STEPS = 4


def weighted_rows(weights: Tensor, bank: Tensor, how: Operands, tile: Tile | None = None) -> Tensor:
    """Weights times bank, (B, D) float32, none of them empty.

    The bank's rows are split between programs, and the parts are added in a fixed order. The parts are at most 256 tiles.

    Args:
        weights: (B, n) float32.
        bank: (n, D) float32, float16 or bfloat16.
        how: What both are cast to, and the precision of the product.
        tile: Rows of the batch, columns of D and, as depth, rows of the bank.
    """
    m, n = weights.shape
    dim = bank.shape[1]
    weights, bank = rounded(unit_stride(weights), how), rounded(unit_stride(bank), how)
    tile = tile or weighted_tile(how.dtype, how.precision, m, bank.dtype)
    tiles = triton.cdiv(m, tile.rows) * triton.cdiv(dim, tile.columns)
    steps = triton.cdiv(n, tile.depth)
    splits = max(1, min(_PROGRAMS // tiles, steps // _STEPS))
    span = triton.cdiv(steps, splits) * tile.depth
    splits = triton.cdiv(n, span)
    parts = torch.empty(splits, m, dim, dtype=torch.float32, device=bank.device)
    weighted_rows_kernel[(tiles * splits,)](
        weights,
        bank,
        parts,
        m,
        n,
        dim,
        span,
        weights.stride(0),
        bank.stride(0),
        OPERAND=how.kernel_dtype,
        PRECISION=how.precision,
        BLOCK_M=tile.rows,
        BLOCK_N=tile.depth,
        BLOCK_D=tile.columns,
        # Wider rows pass through registers on their way to the product.
        num_warps=tile.warps if bank.element_size() <= how.dtype.itemsize else 8,
        num_stages=tile.stages,
    )
    return parts[0] if splits == 1 else parts.sum(0)


@triton.jit
def weighted_rows_kernel(
    weights_ptr,  # (m, n)
    bank_ptr,  # (n, D)
    parts_ptr,  # (splits, m, D)
    m,
    n,
    dim,
    span,
    weights_stride,
    bank_stride,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One tile of the sums over `span` rows of the bank. Programs that read the same rows run side by side."""
    row_tiles, dim_tiles = tl.cdiv(m, BLOCK_M), tl.cdiv(dim, BLOCK_D)
    row = (tl.program_id(0) % row_tiles).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = (tl.program_id(0) // row_tiles % dim_tiles) * BLOCK_D + tl.arange(0, BLOCK_D)
    split = (tl.program_id(0) // (row_tiles * dim_tiles)).to(tl.int64)
    total = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    for start in range(0, span, BLOCK_N):
        j = split * span + start + tl.arange(0, BLOCK_N)
        w = tl.load(
            weights_ptr + row[:, None] * weights_stride + j[None, :],
            mask=(row < m)[:, None] & (j < n)[None, :],
            other=0.0,
        )
        b = tl.load(
            bank_ptr + j[:, None] * bank_stride + d[None, :],
            mask=(j < n)[:, None] & (d < dim)[None, :],
            other=0.0,
        )
        total = tl.dot(w.to(OPERAND), b.to(OPERAND), total, input_precision=PRECISION)
    place = (split * m + row)[:, None] * dim + d[None, :]
    tl.store(parts_ptr + place, total, mask=(row < m)[:, None] & (d < dim)[None, :])
