"""The optimizer of a run, with its two groups of parameters."""

from __future__ import annotations

import torch
from torch import nn

from ..config import OptimizerConfig
from ..models import ReIdNet


def learning_rates(settings: OptimizerConfig) -> list[float]:
    """Return the learning rates of the two groups of parameters: new layers, backbone."""
    backbone = settings.lr if settings.backbone_lr is None else settings.backbone_lr
    return [settings.lr, backbone]


def make_optimizer(
    model: ReIdNet, settings: OptimizerConfig, layers: nn.Module | None = None
) -> torch.optim.Optimizer:
    """Make the optimizer of all trainable parameters, in two groups: new layers, backbone.

    Args:
        model: The network.
        settings: Kind, learning rates, momentum and weight decay.
        layers: Further layers to train; they belong to the first group.
    """
    in_backbone = {id(p) for p in model.backbone.parameters()}
    backbone: list[nn.Parameter] = []
    new_layers: list[nn.Parameter] = []
    # The order inside a group is part of the optimizer's state in a checkpoint.
    for module in (model, layers or nn.ModuleList()):
        for parameter in module.parameters():
            if parameter.requires_grad:
                group = backbone if id(parameter) in in_backbone else new_layers
                group.append(parameter)
    new_rate, backbone_rate = learning_rates(settings)
    groups = [
        {"params": new_layers, "lr": new_rate},
        {"params": backbone, "lr": backbone_rate},
    ]
    fused = all(p.device.type in ("cpu", "cuda") for p in (*new_layers, *backbone))
    if settings.name == "sgd":
        return torch.optim.SGD(
            groups,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
            nesterov=settings.momentum > 0,
            fused=fused,
        )
    return torch.optim.Adam(groups, weight_decay=settings.weight_decay, fused=fused)


def apply_settings(
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.StepLR,
    settings: OptimizerConfig,
    epoch: int,
) -> None:
    """Change the settings of a restored optimizer to what they would be had they always held.

    Args:
        optimizer: The optimizer.
        scheduler: Its schedule.
        settings: The new settings; the kind of the optimizer stays.
        epoch: Epochs completed.
    """
    rates = learning_rates(settings)
    scheduler.base_lrs = [*rates]
    scheduler.step_size = settings.step
    scheduler.gamma = settings.gamma
    for group, lr in zip(optimizer.param_groups, rates, strict=True):
        group["initial_lr"] = lr
        group["weight_decay"] = settings.weight_decay
        group["lr"] = lr * settings.gamma ** (epoch // settings.step)
        if settings.name == "sgd":
            group["momentum"] = settings.momentum
            group["nesterov"] = settings.momentum > 0
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
