"""Operators over a bank whose rows are sharded over several processes.

Process r of W holds the rows `world.local_slice(n)` of the n rows of the whole bank: ceil(n / W) of
them, fewer or none on the last processes. Each operator returns what the plain operator returns for
the whole bank. With one process it calls the plain operator, and the result is the same bit for
bit.

Similarities are computed on the process that holds the rows of the bank. Only the batch, its best
similarities, counts and sums are sent. Every operator is collective: all processes call it, in the
same order, with batches of the same size. Where an operator raises NotFiniteError because of one
process's rows, it raises on all processes.

A similarity comes from the product of the batch and one shard. Its last bit may differ from that of
the product with the whole bank. Ties within rounding error may therefore break differently, and
equal rows on two processes need not tie. Where products are exact, or no two similarities are that
close, the choices are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ._ops import device_of, once, takes_kernels, unit_stride
from .bank_loss import ClassIndex, bank_contrast_loss, partial_contrast
from .checks import NotFiniteError, check_finite, check_range
from .labels import label_prediction
from .labels_cpu import closer_blocked, walk
from .multilabel import Positives, sum_of_multilabel_bank_losses
from .multilabel_cpu import row_blocks, similarities
from .numerics import accumulator, full_precision
from .topk import similarity_topk
from .update_bank import hardest_targets, update_bank_


class World(Protocol):
    """The processes that hold a sharded bank.

    The methods other than `local_slice` are collective.
    """

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""

    @property
    def size(self) -> int:
        """The number of processes, W."""

    def local_slice(self, n: int, rank: int | None = None) -> slice:
        """The rows of n that a process holds, by default this one.

        There are ceil(n / W) of them, fewer on the last process.
        """

    def all_reduce_sum(self, x: Tensor) -> Tensor:
        """The sum over the processes of tensors of one shape, on all of them."""

    def all_gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes in their order, on all of them; each process gives as many."""

    def all_gather_rows(self, rows: Tensor) -> Tensor:
        """The rows of all processes in their order, on all of them.

        Each process gives any number.
        """

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """This process's part, of W equal ones, of the sum over the processes."""


def bank_rows(bank: Tensor, rows: Tensor, n: int, world: World) -> Tensor:
    """Fetch rows of the whole bank to all processes. The device is not waited for.

    Args:
        bank: This process's rows of (n, D), any floating dtype.
        rows: (R,) int64 in [0, n), the same on all processes.
        n: Rows of the whole bank.
        world: The processes. An all-reduce sums R x D values.

    Returns:
        (R, D) float32, float64 for float64.
    """
    kind = accumulator(bank.dtype)
    if world.size == 1:
        return bank[rows].to(kind)
    place, inside = _local(rows, n, world)
    if len(bank):
        taken = bank[place].to(kind)  # (R, D)
    else:
        taken = bank.new_zeros((len(rows), bank.shape[1]), dtype=kind)
    return world.all_reduce_sum(taken.masked_fill(~inside[:, None], 0))


def sharded_bank_contrast_loss(
    features: Tensor,
    bank: Tensor,
    targets: Tensor,
    local_classes: Tensor,
    temperature: float,
    world: World,
    *,
    classes: ClassIndex | None = None,
) -> Tensor:
    """`bank_contrast_loss` (UCAL, Eq. 1) where each process holds the vectors of some classes.

    All vectors of a class are on one process. A process computes the log-sum-exp and the weighted
    mean of its own vectors for the whole batch, so nothing as long as the number of classes is
    sent. The mean of the losses over the processes, and of their gradients, is that of the whole
    batch.

    Args:
        features: (b, D), this process's part of the batch; parts have one size b.
        bank: This process's vectors (rows, D), dtype and device of the features.
        targets: (b,) int64, the class of each feature among all C classes; -1 for features that do
            not count.
        local_classes: (C + 1,) int64, this process's own number of each class: -1 for a class on
            another process, and -1 at the end, which is what a target of -1 reads. Not read with
            one process, where own numbers are those of all.
        temperature: tau, above 0.
        world: The processes. For B = W b features, 12 B W bytes and the B x D gradients are sent.
        classes: The class of each row of `bank`, in own numbers, as `class_index` returns it; None
            where a row is a class.

    Returns:
        The mean over this process's features that count, as a scalar; where some do not count, the
        sum divided by the count of the whole batch over W.

    Raises:
        NotFiniteError: On a CPU, features or vectors whose products are not finite, on all
            processes.
    """
    if world.size == 1:
        return bank_contrast_loss(features, bank, targets, temperature, classes=classes)
    batch = world.all_gather(features.detach())  # (B, D)
    targets = world.all_gather(targets)  # (B,)
    own_targets = local_classes[targets]  # (B,)
    needs_gradient = features.requires_grad and torch.is_grad_enabled()
    partial = partial_contrast(
        batch, bank, own_targets, temperature, classes=classes, gradient=needs_gradient
    )
    holds_target = (own_targets >= 0).to(partial.losses.dtype)
    sums = torch.stack([partial.losses, partial.log_sum_exp, holds_target])  # (3, B)
    losses, log_sums, holds = world.all_gather(sums[None]).unbind(1)  # each (W, B)
    counted = targets >= 0
    # The loss against the shard that holds the target keeps small losses exact. The other shards
    # add log(1 + exp(their log-sum-exp - its log-sum-exp)).
    others = log_sums.masked_fill(holds > 0, -torch.inf).logsumexp(0)  # (B,)
    own_sum = log_sums.where(holds > 0, 0.0).sum(0)  # (B,)
    extra = torch.logaddexp(torch.zeros_like(others), others - own_sum)
    loss = (losses.sum(0) + extra).where(counted, 0.0)  # (B,)
    if loss.is_cpu and not bool(torch.isfinite(loss).all()):
        raise NotFiniteError(
            "features or bank: got rows whose products are not finite, expected finite values"
        )
    first = world.rank * len(features)
    loss = loss[first : first + len(features)]  # (b,)
    if needs_gradient:
        # This shard's part of the softmax-weighted mean, minus the vector of the target where it is
        # here.
        weights = (partial.log_sum_exp - log_sums.logsumexp(0)).exp()[:, None]  # (B, 1)
        gradient = partial.softmax_means.mul_(weights) - partial.target_vectors  # (B, D)
        gradient = gradient.div_(temperature).masked_fill_(~counted[:, None], 0.0)
        loss = with_gradient(features, loss, world.reduce_scatter(gradient))
    return loss.sum() * world.size / counted.sum().clamp(min=1)


def sharded_label_prediction(
    bank: Tensor, rows: Tensor, n: int, world: World, *, threshold: float = 0.6, at_least: int = 10
) -> tuple[Tensor, Tensor]:
    """`label_prediction` (MPLP) for a batch that is the same on all processes.

    Every process walks for the whole batch, so that all ask for the same candidates. The vectors of
    the candidates are fetched, and each process counts among its own rows.

    Args:
        bank: This process's rows of (n, D), unit-norm or zero.
        rows: (B,) int64 in [0, n), the same on all processes.
        n: Rows of the whole bank.
        world: The processes.
        threshold: t; similarities above it count.
        at_least: The least K.

    Returns:
        `indptr` (B + 1,) and `indices`, int64, the same on all processes.

    Memory:
        That of `label_prediction` for the process's own rows, and 56 bytes for each similarity of
        the batch above the threshold.

    Sent:
        B x D values, 16 bytes for each similarity above the threshold, and in a round of the walk D
        values for each candidate and at most 16 bytes for each pair. The device is waited for a few
        times in each round.

    Raises:
        NotFiniteError: On a CPU, a row of the bank is not finite; on all processes.
        ValueError: On a CPU, rows outside [0, n).
    """
    if world.size == 1:
        return label_prediction(bank, rows, threshold=threshold, at_least=at_least)
    check_range("rows", rows, 0, n)
    own = world.local_slice(n)
    kind = accumulator(bank.dtype)
    step = _largest_shard(n, world)
    if bank.is_cpu:
        _check_finite_on_all(bank, world)

    def similar(candidates: Tensor) -> Tensor:
        return _products(bank_rows(bank, candidates, n, world), bank)

    def pair(similarity: Tensor, place: Tensor, column: Tensor) -> Tensor:
        # Each similarity of a pair is on the process that holds the column; the others add 0.
        column, inside = _local(column, n, world)
        if similarity.shape[1]:
            values = similarity[place, column]
        else:
            values = similarity.new_zeros(len(place))
        return world.all_reduce_sum(values.masked_fill(~inside, 0))

    def exceeds(candidates: Tensor, images: Tensor, bound: Tensor) -> Tensor:
        closer = closer_blocked(step, candidates, images, kind, similar, pair)
        return world.all_reduce_sum(closer) > bound

    with full_precision(bank), device_of(bank), torch.no_grad():
        above_threshold = []
        for block in row_blocks(len(rows), step, kind):
            similarity = similar(rows[block])
            row, column = (similarity > threshold).nonzero(as_tuple=True)
            pairs = (row + block.start) * n + column + own.start
            # A float64 travels as the int64 of the same bits, so that one tensor holds both.
            values = similarity[row, column].double().view(torch.int64)
            above_threshold.append(torch.stack([pairs, values], 1))
        pairs, values = world.all_gather_rows(
            torch.cat(above_threshold or [rows.new_zeros(0, 2)])
        ).unbind(1)
        counts, columns = _by_similarity(pairs, values.contiguous(), len(rows), n)
        return walk(n, rows, at_least, counts, columns, exceeds)


def _check_finite_on_all(bank: Tensor, world: World) -> None:
    norms = torch.linalg.vector_norm(bank, dim=1, dtype=accumulator(bank.dtype))
    bad = int(world.all_reduce_sum((~torch.isfinite(norms)).sum()))
    if bad:
        raise NotFiniteError(f"bank: {bad} rows are not finite, expected finite values")


def _by_similarity(pairs: Tensor, values: Tensor, rows: int, n: int) -> tuple[Tensor, Tensor]:
    """Sort the pairs of each row by falling similarity; equal ones by rising column.

    Args:
        pairs: (P,) int64, row * n + column.
        values: (P,) int64, the bits of the similarities in float64.
        rows: Number of rows.
        n: Number of columns.

    Returns:
        Pairs of each row (rows,), and their columns (P,).
    """
    # The pairs of one process come row after row with ascending columns, and lower columns are on
    # lower processes. Two stable sorts, by similarity and then by row, therefore keep equal
    # similarities in order of their columns.
    order = values.view(torch.float64).argsort(descending=True, stable=True)
    row = pairs[order] // n
    order = order[row.argsort(stable=True)]
    # A `bincount` would make the host wait.
    counts = row.new_zeros(rows).index_add_(0, row, torch.ones_like(row))
    return counts, pairs[order] % n


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
    """`similarity_topk` at "ieee" precision: the top k of every process's top k.

    Args:
        query: (B, D), the same on all processes.
        bank: This process's rows of (n, D), dtype and device of the query.
        k: 1 to 1,024.
        n: Rows of the whole bank.
        world: The processes. A process sends 12 k bytes for each query.
        normalize: Divide each row by its norm.
        exclude: (B,) int64, one row of the whole bank to leave out for each query; -1 for none.

    Returns:
        Similarities (B, k) and rows of the whole bank (B, k) int64; -inf and -1 where there are no
        more.

    Raises:
        NotFiniteError: On a CPU, rows whose similarity is not finite, on all processes.
    """
    if world.size == 1:
        return similarity_topk(
            query, bank, k, normalize=normalize, exclude=exclude, precision="ieee"
        )
    place, inside = _local(exclude, n, world)
    own_exclude = torch.where(inside, place, -1)
    error = None
    try:
        values, indices = similarity_topk(
            query, bank, k, normalize=normalize, exclude=own_exclude, precision="ieee"
        )
    except NotFiniteError as raised:
        error = raised
        values = query.new_zeros((len(query), k), dtype=accumulator(query.dtype))
        indices = exclude.new_zeros((len(query), k))
    if query.is_cpu and int(world.all_reduce_sum(torch.tensor(int(error is not None)))):
        raise error or NotFiniteError(
            "query and bank: got rows whose product is not finite, expected finite values"
        )
    indices = torch.where(indices < 0, -1, indices + world.local_slice(n).start)
    # Equal similarities stay in the order of the processes, which is the order of their rows.
    values = _side_by_side(world.all_gather(values), len(query))  # (B, W k)
    indices = _side_by_side(world.all_gather(indices), len(query))  # (B, W k)
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
    reduction: str = "mean",
) -> Tensor:
    """The weighted sum of `multilabel_bank_loss` (MMCL) over several sets of labels of one batch.

    The hard negatives are chosen over all processes: each process offers its own best, and the best
    of these are taken. A tie at the threshold is split evenly over all equal negatives, whichever
    process holds them. The similarities are computed once for all sets of labels. A GPU is not
    waited for.

    Args:
        features: (b, D), unit-norm, this process's part of the batch; parts have one size b.
        bank: This process's rows of (n, D), dtype and device of the features.
        positives: J sets of labels of the whole batch of B = W b features, the same on all
            processes, each a pair (indptr (B + 1,), indices) or bit rows (B, ceil(n / 32)).
        weights: J factors.
        n: Rows of the whole bank.
        world: The processes.
        delta: Weight of the positives.
        hard_ratio: Share of the negatives that is hard, in [0, 1].
        reduction: "mean" over this process's part, or "none" for (b,).

    Returns:
        The loss, float32 (float64 for float64). The mean of the losses over the processes is that
        of the whole batch.

    Memory:
        J similarities for some rows of the batch at a time, and some five times as much again, 64
        MiB each.

    Sent:
        The batch, for each set and row of the batch some 24 bytes, and min(hard_ratio n, n / W)
        values from each process; B x D values of the gradient.

    Raises:
        NotFiniteError: On a CPU, rows that are not finite, on all processes.
    """
    if world.size == 1:
        return sum_of_multilabel_bank_losses(
            features,
            bank,
            positives,
            weights,
            delta=delta,
            hard_ratio=hard_ratio,
            reduction=reduction,
        )
    batch = world.all_gather(features.detach())
    losses, gradient = _losses_and_gradient(
        batch, bank, positives, weights, n, world, delta, hard_ratio
    )
    first = world.rank * len(features)
    own = slice(first, first + len(features))
    loss = with_gradient(features, losses[own], gradient[own])
    return loss if reduction == "none" else loss.mean()


def with_gradient(features: Tensor, losses: Tensor, gradient: Tensor) -> Tensor:
    """Make losses (B,) of features (B, D) differentiable once, by their known gradient (B, D)."""
    result: Tensor = _Known.apply(features, losses, gradient)
    return result


def sharded_update_bank_(
    bank: Tensor, features: Tensor, rows: Tensor, momentum: float, n: int, world: World
) -> Tensor:
    """`update_bank_` of this process's rows, in batch order: the same bits as in the whole bank.

    Args:
        bank: This process's rows of (n, D), changed in place.
        features: (B, D), dtype and device of the bank, the same on all processes.
        rows: (B,) int64 in [0, n), the same on all processes.
        momentum: m in [0, 1], the share of the old vector that is kept.
        n: Rows of the whole bank.
        world: The processes. Nothing is sent.

    Returns:
        The bank.

    Raises:
        NotFiniteError: On a CPU, features that are not finite, on all processes.
        ValueError: On a CPU, rows outside [0, n).
    """
    if world.size == 1:
        return update_bank_(bank, features, rows, momentum)
    check_range("rows", rows, 0, n)
    place, inside = _local(rows, n, world)
    return update_shard_(bank, features, torch.where(inside, place, -1), momentum, world)


def update_shard_(
    bank: Tensor,
    features: Tensor,
    places: Tensor,
    momentum: float,
    world: World,
    *,
    hardest: bool = False,
) -> Tensor:
    """`update_bank_` of a shard that holds any rows of the whole bank, in batch order.

    Args:
        bank: This process's rows (rows, D), changed in place.
        features: (B, D), dtype and device of the bank, the same on all processes.
        places: (B,) int64, the row of `bank` that each feature updates; -1 where that row is on
            another process.
        momentum: m in [0, 1], the share of the old vector that is kept.
        world: The processes. Nothing is sent.
        hardest: Update each row only by the feature that is least similar to it (Cluster Contrast).

    Returns:
        The bank.

    Raises:
        NotFiniteError: On a CPU, features that are not finite, on all processes.
    """
    if world.size > 1:
        # Checked before the hardest features are chosen, which differ between the processes: all
        # must raise, or none.
        if features.is_cpu and not bool(torch.isfinite(features).all()):
            check_finite(features=features)
        if not len(bank):
            return bank
    if hardest:
        places = hardest_targets(features, bank, places)
    return update_bank_(bank, features, places, momentum)


def _local(rows: Tensor, n: int, world: World) -> tuple[Tensor, Tensor]:
    """Places of rows (R,) in this shard, 0 for rows of other shards; and whether they are in it."""
    own = world.local_slice(n)
    inside = (rows >= own.start) & (rows < own.stop)
    return torch.where(inside, rows - own.start, 0), inside


def _largest_shard(n: int, world: World) -> int:
    """Rows of the largest shard.

    All processes cut their work by it, so that they make as many rounds.
    """
    return world.local_slice(n, 0).stop


def _side_by_side(gathered: Tensor, batch: int) -> Tensor:
    """The results (W B, k) of all processes for one batch, as (B, W k)."""
    return gathered.view(-1, batch, gathered.shape[1]).transpose(0, 1).flatten(1)


def _products(rows: Tensor, bank: Tensor) -> Tensor:
    """Dot products (R, rows of the shard)."""
    if takes_kernels(bank, rows):
        from ._triton import operands
        from .multilabel_triton import similarities as products

        return products(
            unit_stride(rows.to(bank.dtype)), unit_stride(bank), operands(bank.dtype, "ieee")
        )
    return similarities(rows, bank, accumulator(bank.dtype))


def _losses_and_gradient(
    batch: Tensor,
    bank: Tensor,
    positives: Sequence[Positives],
    weights: Sequence[float],
    n: int,
    world: World,
    delta: float,
    hard_ratio: float,
) -> tuple[Tensor, Tensor]:
    """Losses (B,) of the batch, summed over the sets of labels, and their gradients (B, D)."""
    kind = accumulator(batch.dtype)
    own = world.local_slice(n)
    step = _largest_shard(n, world)
    losses = batch.new_zeros(len(batch), dtype=kind)
    gradient = batch.new_zeros(batch.shape, dtype=kind)
    with full_precision(batch), device_of(batch), torch.no_grad():
        for block in row_blocks(len(batch), len(positives) * step, kind):
            masks = torch.stack([_shard_mask(labels, block, own) for labels in positives])
            similarity = _products(batch[block], bank)  # (rows, columns)
            terms, slopes = _terms(similarity, masks, n, step, world, delta, hard_ratio)
            for j, factor in enumerate(weights):
                terms[j] *= factor
                slopes[j] *= factor
            losses[block] = terms.sum(0)
            gradient[block] = slopes.sum(0) @ bank.to(kind)
        gradient = world.all_reduce_sum(gradient)
    if losses.is_cpu and not bool(torch.isfinite(losses).all()):
        check_finite(features=batch, bank=bank)
    return losses, gradient


def _shard_mask(positives: Positives, block: slice, own: slice) -> Tensor:
    """Whether each column of this shard is a label of each row of a block, (rows, columns) bool."""
    columns = own.stop - own.start
    if isinstance(positives, Tensor):
        place = torch.arange(own.start, own.stop, device=positives.device)
        return ((positives[block][:, place // 32] >> (place % 32)) & 1).bool()
    indptr, indices = positives
    row = torch.arange(len(indptr) - 1, device=indices.device).repeat_interleave(
        indptr.diff(), output_size=len(indices)
    )
    in_shard = (indices >= own.start) & (indices < own.stop)
    in_block = (row >= block.start) & (row < block.stop)
    inside = in_shard & in_block
    # Labels elsewhere are written to an extra column, which is cut off: no index depends on a count
    # that the host would have to wait for.
    mask = torch.zeros(
        block.stop - block.start, columns + 1, dtype=torch.bool, device=indices.device
    )
    mask_row = torch.where(inside, row - block.start, 0)
    mask_column = torch.where(inside, indices - own.start, columns)
    mask[mask_row, mask_column] = True
    return mask[:, :columns]


def _terms(
    similarity: Tensor,
    positive: Tensor,
    n: int,
    step: int,
    world: World,
    delta: float,
    hard_ratio: float,
) -> tuple[Tensor, Tensor]:
    """MMCL for a block of rows: losses, and gradients with respect to this shard's similarities.

    Args:
        similarity: (rows, columns) with this shard's columns.
        positive: (J, rows, columns) bool, whether a column is a label, in each of J sets.
        n: Columns of all shards.
        step: Columns of the largest shard.
        world: The processes.
        delta: Weight of the positives.
        hard_ratio: Share of the negatives that is hard.

    Returns:
        Losses (J, rows), the same on all processes, and gradients (J, rows, columns).
    """
    labels = world.all_reduce_sum(positive.sum(2))  # (J, rows)
    negatives = n - labels
    hard = (negatives.double() * hard_ratio).long().clamp_(min=1).minimum(negatives)  # (J, rows)
    negative = similarity.masked_fill(positive, -torch.inf)  # (J, rows, columns)

    # No row has more hard negatives than this.
    most_hard = max(1, int(hard_ratio * n))
    hardest = _hardest_of_all(negative, most_hard, step, world)

    # The least similar hard negative. Those equal to it split the places that are left after those
    # above it.
    bound = hardest.gather(2, (hard[:, :, None] - 1).clamp_(min=0))  # (J, rows, 1)
    # A row without negatives has no hard ones.
    bound.masked_fill_(hard[:, :, None] == 0, torch.inf)
    above = (~(hardest <= bound)).sum(2)  # (J, rows)

    distance = torch.where(positive, 1 - similarity, 0)  # of positives
    sums = world.all_reduce_sum(
        torch.stack([(negative == bound).sum(2).double(), distance.double().square().sum(2)])
    )
    tied = sums[0].clamp(min=1).to(bound.dtype)
    tie_weight = (hard - above).to(bound.dtype) / tied
    label_count = labels.clamp(min=1).to(bound.dtype)
    hard_count = hard.clamp(min=1).to(bound.dtype)
    is_hard = torch.arange(hardest.shape[2], device=hard.device) < hard[:, :, None]
    losses = delta * sums[1].to(bound.dtype) / label_count
    losses += (1 + hardest).square().masked_fill_(~is_hard, 0).sum(2) / hard_count

    weight = torch.where(negative == bound, tie_weight[:, :, None], 1)
    slopes = 2 * (1 + similarity) / hard_count[:, :, None] * weight
    # Written so that a NaN counts as hard and reaches the gradient.
    slopes = slopes.masked_fill_(negative < bound, 0)
    return losses, torch.where(positive, -2 * delta / label_count[:, :, None] * distance, slopes)


def _hardest_of_all(negative: Tensor, most: int, step: int, world: World) -> Tensor:
    """The largest similarities (J, rows, at most `most`) of all shards, descending.

    Args:
        negative: (J, rows, columns) similarities of this shard, -inf where a column is a label.
        most: How many are returned, if there are so many columns.
        step: Columns of the largest shard.
        world: The processes.
    """
    # The hardest of all shards are among the hardest of each. No shard can offer more than it has
    # columns; a smaller shard pads with -inf, so that all send tensors of one shape.
    offered = min(most, step)
    best = negative.topk(min(offered, negative.shape[2]), dim=2).values
    best = F.pad(best, (0, offered - best.shape[2]), value=-torch.inf)
    best = world.all_gather(best[None]).movedim(0, 2).flatten(2)  # (J, rows, W offered)
    return best.topk(min(most, best.shape[2]), dim=2).values


class _Known(torch.autograd.Function):
    """Losses whose gradient was computed with them."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, losses: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.dtype = features.dtype
        return losses.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return once((upstream[0].detach()[:, None] * gradient).to(ctx.dtype)), None, None
