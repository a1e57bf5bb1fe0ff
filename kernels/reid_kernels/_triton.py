"""Private parts that the Triton kernels share: products of tiles, sortable keys, operands of a
stated precision.
"""

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

#: Triton's interpreter multiplies bfloat16 wrongly. There the operands are rounded first and
#: multiplied in float32.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
#: Triton's backends for other makers, and its interpreter, cannot limit registers.
NVIDIA = not (INTERPRETED or torch.version.hip or getattr(torch.version, "xpu", None))
_TL = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


class Operands(NamedTuple):
    """How a product is computed.

    Args:
        dtype: Dtype to which the tiles are cast before the product.
        kernel_dtype: Triton's name of the dtype to which the kernel casts; float32 in the
            interpreter.
        precision: Triton's `input_precision`.
    """

    dtype: torch.dtype
    kernel_dtype: tl.dtype
    precision: str


def operands(dtype: torch.dtype, precision: str) -> Operands:
    """Choose the operands: float32 rows at the precision asked for, half floats as they are, with
    exact products.
    """
    halves = {"bf16": torch.bfloat16, "fp16": torch.float16}
    if dtype == torch.float32:
        dtype = halves.get(precision, dtype)
    kernel_dtype = tl.float32 if INTERPRETED else _TL[dtype]
    return Operands(dtype, kernel_dtype, "tf32" if precision == "tf32" else "ieee")


def _limits_registers() -> bool:
    """Whether a limit of registers pays on the current device: from compute capability 9 on.

    Before, the products themselves would not fit. Without a device launches are only recorded.
    """
    if not NVIDIA or not torch.cuda.is_initialized():
        return NVIDIA
    return torch.cuda.get_device_capability()[0] >= 9


def product_options(how: Operands, tile: Tile) -> dict[str, Any]:
    """The launch options of a kernel that calls `product`."""
    limit = {} if tile.registers is None or not _limits_registers() else {"maxnreg": tile.registers}
    return {
        **limit,
        "OPERAND": how.kernel_dtype,
        "PRECISION": how.precision,
        "BLOCK_M": tile.rows,
        "BLOCK_N": tile.columns,
        "BLOCK_D": tile.depth,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def rounded(x: Tensor, how: Operands) -> Tensor:
    """Return the rows as the kernel reads them: rounded here in the interpreter, unchanged
    elsewhere.
    """
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
    """Dot products of rows of `a` and rows of `b`, (BLOCK_M, BLOCK_N) float32; 0 where a row is
    masked.
    """
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
    """Map float32 to int32 that sorts alike. Both zeros become equal, and a NaN sorts above all."""
    x = x + 0.0
    bits = x.to(tl.int32, bitcast=True)
    bits = tl.where(x != x, 0x7FC00000, bits)
    # The bits of negative floats sort in reverse order: flip all but the sign.
    return tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)


@triton.jit
def sortable_bits(x):
    """Map float32 to int32 that sorts alike, each value to another one: `unsorted` undone."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)


@triton.jit
def unsorted(order):
    """Map int32 of `sortable` to the float32; the lowest int32 to -inf."""
    value = tl.where(order >= 0, order, order ^ 0x7FFFFFFF).to(tl.float32, bitcast=True)
    # No float32 has a lower place than -inf.
    return tl.where(order < -0x7F800001, float("-inf"), value)


@triton.jit
def packed(order, place):
    """Pack into int64 that sorts by `order` (int32); of equal ones the lower place (below 2^32) is
    larger.
    """
    return (order.to(tl.int64) << 32) | (0xFFFFFFFF - place.to(tl.int64))
