"""Market-1501, and its layout, which DukeMTMC-reID and a common repack of MSMT17 use too."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ..errors import DataError
from .locate import SetLayout, find_set
from .reader import ReadOptions
from .records import IMAGE_SUFFIXES, ImageSet, Record, SplitCounts, keep_test_apart, renumber

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}

LAYOUT = SetLayout(
    "market1501",
    (
        "market1501/Market-1501-v15.09.15",
        "Market-1501-v15.09.15",
        "market1501",
        "Market-1501",
    ),
    (FOLDERS["train"],),
    FOLDERS["train"],
)
PUBLISHED = {
    "train": SplitCounts(12_936, 751, 6),
    "query": SplitCounts(3_368, 750, 6),
    "gallery": SplitCounts(19_732, 751, 6),
}

# Matched against the file name alone: a folder called x1_c2 must not be read as an identity.
_NAME = re.compile(r"(?P<identity>-?\d+)_c(?P<camera>\d+)")


def read_market1501(root: Path, options: ReadOptions) -> ImageSet:
    """Read Market-1501.

    Reference: Zheng et al., Scalable Person Re-identification: A Benchmark, ICCV 2015.

    Statistics: 1,501 identities, 6 cameras; 12,936 training images (751 identities), 3,368 queries
    (750 identities), 19,732 gallery images (751 identities with the distractors, 0; junk, -1, is
    included in the images).

    Args:
        root: The data root or `Market-1501-v15.09.15`.
        options: Only the keys are used.
    """
    folder = find_set(LAYOUT, root, options.keys.root)
    return read_market_layout(LAYOUT.name, folder, PUBLISHED)


def read_market_layout(name: str, root: Path, published: Mapping[str, SplitCounts]) -> ImageSet:
    """Read `bounding_box_train`, `query` and `bounding_box_test`.

    Args:
        name: Name of the set.
        root: Folder that holds the three.
        published: Published counts by split.

    Raises:
        DataError: A folder is missing, holds no image, or has an image whose name does not start
            like `0002_c1`.
    """
    splits = {split: _read_folder(root / folder) for split, folder in FOLDERS.items()}
    if any(r.identity < 0 for r in splits["train"]):
        raise DataError(
            f"{root / FOLDERS['train']} holds junk images (identity -1); "
            "training images need identities >= 0"
        )
    train = renumber(splits["train"])
    return keep_test_apart(
        ImageSet(name, root, train, splits["query"], splits["gallery"], published)
    )


def _read_folder(folder: Path) -> list[Record]:
    if not folder.is_dir():
        raise DataError(
            f"{folder} does not exist; the set needs {', '.join(FOLDERS.values())} side by side"
        )
    images = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise DataError(
            f"{folder} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}); unpack the set again"
        )
    return [_parse(path) for path in sorted(images, key=lambda path: path.name)]


def _parse(path: Path) -> Record:
    match = _NAME.match(path.name)
    if match is None:
        raise DataError(
            f"{path.name} in {path.parent} does not start with IDENTITY_cCAMERA "
            "(as 0002_c1s1_000451_03.jpg does); rename it, or read the tree with `dataset` folder"
        )
    return Record(path, int(match["identity"]), int(match["camera"]))
