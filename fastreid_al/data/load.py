"""Read an image set by its name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from .. import plugins
from ..config import SyntheticConfig
from ..errors import one_line
from .reader import TARGET_KEYS, DatasetReader, ReadOptions, SetKeys
from .records import UNKNOWN, ImageSet, count
from .walk import passed_over_lines


def load(
    name: str | DatasetReader,
    root: str | Path = "data",
    *,
    validation: bool = True,
    synthetic: SyntheticConfig | None = None,
    verbose: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
    keys: SetKeys = TARGET_KEYS,
    camera_pattern: str | None = None,
    identity_pattern: str | None = None,
    frames: int = 4,
) -> ImageSet:
    """Read an image set.

    Args:
        name: A name of `plugins.BUILT_IN`, such as market1501, msmt17, folder, manifest or
            synthetic, the name of an entry point of the group `fastreid_al.datasets`, or a reader
            itself.
        root: The data root or the set's own folder; for manifest its CSV file. The synthetic set
            does not use it: it lies in the user's cache and is rendered there at the first use.
        validation: MSMT17 and the synthetic set: train on train + val.
        synthetic: Size and seed of the synthetic set.
        verbose: Print the counts of images, identities and cameras, and warn where they differ from
            the published ones.
        on_progress: Called with (images rendered, images in all) while the synthetic set is
            rendered.
        keys: Keys of the settings that name the set, for error messages.
        camera_pattern: folder: regular expression that finds the camera in a file's name.
        identity_pattern: folder: regular expression that finds the identity in a file's name.
        frames: mars: images of each tracklet.

    Returns:
        The set, with `train`, `query` and `gallery`: lists of records (path, identity, camera).

    Raises:
        SettingError: No set has this name; the message has the nearest one.
        DataError: A folder or image is missing; the message says what was looked for, where, and
            what is nearest.
    """
    if isinstance(name, str):
        reader: DatasetReader = plugins.load(plugins.DATASETS, name, keys.name)
    else:
        reader = name
    options = ReadOptions(
        validation,
        synthetic or SyntheticConfig(),
        on_progress,
        keys,
        camera_pattern,
        identity_pattern,
        frames,
    )
    images = reader(Path(os.path.expanduser(root)), options)
    if verbose:
        print("\n".join(map(one_line, describe(images))))
    return images


def describe(images: ImageSet) -> list[str]:
    """Describe a set in lines: counts of each split, and a warning where the published differ."""
    lines = [f"{images.name} in {images.root}"]
    for split, records in images.splits.items():
        counts = count(records)
        lines.append(
            f"  {split:8}{_column(counts.images, 7, 'image', 'images')} "
            f"{_column(counts.identities, 6, 'identity', 'identities')} "
            f"{_column(counts.cameras, 3, 'camera', 'cameras')}".rstrip()
        )
        published = images.published.get(split)
        if published and counts != published:
            lines.append(
                f"  warning: {split} is not the published set of {published.images:,} images, "
                f"{published.identities:,} identities, {published.cameras} cameras"
            )
    lines += [f"  {line}" for line in _remarks(images)]
    return lines


def _column(count: int, width: int, one: str, many: str) -> str:
    """A number, right-aligned, and what it counts, as wide for one as for many."""
    return f"{count:>{width},} {one if count == 1 else many:<{len(many)}}"


def _remarks(images: ImageSet) -> Iterator[str]:
    """Describe what is not read, links that are followed, and cameras that are unknown."""
    yield from passed_over_lines(images.passed_over, images.root)
    if images.outside:
        yield (
            f"warning: {len(images.outside):,} links lead out of the folder and are followed "
            f"(first: {images.outside[0]})"
        )
    test = [*images.query, *images.gallery]
    unknown = sum(record.camera == UNKNOWN for record in test)
    if unknown and images.has_cameras:
        yield (
            f"warning: the camera of {unknown:,} of {len(test):,} test images is unknown, so that "
            "matches of the same camera count in the scores; `camera_pattern` reads cameras from "
            "the names of a folder, and a manifest has a column for them"
        )
