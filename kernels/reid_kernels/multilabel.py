"""Squared loss of several positives and the hardest negatives of a bank, without the matrix of
similarities.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._ops import (
    PRECISIONS,
    REDUCTIONS,
    device_of,
    once,
    qualified,
    reduced,
    takes_kernels,
)
from .checks import (
    as_ids,
    as_number,
    as_pair,
    as_tensor,
    check_choice,
    check_device,
    check_range,
    described,
    returns_given_kind,
)
from .numerics import accumulator, full_precision

__all__ = ["multilabel_bank_loss", "multilabel_bank_loss_reference"]

Positives = Tensor | tuple[Tensor, Tensor]


class MultilabelProblem(NamedTuple):
    """One multi-label loss, as the implementations below the custom op receive it.

    The fields are the custom op's arguments, in its order: `_multilabel_bank_loss(*problem)`.

    Args:
        features: (B, D).
        bank: (n, D), dtype and device of the features.
        positives: (B + 1,) int64, `indptr` of the lists of positives; without `indices` bit rows
            (B, ceil(n / 32)) int32.
        indices: (entries,) int64, the lists one after the other; None for bit rows.
        delta: Weight of the positives.
        hard_ratio: Fraction of the negatives that is hard.
        gradient: Whether the gradient is computed.
        precision: Of products of float32 rows on a GPU.
    """

    features: Tensor
    bank: Tensor
    positives: Tensor
    indices: Tensor | None
    delta: float
    hard_ratio: float
    gradient: bool
    precision: str


class LabelSet(NamedTuple):
    """Labels of the whole batch, and the factor of their loss.

    Args:
        positives: As those of `MultilabelProblem`.
        indices: As those of `MultilabelProblem`.
        factor: Weight of the loss in the sum over the sets.
    """

    positives: Tensor
    indices: Tensor | None
    factor: float


@returns_given_kind
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
    """The memory-based multi-label loss MMCL (Wang and Zhang, CVPR 2020) of features against every
    row of a bank.

    Let s be the dot products of one feature and the bank, and P its positives. The loss of the
    feature is delta times the mean over P of (1 - s)^2, plus the mean over the hard negatives of (1
    + s)^2. The hard negatives are the H = max(1, int(hard_ratio * negatives)) rows outside P with
    the largest s. Negatives that are equal to the smallest of these share its places equally: if A
    negatives lie above it and T are equal to it, each of the T has the weight (H - A) / T. The loss
    equals that of any way to break the tie; the gradient is the mean over all ways, so it depends
    on no order. A mean over nothing (no positives, or no negatives) is 0.

    Only the features receive a gradient. It is computed in the forward pass if the features require
    one, so the bank may be updated in place before `backward`. There is no second derivative.
    Repeated calls return the same bits.

    Args:
        features: (B, D) float32, float16 or bfloat16 (float64 too, computed in float64), unit-norm;
            not normalised here.
        bank: (n, D), dtype and device of the features, a buffer.
        positives: A pair (indptr (B + 1,), indices) of int64: the positives of row i are
            indices[indptr[i]:indptr[i + 1]], in any order, duplicates counted once. Or bit rows (B,
            ceil(n / 32)) int32: j is a positive if bit j % 32 of word j // 32 is set; bits after
            the n-th are not read.
        delta: Weight of the positives.
        hard_ratio: Fraction of the negatives that is hard, in [0, 1].
        reduction: "mean" over the batch (0 if it is empty), "sum", or "none" for (B,).
        precision: Of products of float32 rows on a GPU. "auto" and "ieee": float32. "tf32", "bf16":
            similarities and gradient weights are rounded to that format. Half floats are multiplied
            as they are. Sums are float32. A CPU always computes in float32.

    Returns:
        A scalar or (B,), float32; float64 for float64.

    Memory:
        A block of rows of similarities: 64 MiB on a CPU (514 rows at n = 32,621 and 16 at 1e6), 256
        MiB on a GPU. On a CPU as much again, and some 40 bytes for each similarity with a gradient
        (all of them in a bank of equal rows). On a GPU bit rows of B x n / 8 bytes (0.26 MB and 8
        MB at B = 64), and at most 256 tiles of partial gradients. B x D float32 are kept for
        `backward`.

    Moved:
        On a GPU the bank twice for each block of rows, once without a gradient; a small block stays
        in L2. Expected of an H200 (4.3 TB/s), not measured: 0.12 ms of bytes at B = 64, n = 32,621,
        D = 2,048, float32.

    Raises:
        ValueError: Wrong rank, shape, dtype or device, a bank that requires a gradient, or a
            setting outside its range. On a CPU also: an `indptr` that does not start at 0,
            decreases, or does not end at the number of indices, an index outside [0, n), or rows
            that are not finite. On a GPU such an index is left out, and such rows make the loss
            NaN.
    """
    problem = _checked(features, bank, positives, delta, hard_ratio, precision)
    _check_buffer(problem.bank)
    check_choice("reduction", reduction, REDUCTIONS)
    needs_gradient = torch.is_grad_enabled() and problem.features.requires_grad
    losses, _ = _multilabel_bank_loss(*problem._replace(gradient=needs_gradient))
    return reduced(losses, reduction)


def sum_of_multilabel_bank_losses(
    features: Tensor,
    bank: Tensor,
    sets: Sequence[Positives],
    factors: Sequence[float],
    *,
    delta: float = 5.0,
    hard_ratio: float = 0.01,
    reduction: str = "mean",
    precision: str = "auto",
) -> Tensor:
    """The weighted sum of `multilabel_bank_loss` over several sets of labels of one batch.

    The products of features and bank are computed once for all sets, and the bank is read once for
    the gradient.

    Args:
        features: (B, D), as for `multilabel_bank_loss`.
        bank: (n, D).
        sets: J sets of positives, at least one.
        factors: J factors.
        delta: Weight of the positives.
        hard_ratio: Fraction of the negatives that is hard.
        reduction: "mean", "sum" or "none".
        precision: As for `multilabel_bank_loss`.

    Memory:
        That of `multilabel_bank_loss`; with a gradient on a GPU twice the similarities, and on a
        CPU what it takes for each similarity with a gradient J times, and once more for their sum.

    Raises:
        ValueError: As for `multilabel_bank_loss`, no sets, or another number of factors.
    """
    if not len(sets) or len(factors) != len(sets):
        raise ValueError(
            f"factors: got {len(factors)}, expected one for each of {len(sets)} sets, at least one"
        )
    problems = [
        _checked(features, bank, positives, delta, hard_ratio, precision) for positives in sets
    ]
    check_choice("reduction", reduction, REDUCTIONS)
    first = problems[0]
    _check_buffer(first.bank)
    losses, _ = _multilabel_bank_losses(
        first.features,
        first.bank,
        [problem.positives for problem in problems],
        # Bit rows have no indices: an empty tensor takes their place.
        [
            problem.positives.new_empty(0) if problem.indices is None else problem.indices
            for problem in problems
        ],
        [float(factor) for factor in factors],
        first.delta,
        first.hard_ratio,
        torch.is_grad_enabled() and first.features.requires_grad,
        precision,
    )
    return reduced(losses, reduction)


@returns_given_kind
def multilabel_bank_loss_reference(
    features: Tensor,
    bank: Tensor,
    positives: Positives,
    *,
    delta: float = 5.0,
    hard_ratio: float = 0.01,
    reduction: str = "mean",
) -> Tensor:
    """Compute `multilabel_bank_loss` in plain PyTorch through the whole matrix of similarities.

    Args:
        features: (B, D), any floating dtype; sums are in this dtype.
        bank: (n, D), dtype and device of the features.
        positives: (indptr, indices) or bit rows, as for `multilabel_bank_loss`.
        delta: Weight of the positives.
        hard_ratio: Fraction of the negatives that is hard.
        reduction: "mean", "sum" or "none".
    """
    problem = _checked(features, bank, positives, delta, hard_ratio, "ieee")
    check_choice("reduction", reduction, REDUCTIONS)
    features, bank, labels, indices = problem[:4]
    if indices is not None:
        _check_csr(labels, indices, len(bank))
    similarity = features @ bank.T  # (B, n)
    losses = similarity[:, :0].sum(1)  # (B,) zeros
    columns = torch.arange(len(bank), device=bank.device)
    for i, s in enumerate(similarity):
        if indices is None:
            positive = (labels[i][columns // 32] >> (columns % 32)) & 1 == 1
        else:
            positive = torch.isin(columns, indices[labels[i] : labels[i + 1]])
        near = s[positive]
        far = s[~positive]
        if len(near):
            losses[i] += delta * (1 - near).square().mean()
        if len(far):
            weight, hard = _hard_weights(far.detach(), hard_ratio)
            losses[i] += (weight[weight != 0] * (1 + far[weight != 0]).square()).sum() / hard
    return reduced(losses.to(accumulator(features.dtype)), reduction)


def _hard_weights(far: Tensor, hard_ratio: float) -> tuple[Tensor, int]:
    """Weight of each negative of a row: 1 above the threshold, an equal part of the remaining
    places at it; and their number.
    """
    hard = max(1, int(hard_ratio * len(far)))
    threshold = far.topk(hard).values[-1]
    above = (~(far <= threshold)).to(far.dtype)
    equal = (far == threshold).to(far.dtype)
    return above + equal * (hard - above.sum()) / equal.sum(), hard


def _check_buffer(bank: Tensor) -> None:
    """Refuse a bank that requires a gradient."""
    if bank.requires_grad:
        raise ValueError(
            "bank: got a tensor that requires a gradient, expected a buffer: only features get one"
        )


def _checked(
    features: Tensor,
    bank: Tensor,
    positives: Positives,
    delta: float,
    hard_ratio: float,
    precision: str,
) -> MultilabelProblem:
    """Check the arguments of a loss; return it without a gradient."""
    features, bank = as_pair("features", features, bank)
    delta = as_number("delta", delta)
    hard_ratio = as_number("hard_ratio", hard_ratio, 0, 1)
    check_choice("precision", precision, PRECISIONS)
    labels = _checked_positives(positives, features, len(bank))
    numbers = (float(delta), float(hard_ratio))
    return MultilabelProblem(features, bank, *labels, *numbers, False, precision)


def _checked_positives(
    positives: Positives, features: Tensor, n: int
) -> tuple[Tensor, Tensor | None]:
    """Check the positives; return bit rows and None, or `indptr` and `indices`."""
    if isinstance(positives, tuple | list) and len(positives) == 2:
        indptr, indices = positives
        per = "row of features, and the end"
        return (
            as_ids("positives[0]", indptr, len(features) + 1, features, "features", per),
            as_ids("positives[1]", indices, None, features, "features", "positive"),
        )
    if not hasattr(positives, "shape"):
        raise ValueError(
            f"positives: got {described(positives)}, expected (indptr, indices) or bit rows"
        )
    bits = as_tensor("positives", positives)
    _check_bits(bits, features, n)
    return bits, None


def _check_bits(bits: Tensor, features: Tensor, n: int) -> None:
    """Raise ValueError unless `bits` has a bit row for each row of features."""
    shape = (features.shape[0], (n + 31) // 32)
    # Compared one by one: inside torch.compile the sizes are symbols, which tuples do not compare.
    if bits.ndim != 2 or bits.shape[0] != shape[0] or bits.shape[1] != shape[1]:
        raise ValueError(
            f"positives: got bit rows of shape {tuple(bits.shape)}, "
            f"expected {shape}, (B, ceil(n / 32)), or (indptr, indices)"
        )
    if bits.dtype != torch.int32:
        raise ValueError(f"positives: got bit rows of dtype {bits.dtype}, expected torch.int32")
    check_device("positives", bits, features, "features")


def _check_csr(indptr: Tensor, indices: Tensor, n: int) -> None:
    """Raise ValueError unless the lists are well formed. They are read on a CPU only."""
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
            f"positives[0]: got a decrease after index {int(falls[0, 0])}, "
            f"expected values that never decrease"
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
    gradient: bool,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """Loss of each row (B,), and its gradient (B, D), (0, D) without `gradient`."""
    problem = MultilabelProblem(
        features, bank, positives, indices, delta, hard_ratio, gradient, precision
    )
    return _computed(problem, [LabelSet(positives, indices, 1.0)])


def _computed(problem: MultilabelProblem, sets: list[LabelSet]) -> tuple[Tensor, Tensor]:
    """Loss of each row, summed over the sets, and its gradient, on the device of the features.

    Args:
        problem: The settings; its own labels are not read.
        sets: The sets of labels.
    """
    for labels in sets:
        if labels.indices is not None:
            _check_csr(labels.positives, labels.indices, len(problem.bank))
    if not takes_kernels(problem.features, problem.bank):
        from .multilabel_cpu import multilabel_blocked

        with full_precision(problem.features):
            return multilabel_blocked(problem, sets)
    from .multilabel_triton import multilabel_triton

    with device_of(problem.features):
        return multilabel_triton(problem, sets)


@_multilabel_bank_loss.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    problem = MultilabelProblem(*arguments)
    return _empty_outputs(problem.features, problem.gradient)


def _empty_outputs(features: Tensor, gradient: bool) -> tuple[Tensor, Tensor]:
    """Outputs of both custom ops without values: losses (B,), and gradients (B, D) or (0, D)."""
    batch, dim = features.shape
    kind = accumulator(features.dtype)
    slopes = features.new_empty((batch if gradient else 0, dim), dtype=kind)
    return features.new_empty(batch, dtype=kind), slopes


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Save what the backward pass needs."""
    _, slopes = output
    ctx.mark_non_differentiable(slopes)
    ctx.save_for_backward(slopes)
    ctx.dtype = inputs[0].dtype


def _backward(ctx: Any, weights: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    """Gradient for the features from the weight (B,) of each loss."""
    (slopes,) = ctx.saved_tensors
    nothing = [None] * (len(MultilabelProblem._fields) - 1)
    return (once((weights.detach()[:, None] * slopes).to(ctx.dtype)), *nothing)


_multilabel_bank_loss.register_autograd(_backward, setup_context=_keep)


@torch.library.custom_op(qualified("multilabel_bank_losses"), mutates_args=())
def _multilabel_bank_losses(
    features: Tensor,
    bank: Tensor,
    positives: typing.Sequence[Tensor],
    indices: typing.Sequence[Tensor],
    factors: typing.Sequence[float],
    delta: float,
    hard_ratio: float,
    gradient: bool,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """Weighted sum (B,) of the losses of several sets of labels, and its gradient (B, D)."""
    sets = [
        LabelSet(labels, None if labels.dtype == torch.int32 else listed, factor)
        for labels, listed, factor in zip(positives, indices, factors, strict=True)
    ]
    own = sets[0]
    problem = MultilabelProblem(
        features, bank, own.positives, own.indices, delta, hard_ratio, gradient, precision
    )
    return _computed(problem, sets)


@_multilabel_bank_losses.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    features, gradient = arguments[0], arguments[7]
    return _empty_outputs(features, gradient)


def _keep_of_sum(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Save what the backward pass needs."""
    _keep(ctx, inputs, output)
    ctx.sets = len(inputs[2])


def _backward_of_sum(ctx: Any, weights: Tensor, _: Tensor) -> tuple[Any, ...]:
    """Gradient for the features from the weight (B,) of each sum."""
    (slopes,) = ctx.saved_tensors
    gradient = once((weights.detach()[:, None] * slopes).to(ctx.dtype))
    # PyTorch wants a list where the argument is a list of tensors.
    lists = [[None] * ctx.sets for _ in range(2)]
    return (gradient, None, *lists, *[None] * 5)


_multilabel_bank_losses.register_autograd(_backward_of_sum, setup_context=_keep_of_sum)
