"""A backbone by name and the embedding head above it."""

from __future__ import annotations

import difflib
from pathlib import Path

import torchvision
from torch import nn

from .. import plugins
from .head import GeM, ReIdNet
from .norm import group_batchnorm, split_batchnorm
from .osnet import WIDTHS, OSNet
from .weights import load_imagenet, load_weights_file

MODELS: tuple[str, ...] = tuple(plugins.BUILT_IN[plugins.MODELS])


def build_model(
    name: str,
    weights: str | Path = "imagenet",
    *,
    pool: str = "avg",
    bn_group: int = 16,
    domain_bn: bool = False,
    osnet_fc: bool = True,
) -> ReIdNet:
    """Build a network.

    Args:
        name: resnet18/34/50/101 (last stage at stride 1) or osnet_x1_0/x0_75/x0_5/x0_25.
        weights: "imagenet", "none" (random), or the path of a file: a torchvision ResNet, a published OSNet checkpoint, or the
            weights or a checkpoint of this library.
        pool: "avg" or "gem", for a ResNet.
        bn_group: Images that one BatchNorm sees in training; 0 is the whole batch.
        domain_bn: Give the images of a source BatchNorms of their own, which begin as copies.
        osnet_fc: Keep OSNet's fully connected layer above the pooling.

    Returns:
        The network in training mode; D = 512 for resnet18/34 and OSNet (without its fully connected layer 512, 384, 256, 128 by
        its width), 2,048 for resnet50/101.

    Raises:
        ValueError: No such model or pooling, or a pooling that the model does not have.
        WeightsError: The weights cannot be had, or do not fit.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, 1)
        raise ValueError(
            f"unknown model '{name}'; "
            + (f"did you mean {near[0]}?" if near else f"known: {MODELS}")
        )
    if pool not in ("avg", "gem"):
        raise ValueError(f"pool: got '{pool}', expected avg or gem")
    if pool == "gem" and name in WIDTHS:
        raise ValueError(
            f"pool: gem is for a ResNet, {name} has a pooling of its own; leave it at avg"
        )
    backbone, features = _osnet(name, osnet_fc) if name in WIDTHS else _resnet(name, pool)
    model = ReIdNet(name, backbone, features)
    if weights == "imagenet":
        load_imagenet(model)
    elif weights != "none":
        load_weights_file(model, Path(weights))
    group_batchnorm(model, bn_group)
    if domain_bn:
        model.switch = split_batchnorm(model)
    return model


def _osnet(name: str, fc: bool) -> tuple[nn.Module, int]:
    osnet = OSNet(WIDTHS[name], fc)
    return osnet, osnet.features


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
