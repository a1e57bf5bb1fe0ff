"""The memory's update: moving averages of unit vectors, in batch order, in place."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._ops import (
    check_finite,
    check_ids,
    check_pair,
    check_range,
    device_of,
    qualified,
    takes_kernels,
)
from .numerics import accumulator

__all__ = ["hardest_rows", "update_bank_", "update_bank_reference"]

#: Values of a row that the kernel holds in the registers of one program.
_WIDEST = 2**13


def update_bank_(
    bank: Tensor, features: Tensor, targets: Tensor, momentum: float, *, ignore_index: int = -1
) -> Tensor:
    """In place, v <- m v + (1 - m) f, normalised, for each feature of the batch in order.

    The update of SpCL's and MMCL's image memories and of Cluster Contrast's cluster memory. A row that several features name is
    updated as often, in batch order, and rounded to the bank's dtype each time; the arithmetic is float32 (float64 for
    float64). Bitwise the same from run to run. No gradient.

    Args:
        bank: (n, D) float32, float16, bfloat16 or float64, changed.
        features: (B, D), dtype and device of the bank.
        targets: (B,) int64 in [0, n); `ignore_index` for features that update nothing.
        momentum: m in [0, 1], the share of the old vector that is kept.
        ignore_index: Target of features that are left out.

    Returns:
        The bank.

    Memory:
        A few arrays of the batch's size, whatever n; one launch on a GPU, which moves 3 B D values (several for rows wider than
        8,192 or whose values do not lie side by side).

    Raises:
        ValueError: Wrong rank, width, dtype or device, a bank that requires a gradient, momentum outside [0, 1], or targets out
            of range or features that are not finite (seen on a CPU alone; on a GPU the former update nothing, and the latter
            make their row NaN).
    """
    check_pair("bank", bank, features, "features")
    check_ids("targets", targets, features.shape[0], features, "features", "feature row")
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum: got {momentum}, expected a number in [0, 1]")
    if (bank.shape[0] > 1 and bank.stride(0) == 0) or (bank.shape[1] > 1 and bank.stride(1) == 0):
        raise ValueError(
            f"bank: got strides {tuple(bank.stride())}, expected rows that do not overlap in memory"
        )
    if bank.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "bank: it requires a gradient, expected a buffer: a memory is updated, not trained"
        )
    _update_bank(bank, features.detach(), targets, momentum, ignore_index)
    return bank


def update_bank_reference(
    bank: Tensor, features: Tensor, targets: Tensor, momentum: float, *, ignore_index: int = -1
) -> Tensor:
    """What `update_bank_` leaves in the bank, one feature after the other; the bank given is left alone."""
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
    if bank.is_cpu:
        check_range("targets", targets, 0, len(bank), ignored=ignore_index)
    if features.untyped_storage().data_ptr() == bank.untyped_storage().data_ptr():
        features = features.clone()
    if not takes_kernels(bank, features) or bank.shape[1] > _WIDEST or bank.stride(1) != 1:
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
    """Rows do not touch each other, so the first features of all rows go together, then the second ones, and so on."""
    counted = targets != ignore_index
    if features.is_cpu and not bool(torch.isfinite(features[counted]).all()):
        check_finite(features=features.where(counted[:, None], 0.0))
    features, targets = features[counted].to(accumulator(bank.dtype)), targets[counted]
    turn = _occurrence(targets)
    for k in range(int(turn.max()) + 1 if len(turn) else 0):
        now = turn == k
        moved = momentum * bank[targets[now]].to(features.dtype) + (1 - momentum) * features[now]
        bank[targets[now]] = F.normalize(moved).to(bank.dtype)


def hardest_rows(
    features: Tensor, bank: Tensor, targets: Tensor, *, ignore_index: int = -1
) -> Tensor:
    """The features that Cluster Contrast updates its hard memory with: of each class in the batch the least similar one.

    Args:
        features: (B, D) float.
        bank: (n, D), dtype and device of the features.
        targets: (B,) int64 in [0, n); `ignore_index` for features that are left out.
        ignore_index: Target of features that are left out.

    Returns:
        Places in the batch, one for each class in it, int64; the first place at a tie.

    Raises:
        ValueError: Wrong rank, width, dtype or device, or, on a CPU, targets out of range.
    """
    check_pair("features", features, bank)
    check_ids("targets", targets, features.shape[0], features, "features", "feature row")
    check_range("targets", targets, 0, bank.shape[0], ignored=ignore_index)
    places = (targets != ignore_index).nonzero()[:, 0]
    similarity = (features[places] * bank[targets[places]]).sum(1)
    order = places[similarity.argsort(stable=True)]
    return order[_occurrence(targets[order]) == 0]


def _occurrence(values: Tensor) -> Tensor:
    """How often each value stands earlier in the list: (B,) int64."""
    order = values.argsort(stable=True)
    ordered = values[order]
    place = torch.arange(len(values), device=values.device)
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[1:] = ordered[1:] != ordered[:-1]
    first = torch.where(starts, place, 0).cummax(0).values if len(values) else place
    return torch.empty_like(place).scatter_(0, order, place - first)
