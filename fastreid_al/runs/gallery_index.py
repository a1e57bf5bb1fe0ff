"""The stored features of a gallery, which follow the images that are added, changed and removed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..config import EngineConfig
from ..data.listing import Listing
from ..data.pixels import file_digests
from ..engine.console import Reporter
from ..engine.network import Network
from ..errors import DataError, UserError, printable
from ..retrieval.feature_file import (
    FeatureTable,
    FeatureWriter,
    ImageEntry,
    new_feature_file,
    read_table,
)
from .extract import SUFFIX, FileState, add_features
from .feature_stream import describe_features
from .trained import Trained

_COLUMNS = ("cameras", "sizes", "modified")
#: Rows that are copied at a time: 34 MB for D = 2,048.
_ROWS = 4096
#: The latest time that an index holds, in nanoseconds.
_LATEST = 2**63 - 1
_ADVICE = "remove or rename it, or name another file with `index`"


class _Unchanged(Exception):  # noqa: N818
    """The index holds the gallery as it is."""


class _Compared(NamedTuple):
    """The images of a gallery next to those of its index.

    Args:
        kept: Pairs of a row of the index and a row of the gallery, whose content is the same.
        fresh: Rows of the gallery whose features must be extracted.
        changed: How many of these the index has with another content.
        removed: Images of the index that are not in the gallery.
        touched: Whether the time of modification of a kept image is another.
    """

    kept: list[tuple[int, int]]
    fresh: list[int]
    changed: int
    removed: int
    touched: bool


def default_index(run: Path, gallery: Path) -> Path:
    """Return the file of a gallery's index in the folder of a run.

    It is named by the gallery's folder and by a digest of its whole path.
    """
    path = os.path.realpath(gallery)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", printable(os.path.basename(path)))[:60] or "gallery"
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
    return run / f"index-{name}-{digest}{SUFFIX}"


def update_index(
    path: Path,
    listed: Listing,
    trained: Trained,
    network: Network,
    engine: EngineConfig,
    reporter: Reporter,
) -> FeatureTable:
    """Bring the index of a gallery up to date, and read it.

    An image is the same while its name, its size and its time of modification are. Where only the
    time differs its content is compared. Images that are new or changed are extracted, those that
    are gone are left out, and the file is written anew only where something differs.

    Args:
        path: The file of the index, made where it does not exist.
        listed: The images of the gallery.
        trained: How features are computed.
        network: The network as the engine runs it.
        engine: How features are extracted.
        reporter: Shows progress, and prints what has changed.

    Returns:
        The images of the gallery that can be read. Some 700 bytes an image while the index is
        compared, 23 MB at n = 32,621 and 700 MB at 1e6; the features are mapped.

    Raises:
        UserError: The index is of another network, of another gallery or damaged, cannot be
            written, or no image of the gallery can be read.
    """
    about = describe_features(trained, network, engine)
    about["gallery"] = printable(os.path.realpath(listed.root))
    old = _open(path, about)
    states = [_state(record.path) for record in listed.records]
    compared = _compare(old, listed, states)
    if old is not None and len(old) and not compared.kept and about["gallery"] != _gallery(old):
        raise UserError(f"{path} is the index of another gallery, {_gallery(old)}; {_ADVICE}")
    if old is not None and not compared.fresh and not compared.removed and not compared.touched:
        reporter.line(f"{len(old):,} gallery images in {path}")
        return old
    fresh = [listed.records[row] for row in compared.fresh]
    images = Listing(listed.root, fresh, [listed.names[row] for row in compared.fresh])
    fresh_states = [states[row] for row in compared.fresh]
    try:
        with new_feature_file(path, about, _COLUMNS, key="index") as writer:
            args = (writer, trained, network, images, engine, reporter, "gallery", fresh_states)
            added = add_features(*args)
            same = not (added or compared.changed or compared.removed or compared.touched)
            if old is not None and same:
                raise _Unchanged
            if not added and not compared.kept:
                raise DataError(f"{listed.root} holds no readable image: there is no gallery")
            if old is not None:
                _copy(writer, old, listed, states, compared.kept)
            count = writer.end_split()
    except _Unchanged:
        assert old is not None
        reporter.line(f"{len(old):,} gallery images in {path}")
        return old
    reporter.line(
        f"{count:,} gallery images in {path}: {len(compared.kept):,} unchanged, {added:,} new "
        f"or changed, {compared.removed:,} removed"
    )
    table = _open(path, about)
    # Another search may have replaced it since; two searches of one gallery write the same.
    if table is None or _gallery(table) != about["gallery"]:
        raise UserError(f"{path} was replaced by another search; name another file with `index`")
    return table


def _open(path: Path, about: Mapping[str, str]) -> FeatureTable | None:
    """The index as it is stored; None where there is none.

    Raises:
        UserError: It cannot be used for this network.
    """
    if not os.path.lexists(path):
        return None
    try:
        old = read_table(path)
    except DataError as error:
        raise DataError(f"{error}; as an index it cannot be used: {_ADVICE}") from error
    if old.sizes is None or old.modified is None or "gallery" not in old.about:
        raise UserError(f"{path} is a file of features and not an index; {_ADVICE}")
    if old.about.get("model_digest") != about["model_digest"]:
        raise UserError(
            f"{path} is the index of another network, or of other settings of it; {_ADVICE}"
        )
    return old


def _gallery(table: FeatureTable) -> str:
    return table.about["gallery"]


def _state(path: Path) -> FileState:
    """The state of a file; unknown where it cannot be read."""
    with contextlib.suppress(OSError):
        status = os.stat(path)
        # 64 bits end in the year 2262, times of files do not.
        return FileState(status.st_size, min(max(status.st_mtime_ns, -_LATEST), _LATEST))
    return FileState()


def _compare(old: FeatureTable | None, listed: Listing, states: Sequence[FileState]) -> _Compared:
    if old is None:
        return _Compared([], list(range(len(listed.names))), 0, 0, False)
    assert old.sizes is not None and old.modified is not None
    sizes, modified = old.sizes.tolist(), old.modified.tolist()
    row_of = {name: row for row, name in enumerate(old.names)}
    kept, fresh, doubtful = [], [], []
    for row, (name, state) in enumerate(zip(listed.names, states, strict=True)):
        before = row_of.get(name)
        if before is None or sizes[before] != state.size:
            fresh.append(row)
        elif modified[before] == state.modified:
            kept.append((before, row))
        else:
            doubtful.append((before, row))
    digests = file_digests([listed.records[row].path for _, row in doubtful], None)
    touched = False
    for (before, row), digest in zip(doubtful, digests, strict=True):
        if old.entry(before).digest == digest:
            kept.append((before, row))
            touched = True
        else:
            fresh.append(row)
    changed = sum(listed.names[row] in row_of for row in fresh)
    removed = len(old) - len(kept) - changed
    kept.sort(key=lambda rows: rows[1])
    return _Compared(kept, sorted(fresh), changed, removed, touched)


def _copy(
    writer: FeatureWriter,
    old: FeatureTable,
    listed: Listing,
    states: Sequence[FileState],
    kept: Sequence[tuple[int, int]],
) -> None:
    """Write the images of an index whose content is the same."""
    for start in range(0, len(kept), _ROWS):
        part = kept[start : start + _ROWS]
        before = [row for row, _ in part]
        digests = old.digests[before].numpy()
        entries = [
            ImageEntry(
                listed.names[row],
                digests[place].tobytes().hex(),
                listed.records[row].camera,
                -1,
                *states[row],
            )
            for place, (_, row) in enumerate(part)
        ]
        writer.add(old.features[before], entries)
