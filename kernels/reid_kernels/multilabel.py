"""Squared loss of several positives and the hardest negatives of a bank, without keeping the matrix of similarities."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._ops import (
    PRECISIONS,
    check_choice,
    check_device,
    check_ids,
    check_pair,
    check_range,
    device_of,
    once,
    qualified,
    takes_kernels,
)
from .numerics import accumulator, full_precision

__all__ = ["multilabel_bank_loss", "multilabel_bank_loss_reference"]

REDUCTIONS = ("mean", "sum", "none")

Positives = Tensor | tuple[Tensor, Tensor]


def multilabel_bank_loss(
    features: Tensor,
    bank: Tensor,
    positives: Positives,
    *,
    delta: float = 5.0,
    hard_ratio: float = 0.01,
    reduction: str = "mean",
    precision: str = "auto",
) -> Tensor:
    """The memory-based multi-label loss MMCL (Wang and Zhang, CVPR 2020) of features against every row of a bank.

    With s the dot products of one feature and the bank, and P its positives, the loss of the row is delta times the mean over P
    of (1 - s)^2, plus the mean over the hard negatives of (1 + s)^2. The hard negatives are the H = max(1, int(hard_ratio *
    negatives)) rows outside P of greatest s. Negatives whose s equals the least of these share its places equally: with A
    negatives above it and T equal to it each of the T weighs (H - A) / T. The loss is that of any way to break the tie; the
    gradient is the mean over them all, so it depends on no order. A mean over nothing is 0: no positives, no negatives.

    The gradient goes to the features alone. It is computed in the forward pass, where one is wanted, so the bank may be
    updated in place before `backward`. There is no second derivative. Both are the same from run to run.

    Args:
        features: (B, D) float32, float16 or bfloat16 (float64 too, computed in float64), of length one; not normalised here.
        bank: (n, D), dtype and device of the features, a buffer.
        positives: A pair (indptr (B + 1,), indices) of int64, the positives of row i at indices[indptr[i]:indptr[i + 1]] in any
            order, each counted once; or bit rows (B, ceil(n / 32)) int32, where bit j % 32 of word j // 32 tells whether j is a
            positive. Bits behind the n-th are not read.
        delta: Weight of the positives.
        hard_ratio: Share of the negatives that is hard, in [0, 1].
        reduction: "mean" over the batch (0 if it is empty), "sum", or "none" for (B,).
        precision: Of products of float32 rows on a GPU. "auto" and "ieee": float32. "tf32", "bf16": that format's rounding of
            similarities and gradient weights. Half floats are multiplied as they are. Sums are float32, and a CPU computes in
            float32 whatever is asked.

    Returns:
        A scalar or (B,), float32; float64 for float64.

    Memory:
        Rows of similarities, at a time 64 MiB on a CPU (514 rows at n = 32,621 and 16 at 1e6) and 256 MiB on a GPU. On a CPU
        as much again, and some 40 bytes for each similarity that has a gradient (every one in a bank of equal rows). On a GPU
        bit rows of B x n / 8 bytes (0.26 MB and 8 MB at B = 64), and at most 256 tiles of partial gradients. B x D float32 are
        kept for `backward`.

    Moved:
        On a GPU the bank twice, once without a gradient, for each block of rows; the block itself stays in L2 where it is
        small. Expected of an H200 (4.3 TB/s), not measured: 0.12 ms of bytes at B = 64, n = 32,621, D = 2,048, float32.

    Raises:
        ValueError: Wrong rank, shape, dtype or device, a bank that requires a gradient, a setting outside its range, or, seen
            on a CPU alone: `indptr` that does not start at 0, never fall, and end at the number of indices, an index outside
            [0, n), or rows that are not finite. A GPU leaves out what lies outside, and gives NaN.
    """
    check_pair("features", features, bank)
    if bank.requires_grad:
        raise ValueError(
            "bank: got requires_grad, expected a buffer: the gradient goes to features alone"
        )
    if not 0 <= hard_ratio <= 1:
        raise ValueError(f"hard_ratio: got {hard_ratio}, expected 0 to 1")
    check_choice("reduction", reduction, REDUCTIONS)
    check_choice("precision", precision, PRECISIONS)
    if isinstance(positives, Tensor):
        _check_bits(positives, features, len(bank))
        labels, indices = positives, None
    else:
        if not isinstance(positives, tuple | list) or len(positives) != 2:
            raise ValueError(
                f"positives: got a {type(positives).__name__}, expected (indptr, indices) or bit rows"
            )
        labels, indices = positives
        check_ids(
            "positives[0]",
            labels,
            len(features) + 1,
            features,
            "features",
            "row of features, and the end",
        )
        check_ids("positives[1]", indices, indices.numel(), features, "features", "positive")
    wanted = torch.is_grad_enabled() and features.requires_grad
    losses, _ = _multilabel_bank_loss(
        features, bank, labels, indices, float(delta), float(hard_ratio), precision, wanted
    )
    if reduction == "none":
        return losses
    return losses.sum() / max(1, len(features)) if reduction == "mean" else losses.sum()


def multilabel_bank_loss_reference(
    features: Tensor,
    bank: Tensor,
    positives: Positives,
    *,
    delta: float = 5.0,
    hard_ratio: float = 0.01,
    reduction: str = "mean",
) -> Tensor:
    """`multilabel_bank_loss` in plain PyTorch, through the whole matrix of similarities, in the dtype given."""
    similarity = features @ bank.T
    losses = similarity[:, :0].sum(1)
    places = torch.arange(len(bank), device=bank.device)
    for i, s in enumerate(similarity):
        if isinstance(positives, Tensor):
            positive = (positives[i][places // 32] >> (places % 32)) & 1 == 1
        else:
            indptr, indices = positives
            positive = torch.isin(places, indices[indptr[i] : indptr[i + 1]])
        near, far = s[positive], s[~positive]
        if len(near):
            losses[i] += delta * (1 - near).square().mean()
        if len(far):
            hard = max(1, int(hard_ratio * len(far)))
            least = far.detach().topk(hard).values[-1]
            above, equal = (
                (~(far.detach() <= least)).to(s.dtype),
                (far.detach() == least).to(s.dtype),
            )
            weight = above + equal * (hard - above.sum()) / equal.sum()
            losses[i] += (weight[weight != 0] * (1 + far[weight != 0]).square()).sum() / hard
    losses = losses.to(accumulator(features.dtype))
    if reduction == "none":
        return losses
    return losses.sum() / max(1, len(features)) if reduction == "mean" else losses.sum()


def _check_bits(bits: Tensor, features: Tensor, n: int) -> None:
    """Bit rows, one for each row of features."""
    wanted = (features.shape[0], (n + 31) // 32)
    if bits.ndim != 2 or bits.shape[0] != wanted[0] or bits.shape[1] != wanted[1]:
        raise ValueError(
            f"positives: got bit rows of shape {tuple(bits.shape)}, expected {wanted}, (B, ceil(n / 32)), or (indptr, indices)"
        )
    if bits.dtype != torch.int32:
        raise ValueError(f"positives: got bit rows of dtype {bits.dtype}, expected torch.int32")
    check_device("positives", bits, features, "features")


def _check_csr(indptr: Tensor, indices: Tensor, n: int) -> None:
    """Read on a CPU alone."""
    if not indptr.is_cpu:
        return
    if int(indptr[0]) != 0 or int(indptr[-1]) != len(indices):
        raise ValueError(
            f"positives[0]: got {int(indptr[0])} first and {int(indptr[-1])} last, "
            f"expected 0 and {len(indices)}, the number of indices"
        )
    falls = (indptr[1:] < indptr[:-1]).nonzero()
    if len(falls):
        raise ValueError(
            f"positives[0]: got a fall behind place {int(falls[0, 0])}, expected values that never fall"
        )
    check_range("positives[1]", indices, 0, n)


@torch.library.custom_op(qualified("multilabel_bank_loss"), mutates_args=())
def _multilabel_bank_loss(
    features: Tensor,
    bank: Tensor,
    positives: Tensor,
    indices: Tensor | None,
    delta: float,
    hard_ratio: float,
    precision: str,
    wanted: bool,
) -> tuple[Tensor, Tensor]:
    """Loss of each row, and its gradient (B, D) where it is wanted. Without indices the positives are bit rows."""
    if indices is not None:
        _check_csr(positives, indices, len(bank))
    if not takes_kernels(features, bank):
        from .multilabel_cpu import multilabel_blocked

        with full_precision(features):
            return multilabel_blocked(features, bank, positives, indices, delta, hard_ratio, wanted)
    from .multilabel_triton import multilabel_triton

    with device_of(features):
        return multilabel_triton(
            features, bank, positives, indices, delta, hard_ratio, precision, wanted
        )


@_multilabel_bank_loss.register_fake
def _(
    features: Tensor,
    bank: Tensor,
    positives: Tensor,
    indices: Tensor | None,
    delta: float,
    hard_ratio: float,
    precision: str,
    wanted: bool,
) -> tuple[Tensor, Tensor]:
    kind = accumulator(features.dtype)
    rows = features.shape[0]
    return (
        features.new_empty(rows, dtype=kind),
        features.new_empty((rows if wanted else 0, features.shape[1]), dtype=kind),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])
    ctx.dtype = inputs[0].dtype


def _scale(ctx: Any, losses: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    (gradient,) = ctx.saved_tensors
    return (
        once((losses.detach()[:, None] * gradient).to(ctx.dtype)),
        None,
        None,
        None,
        None,
        None,
        None,
        None,
    )


_multilabel_bank_loss.register_autograd(_scale, setup_context=_keep)
