"""Several labels for an image of a bank, where one class is one image: neighbours that hold each other near."""

from __future__ import annotations

import torch
from torch import Tensor

from ._ops import (
    check_ids,
    check_range,
    check_rows,
    device_of,
    qualified,
    takes_kernels,
)
from .numerics import full_precision

__all__ = ["label_prediction", "label_prediction_reference"]


def label_prediction(
    bank: Tensor, rows: Tensor, *, threshold: float = 0.6, at_least: int = 10
) -> tuple[Tensor, Tensor]:
    """The positives that MPLP (Wang and Zhang, CVPR 2020) predicts for some rows of a bank, without sorting their similarities.

    For row i, all rows are listed by descending dot product with it, equal ones from the lowest index. With k_t the number
    above the threshold and K = max(k_t, at_least), candidates are walked from the head of the list. One is good if at most K
    rows are more similar to it than i is; the first that is not good ends the walk. With `last` the place of the last good
    one, the positives are the first min(max(1, last) + 1, k_t) of the list, and i itself. So the first two need their
    similarity alone, and a candidate at the threshold or below changes nothing: none is looked at.

    A candidate is judged by a count, not by a sort. Its similarity to i comes from the same product as those it is compared
    with, and i itself is never counted. Candidates are judged 10, 32, 128, 512, ... at a time, for all rows that still walk
    together. There is no gradient.

    Args:
        bank: (n, D) float32, float16 or bfloat16 (float64 too, computed in float64), unit-norm rows or zero. Sums are
            float32.
        rows: (B,) int64, rows of the bank, in any order, repeated or not.
        threshold: t; similarities above it count.
        at_least: The least K.

    Returns:
        `indptr` (B + 1,) and `indices`, int64: the positives of rows[b] are indices[indptr[b]:indptr[b + 1]], in the order of
        the list, most similar first; i itself comes last where it is not among them. None appears twice.

    Memory:
        Similarities 64 MiB at a time on a CPU, and as much again: 514 rows at n = 32,621, 16 at 1e6; 256 MiB on a GPU.
        Besides, some 40 bytes for each similarity of the batch above the threshold. On a GPU those of candidates are counted
        where they arise, and not stored.

    Raises:
        ValueError: Wrong rank, dtype or device, `at_least` below 1, or, seen on a CPU alone, rows outside [0, n) or a
            bank that is not finite. On a GPU a NaN is above nothing.
    """
    check_rows("bank", bank)
    check_ids("rows", rows, rows.numel(), bank, "bank", "image of the batch")
    if at_least < 1:
        raise ValueError(f"at_least: got {at_least}, expected 1 or more")
    return _label_prediction(bank.detach(), rows, float(threshold), at_least)


def label_prediction_reference(
    bank: Tensor, rows: Tensor, *, threshold: float = 0.6, at_least: int = 10
) -> tuple[Tensor, Tensor]:
    """`label_prediction` in plain PyTorch, through the whole matrix of similarities, in the dtype given."""
    similarity = bank @ bank.T
    indptr: list[int] = [0]
    indices: list[int] = []
    for i in rows.tolist():
        order = similarity[i].sort(descending=True, stable=True).indices.tolist()
        above = int((similarity[i] > threshold).sum())
        bound = max(above, at_least)
        last = -1
        for place, candidate in enumerate(order[:bound]):
            if int((similarity[candidate] > similarity[candidate, i]).sum()) > bound:
                break
            last = place
        positives = order[: min(max(1, last) + 1, above)]
        indices += positives if i in positives else [*positives, i]
        indptr.append(len(indices))
    return torch.tensor(indptr, device=bank.device), torch.tensor(
        indices, dtype=torch.int64, device=bank.device
    )


@torch.library.custom_op(qualified("label_prediction"), mutates_args=())
def _label_prediction(
    bank: Tensor, rows: Tensor, threshold: float, at_least: int
) -> tuple[Tensor, Tensor]:
    check_range("rows", rows, 0, len(bank))
    if not takes_kernels(bank, rows):
        from .labels_cpu import labels_blocked

        with full_precision(bank):
            return labels_blocked(bank, rows, threshold, at_least)
    from .labels_triton import labels_triton

    with device_of(bank):
        return labels_triton(bank, rows, threshold, at_least)


@_label_prediction.register_fake
def _(bank: Tensor, rows: Tensor, threshold: float, at_least: int) -> tuple[Tensor, Tensor]:
    total = torch.library.get_ctx().new_dynamic_size()
    return rows.new_empty(rows.shape[0] + 1), rows.new_empty(total)
