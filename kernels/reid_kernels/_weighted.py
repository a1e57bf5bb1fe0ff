"""Weighted sums of bank rows in Triton, bitwise repeatable: the gradient of losses whose classes
are bank rows.
"""

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

#: Programs that fill a GPU. With fewer tiles the rows of the bank are split between programs.
_PROGRAMS = 256
#: Smallest number of steps of a split.
_STEPS = 4


def weighted_rows(weights: Tensor, bank: Tensor, how: Operands, tile: Tile | None = None) -> Tensor:
    """Multiply weights and bank.

    The bank's rows are split between programs, and the partial sums are added in a fixed order.
    There are at most 256 tiles of them.

    Args:
        weights: (B, n) float32, not empty.
        bank: (n, D) float32, float16 or bfloat16, not empty.
        how: Operands of the product.
        tile: Rows of the batch, columns of D and, as depth, rows of the bank; by default from the
            table.

    Returns:
        (B, D) float32.
    """
    m, n = weights.shape
    dim = bank.shape[1]
    weights = rounded(unit_stride(weights), how)
    bank = rounded(unit_stride(bank), how)
    tile = tile or weighted_tile(how.dtype, how.precision, m, bank.dtype)
    tiles = triton.cdiv(m, tile.rows) * triton.cdiv(dim, tile.columns)
    steps = triton.cdiv(n, tile.depth)
    splits = max(1, min(_PROGRAMS // tiles, steps // _STEPS))
    span = triton.cdiv(steps, splits) * tile.depth
    splits = triton.cdiv(n, span)
    parts = torch.empty(splits, m, dim, dtype=torch.float32, device=bank.device)  # (splits, B, D)
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
        # Rows wider in memory than their operands pass through registers before the product: more
        # warps have more of them.
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
    """Compute one tile of the sums over `span` rows of the bank.

    Programs that read the same rows run at the same time.
    """
    row_tiles = tl.cdiv(m, BLOCK_M)
    dim_tiles = tl.cdiv(dim, BLOCK_D)
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
