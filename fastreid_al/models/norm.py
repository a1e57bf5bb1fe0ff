"""BatchNorm over consecutive groups of the batch, as if each group sat on a GPU of its own; BatchNorm by domain."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar, cast

import torch
from torch import Tensor, nn

Domain = Literal["target", "source"]
T = TypeVar("T")

_SOURCE = "source_norm"


class _Grouped(nn.modules.batchnorm._BatchNorm):
    """Mixin: in training every `group` consecutive images are normalised by their own statistics.

    The running statistics are updated group after group; a remainder smaller than a group joins the group before it.
    Evaluation is ordinary.
    """

    group: int

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> the same shape."""
        if not self.training or len(x) < 2 * self.group:
            return super().forward(x)
        cuts = range(self.group, len(x) - self.group + 1, self.group)
        return torch.cat([super(_Grouped, self).forward(part) for part in x.tensor_split(list(cuts))])


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
        raise ValueError(f"bn_group: found {group}, wanted 0 (the whole batch) or at least 2 images")
    if group:
        for module in model.modules():
            for plain, grouped in ((nn.BatchNorm1d, GroupedBatchNorm1d), (nn.BatchNorm2d, GroupedBatchNorm2d)):
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
