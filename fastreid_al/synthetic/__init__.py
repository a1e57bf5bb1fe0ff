"""Synthetic data: the rendered set of pedestrians, and features whose clusters are known."""

from .features import PlantedPartition, planted_partition

__all__ = ["PlantedPartition", "planted_partition"]
