"""`bank_contrast_loss` by blocks of the bank in PyTorch, with a running log-sum-exp and a running
gradient, on any device.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .bank_loss import ContrastProblem
from .checks import check_finite
from .numerics import accumulator

#: Values of a block of the bank, and of logits: 8 MiB and 4 MiB of float32.
_BLOCK = 2**21
_LOGITS = 2**20


class _Pass(NamedTuple):
    """Result of one pass over the bank.

    Args:
        losses: (B,), 0 where ignored.
        log_sums: (B,) log-sum-exps.
        means: (B, D) means of the vectors weighted with the softmax; (0, D) without gradient.
        chosen: (B, D) vectors of the targets, 0 where ignored; (0, D) without gradient.
        own: (B, 1) logits of the targets.
    """

    losses: Tensor
    log_sums: Tensor
    means: Tensor
    chosen: Tensor
    own: Tensor


class _Block(NamedTuple):
    """Some consecutive classes.

    Args:
        first: Number of the first class.
        vectors: (c, D) their vectors, in the accumulator's dtype.
        empty: (c,) which of them have no rows; None where all have.
    """

    first: int
    vectors: Tensor
    empty: Tensor | None


def contrast_blocked(problem: ContrastProblem) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the outputs of `bank_contrast`'s custom op, on checked arguments."""
    result = _over_blocks(problem)
    if problem.partial:
        return result[:4]
    counted = problem.targets != problem.ignore_index  # (B,)
    slopes = result.means
    if problem.gradient:
        slopes.sub_(result.chosen).div_(problem.temperature)
        slopes.masked_fill_(~counted[:, None], 0.0)
    on_cpu = problem.features.is_cpu
    if on_cpu and not bool(torch.isfinite(result.losses).all() & torch.isfinite(slopes).all()):
        _raise_not_finite(problem, result, counted)
    return result.losses, result.log_sums, slopes, slopes.new_empty(0, slopes.shape[1])


def _raise_not_finite(problem: ContrastProblem, result: _Pass, counted: Tensor) -> None:
    """Raise the error that explains a loss or gradient that is not finite."""
    empty = (result.own[counted] == -torch.inf)[:, 0]
    if problem.starts is not None and bool(empty.any()):
        number = int(problem.targets[counted][empty][0])
        raise ValueError(
            f"targets: got class {number}, which has no rows, expected classes of `classes`"
        )
    check_finite(features=problem.features[counted], bank=problem.bank)


def _over_blocks(problem: ContrastProblem) -> _Pass:
    """Go over the bank once."""
    kind = accumulator(problem.features.dtype)
    counted = problem.targets != problem.ignore_index  # (B,)
    targets = problem.targets.masked_fill(~counted, -1)
    scaled = problem.features.to(kind) / problem.temperature  # (B, D)
    top = scaled.new_full((len(scaled), 1), -torch.inf)  # (B, 1) running maximum
    total = torch.zeros_like(top)  # (B, 1) running sum of exponentials below `top`
    own = torch.zeros_like(top)
    rows = len(scaled) if problem.gradient else 0
    running = scaled.new_zeros(rows, scaled.shape[1])
    chosen = torch.zeros_like(running)
    for first, vectors, empty in _blocks(problem):
        logits = scaled @ vectors.T  # (B, c)
        if empty is not None:
            logits.masked_fill_(empty, -torch.inf)
        inside, column = _targets_in(targets, first, len(vectors))
        own[inside, 0] = logits[inside, column]
        if problem.gradient:
            chosen[inside] = vectors[column]
        higher = torch.maximum(top, logits.amax(1, keepdim=True))
        # A block of empty classes leaves the maximum at -inf, and -inf - (-inf) would be NaN.
        shift = higher.masked_fill(higher == -torch.inf, 0.0)
        # What was summed so far lies below the old maximum: move it below the new one.
        shrink = torch.exp(top - shift)
        weights = logits.sub_(shift).exp_()
        total = total * shrink + weights.sum(1, keepdim=True)
        if problem.gradient:
            running.mul_(shrink).addmm_(weights, vectors)
        top = higher
    log_sums = (top + total.log())[:, 0]
    # log(total) + (top - own), in this order: where the target's logit is nearly the whole sum,
    # both terms are small and nothing cancels.
    losses = torch.where(counted, (total.log() + (top - own))[:, 0], 0.0)
    if problem.gradient:
        # Without any class the mean is zero.
        running.div_(total.masked_fill(total == 0, 1.0))
    return _Pass(losses, log_sums, running, chosen, own)


def bank_gradient_blocked(problem: ContrastProblem, log_sums: Tensor, weights: Tensor) -> Tensor:
    """Gradient for the bank. The logits are computed again, block by block.

    Args:
        problem: The loss.
        log_sums: (B,) log-sum-exps of the forward pass.
        weights: (B,) weight of each loss.

    Returns:
        (n, D) in the dtype of the bank.
    """
    kind = accumulator(problem.features.dtype)
    counted = problem.targets != problem.ignore_index
    scaled = problem.features[counted].to(kind) / problem.temperature  # (B, D)
    targets = problem.targets[counted]
    log_sums = log_sums[counted]
    factor = weights[counted].to(kind)
    index = problem.classes()
    out = torch.zeros_like(problem.bank)
    for first, vectors, empty in _blocks(problem, len(scaled)):
        # d loss / d logit = softmax - one-hot of the target.
        slope = (scaled @ vectors.T).sub_(log_sums[:, None]).exp_()  # (B, c)
        inside, column = _targets_in(targets, first, len(vectors))
        slope[inside, column] -= 1
        slope.mul_(factor[:, None])
        if empty is not None:
            slope.masked_fill_(empty, 0.0)
        block = slope.T @ scaled  # (c, D)
        if index is None:
            out[first : first + len(vectors)] = block
        else:
            # A class is the mean of its rows: each row receives the class's gradient divided by its
            # size.
            edges = index.starts[first : first + len(vectors) + 1]
            sizes = edges.diff()
            members = index.order[int(edges[0]) : int(edges[-1])]
            of_row = block / sizes.clamp(min=1)[:, None]
            out[members] = of_row.repeat_interleave(sizes, 0).to(out.dtype)
    return out


def means_of_classes(bank: Tensor, order: Tensor, starts: Tensor) -> Tensor:
    """Mean of the rows of each class, 0 for a class without rows.

    Args:
        bank: (n, D).
        order: (n,) int64, bank rows by class.
        starts: (C + 1,) int64, where each class starts in `order`.

    Returns:
        (C, D) float32 or float64.
    """
    kind = accumulator(bank.dtype)
    sizes = starts.diff()
    if (bank.dtype == kind or not bank.is_cpu) and len(sizes) and bank.shape[1]:
        members = order[int(starts[0]) : int(starts[-1])]
        if not len(members):
            return bank.new_zeros(len(sizes), bank.shape[1], dtype=kind)
        if bank.dtype != kind:
            bank = bank[members].to(kind)
            members = torch.arange(len(members), device=bank.device)
        return F.embedding_bag(members, bank, starts[:-1] - starts[0], mode="mean")
    # Half floats on a CPU are converted a part at a time. On a GPU index_add_ would add atomically,
    # in any order.
    out = bank.new_zeros(len(sizes), bank.shape[1], dtype=kind)
    first = int(starts[0]) if len(starts) else 0
    last = int(starts[-1]) if len(starts) else 0
    step = max(1, _BLOCK // max(1, bank.shape[1]))
    owner = torch.repeat_interleave(torch.arange(len(sizes), device=bank.device), sizes)
    for start in range(first, last, step):
        stop = min(start + step, last)
        out.index_add_(0, owner[start - first : stop - first], bank[order[start:stop]].to(kind))
    return out / sizes.clamp(min=1)[:, None].to(kind)


def _blocks(problem: ContrastProblem, batch: int | None = None) -> Iterator[_Block]:
    """Yield the classes block by block; `batch` is the number of features that logits are computed
    for, by default all.
    """
    bank = problem.bank
    kind = accumulator(bank.dtype)
    index = problem.classes()
    count = problem.class_count()
    batch = len(problem.features) if batch is None else batch
    step = max(1, min(max(64, _BLOCK // max(1, bank.shape[1])), _LOGITS // max(1, batch)))
    for first in range(0, count, step):
        stop = min(first + step, count)
        if index is None:
            yield _Block(first, bank[first:stop].to(kind), None)
            continue
        edges = index.starts[first : stop + 1]
        empty = edges.diff() == 0
        vectors = means_of_classes(bank, index.order, edges)
        yield _Block(first, vectors, empty if bool(empty.any()) else None)


def _targets_in(targets: Tensor, first: int, length: int) -> tuple[Tensor, Tensor]:
    """Features whose target is in the block, and the column of the target there."""
    inside = ((targets >= first) & (targets < first + length)).nonzero()[:, 0]
    return inside, targets[inside] - first
