"""What is remembered of every image: features that the contrastive loss compares a batch with, and NNCT's labels."""

from .features import ClusterMemory, FeatureMemory, InstanceMemory
from .label_shards import ShardedLabelMemory
from .pseudo_labels import PseudoLabelMemoryBank

__all__ = ["ClusterMemory", "FeatureMemory", "InstanceMemory", "PseudoLabelMemoryBank", "ShardedLabelMemory"]
