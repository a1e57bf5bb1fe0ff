"""What the Triton kernels share: the product of two tiles, keys that sort like floats, operands of a stated precision."""

# Kernels are not typed Python.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import Tile

#: The interpreter multiplies bfloat16 wrongly, so there operands are rounded beforehand and multiplied in float32.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_TL = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


class Operands(NamedTuple):
    """How a product is computed.

    Args:
        dtype: What the tiles are cast to before the product.
        kernel_dtype: The same, for the kernel.
        precision: Triton's `input_precision`.
    """

    dtype: torch.dtype
    kernel_dtype: tl.dtype
    precision: str


def operands(dtype: torch.dtype, precision: str) -> Operands:
    """Float32 rows at the precision that was asked for; half floats as they are, with exact products."""
    if dtype == torch.float32 and precision == "bf16":
        dtype = torch.bfloat16
    kernel_dtype = tl.float32 if INTERPRETED else _TL[dtype]
    return Operands(dtype, kernel_dtype, "tf32" if precision == "tf32" else "ieee")


def product_options(how: Operands, tile: Tile) -> dict[str, Any]:
    """The launch options of a kernel that calls `product`."""
    return {
        "OPERAND": how.kernel_dtype,
        "PRECISION": how.precision,
        "BLOCK_M": tile.rows,
        "BLOCK_N": tile.columns,
        "BLOCK_D": tile.depth,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def rounded(x: Tensor, how: Operands) -> Tensor:
    """The rows as the kernel is to see them: in the interpreter rounded here, elsewhere as they are."""
    return x.to(how.dtype).float() if INTERPRETED else x


@triton.jit
def product(
    a_ptr,
    b_ptr,
    a_rows,  # (BLOCK_M,) int64
    b_rows,  # (BLOCK_N,) int64
    a_mask,
    b_mask,
    dim,
    a_stride,
    b_stride,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Dot products of rows, (BLOCK_M, BLOCK_N) float32; 0 where a row is masked."""
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, dim, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        a = tl.load(
            a_ptr + a_rows[:, None] * a_stride + d[None, :],
            mask=a_mask[:, None] & (d < dim)[None, :],
            other=0.0,
        )
        b = tl.load(
            b_ptr + b_rows[None, :] * b_stride + d[:, None],
            mask=b_mask[None, :] & (d < dim)[:, None],
            other=0.0,
        )
        total = tl.dot(a.to(OPERAND), b.to(OPERAND), total, input_precision=PRECISION)
    return total


@triton.jit
def sortable(x):
    """Int32 that sorts as float32 does; both zeros alike, a NaN above all."""
    x = x + 0.0
    bits = x.to(tl.int32, bitcast=True)
    bits = tl.where(x != x, 0x7FC00000, bits)
    return tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)


@triton.jit
def packed(order, place):
    """Int64 that sorts by `order` (int32), and where it is equal the lower place (below 2^32) as the greater."""
    return (order.to(tl.int64) << 32) | (0xFFFFFFFF - place.to(tl.int64))
