"""A backbone by name and the embedding head above it."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import get_args

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from ..config import ModelName
from .norm import group_batchnorm
from .osnet import FEATURES, WIDTHS, OSNet
from .weights import load_imagenet, load_weights_file

MODELS: tuple[str, ...] = get_args(ModelName)


class GeM(nn.Module):
    """Generalised mean pooling (Radenovic et al., TPAMI 2019), p learned from 3."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 1, 1)."""
        return F.adaptive_avg_pool2d(x.clamp(min=1e-6).pow(self.p), 1).pow(1 / self.p)


class ReIdNet(nn.Module):
    """Backbone, 1-D BatchNorm with frozen bias, L2 normalisation (UCAL Sec. 4.2).

    Args:
        name: The backbone's name, kept for checkpoints.
        backbone: (B, 3, H, W) -> (B, features).
        features: D.
    """

    def __init__(self, name: str, backbone: nn.Module, features: int) -> None:
        super().__init__()
        self.name, self.features = name, features
        self.backbone = backbone
        self.neck = nn.BatchNorm1d(features)
        self.neck.bias.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) float32 -> unit features (B, D)."""
        return F.normalize(self.neck(self.backbone(images)))


def build_model(name: str, weights: str | Path = "imagenet", *, pool: str = "avg", bn_group: int = 16) -> ReIdNet:
    """Build a network.

    Args:
        name: resnet18/34/50/101 (last stage at stride 1) or osnet_x1_0/x0_75/x0_5/x0_25.
        weights: "imagenet", "none" (random), or the path of a file: a torchvision ResNet, a published OSNet checkpoint, or the
            weights or a checkpoint of this library.
        pool: "avg" or "gem", for a ResNet.
        bn_group: Images that one BatchNorm sees in training; 0 is the whole batch.

    Returns:
        The network in training mode; D = 512 for resnet18/34 and OSNet, 2,048 for resnet50/101.

    Raises:
        ValueError: No such model or pooling.
        WeightsError: The weights cannot be had, or do not fit.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, 1)
        raise ValueError(f"unknown model '{name}'; " + (f"did you mean {near[0]}?" if near else f"known: {MODELS}"))
    if pool not in ("avg", "gem"):
        raise ValueError(f"pool: found '{pool}', wanted avg or gem")
    backbone, features = (OSNet(WIDTHS[name]), FEATURES) if name in WIDTHS else _resnet(name, pool)
    model = ReIdNet(name, backbone, features)
    if weights == "imagenet":
        load_imagenet(model)
    elif weights != "none":
        load_weights_file(model, Path(weights))
    return group_batchnorm(model, bn_group)  # type: ignore[return-value]


def _resnet(name: str, pool: str) -> tuple[nn.Module, int]:
    resnet = getattr(torchvision.models, name)(weights=None)
    # The last stage keeps its resolution, as re-id networks do since Sun et al. (PCB, ECCV 2018).
    for module in resnet.layer4[0].modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
    features = resnet.fc.in_features
    resnet.fc = nn.Identity()
    if pool == "gem":
        resnet.avgpool = GeM()
    return resnet, features
