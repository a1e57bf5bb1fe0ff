"""BatchNorm over consecutive groups of the batch, as if each group sat on a GPU of its own; BatchNorm by domain.

Over many ranks a rank sees its consecutive part of the batch. `join_ranks` makes its BatchNorms what they would be in one
process that saw all of it.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import torch
import torch.nn.functional as F
from reid_kernels import grouped_batch_norm
from torch import Tensor, nn

from ..distributed.world import World

Domain = Literal["target", "source"]
T = TypeVar("T")

_SOURCE = "source_norm"


class _Grouped(nn.modules.batchnorm._BatchNorm):
    """Mixin: in training every `group` consecutive images are normalised by their own statistics.

    The running statistics are updated group after group; a remainder smaller than a group joins the group before it.
    Evaluation is ordinary.
    """

    group: int
    #: Statistics that wait for `update_running`, (groups, 2, C) of each forward; None where each forward updates by itself.
    kept: list[Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> the same shape."""
        if not self.training or (len(x) < 2 * self.group and self.kept is None):
            return super().forward(x)
        self._check_input_dim(x)
        if self.kept is not None and len(x) % self.group:
            raise ValueError(
                f"bn_group: got {len(x)} images on a rank, expected a multiple of {self.group}"
            )
        whole = max(0, len(x) // self.group - 1) * self.group
        if len(x) == whole + self.group:
            y, mean, var = self._normalised(x, self.group)
        else:
            first, last = (
                self._normalised(x[:whole], self.group),
                self._normalised(x[whole:], len(x) - whole),
            )
            y, mean, var = (torch.cat(parts) for parts in zip(first, last, strict=True))
        if self.running_mean is not None:
            found = torch.stack((mean, var), 1)
            if self.kept is None:
                _follow([self], found)
            else:
                self.kept.append(found)
        return y

    def _normalised(self, x: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
        channels = {"dtype": torch.float32, "device": x.device}
        weight = torch.ones(self.num_features, **channels) if self.weight is None else self.weight
        bias = torch.zeros(self.num_features, **channels) if self.bias is None else self.bias
        return grouped_batch_norm(x, weight, bias, group, self.eps)


class GroupedBatchNorm1d(_Grouped, nn.BatchNorm1d):
    """BatchNorm1d over groups."""


class GroupedBatchNorm2d(_Grouped, nn.BatchNorm2d):
    """BatchNorm2d over groups."""


def group_batchnorm(model: nn.Module, group: int) -> nn.Module:
    """Turn every BatchNorm of a model into its grouped form, in place; parameter names stay. 0 changes nothing.

    The published cluster-contrast numbers were made on four GPUs, each BatchNorm on 16 or 64 images of 4 identities; one
    BatchNorm over the whole batch loses 6 to 20 mAP.
    """
    if group < 0 or group == 1:
        raise ValueError(
            f"bn_group: got {group}, expected 0 (the whole batch) or at least 2 images"
        )
    if group:
        for module in model.modules():
            for plain, grouped in (
                (nn.BatchNorm1d, GroupedBatchNorm1d),
                (nn.BatchNorm2d, GroupedBatchNorm2d),
            ):
                if type(module) is plain:
                    module.__class__ = grouped
                    cast(_Grouped, module).group = group
    return model


@dataclass
class DomainSwitch:
    """Whose images pass through a network, read by each of its BatchNorms."""

    domain: Domain = "target"


class _ByDomain(nn.modules.batchnorm._BatchNorm):
    """Mixin: the target's BatchNorm under its ordinary name, and below it the source's."""

    switch: DomainSwitch
    source_norm: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> the same shape."""
        if self.switch.domain == "source":
            return cast(Tensor, self.source_norm(x))
        return super().forward(x)


class DomainBatchNorm1d(_ByDomain, nn.BatchNorm1d):
    """BatchNorm1d by domain."""


class DomainBatchNorm2d(_ByDomain, nn.BatchNorm2d):
    """BatchNorm2d by domain."""


class DomainGroupedBatchNorm1d(_ByDomain, GroupedBatchNorm1d):
    """BatchNorm1d by domain, over groups of each."""


class DomainGroupedBatchNorm2d(_ByDomain, GroupedBatchNorm2d):
    """BatchNorm2d by domain, over groups of each."""


class JoinedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm over the images of all ranks, by two collectives that every backend has; on a CPU, which PyTorch's refuses.

    The gradients of weight and bias are those of the rank's own images, as DistributedDataParallel, which takes their mean over
    the ranks, wants them; the gradient of an image counts the losses of all ranks, as it does in PyTorch's.
    """

    world: World

    def _check_input_dim(self, x: Tensor) -> None:
        """Images and vectors alike."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> the same shape."""
        if not self.training:
            return super().forward(x)
        y, mean, var = _OverRanks.apply(x, self.weight, self.bias, self.eps, self.world)
        if self.running_mean is not None:
            _follow([self], torch.stack((mean, var))[None])
        return cast(Tensor, y)


class DomainJoinedBatchNorm(_ByDomain, JoinedBatchNorm):
    """BatchNorm over the images of all ranks, by domain."""


class DomainSyncBatchNorm(_ByDomain, nn.SyncBatchNorm):
    """PyTorch's BatchNorm over the images of all ranks, on CUDA, by domain."""


_OF_DOMAINS: dict[type[nn.Module], type[_ByDomain]] = {
    nn.BatchNorm1d: DomainBatchNorm1d,
    nn.BatchNorm2d: DomainBatchNorm2d,
    GroupedBatchNorm1d: DomainGroupedBatchNorm1d,
    GroupedBatchNorm2d: DomainGroupedBatchNorm2d,
}


def split_batchnorm(model: nn.Module) -> DomainSwitch:
    """Give every BatchNorm of a model, grouped or not, statistics and weights for the source's images, in place.

    Domain-specific BatchNorm (Chang et al., CVPR 2019), as SpCL trains with a source. The source's begin as copies of the
    target's, which keep their names: what is left when `without_source` dropped the others is an ordinary network.

    Returns:
        What decides, for all of them, whose images come.
    """
    switch = DomainSwitch()
    for module in list(model.modules()):
        kind = _OF_DOMAINS.get(type(module))
        if kind is not None:
            module.add_module(_SOURCE, copy.deepcopy(module))
            module.__class__ = kind
            cast(_ByDomain, module).switch = switch
    return switch


def without_source(state: Mapping[str, T]) -> dict[str, T]:
    """The tensors of a state dictionary but for those of the source's BatchNorms."""
    return {name: tensor for name, tensor in state.items() if f".{_SOURCE}." not in f".{name}"}


#: On a CPU, and on CUDA.
_JOINED: dict[type[nn.Module], tuple[type[nn.Module], type[nn.Module]]] = {
    nn.BatchNorm1d: (JoinedBatchNorm, nn.SyncBatchNorm),
    nn.BatchNorm2d: (JoinedBatchNorm, nn.SyncBatchNorm),
    DomainBatchNorm1d: (DomainJoinedBatchNorm, DomainSyncBatchNorm),
    DomainBatchNorm2d: (DomainJoinedBatchNorm, DomainSyncBatchNorm),
}


def join_world(model: nn.Module, world: World) -> nn.Module:
    """Make the BatchNorms of a model those of one process that sees the images of all ranks, in place; names stay.

    Each rank gives consecutive images of the batch, as many as the others; those that are grouped a multiple of the group. What
    is grouped needs nothing of other ranks but the running statistics: it keeps its groups' until `update_running`. What is not
    becomes one BatchNorm over the ranks, with a collective in each forward and each backward. Call it last, on the model of
    `group_batchnorm` and `split_batchnorm`, where it shall train; a single rank changes nothing.
    """
    if world.size > 1:
        for module in model.modules():
            if isinstance(module, _Grouped):
                module.kept = []
            elif (kinds := _JOINED.get(type(module))) is not None:
                module.__class__ = kinds[any(x.is_cuda for x in module.buffers(recurse=False))]
                module.world, module.process_group = world, world.group  # type: ignore[assignment]
    return model


@torch.no_grad()
def update_running(model: nn.Module, world: World) -> None:
    """Move the running statistics over the groups of all ranks since the last call, in the order of the global batch.

    All ranks call it, once a step; each has had the same forwards, of as many images. One collective for the whole model, no
    waiting for the device. The result is the same to the bit on all ranks. Grouped BatchNorms of `join_ranks` alone need it.

    Args:
        model: The model; a forward in training between two calls may have been one of several, each in the order it came.
        world: Those of `join_ranks`.
    """
    alike: dict[tuple[Any, ...], list[_Grouped]] = {}
    for module in model.modules():
        if isinstance(module, _Grouped) and module.kept:
            counts = tuple(len(found) for found in module.kept)
            alike.setdefault((counts, module.momentum, module.kept[0].dtype), []).append(module)
    if not alike:
        return
    kinds = {kind for _, _, kind in alike}
    widest = torch.float64 if torch.float64 in kinds else torch.float32
    own = [
        torch.cat([torch.cat(cast(list[Tensor], module.kept)).flatten(1) for module in modules], 1)
        for modules in alike.values()
    ]
    everyones = world.all_gather(torch.cat([found.flatten() for found in own]).to(widest)[None])
    parts = everyones.split([found.numel() for found in own], 1)
    for ((counts, _, kind), modules), found, part in zip(alike.items(), own, parts, strict=True):
        forwards = part.view(world.size, *found.shape).to(kind).split(counts, 1)
        _follow(modules, torch.cat([forward.flatten(0, 1) for forward in forwards]))
        for module in modules:
            module.kept = []


@torch.no_grad()
def _follow(modules: Iterable[nn.modules.batchnorm._BatchNorm], found: Tensor) -> None:
    """Running statistics after (steps, ...) means and variances: of all channels of one module after those of another."""
    modules = list(modules)
    steps, momentum = len(found), modules[0].momentum
    found = found.flatten(1)
    running = [
        cast(Tensor, x) for module in modules for x in (module.running_mean, module.running_var)
    ]
    counts = [cast(Tensor, module.num_batches_tracked) for module in modules]
    torch._foreach_add_(counts, steps)
    if momentum is None:
        # The mean of all that ever came.
        sums = found.sum(0).split([len(x) for x in running])
        for place, (x, total) in enumerate(zip(running, sums, strict=True)):
            x.add_((total - steps * x) / counts[place // 2])
        return
    share = _shares if torch.compiler.is_compiling() else _shares_once
    moved = share(steps, momentum, found.dtype, found.device) @ found
    torch._foreach_mul_(running, (1 - momentum) ** steps)
    torch._foreach_add_(
        running,
        [
            x.to(y.dtype)
            for x, y in zip(moved.split([len(x) for x in running]), running, strict=True)
        ],
    )


def _shares(steps: int, momentum: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What each of some steps counts in a moving average after the last of them."""
    return momentum * (1 - momentum) ** torch.arange(steps - 1, -1, -1, dtype=dtype, device=device)


_shares_once = functools.cache(_shares)


class _OverRanks(torch.autograd.Function):
    """BatchNorm over the images of all ranks: statistics of each rank, then what PyTorch does with given ones."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, world: World
    ) -> tuple[Tensor, Tensor, Tensor]:
        last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
        ctx.layout = torch.channels_last if last else torch.contiguous_format
        x = x.contiguous(memory_format=ctx.layout)
        kind = torch.promote_types(x.dtype, torch.float32)
        count = torch.full((1,), x.numel() // x.shape[1], dtype=kind, device=x.device)
        own = (
            torch.batch_norm_update_stats(x, None, None, 0.0)
            if len(x)
            else x.new_zeros(2, x.shape[1], dtype=kind)
        )
        of_ranks = world.all_gather(torch.cat((*own, count)).to(kind)[None])
        counts = of_ranks[:, -1:]
        total = counts.sum()
        means, variances = of_ranks[:, :-1].chunk(2, 1)
        mean = (counts * means).sum(0) / total
        biased = (counts * (variances + (means - mean).square())).sum(0) / total
        rstd = (biased + eps).rsqrt()
        y = F.batch_norm(x, mean, biased, weight, bias, False, 0.0, eps)
        ctx.save_for_backward(x, weight, mean, rstd, total)
        ctx.eps, ctx.world = eps, world
        var = biased * (total / (total - 1))
        ctx.mark_non_differentiable(mean, var)
        return y, mean, var

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd, total = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=ctx.layout)
        arguments = gradient, x, weight, None, None, mean, rstd, True, ctx.eps
        if len(x):
            _, to_weight, to_bias = torch.ops.aten.native_batch_norm_backward(
                *arguments, [False, True, True]
            )
        else:
            to_weight, to_bias = torch.zeros_like(mean), torch.zeros_like(mean)
        both = ctx.world.all_reduce_sum(torch.stack((to_weight, to_bias)).to(mean.dtype)) / total
        factor = rstd if weight is None else weight * rstd
        # gradient factor - (x - mean) rstd both[0] factor - both[1] factor: an affine map of x, and of the gradient.
        out = F.batch_norm(
            x,
            mean,
            torch.ones_like(mean),
            -factor * rstd * both[0],
            -factor * both[1],
            False,
            0.0,
            0.0,
        )
        out.addcmul_(gradient, factor.to(x.dtype).view(-1, *[1] * (x.ndim - 2)))
        return (
            out,
            to_weight if weight is not None else None,
            to_bias if weight is not None else None,
            None,
            None,
        )
