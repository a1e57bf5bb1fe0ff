"""Image sets: readers of their layouts on disk, decoded pixels, augmentation, camera styles and batches."""

from .load import describe, load
from .records import ImageSet, Record

__all__ = ["ImageSet", "Record", "describe", "load"]
