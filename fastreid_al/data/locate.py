"""Find the folder of an image set, or report what was looked for, where, and what is nearest."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ..errors import DataError

#: Suffixes of tables, which `dataset` manifest reads.
TABLES = (".csv", ".tsv", ".txt")
#: Folders that are searched for the nearest match, and how deep below the root.
_SEARCHED = 2000
_DEPTH = 3


class SetLayout(NamedTuple):
    """Where a set lies and how it is recognised.

    Args:
        name: Name of the set.
        locations: Folders below a data root in which the set may lie, the likeliest first. The data
            root itself may also be the set's own folder.
        markers: Files or folders of which the set's own folder has at least one.
        expected: The markers in words, for the message.
        own: Markers that no other folder of images has; all markers where empty.
    """

    name: str
    locations: tuple[str, ...]
    markers: tuple[str, ...]
    expected: str
    own: tuple[str, ...] = ()

    def is_in(self, folder: Path) -> bool:
        """Whether a folder has one of the markers."""
        return any((folder / marker).exists() for marker in self.markers)

    def is_surely_in(self, folder: Path) -> bool:
        """Whether a folder has one of the markers that no other folder of images has."""
        return any((folder / marker).exists() for marker in self.own or self.markers)

    def has_name(self, folder: Path) -> bool:
        """Whether a folder is called as the set's own folder usually is."""
        return folder.name in {Path(location).name for location in self.locations}


def find_set(layout: SetLayout, root: Path, key: str = "data_root") -> Path:
    """Find a set's own folder.

    Args:
        layout: What to look for.
        root: The data root or the set's own folder.
        key: Key of the setting that names the root, for the message.

    Raises:
        DataError: The root does not exist or does not hold the set.
    """
    root = existing_folder(root, key)
    candidates = [root / location for location in layout.locations]
    candidates.append(root)
    for candidate in candidates:
        if layout.is_in(candidate):
            return candidate
    raise DataError(
        f"no {layout.name} found: looked for {layout.expected} in {root} and below it in "
        f"{', '.join(layout.locations)}; {_nearest(layout, root, key)}"
    )


def existing_folder(root: Path, key: str = "data_root") -> Path:
    """Return a folder if it exists.

    Args:
        root: The folder.
        key: Key of the setting that names it, for the message.

    Raises:
        DataError: It does not exist, or is a file; the message names the nearest folder.
    """
    if os.path.isdir(root):
        return root
    if os.path.exists(root):
        if root.suffix.lower() in TABLES:
            advice = "a table of images is read with `dataset` manifest"
        else:
            advice = "name the folder that holds the images (unpack it first if it is an archive)"
        raise DataError(f"{root} is a file; {advice}")
    parent = next((p for p in root.absolute().parents if os.path.isdir(p)), Path("/"))
    names = sorted(p.name for p in parent.iterdir())
    near = difflib.get_close_matches(root.name, names, 1, cutoff=0.5)
    if near:
        contents = f"nearest there: {parent / near[0]}"
    else:
        contents = f"it holds {', '.join(names[:5]) or 'nothing'}"
    raise DataError(
        f"folder {root} does not exist; {parent} does, {contents}. Name the folder with `{key}`"
    )


def _nearest(layout: SetLayout, root: Path, key: str) -> str:
    """Describe what lies at or below the root that looks most like the set."""
    for folder in islice(_folders(root, _DEPTH), _SEARCHED):
        if layout.is_in(folder):
            return f"nearest: {folder}, which holds one of them. Name it with `{key}`"
    names = sorted(p.name for p in root.iterdir())
    if not names:
        return f"{root} holds nothing"
    more = ", ..." if len(names) > 5 else ""
    return f"{root} holds {', '.join(names[:5])}{more}"


def _folders(root: Path, depth: int) -> Iterator[Path]:
    for child in sorted(p for p in root.iterdir() if p.is_dir()):
        yield child
        if depth > 1:
            yield from _folders(child, depth - 1)
