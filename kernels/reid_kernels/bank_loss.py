"""Cross-entropy against a memory bank without the matrix of logits: UCAL's Eq. 1, and SpCL's form
over instances.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ._ops import (
    PRECISIONS,
    REDUCTIONS,
    device_of,
    once,
    qualified,
    reduced,
    takes_kernels,
)
from .checks import (
    as_flag,
    as_ids,
    as_integer,
    as_pair,
    as_rows,
    as_temperature,
    check_choice,
    check_device,
    check_range,
    described,
    returns_given_kind,
)
from .numerics import accumulator, full_precision

__all__ = [
    "ClassIndex",
    "PartialContrast",
    "bank_contrast_loss",
    "bank_contrast_loss_reference",
    "class_index",
    "class_means",
    "partial_contrast",
    "partial_contrast_reference",
]


class ClassIndex(NamedTuple):
    """The bank rows of each class. `class_index` computes it once for many losses.

    Args:
        order: (n,) int64, bank rows sorted by class, rows without a class first.
        starts: (C + 1,) int64, the rows of class c are order[starts[c]:starts[c + 1]]. Inside
            `torch.compile`, where C is not known, (n + 1,).
    """

    order: Tensor
    starts: Tensor


def class_index(classes: Tensor) -> ClassIndex:
    """Sort bank rows by class.

    Args:
        classes: (n,) int64 in [-1, n), -1 for rows without a class. Numbers may be left out: such a
            class has no rows and takes no part in the softmax.

    Returns:
        The index, 16 bytes a row: 0.5 MB at n = 32,621 and 16 MB at 1e6. On a GPU this waits once
        for the device.

    Raises:
        ValueError: Wrong shape or dtype, or a class outside [-1, n).
    """
    classes = as_ids("classes", classes, None, None, "", "row of the bank")
    n = classes.shape[0]
    ordered, order = classes.sort(stable=True)
    count = n
    if not torch.compiler.is_compiling():
        check_range("classes", classes, -1, n)
        count = min(n, int(ordered[-1]) + 1) if n else 0
    edges = torch.arange(count + 1, device=classes.device)
    return ClassIndex(order, torch.searchsorted(ordered, edges))


class ContrastProblem(NamedTuple):
    """One contrastive loss, as the implementations below the custom op receive it.

    The fields are the custom op's arguments, in its order: `_bank_contrast(*problem)`.

    Args:
        features: (B, D).
        bank: (n, D), dtype and device of the features.
        targets: (B,) int64, bank rows, or classes where there is an index.
        order: (n,) int64, the index's `order`; None where each bank row is a class of its own.
        starts: (C + 1,) int64, the index's `starts`; None with `order`.
        temperature: tau, above 0.
        ignore_index: Target of features without a loss.
        gradient: Whether the (B, D) outputs are computed.
        partial: Whether the bank is one shard of a larger bank, see `partial_contrast`.
        precision: Of products on a GPU.
    """

    features: Tensor
    bank: Tensor
    targets: Tensor
    order: Tensor | None
    starts: Tensor | None
    temperature: float
    ignore_index: int
    gradient: bool
    partial: bool
    precision: str

    def classes(self) -> ClassIndex | None:
        """Return the index of the classes, None where each bank row is a class of its own."""
        if self.order is None or self.starts is None:
            return None
        return ClassIndex(self.order, self.starts)

    def class_count(self) -> int:
        """Return the number of classes, or of bank rows where each is a class of its own."""
        return len(self.bank) if self.starts is None else len(self.starts) - 1


@returns_given_kind
def bank_contrast_loss(
    features: Tensor,
    bank: Tensor,
    targets: Tensor,
    temperature: float,
    *,
    classes: Tensor | ClassIndex | None = None,
    ignore_index: int = -1,
    reduction: str = "mean",
    precision: str = "auto",
) -> Tensor:
    """Cross-entropy of features . bank / temperature: UCAL Eq. 1 (Gao and Li, BMVC 2021), where the
    bank holds centroids.

    With `classes` each bank row is an image, and the logit of a class is the mean of f . v over its
    rows, as in SpCL (Ge et al., NeurIPS 2020). The softmax runs over the classes that have rows.

    The loss and the gradient for the features come from one pass over the bank in the forward call,
    so the bank may be changed in place before `backward`. A bank that requires a gradient gets it
    from a second pass, in float32; such a bank must not be changed before `backward`. There is no
    second derivative. Sums are float32 (float64 for float64). Repeated calls return the same bits.

    Args:
        features: (B, D) float32, float16, bfloat16 or float64, usually unit-norm rows. They are not
            normalised here.
        bank: (n, D), dtype and device of the features.
        targets: (B,) int64 in [0, n), or the class of each feature; `ignore_index` for features
            without a loss.
        temperature: tau, above 0.
        classes: (n,) int64 in [-1, n), the class of each bank row, -1 for none; or the result of
            `class_index`.
        ignore_index: Target of features that are left out of the loss.
        reduction: "mean" over the features that are not ignored (0 where all are), "sum", or
            "none": (B,), 0 where ignored.
        precision: Of products on a GPU. "auto", "ieee": float32 features in IEEE float32, half
            floats as they are. "tf32", "bf16": float32 features rounded to these formats. A CPU
            always computes in float32.

    Returns:
        The loss, float32 (float64 for float64).

    Memory:
        A few arrays (B, D) float32 and a block of logits. CPU: 13 MB at B = 256 and D = 2,048, 23
        MB with classes (measured at n = 32,621; the blocks have the same size at 1e6). GPU: 4 B D
        floats where D is a power of two; with classes another 32 MB of means.

    Moved:
        On a GPU the bank once from memory and once from L2, with classes once more. Expected of an
        H200 (4.3 TB/s, 780 TFLOP/s), not measured: at n = 1e5, D = 2,048, bfloat16, 0.095 ms of
        bytes at B = 64 and 0.27 ms of arithmetic at B = 256, plus the cost of some 40 launches.

    Raises:
        ValueError: Wrong rank, width, dtype or device, a temperature that is not above 0, targets
            out of range or of a class without rows, rows that are not finite, other than features
            that are left out. Values are checked on a CPU only; on a GPU the loss is NaN instead.
    """
    check_choice("reduction", reduction, REDUCTIONS)
    problem = _checked(features, bank, targets, temperature, classes, ignore_index, precision)
    needs_gradient = torch.is_grad_enabled() and problem.features.requires_grad
    losses = _bank_contrast(*problem._replace(gradient=needs_gradient))[0]  # (B,)
    return reduced(losses, reduction, problem.targets != problem.ignore_index)


@returns_given_kind
def bank_contrast_loss_reference(
    features: Tensor,
    bank: Tensor,
    targets: Tensor,
    temperature: float,
    *,
    classes: Tensor | None = None,
    ignore_index: int = -1,
    reduction: str = "mean",
) -> Tensor:
    """Compute `bank_contrast_loss` in plain PyTorch through the whole matrix of logits.

    Args:
        features: (B, D), any floating dtype; the result has this dtype.
        bank: (n, D), dtype and device of the features.
        targets: (B,) int64.
        temperature: tau, above 0.
        classes: (n,) int64, -1 for rows without a class.
        ignore_index: Target of features that are left out of the loss.
        reduction: "mean", "sum" or "none".

    Memory:
        B x n logits, and with classes n x C memberships.
    """
    check_choice("reduction", reduction, REDUCTIONS)
    loss = (features, bank, targets, temperature, classes, ignore_index)
    features, bank, targets, classes, count = _checked_reference(*loss)
    logits = features @ bank.T / temperature  # (B, n)
    if classes is not None:
        member = F.one_hot(classes + 1, count + 1)[:, 1:].to(logits.dtype)  # (n, C)
        sizes = member.sum(0)  # (C,)
        logits = ((logits @ member) / sizes.clamp(min=1)).masked_fill(sizes == 0, -torch.inf)
    losses = F.cross_entropy(logits, targets, ignore_index=ignore_index, reduction="none")
    return reduced(losses, reduction, targets != ignore_index)


class PartialContrast(NamedTuple):
    """Partial result of `bank_contrast_loss` over one shard of the bank.

    `partial_contrast` says how to combine the shards.

    Args:
        losses: (B,) the loss against this shard only, of features whose target is in it; 0 for the
            others.
        log_sum_exp: (B,) log-sum-exp of the shard's logits, -inf where the shard has no class.
        softmax_means: (B, D) mean of the shard's vectors weighted with the softmax over the shard,
            0 where it has no class; (0, D) without gradient.
        target_vectors: (B, D) vector of the target, 0 where it is not in this shard; (0, D) without
            gradient.
    """

    losses: Tensor
    log_sum_exp: Tensor
    softmax_means: Tensor
    target_vectors: Tensor


@returns_given_kind
def partial_contrast(
    features: Tensor,
    bank: Tensor,
    targets: Tensor,
    temperature: float,
    *,
    classes: Tensor | ClassIndex | None = None,
    ignore_index: int = -1,
    gradient: bool = True,
    precision: str = "auto",
) -> PartialContrast:
    """Compute `bank_contrast_loss` over one shard of a bank that is sharded over several processes.

    Let L be the log-sum-exp of the `log_sum_exp` of all shards. The loss of a feature over the
    whole bank is its `losses` + L - `log_sum_exp` of the shard that holds its target. Its gradient
    is the sum over the shards of (exp(`log_sum_exp` - L) `softmax_means` - `target_vectors`) / tau.
    All rows of a class must lie in one shard.

    Args:
        features: (B, D), as for `bank_contrast_loss`; the same for every shard.
        bank: (n, D), the shard; n may be 0.
        targets: (B,) int64, numbered within the shard; `ignore_index` for features whose target is
            in another shard.
        temperature: tau, above 0.
        classes: (n,) int64 in [-1, n), the class of each row of the shard; or the result of
            `class_index`.
        ignore_index: Target of features whose target is in another shard.
        gradient: Whether `softmax_means` and `target_vectors` are computed.
        precision: Of products on a GPU, as for `bank_contrast_loss`.

    Returns:
        The partial result, float32 (float64 for float64). Autograd does not see it: the gradient is
        in the returned fields.

    Memory:
        That of `bank_contrast_loss`, and B x D more.

    Raises:
        ValueError: Wrong rank, width, dtype or device, a temperature that is not above 0, or, on a
            CPU, targets out of range. Rows that are not finite make the results that depend on them
            NaN, on a CPU too: a process that raised here would leave the others waiting in the next
            collective.
    """
    problem = _checked(features, bank, targets, temperature, classes, ignore_index, precision)
    problem = problem._replace(
        features=problem.features.detach(),
        bank=problem.bank.detach(),
        gradient=as_flag("gradient", gradient),
        partial=True,
    )
    return PartialContrast(*_bank_contrast(*problem))


@returns_given_kind
def partial_contrast_reference(
    features: Tensor,
    bank: Tensor,
    targets: Tensor,
    temperature: float,
    *,
    classes: Tensor | None = None,
    ignore_index: int = -1,
) -> PartialContrast:
    """Compute `partial_contrast` in plain PyTorch through the whole matrix of logits.

    Args:
        features: (B, D), any floating dtype; the result has this dtype.
        bank: (n, D), the shard.
        targets: (B,) int64, numbered within the shard.
        temperature: tau, above 0.
        classes: (n,) int64, -1 for rows without a class.
        ignore_index: Target of features whose target is in another shard.

    Memory:
        B x n logits, and with classes n x C memberships.
    """
    loss = (features, bank, targets, temperature, classes, ignore_index)
    features, bank, targets, classes, count = _checked_reference(*loss)
    vectors = bank  # (n, D), with classes (C, D)
    exists = torch.ones(len(bank), dtype=torch.bool, device=bank.device)
    if classes is not None:
        member = F.one_hot(classes + 1, count + 1)[:, 1:].to(bank.dtype)  # (n, C)
        sizes = member.sum(0)  # (C,)
        vectors = member.T @ bank / sizes.clamp(min=1)[:, None]
        exists = sizes > 0
    logits = (features @ vectors.T / temperature).masked_fill(~exists, -torch.inf)
    log_sums = logits.logsumexp(1)  # (B,)
    shift = log_sums.masked_fill(log_sums == -torch.inf, 0.0)
    means = torch.exp(logits - shift[:, None]) @ vectors  # (B, D)
    inside = targets != ignore_index
    losses = torch.zeros_like(log_sums)
    losses[inside] = log_sums[inside] - logits[inside, targets[inside]]
    target_vectors = torch.zeros_like(features)
    target_vectors[inside] = vectors[targets[inside]]
    return PartialContrast(losses, log_sums, means, target_vectors)


@returns_given_kind
def class_means(bank: Tensor, classes: Tensor | ClassIndex, count: int) -> Tensor:
    """Mean of the bank rows of each class. Repeated calls return the same bits.

    Args:
        bank: (n, D) float32, float16, bfloat16 or float64.
        classes: (n,) int64 in [-1, n), -1 for rows without a class; or the result of `class_index`.
        count: Number of classes C, above every class.

    Returns:
        (C, D) in the dtype of the bank, not normalised: f . mean is the mean of f . v over the
        members. 0 for a class without rows. No gradient.

    Raises:
        ValueError: Wrong rank, dtype or device, or a class that is not below `count`.
    """
    bank = as_rows("bank", bank)
    count = as_integer("count", count, 0)
    classes = _as_index(classes, bank)
    # Inside torch.compile the index has as many starts as rows, and empty classes at the end.
    known = classes.starts.shape[0] - 1
    if not torch.compiler.is_compiling() and known > count:
        raise ValueError(f"count: got {count}, expected {known} at least, one above every class")
    means = _class_means(bank.detach(), *classes)
    return F.pad(means, (0, 0, 0, count - means.shape[0]))


def _checked(
    features: Tensor,
    bank: Tensor,
    targets: Tensor,
    temperature: float,
    classes: Tensor | ClassIndex | None,
    ignore_index: int,
    precision: str,
) -> ContrastProblem:
    """Check the arguments of a loss over a whole bank; return it without a gradient."""
    features, bank = as_pair("features", features, bank)
    targets = as_ids("targets", targets, features.shape[0], features, "features", "feature row")
    temperature = as_temperature("temperature", temperature)
    ignore_index = as_integer("ignore_index", ignore_index)
    check_choice("precision", precision, PRECISIONS)
    order = starts = None
    if classes is not None:
        order, starts = _as_index(classes, bank)
        if order.shape[0] != bank.shape[0]:
            raise ValueError(
                f"classes: got {order.shape[0]} rows, expected {bank.shape[0]}, the rows of bank"
            )
    loss = (features, bank, targets, order, starts, temperature, ignore_index)
    return ContrastProblem(*loss, gradient=False, partial=False, precision=precision)


def _checked_reference(
    features: Tensor,
    bank: Tensor,
    targets: Tensor,
    temperature: float,
    classes: Tensor | None,
    ignore_index: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, int]:
    """Features, bank, targets and classes of a reference, checked, and the number of classes."""
    features, bank = as_pair("features", features, bank)
    targets = as_ids("targets", targets, len(features), features, "features", "feature row")
    as_temperature("temperature", temperature)
    as_integer("ignore_index", ignore_index)
    count = len(bank)
    if classes is not None:
        classes = as_ids("classes", classes, len(bank), bank, "bank", "bank row")
        check_range("classes", classes, -1, len(bank))
        count = int(classes.max()) + 1 if len(classes) else 0
    check_range("targets", targets, 0, count, ignored=ignore_index)
    return features, bank, targets, classes, count


def _as_index(classes: Any, bank: Tensor) -> ClassIndex:
    """Check the classes of the rows of a bank (n, D); return their index."""
    if not isinstance(classes, tuple):
        per = "bank row"
        return class_index(as_ids("classes", classes, bank.shape[0], bank, "bank", per))
    if len(classes) != 2 or not all(isinstance(x, Tensor) and x.ndim == 1 for x in classes):
        parts = ", ".join(described(x) for x in classes)
        raise ValueError(
            f"classes: got a {type(classes).__name__} ({parts}), "
            "expected a torch.Tensor or a ClassIndex"
        )
    order, starts = classes
    for part in (order, starts):
        if part.dtype != torch.int64:
            raise ValueError(f"classes: got dtype {part.dtype}, expected torch.int64")
        check_device("classes", part, bank, "bank")
    return ClassIndex(order, starts)


def _check_index(order: Tensor, starts: Tensor, n: int) -> None:
    """Raise ValueError unless the index is of rows of a bank (n, D). It is read on a CPU only."""
    check_range("classes", order, 0, n)
    if order.is_cpu:
        edges = F.pad(starts, (1, 0))
        falls = bool((edges[1:] < edges[:-1]).any())
        if falls or not len(starts) or int(edges[-1]) > len(order):
            raise ValueError(
                "classes: got an index whose starts do not ascend from 0 to the number of rows, "
                "expected the result of class_index"
            )


@torch.library.custom_op(qualified("class_means"), mutates_args=())
def _class_means(bank: Tensor, order: Tensor, starts: Tensor) -> Tensor:
    """Mean of the rows of each class, (C, D), in the dtype of the bank."""
    _check_index(order, starts, len(bank))
    if not takes_kernels(bank):
        from .bank_loss_cpu import means_of_classes

        with full_precision(bank):
            return means_of_classes(bank, order, starts).to(bank.dtype)
    from .bank_loss_triton import means_of_classes as means_triton

    with device_of(bank):
        return means_triton(bank, order.contiguous(), starts.contiguous()).to(bank.dtype)


@_class_means.register_fake
def _(bank: Tensor, order: Tensor, starts: Tensor) -> Tensor:
    return bank.new_empty(starts.shape[0] - 1, bank.shape[1])


@torch.library.custom_op(qualified("bank_contrast"), mutates_args=())
def _bank_contrast(
    features: Tensor,
    bank: Tensor,
    targets: Tensor,
    order: Tensor | None,
    starts: Tensor | None,
    temperature: float,
    ignore_index: int,
    gradient: bool,
    partial: bool,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the fields of `PartialContrast`, or those of a loss over a whole bank.

    Returns:
        Losses (B,); log-sum-exps (B,); (B, D), with `partial` the softmax means and without it the
        gradient of each loss, (0, D) without `gradient`; and the vectors of the targets (B, D), (0,
        D) without `gradient` or `partial`.
    """
    loss = (features, bank, targets, order, starts, temperature, ignore_index)
    problem = ContrastProblem(*loss, gradient, partial, precision)
    if order is not None and starts is not None:
        _check_index(order, starts, len(bank))
    if features.is_cpu:
        check_range("targets", targets, 0, problem.class_count(), ignored=ignore_index)
    if not takes_kernels(features, bank) or (starts is not None and len(starts) == 1):
        from .bank_loss_cpu import contrast_blocked

        with full_precision(features):
            return contrast_blocked(problem)
    from .bank_loss_triton import contrast_triton

    with device_of(features):
        return contrast_triton(problem)


@_bank_contrast.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    problem = ContrastProblem(*arguments)
    batch, dim = problem.features.shape
    kind = accumulator(problem.features.dtype)
    losses = problem.features.new_empty(batch, dtype=kind)
    wide = batch if problem.gradient else 0
    slopes = problem.features.new_empty(wide, dim, dtype=kind)
    chosen = problem.features.new_empty(wide if problem.partial else 0, dim, dtype=kind)
    return losses, torch.empty_like(losses), slopes, chosen


@torch.library.custom_op(qualified("bank_contrast_bank_gradient"), mutates_args=())
def _bank_gradient(
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
    """Gradient (n, D) for the bank of the losses times weights (B,), in the bank's dtype."""
    from .bank_loss_cpu import bank_gradient_blocked, contrast_blocked

    loss = (features, bank, targets, order, starts, temperature, ignore_index)
    problem = ContrastProblem(*loss, gradient=False, partial=False, precision="ieee")
    with full_precision(features):
        if takes_kernels(features):
            # The kernels round their log-sum-exps differently from the products that are computed
            # here.
            log_sums = contrast_blocked(problem)[1]
        return bank_gradient_blocked(problem, log_sums, weights)


@_bank_gradient.register_fake
def _(features: Tensor, bank: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(bank)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Save what the backward pass needs."""
    problem = ContrastProblem(*inputs)
    _, log_sums, slopes, chosen = output
    counted = problem.targets != problem.ignore_index  # (B,)
    ctx.mark_non_differentiable(log_sums, slopes, chosen)
    ctx.set_materialize_grads(False)
    ctx.gradient = problem.gradient
    ctx.dtype = problem.features.dtype
    ctx.temperature = problem.temperature
    ctx.ignore_index = problem.ignore_index
    # The bank is saved only if it needs a gradient itself. Otherwise it may change before the
    # backward call.
    if ctx.needs_input_grad[1]:
        ctx.save_for_backward(slopes, counted, *problem[:5], log_sums)
    else:
        ctx.save_for_backward(slopes, counted)


def _backward(ctx: Any, weights: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    """Gradients for features and bank from the weight (B,) of each loss."""
    nothing = [None] * (len(ContrastProblem._fields) - 2)
    if weights is None:
        return (None, None, *nothing)
    slopes, counted, *saved = ctx.saved_tensors
    # The loss of an ignored feature is a constant, whatever its weight.
    weights = weights.detach().masked_fill(~counted, 0.0)
    to_features = None
    to_bank = None
    if ctx.needs_input_grad[0]:
        if not ctx.gradient:
            raise RuntimeError(
                "bank_contrast_loss: the features did not require a gradient in the forward call"
            )
        to_features = once((slopes * weights[:, None]).to(ctx.dtype))
    if ctx.needs_input_grad[1]:
        features, bank, *index, log_sums = saved  # index: targets, order, starts
        loss = (features.detach(), bank.detach(), *index, ctx.temperature, ctx.ignore_index)
        to_bank = once(_bank_gradient(*loss, log_sums, weights))
    return (to_features, to_bank, *nothing)


_bank_contrast.register_autograd(_backward, setup_context=_keep)
