"""`update_bank_` in Triton: one program for each bank row that is a target in the batch."""

# Kernels are not typed Python.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ._ops import unit_stride


def update_triton(
    bank: Tensor, features: Tensor, targets: Tensor, momentum: float, ignore_index: int
) -> None:
    """Compute `update_bank_` on checked arguments, none of them empty.

    Args:
        bank: (n, D), changed; stride 1 inside, D at most `update_bank.WIDEST`.
        features: (B, D), dtype and device of the bank.
        targets: (B,) int64; targets outside [0, n) update nothing.
        momentum: Weight of the old vector.
        ignore_index: Target of features that are left out.
    """
    batch, dim = features.shape
    features = unit_stride(features)
    block = triton.next_power_of_2(dim)
    update_kernel[(batch,)](
        bank,
        features,
        targets.contiguous(),
        batch,
        len(bank),
        dim,
        bank.stride(0),
        features.stride(0),
        momentum,
        ignore_index,
        BLOCK_B=256,
        BLOCK_D=block,
        num_warps=min(16, max(1, block // 512)),
    )


@triton.jit
def update_kernel(
    bank_ptr,  # (n, D)
    features_ptr,  # (B, D)
    targets_ptr,  # (B,)
    batch,
    n,
    dim,
    bank_stride,
    features_stride,
    momentum,
    ignore_index,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Apply all features of one bank row, in batch order.

    Only the program of the row's first feature does so.
    """
    mine = tl.program_id(0)
    target = tl.load(targets_ptr + mine)
    earlier = 0
    for start in range(0, mine, BLOCK_B):
        b = start + tl.arange(0, BLOCK_B)
        others = tl.load(targets_ptr + b, mask=b < mine, other=-1)
        earlier += tl.sum(((others == target) & (b < mine)).to(tl.int32), axis=0)
    if (earlier == 0) & (target != ignore_index) & (target >= 0) & (target < n):
        d = tl.arange(0, BLOCK_D)
        row = bank_ptr + target * bank_stride + d
        old = tl.load(row, mask=d < dim, other=0.0)
        feature = features_ptr + mine.to(tl.int64) * features_stride + d
        for b in range(mine, batch):
            if tl.load(targets_ptr + b) == target:
                f = tl.load(feature, mask=d < dim, other=0.0)
                moved = momentum * old.to(tl.float32) + (1.0 - momentum) * f.to(tl.float32)
                norm = tl.sqrt(tl.sum(moved * moved, axis=0))
                # 0, or NaN if a value is not finite: `tl.maximum` alone would drop a NaN.
                finite = tl.sum(moved * 0.0, axis=0)
                old = (moved / (tl.maximum(norm, 1e-12) + finite)).to(old.dtype)
            feature += features_stride
        tl.store(row, old, mask=d < dim)
