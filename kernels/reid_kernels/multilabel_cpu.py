"""`multilabel_bank_loss` by blocks of rows in PyTorch, on any device; and similarities in float32
or float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_finite
from .multilabel import LabelSet, MultilabelProblem
from .numerics import accumulator

#: Bytes of similarities that exist at a time.
BLOCK = 2**26


class _Weights(NamedTuple):
    """Gradient weights of some rows, sparse.

    Args:
        starts: (B,) int64, where each row starts in the other two.
        column: (entries,) int64, columns with a weight, ascending in each row.
        weight: (entries,), derivative of the row's loss with respect to its similarity.
    """

    starts: Tensor
    column: Tensor
    weight: Tensor


def multilabel_blocked(
    problem: MultilabelProblem, sets: Sequence[LabelSet]
) -> tuple[Tensor, Tensor]:
    """Compute the outputs of `multilabel_bank_loss`'s custom op, on checked arguments.

    Args:
        problem: The settings; its own labels are not read.
        sets: The sets of labels, whose losses are summed.
    """
    features = problem.features
    bank = problem.bank
    kind = accumulator(features.dtype)
    count = len(features)
    n = len(bank)
    losses = features.new_zeros(count, dtype=kind)
    rows = count if problem.gradient else 0
    gradient = features.new_zeros((rows, features.shape[1]), dtype=kind)
    if not n:
        return losses, gradient
    for block in row_blocks(count, n, kind):
        similarity = similarities(features[block], bank, kind)
        parts = []
        for labels in sets:
            terms, weights = _terms(similarity, _mask(labels, block, n), problem)
            losses[block] += terms if labels.factor == 1 else labels.factor * terms
            if weights is not None:
                parts.append(weights._replace(weight=labels.factor * weights.weight))
        if parts:
            gradient[block] = _weighted_sum(bank, _merged(parts, n))
    if losses.is_cpu and not bool(torch.isfinite(losses).all()):
        check_finite(features=features, bank=bank)
    return losses, gradient


def _mask(labels: LabelSet, block: slice, n: int) -> Tensor:
    """Mask (rows, n) of the positives of some rows of the batch."""
    if labels.indices is None:
        return _from_bits(labels.positives[block], n)
    return _from_lists(labels.positives[block.start : block.stop + 1], labels.indices, n)


def _merged(parts: list[_Weights], n: int) -> _Weights:
    """The sum of weights that several sets of labels have, so that each row is read once.

    Args:
        parts: The weights of each set.
        n: Number of columns.
    """
    if len(parts) == 1:
        return parts[0]
    starts = parts[0].starts
    every = torch.arange(len(starts), device=starts.device)
    places = []
    for part in parts:
        ends = torch.cat([part.starts[1:], part.starts.new_tensor([len(part.column)])])
        row = every.repeat_interleave(ends - part.starts, output_size=len(part.column))
        places.append(row * n + part.column)
    # Stable, so that equal places are added in the order of the sets.
    place, which = torch.cat(places).unique(return_inverse=True)
    weight = torch.cat([part.weight for part in parts])
    total = weight.new_zeros(len(place))
    for part, own in zip(parts, which.split([len(x) for x in places]), strict=True):
        total[own] += part.weight  # The places of one set differ.
    row = place // n
    counts = torch.bincount(row, minlength=len(starts))
    return _Weights(counts.cumsum(0) - counts, place % n, total)


def row_blocks(count: int, n: int, kind: torch.dtype) -> list[slice]:
    """Divide `count` rows into runs whose similarities to n others in dtype `kind` fill a block."""
    rows = max(1, BLOCK // (kind.itemsize * max(1, n)))
    return [slice(start, min(start + rows, count)) for start in range(0, count, rows)]


def similarities(rows: Tensor, bank: Tensor, kind: torch.dtype) -> Tensor:
    """Dot products in a given dtype.

    Args:
        rows: (B, D).
        bank: (n, D). A bank of another dtype than `kind` is converted block by block.
        kind: float32 or float64.

    Returns:
        (B, n).
    """
    rows = rows.to(kind)
    if bank.dtype == kind:
        return rows @ bank.T
    result = rows.new_empty(len(rows), len(bank))
    for block in row_blocks(len(bank), bank.shape[1], kind):
        torch.mm(rows, bank[block].to(kind).T, out=result[:, block])
    return result


def count_rows(mask: Tensor) -> Tensor:
    """Number of true values in each row, (B,) int64."""
    # PyTorch converts a mask to int64 before it sums it, eight times its size: so only some rows at
    # a time.
    step = max(1, BLOCK // (64 * max(1, mask.shape[1])))
    return torch.cat([rows.sum(1) for rows in mask.split(step)])


def _from_bits(bits: Tensor, n: int) -> Tensor:
    """Mask (B, n) of bit rows (B, ceil(n / 32))."""
    place = torch.arange(32, dtype=torch.int32, device=bits.device)
    return ((bits[:, :, None] >> place) & 1).view(len(bits), -1)[:, :n].bool()


def _from_lists(indptr: Tensor, indices: Tensor, n: int) -> Tensor:
    """Mask (B, n) of the lists indices[indptr[i]:indptr[i + 1]]."""
    positive = torch.zeros(len(indptr) - 1, n, dtype=torch.bool, device=indices.device)
    row = torch.arange(len(positive), device=indices.device).repeat_interleave(indptr.diff())
    positive[row, indices[indptr[0] : indptr[-1]]] = True
    return positive


def _terms(
    similarity: Tensor, positive: Tensor, problem: MultilabelProblem
) -> tuple[Tensor, _Weights | None]:
    """Loss of each row, and its gradient weights where a gradient is computed.

    Args:
        similarity: (B, n); changed and restored.
        positive: (B, n) bool, overwritten.
        problem: The settings.
    """
    n = similarity.shape[1]
    count = count_rows(positive)  # (B,) positives
    negatives = n - count
    hard = (negatives.double() * problem.hard_ratio).long().clamp_(min=1).minimum(negatives)
    row, column = positive.nonzero(as_tuple=True)
    near = similarity[row, column]
    losses = problem.delta * _sums_of_rows((1 - near).square(), row, count) / count.clamp(min=1)

    similarity[row, column] = -torch.inf
    first = similarity.topk(max(1, int(hard.max())), dim=1).values  # (B, most hard negatives)
    least = first.gather(1, (hard[:, None] - 1).clamp_(min=0))  # (B, 1) threshold
    # A row without negatives has no hard negative.
    least.masked_fill_(hard[:, None] == 0, torch.inf)
    inside = torch.arange(first.shape[1], device=hard.device) < hard[:, None]
    losses += (1 + first).square().masked_fill_(~inside, 0).sum(1) / hard.clamp(min=1)
    if not problem.gradient:
        similarity[row, column] = near
        return losses, None

    above = (~(first <= least)).sum(1)  # (B,)
    # Written so that a NaN is chosen.
    chosen = ~(similarity < least)  # (B, n)
    equal = count_rows(chosen) - above
    # Negatives equal to the threshold divide its remaining places equally.
    at_threshold = (hard - above).to(least.dtype) / equal
    similarity[row, column] = near
    row, column = chosen.logical_or_(positive).nonzero(as_tuple=True)
    value = similarity[row, column]
    positive_weight = -2 * problem.delta / count.clamp(min=1).to(least.dtype)
    tied = value == least[row, 0]
    weight = 2 * (1 + value) / hard[row] * torch.where(tied, at_threshold[row], 1)
    weight = torch.where(positive[row, column], positive_weight[row] * (1 - value), weight)
    total = count_rows(chosen)
    return losses, _Weights(total.cumsum(0) - total, column, weight)


def _sums_of_rows(values: Tensor, row: Tensor, count: Tensor) -> Tensor:
    """Sum the values (P,) of each row, in a fixed order.

    Args:
        values: (P,), row after row.
        row: (P,) the row of each value.
        count: (B,) values of each row.
    """
    place = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    table = values.new_zeros(len(count), int(count.max()))
    table[row, place] = values
    return table.sum(1)


def _weighted_sum(bank: Tensor, weights: _Weights) -> Tensor:
    """Sums (B, D) of bank rows times their weights."""
    starts, column, weight = weights
    if bank.dtype == weight.dtype and bank.shape[1]:
        return F.embedding_bag(column, bank, starts, mode="sum", per_sample_weights=weight)
    result = weight.new_zeros(len(starts), bank.shape[1])
    step = max(1, BLOCK // (weight.itemsize * max(1, bank.shape[1])))
    edges = [*starts.tolist(), len(column)]
    for row in range(len(starts)):
        for first in range(edges[row], edges[row + 1], step):
            part = slice(first, min(first + step, edges[row + 1]))
            result[row] += weight[part] @ bank[column[part]].to(weight.dtype)
    return result
