"""Image sets that a table describes: a CSV file with a line for each image."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from ..errors import DataError
from .names import number_cameras, number_names
from .reader import ReadOptions
from .records import ImageSet, Record, keep_test_apart, renumber
from .text import delimiter_of, read_text

#: Names of the columns, each with those that other programs use.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "path": (
        "path",
        "image_path",
        "file_path",
        "filepath",
        "file_name",
        "filename",
        "file",
        "image",
    ),
    "identity": ("identity", "pid", "person_id", "vehicle_id", "individual_id", "individual"),
    "camera": ("camera", "camera_id", "camid", "cam"),
    "time": ("time", "timestamp", "datetime", "date"),
    "track": ("track", "track_id", "tracklet", "tracklet_id"),
    "frame": ("frame", "frame_id"),
    "split": ("split", "subset"),
    "caption": ("caption",),
}
#: Columns that are shown with an image in a question.
_SHOWN = ("time", "track", "frame")
_SPLITS = ("train", "query", "gallery")
#: Values of `split` that leave an image out.
_UNUSED = ("none", "unused", "ignore", "-")
#: Columns of numbers or names, in which other programs and `ledger export` write -1 for unknown;
#: tables of floating-point columns have -1.0.
_NUMBERED = ("identity", "camera", "track")
_MINUS_ONE = ("-1", "-1.0")
#: A file by its address, or in a table that Label Studio exports (local files).
_URL = re.compile(r"(?:(?:https?://[^/]+)?/data/local-files/\?d=|file://(?=/))(.+)")
#: Lines that a message names.
_NAMED = 3


class _Line(NamedTuple):
    """A line of the table: its number, and the texts of its known columns."""

    number: int
    values: dict[str, str]


def read_manifest(root: Path, options: ReadOptions) -> ImageSet:
    """Read the images that a CSV file lists.

    The first line names the columns: `path`, and any of `identity`, `camera`, `time`, `track`,
    `frame`, `split` and `caption`, in any order; `COLUMNS` has other names that are understood.
    Columns that are not known are not read. Values are separated by commas, semicolons or tabs. A
    relative path begins at the folder of the file. Without a split, or without a value in it, an
    image is for training. Identity, camera and track are unknown where empty or -1. They are
    texts; where all cameras are numbers, the numbers are kept. Images
    with one track and one camera show the same identity.

    Args:
        root: The CSV file.
        options: Only the keys are used.

    Raises:
        DataError: The file cannot be read, has no column `path`, an image is missing or is listed
            twice, or a split is unknown.
    """
    if not os.path.isfile(root):
        what = "is a folder" if os.path.isdir(root) else "does not exist"
        raise DataError(f"{root} {what}, expected a CSV file; name it with `{options.keys.root}`")
    return read_table(root)


def read_table(file: Path, splits: Mapping[str, str] | None = None) -> ImageSet:
    """Read the images that a CSV file lists.

    Args:
        file: The file.
        splits: Other values of the column `split`, each with the split that it means.

    Raises:
        DataError: As for `read_manifest`.
    """
    lines = list(_lines(file))
    known = {split: split for split in _SPLITS} | dict(splits or {})
    used = [line for line in lines if line.values.get("split", "").lower() not in _UNUSED]
    wrong = [x for x in used if x.values.get("split", "").lower() not in ("", *known)]
    if wrong:
        raise DataError(
            f"{file} {_numbers(wrong)}: got split {wrong[0].values['split']!r}, "
            f"expected one of {', '.join(known)} or none"
        )
    records = _records(file, used)
    paths = [record.path for record in records]
    read: dict[str, list[Record]] = {split: [] for split in _SPLITS}
    for line, record in zip(used, records, strict=True):
        read[known[line.values.get("split", "").lower() or "train"]].append(record)
    passed_over = {}
    if len(used) < len(lines):
        left_out = [x for x in lines if x.values.get("split", "").lower() in _UNUSED]
        passed_over["images with split none"] = [_path(file, x) for x in left_out]
    images = ImageSet(
        "manifest",
        _root(file, paths),
        renumber(read["train"]),
        read["query"],
        read["gallery"],
        passed_over=passed_over,
    )
    _check_splits(file, images)
    return keep_test_apart(images)


def read_lines(file: Path) -> list[Record]:
    """Read the images that a CSV file lists, whatever their split, in the order of its lines.

    Args:
        file: The file, as for `read_manifest`; images with split none are left out.

    Raises:
        DataError: As for `read_manifest`, except that splits are not checked.
    """
    lines = _lines(file)
    return _records(file, [x for x in lines if x.values.get("split", "").lower() not in _UNUSED])


def _records(file: Path, lines: Sequence[_Line]) -> list[Record]:
    """The images of some lines."""
    paths = _paths(file, lines)
    identities = number_names([line.values.get("identity", "") for line in lines])
    cameras = number_cameras([line.values.get("camera") for line in lines])
    captions = [_caption(line.values) for line in lines]
    tracks = number_names([line.values.get("track", "") for line in lines])
    columns = paths, identities, cameras, captions, tracks
    return [Record(*of_line) for of_line in zip(*columns, strict=True)]


def _check_splits(file: Path, images: ImageSet) -> None:
    if not any(images.splits.values()):
        raise DataError(f"{file} lists no image; add a line for each")
    if bool(images.query) != bool(images.gallery):
        empty = "query" if not images.query else "gallery"
        raise DataError(f"{file} lists no {empty} image; evaluation needs both query and gallery")
    unknown = sum(record.identity < 0 for record in images.query)
    if unknown:
        raise DataError(f"{file}: {unknown:,} query images have no identity; evaluation needs it")


def _lines(file: Path) -> Iterator[_Line]:
    """The lines of the table, each with the texts of its known columns."""
    text = read_text(file)
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=delimiter_of(text), strict=True)
    try:
        columns: dict[str, int] = {}
        for row in reader:
            if not any(field.strip() for field in row):
                continue
            if not columns:
                columns = _columns(file, row)
                continue
            if len(row) <= columns["path"]:
                raise DataError(f"{file} line {reader.line_num}: {len(row)} values, and no path")
            values = {n: row[i].strip() for n, i in columns.items() if i < len(row)}
            for column in _NUMBERED:
                if values.get(column) in _MINUS_ONE:
                    values[column] = ""
            yield _Line(reader.line_num, values)
    except csv.Error as error:
        raise DataError(f"{file} line {reader.line_num}: {error}") from error


def _columns(file: Path, header: Sequence[str]) -> dict[str, int]:
    """The places of the known columns."""
    names = [name.strip().lower().replace(" ", "_") for name in header]
    columns = {}
    for column, spellings in COLUMNS.items():
        found = [spelling for spelling in spellings if spelling in names]
        if found:
            columns[column] = names.index(found[0])
    if "path" not in columns:
        raise DataError(
            f"{file} has no column path in its first line (columns: "
            f"{', '.join(header[:8])[:200]}); expected one of {', '.join(COLUMNS['path'])}"
        )
    return columns


def _paths(file: Path, lines: Sequence[_Line]) -> list[Path]:
    """The files of the images; refuses missing ones and those that are listed twice."""
    paths = [_path(file, line) for line in lines]
    missing = [line for line, path in zip(lines, paths, strict=True) if not os.path.isfile(path)]
    if missing:
        raise DataError(
            f"{file} {_numbers(missing)}: {missing[0].values['path']!r:.200} does not exist below "
            f"{file.parent}; correct the paths, or set their split to none"
        )
    first: dict[Path, _Line] = {}
    twice = [x for x, path in zip(lines, paths, strict=True) if first.setdefault(path, x) is not x]
    if twice:
        raise DataError(
            f"{file} {_numbers(twice)}: {twice[0].values['path']!r:.200} is listed before; "
            "list each image once"
        )
    return paths


def _path(file: Path, line: _Line) -> Path:
    """The file of an image."""
    name = line.values["path"]
    url = _URL.fullmatch(name)
    if url is not None:
        name = unquote(url[1], errors="surrogateescape")
    if "\0" in name or not name:
        raise DataError(f"{file} line {line.number}: {name!r:.200} is no path")
    path = file.parent / os.path.expanduser(name)
    if not os.path.exists(path) and "\\" in name:
        path = file.parent / name.replace("\\", "/")
    return path.parent.resolve() / path.name if ".." in path.parts else path


def _numbers(lines: Sequence[_Line]) -> str:
    """The numbers of some lines, of which the first few are named."""
    named = ", ".join(str(line.number) for line in lines[:_NAMED])
    if len(lines) == 1:
        return f"line {named}"
    more = f" and {len(lines) - _NAMED:,} more" if len(lines) > _NAMED else ""
    return f"lines {named}{more}"


def _root(file: Path, paths: Sequence[Path]) -> Path:
    """The folder below which the file and all images lie."""
    folders = {str(file.parent.absolute()), *(str(path.parent.absolute()) for path in paths)}
    relative = all(path.is_relative_to(file.parent) for path in paths)
    return file.parent if relative else Path(os.path.commonpath(folders))


def _caption(values: Mapping[str, str]) -> str:
    """What is shown with an image in a question."""
    parts = [values["caption"]] if values.get("caption") else []
    parts += [f"{column} {values[column]}" for column in _SHOWN if values.get(column)]
    return ", ".join(parts)
