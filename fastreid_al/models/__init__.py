"""Backbones and the embedding head; BatchNorm over groups."""

from .build import MODELS, build_model
from .head import ReIdNet
from .norm import group_batchnorm

__all__ = ["MODELS", "ReIdNet", "build_model", "group_batchnorm"]
