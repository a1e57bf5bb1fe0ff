"""What an image set is: layouts on disk, the synthetic set, decoded pixels, augmentation, batches; planted features."""

from .load import describe, load
from .planted import PlantedPartition, planted_partition
from .records import ImageSet, Record

__all__ = ["ImageSet", "PlantedPartition", "Record", "describe", "load", "planted_partition"]
