"""The images that a user names for a command: a folder, one image, a list of paths, a manifest."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import DataError
from .manifest import read_lines
from .names import pattern_of, read_cameras
from .records import UNKNOWN, Record
from .text import read_text
from .walk import find_images, relative

_LIST = ".txt"
_TABLES = (".csv", ".tsv")


class Listing(NamedTuple):
    """Images in the order in which they were named.

    Some 500 bytes an image: 16 MB at n = 32,621, 500 MB at 1e6.

    Args:
        root: The folder, or that of the file.
        records: The images; paths that a list or a manifest names may not exist.
        names: Their paths relative to `root` with slashes, where they lie below it.
        passed_over: Files and folders that are not used, by reason.
    """

    root: Path
    records: list[Record]
    names: list[str]
    passed_over: Mapping[str, Sequence[Path]] = {}

    @property
    def has_identities(self) -> bool:
        """Whether the identity of any image is known."""
        return any(record.identity != UNKNOWN for record in self.records)


def list_images(path: Path, key: str, camera_pattern: str | None = None) -> Listing:
    """List the images that a path names.

    A folder's images are those at any depth, in sorted order. A list is a text file with one path
    a line; relative paths begin at its folder, an image may be listed twice, and empty lines are
    left out. A manifest is a CSV file as for `dataset` manifest, whose lines keep their order.
    Cameras are read from the names of files, or from the column of a manifest.

    Args:
        path: A folder, an image, a list (.txt) or a manifest (.csv or .tsv).
        key: Key of the setting that names it, for messages.
        camera_pattern: Regular expression that finds the camera in a file's name.

    Raises:
        DataError: It does not exist, holds no image, or the manifest cannot be read.
        SettingError: The pattern is no regular expression, or finds nothing in any name.
    """
    pattern = pattern_of("camera_pattern", camera_pattern)
    suffix = path.suffix.lower()
    if os.path.isdir(path):
        found = find_images(path)
        if not found.images:
            raise DataError(f"{path} holds no image at any depth; name another folder with `{key}`")
        cameras = read_cameras(found.images, path, pattern)
        return _listing(path, found.images, cameras)._replace(passed_over=found.passed_over)
    if not os.path.exists(path):
        raise DataError(
            f"{path} does not exist; `{key}` is a folder, an image, a list (.txt) or a manifest "
            "(.csv)"
        )
    if not os.path.isfile(path):
        # A pipe could be read for ever.
        raise DataError(f"{path} is neither a file nor a folder; name another with `{key}`")
    if suffix in _TABLES:
        records = read_lines(path)
        if not records:
            raise DataError(f"{path} lists no image; add a line for each")
        return Listing(path.parent, records, [_name(r.path, path.parent) for r in records])
    paths = _listed(path) if suffix == _LIST else [path]
    absolute = [Path(os.path.abspath(p)) for p in paths]
    root = Path(os.path.commonpath([p.parent for p in absolute]))
    return _listing(path.parent, paths, read_cameras(absolute, root, pattern))


def _listed(file: Path) -> list[Path]:
    """The paths in a list."""
    lines = [line.rstrip("\r") for line in read_text(file).split("\n")]
    paths = [file.parent / os.path.expanduser(line) for line in lines if line.strip()]
    if not paths:
        raise DataError(f"{file} lists no image; write one path a line")
    if any("\0" in os.fspath(path) for path in paths):
        raise DataError(f"{file} is not a list of paths: it holds zero characters")
    return paths


def _listing(root: Path, paths: Sequence[Path], cameras: Sequence[int]) -> Listing:
    records = [Record(path, UNKNOWN, camera) for path, camera in zip(paths, cameras, strict=True)]
    return Listing(root, records, [_name(path, root) for path in paths])


def _name(path: Path, root: Path) -> str:
    return relative(path, root).as_posix()
