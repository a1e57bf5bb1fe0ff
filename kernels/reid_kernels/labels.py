"""Multi-label prediction over a bank with one class per image: the labels of an image are its
mutual nearest neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._ops import device_of, qualified, takes_kernels
from .checks import as_ids, as_integer, as_number, as_rows, check_range, returns_given_kind
from .numerics import full_precision

__all__ = ["label_prediction", "label_prediction_reference"]


@returns_given_kind
def label_prediction(
    bank: Tensor, rows: Tensor, *, threshold: float = 0.6, at_least: int = 10
) -> tuple[Tensor, Tensor]:
    """Predict the positives of bank rows as MPLP does (Wang and Zhang, CVPR 2020), without sorting
    their similarities.

    For row i all rows are ranked by descending dot product, equal ones by index. Let k_t be the
    number of rows above the threshold and K = max(k_t, at_least). The candidates are visited from
    the first rank on. A candidate is good if at most K rows are more similar to it than i is; the
    first that is not good ends the visit. With `last` the rank (from 0) of the last good candidate,
    the positives are the first min(max(1, last) + 1, k_t) rows, and i itself. So the first two rows
    need only their similarity, and candidates at the threshold or below change nothing and are not
    visited.

    A candidate is judged by a count, not by a sort. Its similarity to i comes from the same product
    as the similarities that it is compared with, and i itself is not counted. Candidates are judged
    10, 32, 128, 512, ... at a time, for all rows together whose visit has not ended. There is no
    gradient.

    Args:
        bank: (n, D) float32, float16 or bfloat16 (float64 too, computed in float64), unit-norm rows
            or zero. Sums are float32.
        rows: (B,) int64, rows of the bank in any order; a row may appear more than once.
        threshold: t; similarities above it count.
        at_least: The smallest K.

    Returns:
        `indptr` (B + 1,) and `indices`, int64: the positives of rows[b] are
        indices[indptr[b]:indptr[b + 1]], most similar first. Row i itself comes last if it is not
        among them. No positive appears twice.

    Memory:
        A block of similarities of 64 MiB on a CPU (514 rows at n = 32,621, 16 at 1e6), and as much
        again. On a GPU 256 MiB, and a float16 copy of a float32 bank (133 MB at n = 32,621 and 4.1
        GB at 1e6, D = 2,048). In addition some 40 bytes for each similarity of the batch above
        the threshold. On a GPU the similarities of candidates are counted where they are computed,
        and not stored.

    Waits:
        On a GPU the host waits for the neighbours above the threshold (once for each block of 256
        MiB), once in each round of candidates, once more in rounds of over 64 candidates a row (and
        for each block where their similarities fill several), and for the size of the result. A
        CUDA graph cannot hold it for this reason.

    Raises:
        ValueError: Wrong rank, dtype or device, or `at_least` below 1. On a CPU also: rows outside
            [0, n) or a bank that is not finite. On a GPU a NaN is not above anything.
    """
    bank, rows, threshold, at_least = _checked(bank, rows, threshold, at_least)
    return _label_prediction(bank.detach(), rows, float(threshold), at_least)


def _checked(
    bank: Tensor, rows: Tensor, threshold: float, at_least: int
) -> tuple[Tensor, Tensor, float, int]:
    bank = as_rows("bank", bank)
    rows = as_ids("rows", rows, None, bank, "bank", "image of the batch")
    return bank, rows, as_number("threshold", threshold), as_integer("at_least", at_least, 1)


@returns_given_kind
def label_prediction_reference(
    bank: Tensor, rows: Tensor, *, threshold: float = 0.6, at_least: int = 10
) -> tuple[Tensor, Tensor]:
    """Compute `label_prediction` in plain PyTorch through the whole matrix of similarities.

    Args:
        bank: (n, D), any floating dtype; the similarities have this dtype.
        rows: (B,) int64, rows of the bank.
        threshold: Similarities above it count.
        at_least: The smallest K.

    Memory:
        n x n similarities.
    """
    bank, rows, threshold, at_least = _checked(bank, rows, threshold, at_least)
    check_range("rows", rows, 0, len(bank))
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
    entries = torch.tensor(indices, dtype=torch.int64, device=bank.device)
    return torch.tensor(indptr, device=bank.device), entries


@torch.library.custom_op(qualified("label_prediction"), mutates_args=())
def _label_prediction(
    bank: Tensor, rows: Tensor, threshold: float, at_least: int
) -> tuple[Tensor, Tensor]:
    """Compute `label_prediction` on arguments whose values are not checked yet."""
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
