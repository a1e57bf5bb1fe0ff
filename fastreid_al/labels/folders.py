"""Folders of images named by identity: a folder for each, or Market-1501's layout."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from ..data import ImageSet, Record
from ..data.formats import HEAD, format_of
from ..data.market import FOLDERS
from ..data.records import UNKNOWN
from ..data.walk import relative
from ..errors import UserError, printable
from ..files import copy_file, create_file, link_file, make_folder, replacing_folder
from .table import UNREAD, LabelTable, quoted

FolderForm = Literal["imagefolder", "market1501"]

#: Says where each file of an export came from. A folder is only replaced where it holds this file.
SOURCES_FILE = "files.csv"
_HEADER = "file,path"
_PREFIX = ".fastreid_al-"
#: The suffix of a file by its content, where it is not the name of the format.
_SUFFIXES = {"JPEG": "jpg", "TIFF": "tif", "JPEG2000": "jp2"}
#: Digits of an identity and of an image in a name, at least.
_IDENTITY_DIGITS = 4
_IMAGE_DIGITS = 6


class Placed(NamedTuple):
    """A file of an export.

    Args:
        source: The image.
        folder: Folder below the export's.
        name: Name without a suffix.
    """

    source: Path
    folder: str
    name: str


def check_folder(out: Path) -> None:
    """Refuse to replace what an export did not write.

    Raises:
        UserError: It is no folder, or holds files that no export has listed there.
    """
    if not os.path.lexists(out):
        return
    if not os.path.isdir(out) or os.path.islink(out):
        raise UserError(f"{printable(out)} is not a folder; name another with `out`")
    listed = _listed_files(out)
    for folder, _, names in os.walk(out):
        for name in names:
            path = os.path.relpath(os.path.join(folder, name), out)
            if Path(path).as_posix() not in listed:
                raise UserError(
                    f"{printable(out)} holds {printable(path)}, which no export wrote, so it is "
                    "not replaced: name another folder with `out`, or move the file"
                )


def _listed_files(folder: Path) -> set[str]:
    """The files below a folder that an export wrote; none where it holds no list of them."""
    try:
        content = (folder / SOURCES_FILE).read_bytes().decode("utf-8", "surrogateescape")
        rows = list(csv.reader(io.StringIO(content, newline="")))
    except (OSError, csv.Error):
        return set()
    is_list = bool(rows) and ",".join(rows[0]) == _HEADER
    return {SOURCES_FILE, *(row[0] for row in rows[1:] if row)} if is_list else set()


def write_folders(
    table: LabelTable,
    images: ImageSet,
    out: Path,
    form: FolderForm,
    link: bool,
    on_progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write the images of a set as folders, whole or not at all.

    A file keeps its bytes, and gets the suffix of its format. With "imagefolder" the images of
    identity 7 lie in `0007`, as `c3_000012.jpg` for row 12 of the table and camera 3, or as
    `000012.jpg` where the camera is unknown. With "market1501" they lie in `bounding_box_train`, as
    `0007_c3s1_000012_00.jpg`; see `market_files`. `files.csv` has the path of each file in the set.

    Args:
        table: The identities of the set's training images.
        images: The set.
        out: The folder. One that exists is replaced.
        form: The layout.
        link: Make symbolic links in place of copies.
        on_progress: Called with (files written, files in all).

    Returns:
        The number of files.

    Raises:
        UserError: An image cannot be read, or the folder cannot be written.
    """
    check_folder(out)
    files = identity_files if form == "imagefolder" else market_files
    placed = list(files(table, images))
    if not placed:
        raise UserError("no image has an identity: there is nothing to write")
    at = out
    try:
        with replacing_folder(out, _PREFIX) as folder:
            for name in sorted({file.folder for file in placed}):
                make_folder(folder / name)
            lines = [_HEADER]
            for number, file in enumerate(placed, 1):
                at = file.source
                target = f"{file.folder}/{file.name}.{suffix_of(file.source)}"
                (link_file if link else copy_file)(file.source.absolute(), folder / target)
                lines.append(f"{target},{quoted(_path_in(images, file.source))}")
                if on_progress is not None:
                    on_progress(number, len(placed))
            at = out
            _write_lines(folder / SOURCES_FILE, lines)
    except OSError as error:
        what = "write" if at == out else "copy"
        raise UserError(
            f"could not {what} {printable(at)} ({error.strerror}); {printable(out)} is unchanged"
        ) from error
    return len(placed)


def _path_in(images: ImageSet, path: Path) -> str:
    return relative(path, images.root).as_posix()


def suffix_of(path: Path) -> str:
    """The suffix of an image's format by its content, without a dot.

    Raises:
        OSError: It cannot be read.
    """
    with open(path, "rb", buffering=0) as file:
        name = format_of(file.read(HEAD))
    if name is None:
        return path.suffix[1:].lower() or "jpg"
    return _SUFFIXES.get(name, name.lower())


def identity_files(table: LabelTable, images: ImageSet) -> Iterator[Placed]:
    """The files of a layout with a folder for each identity; images without one are left out."""
    digits = _digits(table.identities, _IDENTITY_DIGITS)
    image_digits = _digits(np.array([len(table)]), _IMAGE_DIGITS)
    for row, record in enumerate(images.train):
        identity = int(table.identities[row])
        if identity == UNKNOWN:
            continue
        camera = "" if record.camera == UNKNOWN else f"c{record.camera}_"
        yield Placed(record.path, f"{identity:0{digits}d}", f"{camera}{row:0{image_digits}d}")


def market_files(table: LabelTable, images: ImageSet) -> Iterator[Placed]:
    """Name the files of Market-1501's layout.

    Training images with an identity are in `bounding_box_train`. Images without one are junk, with
    the identity -1, in `bounding_box_test`; images that could not be read are left out. Query and
    gallery images of the set are copied; their identities are numbered after those of training.
    Cameras keep their numbers, all one higher where there is a camera 0; an unknown camera is 0.

    Args:
        table: The identities of the set's training images.
        images: The set.

    Yields:
        The files.
    """
    cameras = [r.camera for records in images.splits.values() for r in records]
    first = 1 if 0 in cameras else 0
    shift = int(table.identities.max(initial=UNKNOWN)) + 1
    test = _test_identities(images, shift)
    digits = _digits(np.array([shift, *test.values()]), _IDENTITY_DIGITS)
    number = 0

    def place(record: Record, split: str, identity: int) -> Placed:
        nonlocal number
        number += 1
        camera = 0 if record.camera == UNKNOWN else record.camera + first
        shown = "-1" if identity == UNKNOWN else f"{identity:0{digits}d}"
        name = f"{shown}_c{camera}s1_{number:0{_IMAGE_DIGITS}d}_00"
        return Placed(record.path, FOLDERS[split], name)

    for row, record in enumerate(images.train):
        identity = int(table.identities[row])
        if identity != UNKNOWN:
            yield place(record, "train", identity)
        elif table.sources[row] != UNREAD:
            yield place(record, "gallery", UNKNOWN)
    for split in ("query", "gallery"):
        for record in images.splits[split]:
            yield place(record, split, test.get(record.identity, UNKNOWN))


def _test_identities(images: ImageSet, first: int) -> dict[int, int]:
    """New numbers of the identities of query and gallery, from a first one on."""
    known = {r.identity for r in (*images.query, *images.gallery)} - {UNKNOWN}
    return {identity: first + number for number, identity in enumerate(sorted(known))}


def _digits(numbers: np.ndarray, least: int) -> int:
    return max(least, len(str(int(numbers.max(initial=0)))))


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    content = ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")
    with create_file(path) as file:
        file.write(content)
