"""Backbones and the embedding head; BatchNorm over groups and by domain."""

from .backbone import BackboneBuilder, BackboneOptions
from .build import build_model
from .head import ReIdNet, Stage
from .norm import (
    Domain,
    group_batchnorm,
    join_world,
    split_batchnorm,
    update_running,
    without_source,
)

__all__ = [
    "BackboneBuilder",
    "BackboneOptions",
    "Domain",
    "ReIdNet",
    "Stage",
    "build_model",
    "group_batchnorm",
    "join_world",
    "split_batchnorm",
    "update_running",
    "without_source",
]
