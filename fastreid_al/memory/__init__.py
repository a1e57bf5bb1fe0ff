"""Feature memories: what the contrastive loss compares a batch with."""

from .features import ClusterMemory, FeatureMemory, InstanceMemory

__all__ = ["ClusterMemory", "FeatureMemory", "InstanceMemory"]
