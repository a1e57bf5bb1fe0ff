"""BatchNorm over consecutive groups of a batch, over all processes, and by domain.

Grouped BatchNorm treats each group as if it were on a GPU of its own.

With several processes, each sees its consecutive part of the batch. `join_world` makes the
BatchNorms equal to those of a single process that sees all of it.
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

from ..arguments import as_integer
from ..distributed.world import World

Domain = Literal["target", "source"]
T = TypeVar("T")

_SOURCE = "source_norm"


class _Grouped(nn.modules.batchnorm._BatchNorm):
    """Mixin: in training, every `group` consecutive images are normalised by their own statistics.

    The running statistics are updated group after group; a remainder smaller than a group joins the
    group before it. Evaluation is that of the plain BatchNorm.
    """

    group: int
    #: Statistics of each forward, (groups, 2, C), until `update_running` applies them; None where
    #: each forward applies its own.
    pending: list[Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> the same shape."""
        if not self.training or (len(x) < 2 * self.group and self.pending is None):
            return super().forward(x)
        self._check_input_dim(x)
        if self.pending is not None and len(x) % self.group:
            raise ValueError(
                f"bn_group: got {len(x)} images in a process, expected a multiple of {self.group}"
            )
        y, mean, var = self._normalise_groups(x)
        if self.running_mean is not None:
            statistics = torch.stack((mean, var), 1)  # (groups, 2, C)
            if self.pending is None:
                _update_running([self], statistics)
            else:
                self.pending.append(statistics)
        return y

    def _normalise_groups(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised images, and mean and unbiased variance of each group, (groups, C)."""
        # The last group takes the remainder.
        whole = max(0, len(x) // self.group - 1) * self.group
        if len(x) == whole + self.group:
            return self._normalised(x, self.group)
        first_y, first_mean, first_var = self._normalised(x[:whole], self.group)
        last_y, last_mean, last_var = self._normalised(x[whole:], len(x) - whole)
        return (
            torch.cat((first_y, last_y)),
            torch.cat((first_mean, last_mean)),
            torch.cat((first_var, last_var)),
        )

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
    """Turn every BatchNorm of a model into its grouped form, in place; parameter names stay.

    The published cluster-contrast numbers were made on four GPUs, each BatchNorm on 16 or 64 images
    of 4 identities; one BatchNorm over the whole batch loses 6 to 20 mAP.

    Args:
        model: The model.
        group: Images of a group; 0 changes nothing.

    Raises:
        ValueError: The group is negative or has a single image.
    """
    group = as_integer("bn_group", group, 0)
    if group == 1:
        raise ValueError(f"bn_group: got {group}, expected 0 (the whole batch) or 2 images or more")
    if group:
        for module in model.modules():
            grouped = _GROUPED.get(type(module))
            if grouped is not None:
                module.__class__ = grouped
                cast(_Grouped, module).group = group
    return model


_GROUPED: dict[type[nn.Module], type[_Grouped]] = {
    nn.BatchNorm1d: GroupedBatchNorm1d,
    nn.BatchNorm2d: GroupedBatchNorm2d,
}


@dataclass
class DomainSwitch:
    """The domain of the images that pass through a network; each of its BatchNorms reads it."""

    domain: Domain = "target"


class _ByDomain(nn.modules.batchnorm._BatchNorm):
    """Mixin: the target's BatchNorm under its usual name, and the source's as its child."""

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
    """BatchNorm1d by domain, over groups of each domain's images."""


class DomainGroupedBatchNorm2d(_ByDomain, GroupedBatchNorm2d):
    """BatchNorm2d by domain, over groups of each domain's images."""


class JoinedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm over the images of all processes, on a CPU.

    PyTorch's SyncBatchNorm does not run there.

    It uses two collectives that every backend has. The gradients of weight and bias are those of
    the process's own images, because DistributedDataParallel takes their mean over the processes.
    The gradient of an image counts the losses of all processes, as in SyncBatchNorm.
    """

    world: World

    def _check_input_dim(self, x: Tensor) -> None:
        """Accept images and vectors."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> the same shape."""
        if not self.training:
            return super().forward(x)
        y, mean, var = _OverProcesses.apply(x, self.weight, self.bias, self.eps, self.world)
        if self.running_mean is not None:
            _update_running([self], torch.stack((mean, var))[None])
        return cast(Tensor, y)


class DomainJoinedBatchNorm(_ByDomain, JoinedBatchNorm):
    """BatchNorm over the images of all processes, by domain."""


class DomainSyncBatchNorm(_ByDomain, nn.SyncBatchNorm):
    """PyTorch's BatchNorm over the images of all processes, on CUDA, by domain."""


_BY_DOMAIN: dict[type[nn.Module], type[_ByDomain]] = {
    nn.BatchNorm1d: DomainBatchNorm1d,
    nn.BatchNorm2d: DomainBatchNorm2d,
    GroupedBatchNorm1d: DomainGroupedBatchNorm1d,
    GroupedBatchNorm2d: DomainGroupedBatchNorm2d,
}


def split_batchnorm(model: nn.Module) -> DomainSwitch:
    """Give every BatchNorm, grouped or not, statistics and weights for the source's images.

    This is domain-specific BatchNorm (Chang et al., CVPR 2019), with which SpCL trains on a source.
    It works in place. The source's statistics and weights begin as copies of the target's, which
    keep their names: `without_source` returns the state of a plain network.

    Returns:
        The switch that sets the images' domain for all of them.
    """
    switch = DomainSwitch()
    for module in list(model.modules()):
        kind = _BY_DOMAIN.get(type(module))
        if kind is not None:
            module.add_module(_SOURCE, copy.deepcopy(module))
            module.__class__ = kind
            cast(_ByDomain, module).switch = switch
    return switch


def without_source(state: Mapping[str, T]) -> dict[str, T]:
    """Return a state dictionary without the tensors of the source's BatchNorms."""
    return {name: tensor for name, tensor in state.items() if f".{_SOURCE}." not in f".{name}"}


#: The forms over all processes, on a CPU and on CUDA.
_JOINED: dict[type[nn.Module], tuple[type[nn.Module], type[nn.Module]]] = {
    nn.BatchNorm1d: (JoinedBatchNorm, nn.SyncBatchNorm),
    nn.BatchNorm2d: (JoinedBatchNorm, nn.SyncBatchNorm),
    DomainBatchNorm1d: (DomainJoinedBatchNorm, DomainSyncBatchNorm),
    DomainBatchNorm2d: (DomainJoinedBatchNorm, DomainSyncBatchNorm),
}


def join_world(model: nn.Module, world: World) -> nn.Module:
    """Make BatchNorms equal to those of a single process that sees all images, in place.

    Parameter names stay. Each process gives consecutive images of the batch, as many as the others;
    with grouped BatchNorms, a multiple of the group. A grouped BatchNorm needs nothing of other
    processes but the running statistics: it keeps its groups' until `update_running`. A plain one
    becomes one BatchNorm over the processes, with a collective in each forward and each backward.
    Call it last, on the model of `group_batchnorm` and `split_batchnorm`, on the device where it
    trains.

    Args:
        model: The model.
        world: The processes; a single one changes nothing.
    """
    if world.size > 1:
        for module in model.modules():
            if isinstance(module, _Grouped):
                module.pending = []
                continue
            kinds = _JOINED.get(type(module))
            if kinds is not None:
                cuda = any(x.is_cuda for x in module.buffers(recurse=False))
                module.__class__ = kinds[cuda]
                module.world = world  # type: ignore[assignment]
                module.process_group = world.group  # type: ignore[assignment]
    return model


@torch.no_grad()
def update_running(model: nn.Module, world: World) -> None:
    """Update the running statistics over the groups of all processes since the last call.

    The updates are made in the order of the global batch, and are the same to the bit in all
    processes. All processes call it, once a step, after the same forwards of as many images. It is
    one collective for the whole model, and does not wait for the device. Only grouped BatchNorms
    after `join_world` need it.

    Args:
        model: The model. Several training forwards between two calls are applied in their order.
        world: The processes that were given to `join_world`.
    """
    # Modules with the same forwards are updated by one set of operations.
    alike: dict[tuple[Any, ...], list[_Grouped]] = {}
    for module in model.modules():
        if isinstance(module, _Grouped) and module.pending:
            counts = tuple(len(statistics) for statistics in module.pending)
            key = (counts, module.momentum, module.pending[0].dtype)
            alike.setdefault(key, []).append(module)
    if not alike:
        return
    dtypes = {dtype for _, _, dtype in alike}
    widest = torch.float64 if torch.float64 in dtypes else torch.float32
    own = [_pending_statistics(modules) for modules in alike.values()]
    packed = torch.cat([statistics.flatten() for statistics in own]).to(widest)
    gathered = world.all_gather(packed[None])  # (processes, values)
    parts = gathered.split([statistics.numel() for statistics in own], 1)
    for (key, modules), statistics, part in zip(alike.items(), own, parts, strict=True):
        counts, _, dtype = key
        by_process = part.view(world.size, *statistics.shape).to(dtype)
        # Each forward's groups, first those of the first process, as in the global batch.
        forwards = [forward.flatten(0, 1) for forward in by_process.split(counts, 1)]
        _update_running(modules, torch.cat(forwards))
        for module in modules:
            module.pending = []


def _pending_statistics(modules: Iterable[_Grouped]) -> Tensor:
    """Pending statistics of modules with as many groups: (groups, 2 x channels of all modules)."""
    columns = []
    for module in modules:
        columns.append(torch.cat(cast(list[Tensor], module.pending)).flatten(1))
    return torch.cat(columns, 1)


@torch.no_grad()
def _update_running(modules: Iterable[nn.modules.batchnorm._BatchNorm], statistics: Tensor) -> None:
    """Apply statistics of several groups to the running statistics, one group after another.

    Args:
        modules: BatchNorms of one momentum.
        statistics: (groups, ...): of each module, mean and variance of all channels; one module
            after another.
    """
    modules = list(modules)
    groups = len(statistics)
    momentum = modules[0].momentum
    statistics = statistics.flatten(1)  # (groups, values)
    running: list[Tensor] = []
    for module in modules:
        running.append(cast(Tensor, module.running_mean))
        running.append(cast(Tensor, module.running_var))
    lengths = [len(x) for x in running]
    counts = [cast(Tensor, module.num_batches_tracked) for module in modules]
    torch._foreach_add_(counts, groups)
    if momentum is None:
        # The mean of all groups since the beginning.
        sums = statistics.sum(0).split(lengths)
        for index, (x, total) in enumerate(zip(running, sums, strict=True)):
            x.add_((total - groups * x) / counts[index // 2])
        return
    # Traced code cannot use the cache.
    weights = _moving_weights if torch.compiler.is_compiling() else _cached_moving_weights
    moved = weights(groups, momentum, statistics.dtype, statistics.device) @ statistics
    torch._foreach_mul_(running, (1 - momentum) ** groups)
    added = []
    for x, y in zip(moved.split(lengths), running, strict=True):
        added.append(x.to(y.dtype))
    torch._foreach_add_(running, added)


def _moving_weights(
    steps: int, momentum: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Weight of each of several steps in a moving average after the last of them, (steps,)."""
    return momentum * (1 - momentum) ** torch.arange(steps - 1, -1, -1, dtype=dtype, device=device)


_cached_moving_weights = functools.cache(_moving_weights)


class _OverProcesses(torch.autograd.Function):
    """BatchNorm over the images of all processes.

    Statistics of each process are gathered; the rest is PyTorch's BatchNorm with given statistics.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, world: World
    ) -> tuple[Tensor, Tensor, Tensor]:
        channels_last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
        ctx.layout = torch.channels_last if channels_last else torch.contiguous_format
        x = x.contiguous(memory_format=ctx.layout)
        dtype = torch.promote_types(x.dtype, torch.float32)
        count = torch.full((1,), x.numel() // x.shape[1], dtype=dtype, device=x.device)
        if len(x):
            own_mean, own_var = torch.batch_norm_update_stats(x, None, None, 0.0)
        else:
            own_mean, own_var = x.new_zeros(2, x.shape[1], dtype=dtype)
        own = torch.cat((own_mean, own_var, count)).to(dtype)
        gathered = world.all_gather(own[None])  # (W, 2 C + 1)
        counts = gathered[:, -1:]
        total = counts.sum()
        means, variances = gathered[:, :-1].chunk(2, 1)  # (W, C) each
        mean = (counts * means).sum(0) / total
        # The variance within the processes and that between their means.
        biased = (counts * (variances + (means - mean).square())).sum(0) / total
        rstd = (biased + eps).rsqrt()
        y = F.batch_norm(x, mean, biased, weight, bias, False, 0.0, eps)
        ctx.save_for_backward(x, weight, mean, rstd, total)
        ctx.eps = eps
        ctx.world = world
        var = biased * (total / (total - 1))
        ctx.mark_non_differentiable(mean, var)
        return y, mean, var

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd, total = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=ctx.layout)
        if len(x):
            _, to_weight, to_bias = torch.ops.aten.native_batch_norm_backward(
                gradient, x, weight, None, None, mean, rstd, True, ctx.eps, [False, True, True]
            )
        else:
            to_weight = torch.zeros_like(mean)
            to_bias = torch.zeros_like(mean)
        sums = torch.stack((to_weight, to_bias)).to(mean.dtype)
        weight_mean, bias_mean = ctx.world.all_reduce_sum(sums) / total
        factor = rstd if weight is None else weight * rstd
        # The gradient of an image is
        #     gradient factor - (x - mean) rstd weight_mean factor - bias_mean factor,
        # an affine map of x, which batch_norm computes, and of the gradient.
        slope = -factor * rstd * weight_mean
        out = F.batch_norm(
            x, mean, torch.ones_like(mean), slope, -factor * bias_mean, False, 0.0, 0.0
        )
        out.addcmul_(gradient, factor.to(x.dtype).view(-1, *[1] * (x.ndim - 2)))
        if weight is None:
            return out, None, None, None, None
        return out, to_weight, to_bias, None, None
