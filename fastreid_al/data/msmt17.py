"""MSMT17 in its three layouts: V1, V2 (masked faces) and a repack in Market-1501's layout."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import DataError
from .locate import SetLayout, find_set
from .market import FOLDERS, read_market_layout
from .reader import ReadOptions
from .records import ImageSet, Record, SplitCounts, keep_test_apart, renumber
from .text import inside, read_text

#: Folders of training and test images in V1 and V2.
IMAGE_FOLDERS = (("train", "test"), ("mask_train_v2", "mask_test_v2"))
LISTS = ("list_train.txt", "list_val.txt", "list_query.txt", "list_gallery.txt")

LAYOUT = SetLayout(
    "msmt17",
    (
        "msmt17/MSMT17_V1",
        "msmt17/MSMT17_V2",
        "MSMT17_V1",
        "MSMT17_V2",
        "msmt17",
        "MSMT17",
    ),
    (*(train for train, _ in IMAGE_FOLDERS), *LISTS, FOLDERS["train"], FOLDERS["gallery"]),
    f"train/ with list_train.txt or {FOLDERS['train']}",
    (*LISTS, "mask_train_v2", "mask_test_v2"),
)
#: `FOLDER/PID_INDEX_CAMERA_....jpg PID`. Lists that passed through other programs have backslashes,
#: tabs, commas or several spaces.
_LINE = re.compile(
    r"(?P<name>(?:.*[\\/])?[^\\/_]*_[^\\/_]*_(?P<camera>\d{1,9})_[^\\/]*?)"
    r"[\s,;]+(?P<identity>\d{1,15})"
)
PUBLISHED = {
    "train": SplitCounts(32_621, 1_041, 15),
    "query": SplitCounts(11_659, 3_060, 15),
    "gallery": SplitCounts(82_161, 3_060, 15),
}


def read_msmt17(root: Path, options: ReadOptions) -> ImageSet:
    """Read MSMT17.

    Reference: Wei et al., Person Transfer GAN to Bridge Domain Gap for Person Re-identification,
    CVPR 2018.

    Statistics: 4,101 identities, 15 cameras; 32,621 training images (1,041 identities, 30,248
    images without validation), 11,659 queries and 82,161 gallery images (3,060 identities).

    Args:
        root: The data root, or `MSMT17_V1`, `MSMT17_V2` or a repack with `bounding_box_train`.
        options: `validation` decides whether the images of `list_val.txt` are trained on too, as
            unsupervised work does.
    """
    folder = find_set(LAYOUT, root, options.keys.root)
    published = dict(PUBLISHED)
    if not options.validation:
        # The published count of training images includes validation.
        del published["train"]
    if any((folder / FOLDERS[split]).is_dir() for split in ("train", "gallery")):
        return read_market_layout(LAYOUT.name, folder, published)
    train, query, gallery = read_msmt17_lists(folder, validation=options.validation)
    return keep_test_apart(
        ImageSet(LAYOUT.name, folder, renumber(train), query, gallery, published)
    )


def read_msmt17_lists(
    root: Path, *, validation: bool = True
) -> tuple[list[Record], list[Record], list[Record]]:
    """Read the lists of V1 or V2.

    Args:
        root: `MSMT17_V1` or `MSMT17_V2`.
        validation: Add the validation images to the training images.

    Returns:
        Training, query and gallery images; no training images where their lists are not there.
        Identities are those of the lists: test identities count from 0 too.

    Raises:
        DataError: A folder or list is missing, or a list names an image that is absent.
    """
    test_only = not any((root / name).exists() for name in LISTS[:2])
    needed = 1 if test_only else 0
    pair = next((pair for pair in IMAGE_FOLDERS if (root / pair[needed]).is_dir()), None)
    if pair is None:
        raise DataError(
            f"{root} holds none of train/, mask_train_v2/ and {FOLDERS['train']}/; "
            "unpack MSMT17 there"
        )
    train_folder = root / pair[0]
    test_folder = root / pair[1]
    train = []
    if not test_only:
        train += _read_list(root / "list_train.txt", train_folder)
    if not test_only and validation:
        train += _read_list(root / "list_val.txt", train_folder)
    query = _read_list(root / "list_query.txt", test_folder)
    gallery = _read_list(root / "list_gallery.txt", test_folder)
    train.sort(key=lambda r: r.path.name)
    return train, query, gallery


def _read_list(file: Path, folder: Path) -> list[Record]:
    """Read the lines `FOLDER/PID_INDEX_CAMERA_....jpg PID` of a list."""
    records = []
    absent = []
    for number, line in enumerate(_text(file, folder).splitlines(), 1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise DataError(
                f"{file} line {number}: '{line.strip()}' is not "
                "'FOLDER/PID_INDEX_CAMERA_....jpg PID'; take the list of the original archive"
            )
        name = match["name"].replace("\\", "/").removeprefix(f"{folder.name}/")
        path = inside(folder, name)
        if path is None:
            raise DataError(f"{file} line {number}: {name} leads out of {folder}")
        if not os.path.isfile(path):
            absent.append((number, name))
        records.append(Record(path, int(match["identity"]), int(match["camera"])))
    if absent:
        number, name = absent[0]
        raise DataError(
            f"{file} names {len(absent)} of {len(records)} images that are not below {folder} "
            f"(first, line {number}: {name}); unpack the archive again, or delete these lines"
        )
    if not records:
        raise DataError(f"{file} is empty; take the list of the original archive")
    return records


def _text(file: Path, folder: Path) -> str:
    if not file.is_file():
        raise DataError(
            f"{file} does not exist; MSMT17 needs {', '.join(LISTS)} next to {folder.name}/"
        )
    return read_text(file)
