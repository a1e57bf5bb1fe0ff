"""Reads cameras and identities out of the names of files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import SettingError, printable
from .records import UNKNOWN

#: Usual spellings of a camera in a file's name, the most usual first: 0002_c1s1_000451_03 (Market,
#: Duke, VeRi), c1_0002, 0002-c1, 0001C1T0001F001 (MARS), 0000_000_01_0303morning (MSMT17), cam1,
#: camera_2, cam_a (VIPeR).
_CAMERA_IN_NAME = re.compile(
    r"_c(?P<a>\d{1,9})"
    r"|(?:^|[-. ])c(?P<b>\d+)(?=[-_. ]|$)"
    r"|^\d{4}C(?P<c>\d+)T\d+F\d+"
    r"|^\d{4}_\d{3}_(?P<d>\d\d)_\d{4}(?:morning|noon|afternoon)"
    r"|(?<![a-z])cam(?:era)?[-_ ]?(?P<e>\d+)"
    r"|(?<![a-z])cam(?:era)?[-_ ](?P<f>[a-z])(?![a-z])",
    re.IGNORECASE,
)
#: A number with so many digits does not fit into int64.
_DIGITS = 18
#: The same in a folder's name, where only the whole word is clear enough.
_CAMERA_IN_FOLDER = re.compile(r"^c(?:am(?:era)?)?[-_ ]?(\d+|(?<=[mra_ -])[a-z])$", re.IGNORECASE)


def pattern_of(key: str, pattern: str | None) -> re.Pattern[str] | None:
    """Compile a regular expression of a setting.

    Args:
        key: Key of the setting.
        pattern: Its value; None is no pattern.

    Raises:
        SettingError: It is no regular expression.
    """
    if pattern is None:
        return None
    try:
        return re.compile(pattern)
    except re.error as error:
        expected = "a regular expression, such as cam(\\d+)_"
        raise SettingError(key, pattern, expected, f"{error.msg} at column {error.pos}") from error


def read_cameras(
    paths: Sequence[Path], root: Path, pattern: re.Pattern[str] | None = None
) -> list[int]:
    """Read the camera of each image out of its name.

    Args:
        paths: Images below `root`.
        root: Names are taken relative to this folder.
        pattern: Searched in the name with its folders, separated by slashes; its group `camera`,
            or its first group, or the whole match is the camera. Usual spellings when not given.

    Returns:
        The number in the name; where cameras are not numbers, their places in sorted order. -1
        where the name has no camera.

    Raises:
        SettingError: The pattern finds a camera in no name.
    """
    if pattern is not None:
        return number_cameras(_search_all(pattern, "camera", paths, root))
    in_files = [_camera_in_name(path.stem) for path in paths]
    if any(camera is not None for camera in in_files):
        return number_cameras(in_files)
    return number_cameras([_camera_in_folders(path, root) for path in paths])


def read_identities(paths: Sequence[Path], root: Path, pattern: re.Pattern[str]) -> list[str]:
    """Read the identity of each image out of its name; "" where the name has none.

    Args:
        paths: Images below `root`.
        root: Names are taken relative to this folder.
        pattern: Searched in the name with its folders, separated by slashes; its group `identity`,
            or its first group, or the whole match is the identity.

    Raises:
        SettingError: The pattern finds an identity in no name.
    """
    return [name or "" for name in _search_all(pattern, "identity", paths, root)]


def number_names(names: Sequence[str]) -> list[int]:
    """Number names 0, 1, ... in sorted order; "" becomes -1."""
    number = {name: index for index, name in enumerate(sorted(set(names) - {""}))}
    return [number.get(name, UNKNOWN) for name in names]


def _search_all(
    pattern: re.Pattern[str], group: str, paths: Sequence[Path], root: Path
) -> list[str | None]:
    """Search each path relative to `root`; refuse a pattern that finds nothing in any of them."""
    found = [_search(pattern, group, path, root) for path in paths]
    if paths and not any(found):
        raise SettingError(
            f"{group}_pattern",
            pattern.pattern,
            f"a regular expression that finds the {group} in the names of files",
            f"it finds one in 0 of {len(paths):,}, such as "
            f"{printable(paths[0].relative_to(root).as_posix())}",
        )
    return found


def _search(pattern: re.Pattern[str], group: str, path: Path, root: Path) -> str | None:
    match = pattern.search(path.relative_to(root).as_posix())
    if match is None:
        return None
    if group in pattern.groupindex:
        return match[group]
    return match[1] if pattern.groups else match[0]


def _camera_in_name(stem: str) -> str | None:
    match = _CAMERA_IN_NAME.search(stem)
    return None if match is None else next(x for x in match.groups() if x is not None)


def _camera_in_folders(path: Path, root: Path) -> str | None:
    for folder in reversed(path.relative_to(root).parts[:-1]):
        match = _CAMERA_IN_FOLDER.match(folder)
        if match is not None:
            return match[1]
    return None


def number_cameras(cameras: Sequence[str | None]) -> list[int]:
    """Number cameras: by their own numbers where all are numbers, else in sorted order.

    None and "" become -1.
    """
    known = {camera for camera in cameras if camera}
    if all(camera.isdecimal() and len(camera) < _DIGITS for camera in known):
        return [int(camera) if camera else UNKNOWN for camera in cameras]
    return number_names([(camera or "").lower() for camera in cameras])
