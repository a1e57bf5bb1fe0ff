"""VehicleID: vehicles without cameras."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import numpy as np

from ..errors import DataError
from .locate import SetLayout, find_set
from .reader import ReadOptions
from .records import UNKNOWN, ImageSet, Record, keep_test_apart, renumber
from .text import read_text

LISTS = "train_test_split"
TEST_SIZES = (800, 1600, 2400)

LAYOUT = SetLayout(
    "vehicleid",
    ("vehicleid/VehicleID_V1.0", "VehicleID_V1.0", "vehicleid", "VehicleID", "PKU-VehicleID"),
    (f"{LISTS}/train_list.txt", *(f"{LISTS}/test_list_{size}.txt" for size in TEST_SIZES)),
    f"{LISTS}/train_list.txt",
)


def _read(size: int, root: Path, options: ReadOptions) -> ImageSet:
    """Read VehicleID.

    Reference: Liu et al., Deep Relative Distance Learning: Tell the Difference Between Similar
    Vehicles, CVPR 2016.

    Statistics: 110,178 training images (13,134 vehicles); three test sets of 800, 1,600 and 2,400
    vehicles. There are no cameras. Of each test vehicle one image, drawn with a fixed seed, is in
    the gallery, and the others are queries.

    Args:
        size: Vehicles of the test set.
        root: The data root or `VehicleID_V1.0`, which holds `image` and `train_test_split`.
        options: Only the keys are used.

    Raises:
        DataError: A list or an image is missing.
    """
    folder = find_set(LAYOUT, root, options.keys.root)
    train = _read_list(folder, "train_list.txt") if _has(folder, "train_list.txt") else []
    test = f"test_list_{size}.txt"
    query, gallery = _divided(_read_list(folder, test)) if _has(folder, test) else ([], [])
    name = LAYOUT.name if size == TEST_SIZES[0] else f"{LAYOUT.name}{size}"
    return keep_test_apart(
        ImageSet(name, folder, renumber(train), query, gallery, has_cameras=False)
    )


read_800 = partial(_read, 800)
read_1600 = partial(_read, 1600)
read_2400 = partial(_read, 2400)


def _has(folder: Path, name: str) -> bool:
    return (folder / LISTS / name).is_file()


def _read_list(folder: Path, name: str) -> list[Record]:
    """Read the lines `IMAGE VEHICLE` of a list; images have no suffix there."""
    file = folder / LISTS / name
    records = []
    for number, line in enumerate(read_text(file).splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 2 or not all(f.isdecimal() and len(f) < 18 for f in fields):
            raise DataError(f"{file} line {number}: '{line:.200}' is not 'IMAGE VEHICLE'")
        records.append(Record(folder / "image" / f"{fields[0]}.jpg", int(fields[1]), UNKNOWN))
    absent = [record.path for record in records if not os.path.isfile(record.path)]
    if absent:
        raise DataError(
            f"{file} names {len(absent):,} of {len(records):,} images that are not there "
            f"(first: {absent[0]}); unpack the set again"
        )
    if not records:
        raise DataError(f"{file} is empty; take the list of the original archive")
    return records


def _divided(test: list[Record]) -> tuple[list[Record], list[Record]]:
    """Divide test images into queries, and a gallery of one image for each vehicle."""
    order = np.random.default_rng(0).permutation(len(test))
    chosen: dict[int, int] = {}
    for index in order.tolist():
        chosen.setdefault(test[index].identity, index)
    in_gallery = set(chosen.values())
    query = [record for index, record in enumerate(test) if index not in in_gallery]
    gallery = [test[index] for index in sorted(in_gallery)]
    return query, gallery
