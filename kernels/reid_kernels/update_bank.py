"""Update of a memory bank in place: moving averages of unit vectors, in batch order."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._ops import device_of, qualified, takes_kernels
from .checks import (
    NotFiniteError,
    as_ids,
    as_integer,
    as_number,
    as_pair,
    check_lengths,
    check_range,
    returns_given_kind,
)
from .numerics import accumulator

__all__ = ["hardest_rows", "update_bank_", "update_bank_reference"]

#: Width of the widest rows that the kernel holds in the registers of one program.
WIDEST = 2**13


@returns_given_kind
def update_bank_(
    bank: Tensor, features: Tensor, targets: Tensor, momentum: float, *, ignore_index: int = -1
) -> Tensor:
    """Update v <- m v + (1 - m) f, normalised, in place, for each feature of the batch in order.

    This is the update of SpCL's and MMCL's image memories and of Cluster Contrast's cluster memory.
    A row that is the target of several features is updated as many times, in batch order, and
    rounded to the bank's dtype each time. The arithmetic is float32 (float64 for float64). Repeated
    calls leave the same bits. There is no gradient.

    Args:
        bank: (n, D) float32, float16, bfloat16 or float64, changed.
        features: (B, D), dtype and device of the bank.
        targets: (B,) int64 in [0, n); `ignore_index` for features that update nothing.
        momentum: m in [0, 1], the weight of the old vector.
        ignore_index: Target of features that are left out.

    Returns:
        The bank.

    Memory:
        A few arrays of the batch's size, whatever n is. On a GPU one launch, which moves 3 B D
        values; several launches for rows wider than 8,192 or not adjacent in memory.

    Raises:
        ValueError: Wrong rank, width, dtype or device, a bank that requires a gradient, or momentum
            outside [0, 1]. On a CPU also: targets out of range, features that are not finite, or
            rows whose length is not finite in the dtype of the arithmetic. On a GPU such targets
            update nothing, such features make their row NaN, and such lengths make it zero.
    """
    given: Any = bank
    bank, features = as_pair("bank", bank, features, "features")
    # An array of another byte order, with negative strides or read-only was copied.
    place = getattr(getattr(given, "ctypes", None), "data", None)
    if bank is not given and bank.numel() and place not in (None, bank.data_ptr()):
        raise ValueError("bank: got an array that cannot be changed in place, expected a tensor")
    targets = as_ids("targets", targets, features.shape[0], features, "features", "feature row")
    momentum = as_number("momentum", momentum, 0, 1)
    ignore_index = as_integer("ignore_index", ignore_index)
    if (bank.shape[0] > 1 and bank.stride(0) == 0) or (bank.shape[1] > 1 and bank.stride(1) == 0):
        raise ValueError(
            f"bank: got strides {tuple(bank.stride())}, expected rows that do not overlap in memory"
        )
    if bank.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "bank: got a tensor that requires a gradient, expected a buffer: it is not trained"
        )
    _update_bank(bank, features.detach(), targets, momentum, ignore_index)
    return bank


@returns_given_kind
def update_bank_reference(
    bank: Tensor, features: Tensor, targets: Tensor, momentum: float, *, ignore_index: int = -1
) -> Tensor:
    """Compute `update_bank_` in plain PyTorch, one feature after the other, on a copy of the bank.

    Args:
        bank: (n, D), any floating dtype; not changed.
        features: (B, D), device of the bank.
        targets: (B,) int64.
        momentum: m, the weight of the old vector.
        ignore_index: Target of features that are left out.

    Returns:
        The updated bank.
    """
    bank, features = as_pair("bank", bank, features, "features")
    targets = as_ids("targets", targets, len(features), features, "features", "feature row")
    momentum = as_number("momentum", momentum, 0, 1)
    ignore_index = as_integer("ignore_index", ignore_index)
    check_range("targets", targets, 0, len(bank), ignored=ignore_index)
    bank = bank.clone()
    kind = accumulator(bank.dtype)
    for feature, target in zip(features, targets.tolist(), strict=True):
        if target != ignore_index:
            moved = momentum * bank[target].to(kind) + (1 - momentum) * feature.to(kind)
            bank[target] = F.normalize(moved, dim=0).to(bank.dtype)
    return bank


@torch.library.custom_op(qualified("update_bank_"), mutates_args=("bank",))
def _update_bank(
    bank: Tensor, features: Tensor, targets: Tensor, momentum: float, ignore_index: int
) -> None:
    """Compute `update_bank_` on arguments whose values are not checked yet."""
    if bank.is_cpu:
        check_range("targets", targets, 0, len(bank), ignored=ignore_index)
    if features.untyped_storage().data_ptr() == bank.untyped_storage().data_ptr():
        features = features.clone()
    if not takes_kernels(bank, features) or bank.shape[1] > WIDEST or bank.stride(1) != 1:
        _update_rows(bank, features, targets, momentum, ignore_index)
        return
    from .update_bank_triton import update_triton

    with device_of(bank):
        update_triton(bank, features, targets, momentum, ignore_index)


@_update_bank.register_fake
def _(bank: Tensor, features: Tensor, targets: Tensor, momentum: float, ignore_index: int) -> None:
    return None


def _update_rows(
    bank: Tensor, features: Tensor, targets: Tensor, momentum: float, ignore_index: int
) -> None:
    """Update in PyTorch, on any device.

    Different rows do not affect each other. So the first features of all rows are applied at once,
    then the second ones, and so on.
    """
    counted = targets != ignore_index
    kind = accumulator(bank.dtype)
    if features.is_cpu:
        lengths = torch.linalg.vector_norm(features, dim=1, dtype=kind).where(counted, 0.0)
        if not bool((lengths < torch.inf).all()):
            check_lengths("features", features.where(counted[:, None], 0.0), lengths)
    features = features[counted].to(kind)
    targets = targets[counted]
    occurrence = _occurrence(targets)
    for k in range(int(occurrence.max()) + 1 if len(occurrence) else 0):
        selected = occurrence == k
        rows = targets[selected]
        old = bank[rows].to(features.dtype)
        moved = momentum * old + (1 - momentum) * features[selected]
        if moved.is_cpu:
            _check_moved(moved, rows)
        bank[rows] = F.normalize(moved).to(bank.dtype)


def _check_moved(moved: Tensor, rows: Tensor) -> None:
    """Refuse rows of the bank so long that their update has no finite length."""
    endless = torch.linalg.vector_norm(moved, dim=1) == torch.inf
    if bool(endless.any()):
        row = int(rows[endless][0])
        raise NotFiniteError(
            f"bank: row {row} is too long, its length is not finite in {moved.dtype}; "
            "expected rows of moderate length"
        )


@returns_given_kind
def hardest_rows(
    features: Tensor, bank: Tensor, targets: Tensor, *, ignore_index: int = -1
) -> Tensor:
    """Select the features with which Cluster Contrast updates its hard memory: the least similar
    one of each class in the batch.

    Args:
        features: (B, D) float.
        bank: (n, D), dtype and device of the features.
        targets: (B,) int64 in [0, n); `ignore_index` for features that are left out.
        ignore_index: Target of features that are left out.

    Returns:
        Indices into the batch, int64, one for each class in it; the first of equally similar
        features.

    Raises:
        ValueError: Wrong rank, width, dtype or device, or, on a CPU, targets out of range.
    """
    features, bank = as_pair("features", features, bank)
    targets = as_ids("targets", targets, features.shape[0], features, "features", "feature row")
    ignore_index = as_integer("ignore_index", ignore_index)
    check_range("targets", targets, 0, bank.shape[0], ignored=ignore_index)
    return _is_hardest(features, bank, targets, ignore_index).nonzero()[:, 0]


def hardest_targets(
    features: Tensor, bank: Tensor, targets: Tensor, *, ignore_index: int = -1
) -> Tensor:
    """The targets of the features that `hardest_rows` selects, `ignore_index` for all others.

    The result has the batch's size, so that a GPU is not waited for.

    Args:
        features: (B, D) float.
        bank: (n, D), dtype and device of the features.
        targets: (B,) int64 in [0, n); `ignore_index` for features that are left out.
        ignore_index: Target of features that are left out; on a GPU features with a target outside
            [0, n) are left out too.

    Returns:
        (B,) int64.

    Raises:
        ValueError: Wrong rank, width, dtype or device, or, on a CPU, targets out of range.
    """
    features, bank = as_pair("features", features, bank)
    targets = as_ids("targets", targets, features.shape[0], features, "features", "feature row")
    check_range("targets", targets, 0, bank.shape[0], ignored=ignore_index)
    return torch.where(_is_hardest(features, bank, targets, ignore_index), targets, ignore_index)


def _is_hardest(features: Tensor, bank: Tensor, targets: Tensor, ignore_index: int) -> Tensor:
    """Whether each feature (B,) is the least similar one of its class in the batch."""
    counted = (targets != ignore_index) & (targets >= 0) & (targets < len(bank))
    if not len(bank):
        return counted
    classes = torch.where(counted, targets, 0)
    similarity = (features * bank[classes]).sum(1)
    # Classes are compared with those of the features that count alone.
    classes = torch.where(counted, targets, -1)
    order = similarity.argsort(stable=True)
    first = _occurrence(classes[order]) == 0
    return torch.empty_like(counted).scatter_(0, order, first) & counted


def _occurrence(values: Tensor) -> Tensor:
    """Number of earlier occurrences of each value in the list, (B,) int64."""
    order = values.argsort(stable=True)
    ordered = values[order]
    position = torch.arange(len(values), device=values.device)
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[1:] = ordered[1:] != ordered[:-1]
    # Position of the first of each run of equal values.
    first = torch.where(starts, position, 0).cummax(0).values if len(values) else position
    return torch.empty_like(position).scatter_(0, order, position - first)
