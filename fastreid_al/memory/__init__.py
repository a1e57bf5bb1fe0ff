"""Feature memories: what the contrastive loss compares a batch with."""

from .features import ClusterMemory, FeatureMemory, InstanceMemory, class_means, contrast_loss, update_rows_

__all__ = ["ClusterMemory", "FeatureMemory", "InstanceMemory", "class_means", "contrast_loss", "update_rows_"]
