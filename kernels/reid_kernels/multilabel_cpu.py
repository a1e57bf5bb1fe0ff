"""`multilabel_bank_loss` by blocks of rows in PyTorch, on any device; and similarities in float32 or float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._ops import check_finite
from .numerics import accumulator

#: Bytes of similarities that exist at a time.
BLOCK = 2**26


def multilabel_blocked(
    features: Tensor,
    bank: Tensor,
    positives: Tensor,
    indices: Tensor | None,
    delta: float,
    hard_ratio: float,
    wanted: bool,
) -> tuple[Tensor, Tensor]:
    """`multilabel_bank_loss` on checked arguments: the loss of each row, and its gradient where it is wanted."""
    kind = accumulator(features.dtype)
    count, n = len(features), len(bank)
    losses = features.new_zeros(count, dtype=kind)
    gradient = features.new_zeros((count if wanted else 0, features.shape[1]), dtype=kind)
    if not n:
        return losses, gradient
    for now in row_blocks(count, n, kind):
        if indices is None:
            positive = _from_bits(positives[now], n)
        else:
            positive = _from_lists(positives[now.start : now.stop + 1], indices, n)
        losses[now], chosen = _terms(
            similarities(features[now], bank, kind), positive, delta, hard_ratio, wanted
        )
        if chosen is not None:
            gradient[now] = _weighted_sum(bank, *chosen)
    if losses.is_cpu and not bool(torch.isfinite(losses).all()):
        check_finite(features=features, bank=bank)
    return losses, gradient


def row_blocks(count: int, n: int, kind: torch.dtype) -> list[slice]:
    """Runs of rows whose similarities to n others fill a block."""
    rows = max(1, BLOCK // (kind.itemsize * max(1, n)))
    return [slice(start, min(start + rows, count)) for start in range(0, count, rows)]


def similarities(rows: Tensor, bank: Tensor, kind: torch.dtype) -> Tensor:
    """Dot products (B, n). A bank of another dtype is converted a block at a time."""
    rows = rows.to(kind)
    if bank.dtype == kind:
        return rows @ bank.T
    result = rows.new_empty(len(rows), len(bank))
    for now in row_blocks(len(bank), bank.shape[1], kind):
        torch.mm(rows, bank[now].to(kind).T, out=result[:, now])
    return result


def count_rows(mask: Tensor) -> Tensor:
    """How many values of each row are true, (B,) int64. What PyTorch sums it copies as int64: so a little at a time."""
    return torch.cat(
        [some.sum(1) for some in mask.split(max(1, BLOCK // (64 * max(1, mask.shape[1]))))]
    )


def _from_bits(bits: Tensor, n: int) -> Tensor:
    place = torch.arange(32, dtype=torch.int32, device=bits.device)
    return ((bits[:, :, None] >> place) & 1).view(len(bits), -1)[:, :n].bool()


def _from_lists(indptr: Tensor, indices: Tensor, n: int) -> Tensor:
    positive = torch.zeros(len(indptr) - 1, n, dtype=torch.bool, device=indices.device)
    row = torch.arange(len(positive), device=indices.device).repeat_interleave(indptr.diff())
    positive[row, indices[indptr[0] : indptr[-1]]] = True
    return positive


def _terms(
    similarity: Tensor, positive: Tensor, delta: float, hard_ratio: float, wanted: bool
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]:
    """Loss of each row; where each row starts among the columns that have a gradient weight, these, and the weights."""
    n = similarity.shape[1]
    count = count_rows(positive)
    negatives = n - count
    hard = (negatives.double() * hard_ratio).long().clamp_(min=1).minimum(negatives)
    row, column = positive.nonzero(as_tuple=True)
    near = similarity[row, column]
    place = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    squares = similarity.new_zeros(len(similarity), int(count.max()))
    squares[row, place] = (1 - near).square()
    losses = delta * squares.sum(1) / count.clamp(min=1)

    similarity[row, column] = -torch.inf
    first = similarity.topk(max(1, int(hard.max())), dim=1).values
    least = first.gather(1, (hard[:, None] - 1).clamp_(min=0))
    # Without negatives nothing is hard.
    least.masked_fill_(hard[:, None] == 0, torch.inf)
    inside = torch.arange(first.shape[1], device=hard.device) < hard[:, None]
    losses += (1 + first).square().masked_fill_(~inside, 0).sum(1) / hard.clamp(min=1)
    if not wanted:
        return losses, None

    above = (~(first <= least)).sum(1)
    # Written so that a NaN is chosen.
    chosen = ~(similarity < least)
    equal = count_rows(chosen) - above
    share = (hard - above).to(least.dtype) / equal
    similarity[row, column] = near
    row, column = chosen.logical_or_(positive).nonzero(as_tuple=True)
    value, positive_weight = (
        similarity[row, column],
        -2 * delta / count.clamp(min=1).to(least.dtype),
    )
    weight = 2 * (1 + value) / hard[row] * torch.where(value == least[row, 0], share[row], 1)
    weight = torch.where(positive[row, column], positive_weight[row] * (1 - value), weight)
    total = count_rows(chosen)
    return losses, (total.cumsum(0) - total, column, weight)


def _weighted_sum(bank: Tensor, starts: Tensor, column: Tensor, weight: Tensor) -> Tensor:
    """Sums (B, D) of rows of the bank, times a weight each."""
    if bank.dtype == weight.dtype and bank.shape[1]:
        return F.embedding_bag(column, bank, starts, mode="sum", per_sample_weights=weight)
    result = weight.new_zeros(len(starts), bank.shape[1])
    step = max(1, BLOCK // (weight.itemsize * max(1, bank.shape[1])))
    stops = [*starts.tolist()[1:], len(column)]
    for row, (start, stop) in enumerate(zip(starts.tolist(), stops, strict=True)):
        for first in range(start, stop, step):
            some = slice(first, min(first + step, stop))
            result[row] += weight[some] @ bank[column[some]].to(weight.dtype)
    return result
