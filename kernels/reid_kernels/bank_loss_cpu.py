"""`bank_contrast_loss` by blocks of the bank in PyTorch, a running log-sum-exp and a running gradient. Works on any device."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ._ops import accumulator, check_finite

#: Values of a block of the bank, and of logits: 8 MiB and 4 MiB of float32.
_BLOCK = 2**21
_LOGITS = 2**20


def contrast_blocked(
    features: Tensor,
    bank: Tensor,
    targets: Tensor,
    order: Tensor | None,
    starts: Tensor | None,
    temperature: float,
    ignore_index: int,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses (B,), log-sum-exps (B,) and gradients (B, D) or (0, D), on checked arguments."""
    arguments = (features, bank, targets, order, starts, temperature, ignore_index, gradient)
    losses, log_sums, running, chosen, own = _shares(*arguments)
    counted = targets != ignore_index
    if gradient:
        running.sub_(chosen).div_(temperature).masked_fill_(~counted[:, None], 0.0)
    if features.is_cpu and not bool(torch.isfinite(losses).all() & torch.isfinite(running).all()):
        if starts is not None and bool((own[counted] == -torch.inf).any()):
            wrong = int(targets[counted][(own[counted] == -torch.inf)[:, 0]][0])
            raise ValueError(
                f"targets: got class {wrong}, which has no rows, expected classes of `classes`"
            )
        check_finite(features=features[counted], bank=bank)
    return losses, log_sums, running


def shares_blocked(
    features: Tensor,
    bank: Tensor,
    targets: Tensor,
    order: Tensor | None,
    starts: Tensor | None,
    temperature: float,
    ignore_index: int,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses (B,), log-sum-exps (B,), weighted means and vectors of the targets, (B, D) or (0, D), on checked arguments."""
    return _shares(features, bank, targets, order, starts, temperature, ignore_index, gradient)[:4]


def _shares(
    features: Tensor,
    bank: Tensor,
    targets: Tensor,
    order: Tensor | None,
    starts: Tensor | None,
    temperature: float,
    ignore_index: int,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What `shares_blocked` gives, and the targets' logits (B, 1)."""
    kind = accumulator(features.dtype)
    counted = targets != ignore_index
    targets = targets.masked_fill(~counted, -1)
    scaled = features.to(kind) / temperature
    top = scaled.new_full((len(scaled), 1), -torch.inf)
    total, own = torch.zeros_like(top), torch.zeros_like(top)
    running = torch.zeros_like(scaled) if gradient else scaled.new_zeros(0, scaled.shape[1])
    chosen = torch.zeros_like(running)
    for first, rows, empty in _blocks(bank, order, starts, len(features)):
        logits = scaled @ rows.T
        if empty is not None:
            logits.masked_fill_(empty, -torch.inf)
        here, column = _targets_in(targets, first, len(rows))
        own[here, 0] = logits[here, column]
        if gradient:
            chosen[here] = rows[column]
        higher = torch.maximum(top, logits.amax(1, keepdim=True))
        # A block of empty classes alone leaves -inf, of which no difference is taken.
        shift = higher.masked_fill(higher == -torch.inf, 0.0)
        shrink = torch.exp(top - shift)
        weights = logits.sub_(shift).exp_()
        total = total * shrink + weights.sum(1, keepdim=True)
        if gradient:
            running.mul_(shrink).addmm_(weights, rows)
        top = higher
    log_sums = (top + total.log())[:, 0]
    # In this order: where the target's logit is all but the sum, what is left is small beside either.
    losses = torch.where(counted, (total.log() + (top - own))[:, 0], 0.0)
    if gradient:
        # Nothing to weigh is a mean of zero.
        running.div_(total.masked_fill(total == 0, 1.0))
    return losses, log_sums, running, chosen, own


def bank_gradient_blocked(
    features: Tensor,
    bank: Tensor,
    targets: Tensor,
    order: Tensor | None,
    starts: Tensor | None,
    temperature: float,
    ignore_index: int,
    log_sums: Tensor,
    weights: Tensor,
) -> Tensor:
    """Gradient for the bank of the losses weighted (B,), in its dtype: the logits again, block by block."""
    kind = accumulator(features.dtype)
    counted = targets != ignore_index
    features, targets, log_sums, weights = (
        x[counted] for x in (features, targets, log_sums, weights)
    )
    scaled, factor = features.to(kind) / temperature, weights.to(kind)
    out = torch.zeros_like(bank)
    for first, rows, empty in _blocks(bank, order, starts, len(features)):
        share = (scaled @ rows.T).sub_(log_sums[:, None]).exp_()
        here, column = _targets_in(targets, first, len(rows))
        share[here, column] -= 1
        share.mul_(factor[:, None])
        if empty is not None:
            share.masked_fill_(empty, 0.0)
        block = share.T @ scaled
        if order is None or starts is None:
            out[first : first + len(rows)] = block
        else:
            edges = starts[first : first + len(rows) + 1]
            sizes = edges.diff()
            members = order[int(edges[0]) : int(edges[-1])]
            out[members] = (
                (block / sizes.clamp(min=1)[:, None]).repeat_interleave(sizes, 0).to(out.dtype)
            )
    return out


def means_of_classes(bank: Tensor, order: Tensor, starts: Tensor) -> Tensor:
    """Mean of the rows of each class, (C, D) float32 or float64; 0 for a class without rows."""
    kind = accumulator(bank.dtype)
    sizes = starts.diff()
    if (bank.dtype == kind or not bank.is_cpu) and len(sizes) and bank.shape[1]:
        members = order[int(starts[0]) : int(starts[-1])]
        if not len(members):
            return bank.new_zeros(len(sizes), bank.shape[1], dtype=kind)
        if bank.dtype != kind:
            bank, members = bank[members].to(kind), torch.arange(len(members), device=bank.device)
        return F.embedding_bag(members, bank, starts[:-1] - starts[0], mode="mean")
    # Half floats of a CPU, a part at a time; on a GPU this sum would be atomic.
    out = bank.new_zeros(len(sizes), bank.shape[1], dtype=kind)
    first, last = (int(starts[0]), int(starts[-1])) if len(starts) else (0, 0)
    step = max(1, _BLOCK // max(1, bank.shape[1]))
    owner = torch.repeat_interleave(torch.arange(len(sizes), device=bank.device), sizes)
    for start in range(first, last, step):
        stop = min(start + step, last)
        out.index_add_(0, owner[start - first : stop - first], bank[order[start:stop]].to(kind))
    return out / sizes.clamp(min=1)[:, None].to(kind)


def _blocks(
    bank: Tensor, order: Tensor | None, starts: Tensor | None, batch: int
) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    """First number, vectors and which of them do not exist, of each block of bank rows or classes."""
    kind = accumulator(bank.dtype)
    count = len(bank) if starts is None else len(starts) - 1
    step = max(1, min(max(64, _BLOCK // max(1, bank.shape[1])), _LOGITS // max(1, batch)))
    for first in range(0, count, step):
        stop = min(first + step, count)
        if order is None or starts is None:
            yield first, bank[first:stop].to(kind), None
        else:
            edges = starts[first : stop + 1]
            sizes = edges.diff()
            yield (
                first,
                means_of_classes(bank, order, edges),
                (sizes == 0) if bool((sizes == 0).any()) else None,
            )


def _targets_in(targets: Tensor, first: int, length: int) -> tuple[Tensor, Tensor]:
    """Features whose target is in the block, and its place there."""
    here = ((targets >= first) & (targets < first + length)).nonzero()[:, 0]
    return here, targets[here] - first
