"""Backbones and the embedding head; BatchNorm over groups."""

from .build import MODELS, build_model
from .head import ReIdNet, Stage
from .norm import group_batchnorm

__all__ = ["MODELS", "ReIdNet", "Stage", "build_model", "group_batchnorm"]
