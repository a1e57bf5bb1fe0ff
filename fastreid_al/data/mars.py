"""MARS: tracklets of people in video, of which some images are read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .locate import SetLayout, find_set
from .reader import ReadOptions
from .records import UNKNOWN, ImageSet, Record, keep_test_apart, renumber
from .text import inside, read_text

LAYOUT = SetLayout(
    "mars",
    ("mars/MARS", "MARS", "mars"),
    ("info/tracks_train_info.mat", "bbox_train"),
    "info/tracks_train_info.mat and bbox_train",
)
#: First and last image of a tracklet (from 1), identity, camera.
_COLUMNS = 4


def read_mars(root: Path, options: ReadOptions) -> ImageSet:
    """Read MARS.

    Reference: Zheng et al., MARS: A Video Benchmark for Large-Scale Person Re-identification,
    ECCV 2016.

    Statistics: 1,261 identities, 6 cameras; 8,298 training tracklets (625 identities, 509,914
    images); 12,180 test tracklets (681,089 images), of which 1,980 are queries.

    Of each tracklet `frames` images at equal distances are read, and of a query's tracklet the one
    in the middle. Junk has the identity -1, distractors have 0. A query's tracklet is not in the
    gallery.

    Args:
        root: The data root or `MARS`, which holds `bbox_train`, `bbox_test` and `info`.
        options: `frames` is the number of images of a tracklet.

    Raises:
        DataError: A file is missing or not as expected.
    """
    folder = find_set(LAYOUT, root, options.keys.root)
    train = _Tracklets(folder, "train").records(options.frames)
    test = _Tracklets(folder, "test")
    queries = _table(folder / "info/query_IDX.mat", "query_IDX").ravel() - 1
    if queries.size and not (queries.min() >= 0 and queries.max() < len(test.table)):
        raise DataError(f"{folder / 'info/query_IDX.mat'} names tracklets that do not exist")
    others = np.setdiff1d(np.arange(len(test.table)), queries)
    query = test.records(1, queries)
    gallery = test.records(options.frames, others)
    return keep_test_apart(ImageSet(LAYOUT.name, folder, renumber(train), query, gallery))


class _Tracklets:
    """The tracklets of the training or the test set.

    Args:
        folder: The set's own folder.
        half: "train" or "test".
    """

    def __init__(self, folder: Path, half: str) -> None:
        self._folder = folder / f"bbox_{half}"
        self._file = folder / "info" / f"{half}_name.txt"
        self._names = read_text(self._file).split()
        name = f"track_{half}_info"
        #: (tracklets, 4) int64: first and last image, from 1, identity, camera.
        self.table = _table(folder / "info" / f"tracks_{half}_info.mat", name)
        if self.table.shape[1] != _COLUMNS or not self._fits():
            raise DataError(
                f"{name} has rows that are not [FIRST, LAST, IDENTITY, CAMERA] of the "
                f"{len(self._names):,} images in {self._file}"
            )

    def _fits(self) -> bool:
        first, last = self.table[:, 0], self.table[:, 1]
        return bool(((first >= 1) & (first <= last) & (last <= len(self._names))).all())

    def records(self, frames: int, rows: np.ndarray | None = None) -> list[Record]:
        """Images of the tracklets at some rows, `frames` of each at equal distances."""
        table = self.table if rows is None else self.table[rows]
        records = []
        for track, (first, last, identity, camera) in enumerate(table.tolist()):
            for index in _spread(first, last, frames):
                caption = f"frames {first} to {last} of the set, this is {index}"
                path = self._path(self._names[index - 1])
                records.append(Record(path, max(identity, UNKNOWN), camera, caption, track))
        return records

    def _path(self, name: str) -> Path:
        """The file of an image, in the folder of its identity."""
        identity = name[:4] if not name.startswith("00-1") else "00-1"
        path = inside(self._folder, f"{identity}/{name}")
        if path is None or not os.path.isfile(path):
            raise DataError(
                f"{self._file} names {name}, which is not in {self._folder / identity}; unpack the "
                "set again"
            )
        return path


def _spread(first: int, last: int, count: int) -> list[int]:
    """Up to `count` numbers from `first` to `last` in the middle of equal parts."""
    length = last - first + 1
    count = min(count, length)
    return [first + (2 * part + 1) * length // (2 * count) for part in range(count)]


def _table(file: Path, name: str) -> np.ndarray:
    """Read an array (rows, columns) of whole numbers from a MATLAB file."""
    from scipy.io import loadmat

    try:
        content: dict[str, Any] = loadmat(str(file), variable_names=[name])
        return np.atleast_2d(np.asarray(content[name])).astype(np.int64, casting="unsafe")
    except FileNotFoundError:
        raise DataError(f"{file} does not exist; MARS needs its folder info") from None
    except Exception as error:  # SciPy raises a wide range of types on damaged files.
        raise DataError(
            f"{file} cannot be read as a MATLAB file with {name} ({type(error).__name__})"
        ) from error
