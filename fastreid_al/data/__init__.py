"""What an image set is: layouts on disk, the synthetic set, decoded pixels, augmentation, batches."""

from .load import describe, load
from .records import ImageSet, Record

__all__ = ["ImageSet", "Record", "describe", "load"]
