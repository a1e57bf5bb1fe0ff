"""What is remembered of every image: features that the contrastive loss compares a batch with, and NNCT's labels."""

from .features import ClusterMemory, FeatureMemory, InstanceMemory
from .label_bank import PseudoLabelMemoryBank
from .label_bank_sharded import ShardedLabelMemory

__all__ = [
    "ClusterMemory",
    "FeatureMemory",
    "InstanceMemory",
    "PseudoLabelMemoryBank",
    "ShardedLabelMemory",
]
