"""Market-1501, and its layout, which DukeMTMC-reID and a common repack of MSMT17 use too."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ..errors import DataError
from .locate import SetLayout, find_set
from .reader import ReadOptions
from .records import ImageSet, Record, SplitCounts, keep_test_apart, renumber
from .walk import Found, find_images

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}

LAYOUT = SetLayout(
    "market1501",
    (
        "market1501/Market-1501-v15.09.15",
        "Market-1501-v15.09.15",
        "market1501",
        "Market-1501",
    ),
    (FOLDERS["train"], FOLDERS["gallery"]),
    FOLDERS["train"],
)
PUBLISHED = {
    "train": SplitCounts(12_936, 751, 6),
    "query": SplitCounts(3_368, 750, 6),
    "gallery": SplitCounts(19_732, 751, 6),
}

# Matched against the file name alone: a folder called x1_c2 must not be read as an identity.
_NAME = re.compile(r"(?P<identity>-?\d{1,15})_c(?P<camera>\d{1,9})", re.IGNORECASE)


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


def read_market_layout(
    name: str,
    root: Path,
    published: Mapping[str, SplitCounts],
    folders: Mapping[str, str] = FOLDERS,
) -> ImageSet:
    """Read `bounding_box_train`, `query` and `bounding_box_test`.

    Args:
        name: Name of the set.
        root: Folder that holds the three.
        published: Published counts by split.
        folders: Names of the three folders, for train, query and gallery.

    Raises:
        DataError: A folder is missing, or holds no image whose name starts like `0002_c1`.
    """
    splits, whole = read_splits(root, folders)
    if any(r.identity < 0 for r in splits["train"]):
        raise DataError(
            f"{root / folders['train']} holds junk images (identity -1); "
            "training images need identities >= 0"
        )
    return keep_test_apart(
        ImageSet(
            name,
            root,
            renumber(splits["train"]),
            splits["query"],
            splits["gallery"],
            published,
            whole.passed_over,
            whole.outside,
        )
    )


def read_splits(root: Path, folders: Mapping[str, str]) -> tuple[dict[str, list[Record]], Found]:
    """Read three folders whose images have Market-1501's names.

    A set may lack its training images.

    Args:
        root: Folder that holds the three.
        folders: Their names, for train, query and gallery.

    Returns:
        The images of each split, and what was passed over.

    Raises:
        DataError: A folder is missing or holds no image of the set.
    """
    splits: dict[str, list[Record]] = {}
    whole = Found()
    there = {split for split, folder in folders.items() if (root / folder).is_dir()}
    # Query and gallery alone can be evaluated on; training images alone are half a set.
    needed = there if there == {"query", "gallery"} else set(folders)
    for split, folder in folders.items():
        found = Found()
        splits[split] = _read_folder(root, folder, folders, found) if split in needed else []
        whole.add(found)
    return splits, whole


def _read_folder(root: Path, name: str, folders: Mapping[str, str], whole: Found) -> list[Record]:
    """Read the images of one folder; what is passed over is added to `whole`."""
    folder = root / name
    if not folder.is_dir():
        raise DataError(
            f"{folder} does not exist; the set needs {', '.join(folders.values())} side by side"
        )
    found = find_images(folder, deep=False, within=root)
    records = []
    for path in found.images:
        match = _NAME.match(path.name)
        if match is None:
            found.pass_over("images whose name does not start with IDENTITY_cCAMERA", path)
        else:
            records.append(Record(path, int(match["identity"]), int(match["camera"])))
    whole.add(found)
    if records:
        return records
    if found.images:
        raise DataError(
            f"none of {len(found.images):,} images in {folder} has a name that starts with "
            "IDENTITY_cCAMERA (as 0002_c1s1_000451_03.jpg does); rename them, or read the tree "
            "with `dataset` folder"
        )
    raise DataError(f"{folder} holds no image; unpack the set again")
