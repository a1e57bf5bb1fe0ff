"""Image sets: readers, decoded pixels and their cache, augmentation, camera styles, batches."""

from .load import describe, load
from .reader import DatasetReader, ReadOptions
from .records import ImageSet, Record

__all__ = ["DatasetReader", "ImageSet", "ReadOptions", "Record", "describe", "load"]
