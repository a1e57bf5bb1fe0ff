"""VeRi-776: vehicles."""

from __future__ import annotations

from pathlib import Path

from .locate import SetLayout, find_set
from .market import read_market_layout
from .reader import ReadOptions
from .records import ImageSet

FOLDERS = {"train": "image_train", "query": "image_query", "gallery": "image_test"}

LAYOUT = SetLayout(
    "veri776",
    ("veri776/VeRi", "VeRi", "veri776", "VeRi-776", "VeRi_776", "veri"),
    (FOLDERS["train"], FOLDERS["gallery"]),
    FOLDERS["train"],
)


def read_veri776(root: Path, options: ReadOptions) -> ImageSet:
    """Read VeRi-776.

    Reference: Liu et al., A Deep Learning-Based Approach to Progressive Vehicle Re-identification
    for Urban Surveillance, ECCV 2016.

    Statistics: 776 vehicles, 20 cameras; about 37,750 training images (576 vehicles), 1,678 queries
    and 11,579 gallery images (200 vehicles).

    Args:
        root: The data root or `VeRi`, which holds `image_train`, `image_query` and `image_test`.
        options: Only the keys are used.
    """
    folder = find_set(LAYOUT, root, options.keys.root)
    return read_market_layout(LAYOUT.name, folder, {}, FOLDERS)
