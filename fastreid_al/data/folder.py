"""Any tree of crops: one folder an identity, or no identities at all."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import DataError
from .records import (
    IMAGE_SUFFIXES,
    STYLE_COPIES,
    UNKNOWN,
    ImageSet,
    Record,
    keep_test_apart,
    renumber,
)

_RUN_FILES = {"config.json", "versions.json"}
_CAMERA = re.compile(r"_c(\d+)")


def read_folder(root: Path) -> ImageSet:
    """Read `root/{train,query,gallery}/IDENTITY/*`, or a plain unlabelled folder of crops.

    Without a `train` folder every image below root, at any depth, is an unlabelled training image, and query and gallery
    are empty: such a set trains, with nothing to evaluate on. CamStyle's copies are left out. Images directly in `train`,
    not in an identity's folder, are unlabelled as well. The camera is parsed from `_c(digits)` in the file name, unknown
    (-1) otherwise.

    Raises:
        DataError: No image is found, labelled and unlabelled images are mixed, or only one of query and gallery is there.
    """
    if not (root / "train").is_dir():
        found = (
            path for path in images_below(root) if STYLE_COPIES not in path.relative_to(root).parts
        )
        records = [Record(path, UNKNOWN, _camera(path)) for path in found]
        if not records:
            raise DataError(
                f"{root} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}) at any depth; name another folder"
            )
        return ImageSet("folder", root, records, [], [])
    splits = {split: root / split for split in ("train", "query", "gallery")}
    names = sorted(
        {
            d.name
            for folder in splits.values()
            if folder.is_dir()
            for d in folder.iterdir()
            if d.is_dir()
        }
    )
    numbers = {name: number for number, name in enumerate(names)}
    read = {split: _read_split(folder, numbers) for split, folder in splits.items()}
    if not read["train"]:
        raise DataError(
            f"{root / 'train'} holds no image; put the crops there, one folder an identity or all in one"
        )
    if bool(read["query"]) != bool(read["gallery"]):
        empty = "query" if not read["query"] else "gallery"
        raise DataError(
            f"{root / empty} is missing or empty; evaluation needs query/ and gallery/, or neither"
        )
    return keep_test_apart(
        ImageSet("folder", root, renumber(read["train"]), read["query"], read["gallery"])
    )


def _read_split(folder: Path, numbers: dict[str, int]) -> list[Record]:
    if not folder.is_dir():
        return []
    loose = [
        Record(p, UNKNOWN, _camera(p))
        for p in sorted(folder.iterdir())
        if p.suffix.lower() in IMAGE_SUFFIXES
    ]
    labelled = [
        Record(path, numbers[identity.name], _camera(path))
        for identity in sorted(d for d in folder.iterdir() if d.is_dir())
        for path in images_below(identity)
    ]
    if loose and labelled:
        raise DataError(
            f"{folder} holds {len(loose)} images beside {len({r.identity for r in labelled})} identity folders; "
            "move them into identity folders, or all images out of them"
        )
    if loose and folder.name != "train":
        raise DataError(
            f"{folder} holds images outside identity folders; evaluation needs {folder.name}/IDENTITY/IMAGE"
        )
    return loose or labelled


def images_below(folder: Path) -> list[Path]:
    """Images at any depth, through links too; a broken link is kept, to be named when it cannot be read."""
    found: list[Path] = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        if set(files) >= _RUN_FILES:  # a run started inside the image folder leaves a figure there
            folders.clear()
            continue
        found += [
            Path(parent, name) for name in files if Path(name).suffix.lower() in IMAGE_SUFFIXES
        ]
    return sorted(found)


def _camera(path: Path) -> int:
    match = _CAMERA.search(path.stem)
    return int(match[1]) if match else UNKNOWN
