"""Operators over a bank whose rows lie on several processes: each gives, on all of them, what it gives for the whole bank.

A process holds `shards.own(n)` of the n rows, none perhaps; batches are the same on all. Similarities are computed where the
rows of the bank lie; the batch, its best similarities, counts and sums travel. All processes call the same, in the same order,
and what is wrong with one's rows is raised on all.

A similarity comes from the product of the batch and a part of the bank, whose last bit may differ from that of the product with
the whole bank. So a choice may be another where two similarities, or one and the threshold, are equal but for rounding; equal
rows on two processes need not tie. Where products are exact, or nothing lies that near, the choices are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ._ops import (
    NotFiniteError,
    check_finite,
    check_range,
    device_of,
    once,
    takes_kernels,
    unit_stride,
)
from .labels_cpu import closer_blocked, walk
from .multilabel import Positives
from .multilabel_cpu import row_blocks, similarities
from .numerics import accumulator, full_precision
from .topk import similarity_topk
from .update_bank import update_bank_


class World(Protocol):
    """The processes that share a bank. All but `own` is collective, and gives the same on all."""

    def local_slice(self, n: int, rank: int | None = None) -> slice:
        """The rows of n that lie on a process, on this one when none is named: ceil(n / processes), fewer on the last."""

    def all_reduce_sum(self, x: Tensor) -> Tensor:
        """The sum of tensors of one shape."""

    def all_gather(self, rows: Tensor) -> Tensor:
        """Rows of all processes, as many on each, in their order."""

    def all_gather_rows(self, rows: Tensor) -> Tensor:
        """Rows of all processes, any number on each, in their order."""


def bank_rows(bank: Tensor, rows: Tensor, n: int, world: World) -> Tensor:
    """Rows (R, D) of the bank, wherever they lie: R x D values are summed over the processes. The device is not waited for.

    Args:
        bank: This process's rows of (n, D), any floating dtype.
        rows: (R,) int64 in [0, n), the same on all.
        n: Rows of the whole bank.
        shards: The processes.

    Returns:
        (R, D) float32, float64 for float64.
    """
    place, inside = _local(rows, n, world)
    kind = accumulator(bank.dtype)
    taken = (
        bank[place].to(kind)
        if len(bank)
        else bank.new_zeros((len(rows), bank.shape[1]), dtype=kind)
    )
    return world.all_reduce_sum(taken.masked_fill(~inside[:, None], 0))


def sharded_label_prediction(
    bank: Tensor, rows: Tensor, n: int, world: World, *, threshold: float = 0.6, at_least: int = 10
) -> tuple[Tensor, Tensor]:
    """`label_prediction` for a batch that is the same on all processes.

    Every process walks for the whole batch, so that all ask for the same candidates: their vectors are fetched, and each
    process counts among its own rows.

    Args:
        bank: This process's rows of (n, D), of length one or zero.
        rows: (B,) int64 in [0, n), the same on all.
        n: Rows of the whole bank.
        shards: The processes.
        threshold: t; similarities above it count.
        at_least: The least K.

    Returns:
        `indptr` (B + 1,) and `indices`, int64.

    Memory:
        As of `label_prediction` for the process's own rows, and 56 bytes for each similarity of the batch above the threshold.

    Moved:
        B x D values, 16 bytes for each similarity above the threshold, and in a round of the walk D values for each candidate
        and 16 bytes at most for each pair. The device is waited for a few times in each.

    Raises:
        NotFiniteError: On a CPU, a row of the bank is not finite; on all processes.
        ValueError: On a CPU, rows outside [0, n).
    """
    check_range("rows", rows, 0, n)
    own, kind = world.local_slice(n), accumulator(bank.dtype)
    step = _most(n, world)
    if bank.is_cpu:
        norms = torch.linalg.vector_norm(bank, dim=1, dtype=kind)
        bad = int(world.all_reduce_sum((~torch.isfinite(norms)).sum()))
        if bad:
            raise NotFiniteError(f"bank: {bad} rows are not finite, expected finite values")

    def similar(some: Tensor) -> Tensor:
        return _products(bank_rows(bank, some, n, world), bank)

    def pair(similarity: Tensor, place: Tensor, column: Tensor) -> Tensor:
        column, inside = _local(column, n, world)
        found = (
            similarity[place, column] if similarity.shape[1] else similarity.new_zeros(len(place))
        )
        return world.all_reduce_sum(found.masked_fill(~inside, 0))

    def closer(candidates: Tensor, some: Tensor) -> Tensor:
        return world.all_reduce_sum(closer_blocked(step, candidates, some, kind, similar, pair))

    with full_precision(bank), device_of(bank), torch.no_grad():
        found = []
        for now in row_blocks(len(rows), step, kind):
            similarity = similar(rows[now])
            row, column = (similarity > threshold).nonzero(as_tuple=True)
            value = similarity[row, column].double().view(torch.int64)
            found.append(torch.stack([(row + now.start) * n + column + own.start, value], 1))
        pairs, value = world.all_gather_rows(torch.cat(found or [rows.new_zeros(0, 2)])).unbind(1)
        # One process's pairs come row after row, columns ascending, and lower columns lie on lower processes.
        order = value.contiguous().view(torch.float64).argsort(descending=True, stable=True)
        row = pairs[order] // n
        order = order[row.argsort(stable=True)]
        above = torch.bincount(row, minlength=len(rows))
        return walk(n, rows, at_least, above, pairs[order] % n, closer)


def sharded_similarity_topk(
    query: Tensor,
    bank: Tensor,
    k: int,
    n: int,
    world: World,
    *,
    normalize: bool = True,
    exclude: Tensor,
) -> tuple[Tensor, Tensor]:
    """`similarity_topk` at "ieee" precision: the best of each process's best. 12 k values a query and process travel.

    Args:
        query: (B, D), the same on all processes.
        bank: This process's rows of (n, D), dtype and device of the query.
        k: 1 to 1,024.
        n: Rows of the whole bank.
        shards: The processes.
        normalize: Divide each row by its norm.
        exclude: (B,) int64, one row of the whole bank left out for each query; -1 for none.

    Returns:
        Similarities (B, k), and rows of the whole bank (B, k) int64; -inf and -1 where there are no more.

    Raises:
        NotFiniteError: On a CPU, rows whose similarity is not finite, on all processes.
    """
    place, inside = _local(exclude, n, world)
    wrong = None
    try:
        values, indices = similarity_topk(
            query,
            bank,
            k,
            normalize=normalize,
            exclude=torch.where(inside, place, -1),
            precision="ieee",
        )
    except NotFiniteError as error:
        wrong = error
        values = query.new_zeros((len(query), k), dtype=accumulator(query.dtype))
        indices = exclude.new_zeros((len(query), k))
    if query.is_cpu and int(world.all_reduce_sum(torch.tensor(int(wrong is not None)))):
        raise wrong or NotFiniteError(
            "query and bank: got rows whose product is not finite, expected finite values"
        )
    indices = torch.where(indices < 0, -1, indices + world.local_slice(n).start)
    # Equal similarities stay in the order of the processes, which is that of their rows.
    values, indices = (
        world.all_gather(x).view(-1, len(query), k).transpose(0, 1).flatten(1)
        for x in (values, indices)
    )
    values, order = values.sort(dim=1, descending=True, stable=True)
    return values[:, :k].contiguous(), indices.gather(1, order)[:, :k]


def sharded_multilabel_bank_loss(
    features: Tensor,
    bank: Tensor,
    positives: Sequence[Positives],
    weights: Sequence[float],
    n: int,
    world: World,
    *,
    delta: float = 5.0,
    hard_ratio: float = 0.01,
) -> tuple[Tensor, Tensor]:
    """The weighted sum of `multilabel_bank_loss` over several sets of labels of one batch, and its gradient.

    The hard negatives are chosen over all processes: each gives its own best, of which the first are taken, and a tie at the
    threshold is shared by all that are equal, wherever they lie. Similarities are computed once for all sets. A GPU is not
    waited for.

    Args:
        features: (B, D), the same on all processes, of length one.
        bank: This process's rows of (n, D), dtype and device of the features.
        positives: J sets of labels, each a pair (indptr (B + 1,), indices) or bit rows (B, ceil(n / 32)), the same on all.
        weights: J factors.
        n: Rows of the whole bank.
        shards: The processes.
        delta: Weight of the positives.
        hard_ratio: Share of the negatives that is hard, in [0, 1].

    Returns:
        Losses (B,) and their gradients (B, D), float32 (float64 for float64); `with_gradient` makes a loss of them.

    Memory:
        Of some rows of the batch at a time, J similarities, and some five times as much again, 64 MiB each.

    Moved:
        For each set and row of the batch some 24 bytes, and min(hard_ratio n, n / processes) values from each process; B x D
        values of the gradient.

    Raises:
        NotFiniteError: On a CPU, rows that are not finite, on all processes.
    """
    kind, own = accumulator(features.dtype), world.local_slice(n)
    losses = features.new_zeros(len(features), dtype=kind)
    gradient = features.new_zeros(features.shape, dtype=kind)
    step = _most(n, world)
    with full_precision(features), device_of(features), torch.no_grad():
        for now in row_blocks(len(features), len(positives) * step, kind):
            masks = torch.stack([_own_labels(some, now, own) for some in positives])
            similarity = _products(features[now], bank)
            terms, weight = _terms(similarity, masks, n, step, world, delta, hard_ratio)
            for j, factor in enumerate(weights):
                terms[j] *= factor
                weight[j] *= factor
            losses[now] = terms.sum(0)
            gradient[now] = weight.sum(0) @ bank.to(kind)
        gradient = world.all_reduce_sum(gradient)
    if losses.is_cpu and not bool(torch.isfinite(losses).all()):
        check_finite(features=features, bank=bank)
    return losses, gradient


def with_gradient(features: Tensor, losses: Tensor, gradient: Tensor) -> Tensor:
    """Losses (B,) of features (B, D) whose gradient (B, D) is known; differentiable once."""
    result: Tensor = _Known.apply(features, losses, gradient)
    return result


def sharded_update_bank_(
    bank: Tensor, features: Tensor, rows: Tensor, momentum: float, n: int, world: World
) -> Tensor:
    """`update_bank_` of the process's own rows, in batch order: bit for bit what it leaves in them of a whole bank.

    Args:
        bank: This process's rows of (n, D), changed.
        features: (B, D), dtype and device of the bank, the same on all processes.
        rows: (B,) int64 in [0, n), the same on all.
        momentum: m in [0, 1], the share of the old vector that is kept.
        n: Rows of the whole bank.
        shards: The processes.

    Returns:
        The bank.

    Raises:
        NotFiniteError: On a CPU, features that are not finite, on all processes.
        ValueError: On a CPU, rows outside [0, n).
    """
    check_range("rows", rows, 0, n)
    if features.is_cpu and not bool(torch.isfinite(features).all()):
        check_finite(features=features)
    place, inside = _local(rows, n, world)
    return update_bank_(bank, features, torch.where(inside, place, -1), momentum)


def _local(rows: Tensor, n: int, world: World) -> tuple[Tensor, Tensor]:
    """Places of rows among this process's, and whether they are among them; 0 where they are not."""
    own = world.local_slice(n)
    inside = (rows >= own.start) & (rows < own.stop)
    return torch.where(inside, rows - own.start, 0), inside


def _most(n: int, world: World) -> int:
    """Rows of the process that has most: what all cut their work by."""
    return world.local_slice(n, 0).stop


def _products(rows: Tensor, bank: Tensor) -> Tensor:
    """Dot products (R, rows of the bank)."""
    if takes_kernels(bank, rows):
        from ._triton import operands
        from .multilabel_triton import similarities as products

        return products(
            unit_stride(rows.to(bank.dtype)), unit_stride(bank), operands(bank.dtype, "ieee")
        )
    return similarities(rows, bank, accumulator(bank.dtype))


def _own_labels(positives: Positives, now: slice, own: slice) -> Tensor:
    """Whether each of this process's columns is a label, for some rows of the batch."""
    columns = own.stop - own.start
    if isinstance(positives, Tensor):
        place = torch.arange(own.start, own.stop, device=positives.device)
        return ((positives[now][:, place // 32] >> (place % 32)) & 1).bool()
    indptr, indices = positives
    count = len(indptr) - 1
    row = torch.arange(count, device=indices.device).repeat_interleave(
        indptr.diff(), output_size=len(indices)
    )
    inside = (indices >= own.start) & (indices < own.stop) & (row >= now.start) & (row < now.stop)
    # What is not there goes into a column of its own.
    found = torch.zeros(now.stop - now.start, columns + 1, dtype=torch.bool, device=indices.device)
    found[
        torch.where(inside, row - now.start, 0), torch.where(inside, indices - own.start, columns)
    ] = True
    return found[:, :columns]


def _terms(
    similarity: Tensor,
    positive: Tensor,
    n: int,
    step: int,
    world: World,
    delta: float,
    hard_ratio: float,
) -> tuple[Tensor, Tensor]:
    """Losses (J, rows), and gradient weights (J, rows, own columns), of masks of the latter shape."""
    count = world.all_reduce_sum(positive.sum(2))
    negatives = n - count
    hard = (negatives.double() * hard_ratio).long().clamp_(min=1).minimum(negatives)
    far = similarity.masked_fill(positive, -torch.inf)
    # No row has more hard negatives.
    most = min(max(1, int(hard_ratio * n)), step)
    best = far.topk(min(most, far.shape[2]), dim=2).values
    best = world.all_gather(F.pad(best, (0, most - best.shape[2]), value=-torch.inf)[None])
    best = best.movedim(0, 2).flatten(2)
    first = best.topk(min(max(1, int(hard_ratio * n)), best.shape[2]), dim=2).values
    least = first.gather(2, (hard[:, :, None] - 1).clamp_(min=0))
    # Without negatives nothing is hard.
    least.masked_fill_(hard[:, :, None] == 0, torch.inf)
    above = (~(first <= least)).sum(2)

    near = torch.where(positive, 1 - similarity, 0)
    sums = world.all_reduce_sum(
        torch.stack([(far == least).sum(2).double(), near.double().square().sum(2)])
    )
    share = (hard - above).to(least.dtype) / sums[0].clamp(min=1).to(least.dtype)
    labels, places = count.clamp(min=1).to(least.dtype), hard.clamp(min=1).to(least.dtype)
    inside = torch.arange(first.shape[2], device=hard.device) < hard[:, :, None]
    losses = delta * sums[1].to(least.dtype) / labels
    losses += (1 + first).square().masked_fill_(~inside, 0).sum(2) / places

    weight = (
        2 * (1 + similarity) / places[:, :, None] * torch.where(far == least, share[:, :, None], 1)
    )
    # Written so that a NaN is chosen.
    weight = weight.masked_fill_(far < least, 0)
    return losses, torch.where(positive, -2 * delta / labels[:, :, None] * near, weight)


class _Known(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, losses: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.dtype = features.dtype
        return losses.clone()

    @staticmethod
    def backward(ctx: Any, *wanted: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return once((wanted[0].detach()[:, None] * gradient).to(ctx.dtype)), None, None
