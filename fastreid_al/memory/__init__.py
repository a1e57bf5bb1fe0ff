"""Memories of every image: features for the contrastive losses, and NNCT's pseudo-labels."""

from .base import FeatureMemory
from .cluster import ClusterMemory
from .image import ImageMemory
from .instance import InstanceMemory
from .label_bank import PseudoLabelMemoryBank
from .label_bank_sharded import ShardedLabelBank

__all__ = [
    "ClusterMemory",
    "FeatureMemory",
    "ImageMemory",
    "InstanceMemory",
    "PseudoLabelMemoryBank",
    "ShardedLabelBank",
]
