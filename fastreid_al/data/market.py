"""Market-1501's layout, which DukeMTMC-reID and a common repack of MSMT17 share."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import DataError
from .records import IMAGE_SUFFIXES, ImageSet, Record, keep_test_apart, renumber

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}

# Matched against the file name alone: a folder called x1_c2 must not be read as an identity.
_NAME = re.compile(r"(?P<identity>-?\d+)_c(?P<camera>\d+)")


def read_market(name: str, root: Path) -> ImageSet:
    """Read `bounding_box_train`, `query` and `bounding_box_test` below root.

    Args:
        name: Name that the set gets.
        root: Folder that holds the three.

    Raises:
        DataError: A folder is missing, holds no image, or an image's name does not start like `0002_c1`.
    """
    splits = {split: _read_folder(root / folder) for split, folder in FOLDERS.items()}
    if any(r.identity < 0 for r in splits["train"]):
        raise DataError(
            f"{root / FOLDERS['train']} holds junk images (identity -1); training images need identities >= 0"
        )
    return keep_test_apart(
        ImageSet(name, root, renumber(splits["train"]), splits["query"], splits["gallery"])
    )


def _read_folder(folder: Path) -> list[Record]:
    if not folder.is_dir():
        raise DataError(
            f"{folder} does not exist; the set needs {', '.join(FOLDERS.values())} side by side"
        )
    files = sorted(
        (p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES), key=lambda p: p.name
    )
    if not files:
        raise DataError(
            f"{folder} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}); unpack the set again"
        )
    return [_parse(path) for path in files]


def _parse(path: Path) -> Record:
    match = _NAME.match(path.name)
    if match is None:
        raise DataError(
            f"{path.name} in {path.parent} does not start with IDENTITY_cCAMERA (as 0002_c1s1_000451_03.jpg does); "
            "rename it, or read the tree with --dataset folder"
        )
    return Record(path, int(match["identity"]), int(match["camera"]))
