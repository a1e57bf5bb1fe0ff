"""Any tree of crops: one folder for each identity, or no identities at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import DataError
from .layouts import published_layouts, refuse_published_layout
from .locate import existing_folder
from .names import number_names, pattern_of, read_cameras, read_identities
from .reader import ReadOptions, SetKeys
from .records import ImageSet, Record, keep_test_apart, renumber
from .walk import Found, find_images, is_test_name

_SPLITS = ("train", "query", "gallery")
#: Why a folder of a published set is passed over.
_PUBLISHED = "folders of published sets, which have readers of their own"


def read_folder(root: Path, options: ReadOptions) -> ImageSet:
    """Read `root/{train,query,gallery}/IDENTITY/*`, or an unlabelled folder of crops.

    Without these three folders, every image below the root, at any depth, is an unlabelled training
    image, except in folders whose name says that they are kept for testing (test, val, query, ...).
    Images directly in `train`, in no identity's folder, are unlabelled as well. The camera is read
    from the file's name in its usual spellings, and unknown (-1) where that is missing.

    Args:
        root: The folder.
        options: `camera_pattern` and `identity_pattern` read cameras and identities out of the
            names instead.

    Raises:
        DataError: The folder holds no image, labelled and unlabelled images are mixed, only one of
            query and gallery is there, or the folder has the layout of a published set.
        SettingError: A pattern is no regular expression, or finds nothing in any name.
    """
    root = existing_folder(root, options.keys.root)
    folders = _split_folders(root)
    if "train" not in folders:
        refuse_published_layout(root, options.keys)
    if folders:
        founds = {split: find_images(folder, within=root) for split, folder in folders.items()}
    else:
        folders = {"train": root}
        founds = {"train": find_images(root, skip=_not_for_training)}
        _check_any(root, founds["train"], options.keys)
    splits = _records(root, folders, founds, options)
    _check_not_empty(root, folders, founds)
    whole = Found()
    for found in founds.values():
        whole.add(found)
    if folders.get("train") != root:
        _pass_over_others(root, folders, whole)
    return keep_test_apart(
        ImageSet(
            "folder",
            root,
            renumber(splits.get("train", [])),
            splits.get("query", []),
            splits.get("gallery", []),
            passed_over=whole.passed_over,
            outside=whole.outside,
        )
    )


def _split_folders(root: Path) -> dict[str, Path]:
    """The folders of the splits; upper and lower case are the same."""
    named: dict[str, Path] = {}
    for path in sorted(root.iterdir()):
        split = path.name.lower()
        if split in _SPLITS and path.is_dir():
            if split in named:
                raise DataError(f"{root} holds {named[split].name} and {path.name}; join the two")
            named[split] = path
    return {split: named[split] for split in _SPLITS if split in named}


def _check_not_empty(root: Path, folders: Mapping[str, Path], founds: Mapping[str, Found]) -> None:
    """Refuse a set without images, and query without gallery or the reverse."""
    if "train" in folders and not founds["train"].images:
        raise DataError(
            f"{folders['train']} holds no image{_reasons(founds['train'])}; put the crops there, "
            "one folder for each identity or all in one"
        )
    tested = {split for split, found in founds.items() if found.images} - {"train"}
    if len(tested) == 1 or (not tested and "train" not in folders):
        empty = "gallery" if "query" in tested else "query"
        raise DataError(
            f"{root / empty} is missing or empty; evaluation needs query/ and gallery/, or neither"
        )


def _check_any(root: Path, found: Found, keys: SetKeys) -> None:
    """Refuse a folder without an image to train on.

    Raises:
        DataError: The message names the reader of a published set, where one was passed over.
    """
    if found.images:
        return
    if published := found.passed_over.get(_PUBLISHED):
        folder = min(published)
        names = published_layouts(folder)
        raise DataError(
            f"{root} holds no image at any depth outside {folder}, which has the layout of "
            f"{' or '.join(names)}; read it with `{keys.name}` {names[0]} and `{keys.root}` "
            f"{folder}"
        )
    raise DataError(f"{root} holds no image at any depth{_reasons(found)}; name another folder")


def _records(
    root: Path,
    folders: Mapping[str, Path],
    founds: Mapping[str, Found],
    options: ReadOptions,
) -> dict[str, list[Record]]:
    """The records of each split; names of identities and cameras are numbered over all splits."""
    paths = [path for found in founds.values() for path in found.images]
    pattern = pattern_of("identity_pattern", options.identity_pattern)
    if pattern is not None:
        names = read_identities(paths, root, pattern)
    else:
        names = [
            _identity_folder(path, folder) if folder != root else ""
            for folder, found in zip(folders.values(), founds.values(), strict=True)
            for path in found.images
        ]
    cameras = read_cameras(paths, root, pattern_of("camera_pattern", options.camera_pattern))
    identities = number_names(names)
    records: dict[str, list[Record]] = {}
    start = 0
    for split, found in founds.items():
        part = slice(start, start + len(found.images))
        _check_labels(folders[split], split, names[part])
        fields = zip(paths[part], identities[part], cameras[part], strict=True)
        records[split] = [Record(*of_image) for of_image in fields]
        start = part.stop
    return records


def _identity_folder(path: Path, folder: Path) -> str:
    """The folder of an image's identity below the folder of a split; "" where it has none."""
    parts = path.relative_to(folder).parts
    return parts[0] if len(parts) > 1 else ""


def _check_labels(folder: Path, split: str, names: Sequence[str]) -> None:
    """Refuse labelled and unlabelled images in one split, and unlabelled test images."""
    loose = names.count("")
    if split != "train" and loose:
        raise DataError(
            f"{folder} holds {loose:,} images without an identity; evaluation needs "
            f"{folder.name}/IDENTITY/IMAGE, or an `identity_pattern` that reads it from the name"
        )
    if loose and loose < len(names):
        raise DataError(
            f"{folder} holds {loose:,} images next to {len(set(names) - {''})} identity folders; "
            "move them into identity folders, or all images out of them"
        )


def _not_for_training(folder: Path) -> str | None:
    """Why the images of a folder are not trained on without being asked for."""
    if is_test_name(folder.name):
        return "folders whose name says that their images are kept for testing"
    if published_layouts(folder):
        return _PUBLISHED
    return None


def _pass_over_others(root: Path, folders: Mapping[str, Path], found: Found) -> None:
    """Count the folders beside those of the splits, of which nothing is read."""
    for path in sorted(root.iterdir()):
        if path.is_dir() and path not in folders.values():
            found.pass_over("folders beside train, query and gallery", path)


def _reasons(found: Found) -> str:
    """What was passed over, in brackets; empty where nothing was."""
    if not found.passed_over:
        return ""
    counts = [f"{len(paths):,} {reason}" for reason, paths in found.passed_over.items()]
    return f" (passed over: {', '.join(counts)})"
