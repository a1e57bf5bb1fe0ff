"""BatchNorm over consecutive groups of the batch, as if each group sat on a GPU of its own."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn


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
