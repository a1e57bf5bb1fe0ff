"""Build a network by name: a backbone and the embedding head above it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .. import plugins
from .backbone import BackboneBuilder, BackboneOptions
from .head import ReIdNet
from .norm import group_batchnorm, split_batchnorm
from .weights import load_imagenet, load_weights_file


def build_model(
    name: str | BackboneBuilder,
    weights: str | Path = "imagenet",
    *,
    pool: str = "avg",
    bn_group: int = 16,
    domain_bn: bool = False,
    osnet_fc: bool = True,
    report: Callable[[str], None] | None = None,
) -> ReIdNet:
    """Build a network.

    Args:
        name: resnet18/34/50/101 (last stage at stride 1), osnet_x1_0/x0_75/x0_5/x0_25, the name of
            an entry point of the group `fastreid_al.models`, or a function that builds a backbone.
        weights: "imagenet", "none" (random), or the path of a file: the weights or a checkpoint of
            this library, or of another code base that has the same backbone, by torch.save or as
            .safetensors (`foreign`).
        pool: "avg" or "gem"; "gem" is for a ResNet.
        bn_group: Images that one BatchNorm sees in training; 0 is the whole batch.
        domain_bn: Give the images of a source BatchNorms of their own, which begin as copies.
        osnet_fc: Keep OSNet's fully connected layer above the pooling.
        report: Called with one line that says what was left out of a file.

    Returns:
        The network in training mode. Its features have D = 512 for resnet18/34 and OSNet (without
        its fully connected layer 512, 384, 256, 128 by its width), 2,048 for resnet50/101.

    Raises:
        SettingError: No model has this name; the message has the nearest one.
        ValueError: No such pooling, or a pooling that the model does not have.
        WeightsError: The weights cannot be read or downloaded, or do not fit.
    """
    if pool not in ("avg", "gem"):
        raise ValueError(f"pool: got '{pool}', expected avg or gem")
    if isinstance(name, str):
        builder: BackboneBuilder = plugins.load(plugins.MODELS, name, "model")
    else:
        builder = name
        name = getattr(builder, "__name__", type(builder).__name__)
    backbone = builder(BackboneOptions(name, pool, osnet_fc))
    model = ReIdNet(name, backbone, int(backbone.features))  # type: ignore[arg-type]
    if weights == "imagenet":
        load_imagenet(model)
    elif weights != "none":
        line = load_weights_file(model, Path(weights))
        if line and report is not None:
            report(line)
    group_batchnorm(model, bn_group)
    if domain_bn:
        model.switch = split_batchnorm(model)
    return model
