"""Any tree of crops: one folder for each identity, or no identities at all."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import DataError
from .locate import existing_folder
from .reader import ReadOptions
from .records import (
    IMAGE_SUFFIXES,
    STYLE_COPIES,
    UNKNOWN,
    ImageSet,
    Record,
    keep_test_apart,
    renumber,
)

#: Files by which the folder of a run is recognised.
_RUN_FILES = {"config.json", "versions.json"}
_SPLITS = ("train", "query", "gallery")
_CAMERA = re.compile(r"_c(\d+)")


def read_folder(root: Path, options: ReadOptions) -> ImageSet:
    """Read `root/{train,query,gallery}/IDENTITY/*`, or an unlabelled folder of crops.

    Without a `train` folder, every image below the root, at any depth, is an unlabelled training
    image, and query and gallery are empty: such a set can be trained on but not evaluated.
    CamStyle's copies are left out. Images directly in `train`, in no identity's folder, are
    unlabelled as well. The camera is parsed from `_c(digits)` in the file name, and unknown (-1)
    where that is missing.

    Args:
        root: The folder.
        options: Only the keys are used.

    Raises:
        DataError: There is no image, labelled and unlabelled images are mixed, or only one of query
            and gallery is there.
    """
    root = existing_folder(root, options.keys.root)
    if not (root / "train").is_dir():
        return _read_unlabelled(root)
    numbers = _identity_numbers(root)
    read = {split: _read_split(root / split, numbers) for split in _SPLITS}
    if not read["train"]:
        raise DataError(
            f"{root / 'train'} holds no image; put the crops there, "
            "one folder for each identity or all in one"
        )
    if bool(read["query"]) != bool(read["gallery"]):
        empty = "query" if not read["query"] else "gallery"
        raise DataError(
            f"{root / empty} is missing or empty; evaluation needs query/ and gallery/, or neither"
        )
    return keep_test_apart(
        ImageSet("folder", root, renumber(read["train"]), read["query"], read["gallery"])
    )


def _read_unlabelled(root: Path) -> ImageSet:
    records = []
    for path in images_below(root):
        if STYLE_COPIES not in path.relative_to(root).parts:
            records.append(Record(path, UNKNOWN, _camera(path)))
    if not records:
        raise DataError(
            f"{root} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}) at any depth; "
            "name another folder"
        )
    return ImageSet("folder", root, records, [], [])


def _identity_numbers(root: Path) -> dict[str, int]:
    """Number the names of all identity folders, so that a name is one identity in every split."""
    names = set()
    for split in _SPLITS:
        if (root / split).is_dir():
            names |= {folder.name for folder in (root / split).iterdir() if folder.is_dir()}
    return {name: number for number, name in enumerate(sorted(names))}


def _read_split(folder: Path, numbers: dict[str, int]) -> list[Record]:
    if not folder.is_dir():
        return []
    loose = []
    labelled = []
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            for image in images_below(path):
                labelled.append(Record(image, numbers[path.name], _camera(image)))
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            loose.append(Record(path, UNKNOWN, _camera(path)))
    if loose and labelled:
        folders = len({r.identity for r in labelled})
        raise DataError(
            f"{folder} holds {len(loose)} images next to {folders} identity folders; "
            "move them into identity folders, or all images out of them"
        )
    if loose and folder.name != "train":
        raise DataError(
            f"{folder} holds images outside identity folders; "
            f"evaluation needs {folder.name}/IDENTITY/IMAGE"
        )
    return loose or labelled


def images_below(folder: Path) -> list[Path]:
    """List the images at any depth below a folder, through links too, in sorted order.

    A broken link is listed, so that it can be reported as unreadable.
    """
    images: list[Path] = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        # A run that was started inside the image folder has left figures there.
        if set(files) >= _RUN_FILES:
            folders.clear()
            continue
        for name in files:
            if Path(name).suffix.lower() in IMAGE_SUFFIXES:
                images.append(Path(parent, name))
    return sorted(images)


def _camera(path: Path) -> int:
    match = _CAMERA.search(path.stem)
    return int(match[1]) if match else UNKNOWN
