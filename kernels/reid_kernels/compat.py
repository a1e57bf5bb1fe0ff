"""The memories of public code bases as modules over the operators: the same constructor, the same
call, no matrix of logits.

The memory is updated in the backward pass, after the gradient has been computed from the old
vectors, one image after the other in batch order. Nothing is updated if the inputs require no
gradient.

All three differ from the originals as follows: half inputs are cast to the memory's dtype; nothing
is moved to a device; a vector is divided by its norm clamped at 1e-12, where the originals divide 0
by 0; ids are int64, and one out of range is an error. With several processes each has its own
memory, so every process must receive the whole batch: gather the inputs with
`torch.distributed.nn.functional.all_gather`, through which gradients flow, and the ids with
`torch.distributed.all_gather`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._ops import PRECISIONS
from .bank_loss import ClassIndex, bank_contrast_loss, class_index, class_means
from .checks import (
    as_flag,
    as_ids,
    as_integer,
    as_number,
    as_rows,
    as_temperature,
    check_choice,
    check_device,
    check_range,
    described,
)
from .labels import label_prediction
from .multilabel import multilabel_bank_loss
from .update_bank import hardest_targets, update_bank_

#: SpCL adds this to the softmax's sum of exponentials, and to the probability before its logarithm.
_EPSILON = 1e-6


class HybridMemory(nn.Module):
    """SpCL's memory (Ge et al., NeurIPS 2020): one vector per image; a class is the mean of its
    images.

    The loss is the mean of -log(p + 1e-6), p = exp(l_y) / (sum over classes of exp(l_c) + 1e-6),
    l_c the mean of f . v over the members of class c, divided by the temperature. The 1e-6 in the
    denominator is below float32's rounding where the largest logit is above 2.9. It is kept because
    it reduces p by 2 % where one class has a logit of -10 and the others less.

    Args:
        num_features: D.
        num_samples: n, images in the memory.
        temp: Temperature.
        momentum: Weight of the old vector.
        precision: As for `bank_contrast_loss`.

    Attributes:
        features: (n, D) buffer, zeros at first: fill it with unit vectors. 0.27 GB at n = 32,621, D
            = 2,048, 8.2 GB at 1e6.
        labels: (n,) int64 buffer, class of each image, zeros at first; below n, numbers may be left
            out. An image with label -1, which the original does not allow, is in no class: its loss
            does not count, but its vector is updated.
    """

    features: Tensor
    labels: Tensor

    def __init__(
        self,
        num_features: int,
        num_samples: int,
        temp: float = 0.05,
        momentum: float = 0.2,
        *,
        precision: str = "auto",
    ) -> None:
        super().__init__()
        self.num_features = as_integer("num_features", num_features, 0)
        self.num_samples = as_integer("num_samples", num_samples, 0)
        self.temp = as_temperature("temp", temp)
        self.momentum = as_number("momentum", momentum, 0, 1)
        check_choice("precision", precision, PRECISIONS)
        self.precision = precision
        self.register_buffer("features", torch.zeros(num_samples, num_features))
        self.register_buffer("labels", torch.zeros(num_samples, dtype=torch.int64))

    def forward(self, inputs: Tensor, indexes: Tensor) -> Tensor:
        """The loss of a batch; its backward pass updates the memory.

        Args:
            inputs: (B, D), unit-norm rows.
            indexes: (B,) int64, number of each image in the memory.

        Returns:
            The mean over the images that are in a class, 0 if none is.

        Raises:
            ValueError: Wrong shape, dtype or device, or an index or label out of range.
        """
        memory = self.features.detach()
        per = "image of the memory"
        as_ids("labels", self.labels, memory.shape[0], memory, "the memory", per)
        check_range("labels", self.labels, -1, memory.shape[0])
        inputs, indexes = _updated_in_backward(inputs, memory, "indexes", indexes, self.momentum)
        targets = self.labels[indexes]
        counted = targets >= 0
        inputs = inputs[counted]
        targets = targets[counted]
        index = class_index(self.labels)
        cross_entropy = bank_contrast_loss(
            inputs,
            memory,
            targets,
            self.temp,
            classes=index,
            reduction="none",
            precision=self.precision,
        )
        # Where the sum of exponentials is small, the 1e-6 in the denominator counts: log p = -ce -
        # log(1 + 1e-6 / sum).
        own = (inputs * _means_of(memory, index, targets)).sum(1) / self.temp
        excess = F.softplus(math.log(_EPSILON) - (cross_entropy + own), threshold=50)
        losses = -torch.log(torch.exp(-cross_entropy - excess) + _EPSILON)
        return losses.sum() / max(1, len(losses))


class ClusterMemory(nn.Module):
    """Cluster Contrast's memory (Dai et al., ACCV 2022): one vector per cluster, cross-entropy over
    all of them.

    Args:
        num_features: D.
        num_samples: n, clusters.
        temp: Temperature.
        momentum: Weight of the old vector.
        use_hard: Update each cluster once, with the image of the batch that is least similar to its
            old vector (the first of equally similar ones), instead of with every image.
        precision: As for `bank_contrast_loss`.

    Attributes:
        features: (n, D) buffer, zeros at first: fill it with unit vectors. 0.27 GB at n = 32,621, D
            = 2,048, 8.2 GB at 1e6.
    """

    features: Tensor

    def __init__(
        self,
        num_features: int,
        num_samples: int,
        temp: float = 0.05,
        momentum: float = 0.2,
        use_hard: bool = False,
        *,
        precision: str = "auto",
    ) -> None:
        super().__init__()
        self.num_features = as_integer("num_features", num_features, 0)
        self.num_samples = as_integer("num_samples", num_samples, 0)
        self.temp = as_temperature("temp", temp)
        self.momentum = as_number("momentum", momentum, 0, 1)
        self.use_hard = as_flag("use_hard", use_hard)
        check_choice("precision", precision, PRECISIONS)
        self.precision = precision
        self.register_buffer("features", torch.zeros(num_samples, num_features))

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of a batch; its backward pass updates the memory.

        Args:
            inputs: (B, D), normalised here.
            targets: (B,) int64, the cluster of each; unlike in the original, -1 is left out of the
                loss and of the update.

        Returns:
            The mean over the images that count, 0 if none does.

        Raises:
            ValueError: Wrong shape, dtype or device, or a target out of range.
        """
        memory = self.features.detach()
        inputs = F.normalize(as_rows("inputs", inputs).to(memory.dtype))
        inputs, targets = _updated_in_backward(
            inputs, memory, "targets", targets, self.momentum, -1, self.use_hard
        )
        return bank_contrast_loss(inputs, memory, targets, self.temp, precision=self.precision)


class MMCLMemory(nn.Module):
    """MMCL's memory (Wang and Zhang, CVPR 2020) and its loss in one, so that the B x n similarities
    need not be returned.

    It replaces three published modules: the memory (same two arguments first, same buffer name),
    the loss, and the label prediction (`predict`). The loss of a set of positives is delta times
    the mean of (1 - s)^2 over them, plus the mean of (1 + s)^2 over the most similar fraction of
    the rest, at least one image.

    Args:
        num_features: D.
        num_samples: n, images in the memory.
        epochs: The momentum of epoch e is 0.5 e / epochs, so that the first epoch keeps nothing of
            the old vectors.
        delta: Weight of the positives.
        hard_ratio: Fraction of the negatives that counts.
        precision: As for `multilabel_bank_loss`.

    Attributes:
        mem: (n, D) buffer, zeros at first. 0.27 GB at n = 32,621, D = 2,048, 8.2 GB at 1e6.
    """

    mem: Tensor

    def __init__(
        self,
        num_features: int,
        num_samples: int,
        *,
        epochs: int = 60,
        delta: float = 5.0,
        hard_ratio: float = 0.01,
        precision: str = "auto",
    ) -> None:
        super().__init__()
        self.num_features = as_integer("num_features", num_features, 0)
        self.num_samples = as_integer("num_samples", num_samples, 0)
        self.epochs = as_integer("epochs", epochs, 1)
        self.delta = as_number("delta", delta)
        self.hard_ratio = as_number("hard_ratio", hard_ratio, 0, 1)
        check_choice("precision", precision, PRECISIONS)
        self.precision = precision
        self.register_buffer("mem", torch.zeros(num_samples, num_features))

    def forward(
        self,
        inputs: Tensor,
        indexes: Tensor,
        epoch: int | None = None,
        positives: tuple[Tensor, Tensor] | None = None,
        *,
        alpha: float | None = None,
    ) -> Tensor:
        """The loss of a batch; its backward pass updates the memory.

        Args:
            inputs: (B, D), unit-norm rows.
            indexes: (B,) int64, number of each image in the memory.
            epoch: Sets the momentum, see `epochs`.
            positives: (indptr, indices) of each image's positives, itself among them, as `predict`
                returns them. None: only the image itself, as in the first epochs.
            alpha: The momentum itself, instead of the epoch.

        Returns:
            The mean over the batch.

        Raises:
            ValueError: Neither or both of epoch and alpha, wrong shape, dtype or device, or an
                index out of range.
        """
        if (epoch is None) == (alpha is None):
            got = f"{described(epoch)} and {described(alpha)}"
            raise ValueError(f"epoch, alpha: got {got}, expected one of the two")
        if epoch is not None:
            alpha = 0.5 * as_integer("epoch", epoch) / self.epochs
        alpha = as_number("alpha", alpha)
        if not 0 <= alpha <= 1:
            raise ValueError(
                f"epoch, alpha: got {epoch}, momentum {alpha}, "
                f"expected a momentum in [0, 1] (0.5 epoch / epochs)"
            )
        memory = self.mem.detach()
        inputs, indexes = _updated_in_backward(inputs, memory, "indexes", indexes, alpha)
        if positives is None:
            positives = torch.arange(len(indexes) + 1, device=indexes.device), indexes
        return multilabel_bank_loss(
            inputs,
            memory,
            positives,
            delta=self.delta,
            hard_ratio=self.hard_ratio,
            precision=self.precision,
        )

    @torch.no_grad()
    def predict(self, indexes: Tensor, threshold: float = 0.6) -> tuple[Tensor, Tensor]:
        """Predict the positives of images from the current memory with `label_prediction`.

        Args:
            indexes: (B,) int64, number of each image in the memory.
            threshold: Similarities above it count.

        Returns:
            `indptr` (B + 1,) and `indices`, int64.
        """
        return label_prediction(self.mem, indexes, threshold=threshold)


class _UpdateInBackward(torch.autograd.Function):
    """Return the inputs; in the backward pass, which follows that of the loss, update the bank with
    them.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, bank: Tensor, targets: Tensor, momentum: float, hardest: bool
    ) -> Tensor:
        ctx.save_for_backward(inputs, targets)
        # Not among the saved tensors: another batch's backward pass may change the bank before this
        # one's.
        ctx.bank = bank
        ctx.momentum = momentum
        ctx.hardest = hardest
        return inputs.view_as(inputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, targets = ctx.saved_tensors
        if ctx.hardest:
            targets = hardest_targets(inputs, ctx.bank, targets)
        update_bank_(ctx.bank, inputs, targets, ctx.momentum)
        return gradient, None, None, None, None


def _updated_in_backward(
    inputs: Tensor,
    bank: Tensor,
    name: str,
    ids: Tensor,
    momentum: float,
    lowest: int = 0,
    hardest: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the inputs in the bank's dtype, connected to the bank's update, and the ids.

    The arguments are checked here: an error in the backward pass would not show the call that
    caused it.

    Args:
        inputs: (B, D).
        bank: (n, D).
        name: Name of `ids`, for messages.
        ids: (B,) int64, bank row of each input.
        momentum: Weight of the old vector.
        lowest: Smallest id that is allowed.
        hardest: Update each row once, with the least similar input.
    """
    inputs = as_rows("inputs", inputs)
    if inputs.shape[1] != bank.shape[1]:
        raise ValueError(
            f"inputs: got rows of width {inputs.shape[1]}, "
            f"expected {bank.shape[1]}, the width of the memory"
        )
    check_device("inputs", inputs, bank, "the memory")
    ids = as_ids(name, ids, inputs.shape[0], inputs, "inputs", "image")
    check_range(name, ids, lowest, bank.shape[0])
    return _UpdateInBackward.apply(inputs.to(bank.dtype), bank, ids, momentum, hardest), ids


def _means_of(bank: Tensor, index: ClassIndex, targets: Tensor) -> Tensor:
    """Mean of the rows of each target's class, (B, D), reading the rows of these classes only."""
    present, position = targets.unique(return_inverse=True)
    begin = index.starts[present]
    sizes = index.starts[present + 1] - begin
    edges = F.pad(sizes.cumsum(0), (1, 0))
    shift = (begin - edges[:-1]).repeat_interleave(sizes)
    members = index.order[torch.arange(len(shift), device=bank.device) + shift]
    return class_means(bank, ClassIndex(members, edges), len(present))[position]
