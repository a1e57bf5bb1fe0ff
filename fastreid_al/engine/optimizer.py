"""The optimizer of a run, with its two groups of parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..config import OptimizerConfig
from ..models import ReIdNet

#: How an optimizer computes, which a restored one keeps of its own.
_FORM = ("fused", "foreach", "capturable", "differentiable", "maximize")
#: Settings that every version of PyTorch saves, and needs.
_SETTINGS = frozenset(
    {
        *("params", "lr", "initial_lr", "weight_decay", "betas", "eps", "momentum", "nesterov"),
        *("dampening", "last_epoch", "base_lrs", "gamma", "step_size"),
    }
)


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


def check_optimizer(
    saved: Mapping[str, Any],
    saved_schedule: Mapping[str, Any],
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.StepLR,
) -> None:
    """Refuse the state of another optimizer, which PyTorch would take and fail on later.

    Args:
        saved: State of an optimizer.
        saved_schedule: State of its schedule.
        optimizer: The optimizer that is to get it.
        scheduler: Its schedule.

    Raises:
        ValueError: A setting is missing or of another type, or a tensor has another shape than its
            parameter or is not finite.
    """
    groups = optimizer.param_groups
    if len(saved["param_groups"]) != len(groups):
        raise ValueError(f"got {len(saved['param_groups'])} groups of parameters")
    own_groups = optimizer.state_dict()["param_groups"]
    for own, group in zip(own_groups, saved["param_groups"], strict=True):
        _check_alike("optimizer", own, group)
    _check_alike("scheduler", scheduler.state_dict(), saved_schedule)
    parameters = [parameter for group in groups for parameter in group["params"]]
    for number, values in saved["state"].items():
        if not isinstance(number, int) or not 0 <= number < len(parameters):
            raise ValueError(f"the optimizer has no parameter {number!r}")
        for name, value in values.items():
            _check_moment(name, value, parameters[number])


def _check_moment(name: str, value: object, parameter: Tensor) -> None:
    """Check a value that an optimizer keeps of a parameter: a tensor of its shape, or a number."""
    if value is None or isinstance(value, int | float):
        return
    if not isinstance(value, Tensor) or value.shape not in (parameter.shape, torch.Size([])):
        raise ValueError(f"the optimizer's {name} is not a tensor of {tuple(parameter.shape)}")
    if not torch.isfinite(value).all():
        raise ValueError(f"the optimizer's {name} is not finite")


def _check_alike(what: str, own: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Check that saved settings have the names and types of this run's."""
    for name, value in own.items():
        right = _is_alike(value, saved[name]) if name in saved else name not in _SETTINGS
        if name not in _FORM and not right:
            got = repr(saved[name])[:40] if name in saved else "nothing"
            raise ValueError(f"{what}: got {got} for {name}, expected a value like {value!r}"[:200])


def _is_alike(own: object, saved: object) -> bool:
    if isinstance(own, list | tuple):
        return (
            isinstance(saved, list | tuple)
            and len(saved) == len(own)
            and all(map(_is_alike, own, saved))
        )
    if isinstance(own, bool) or own is None:
        return saved is None or isinstance(saved, bool)
    if isinstance(own, int | float):
        return isinstance(saved, int | float) and not isinstance(saved, bool)
    return isinstance(saved, type(own))
