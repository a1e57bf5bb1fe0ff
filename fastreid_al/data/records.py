"""Records of an image set: path, identity and camera of each image, in three splits."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

#: Identity of junk images and of images without a label; camera of images whose camera is unknown.
UNKNOWN = -1
#: Folder of CamStyle's copies, below a set's own folder.
STYLE_COPIES = "bounding_box_train_camstyle"


class Record(NamedTuple):
    """One image.

    Args:
        path: Its file.
        identity: -1 for junk or when unknown.
        camera: -1 when unknown.
        caption: Shown with the image in a question, such as its time and track.
        track: Number of its track, -1 when unknown. Images of one track and one camera show the
            same identity.
    """

    path: Path
    identity: int
    camera: int
    caption: str = ""
    track: int = UNKNOWN


class SplitCounts(NamedTuple):
    """Numbers of images, identities (without junk) and cameras of a split."""

    images: int
    identities: int
    cameras: int


@dataclass(frozen=True)
class ImageSet:
    """An image set on disk.

    Args:
        name: Name of the set.
        root: The set's own folder; the records' paths lie below it.
        train: Training images. Identities are numbered 0, 1, ... without gaps, the same on every
            machine (`renumber` does that); -1 where unlabelled.
        query: Query images. Test identities differ from all training identities (`keep_test_apart`
            does that).
        gallery: Gallery images, junk (identity -1) included.
        published: Published counts by split; `describe` warns where the set on disk differs.
        passed_over: Files and folders of the set that are not used, by reason.
        outside: Links that lead out of the set's folder and are followed.
        has_cameras: Whether images of the set have a camera; `describe` warns where it is unknown.
    """

    name: str
    root: Path
    train: list[Record]
    query: list[Record]
    gallery: list[Record]
    published: Mapping[str, SplitCounts] = field(default_factory=dict)
    passed_over: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    outside: Sequence[Path] = ()
    has_cameras: bool = True

    @property
    def splits(self) -> dict[str, list[Record]]:
        """The three splits by name."""
        return {"train": self.train, "query": self.query, "gallery": self.gallery}


def count(records: Sequence[Record]) -> SplitCounts:
    """Count images, identities and cameras; junk and unknown cameras are not counted."""
    identities = {r.identity for r in records} - {UNKNOWN}
    cameras = {r.camera for r in records} - {UNKNOWN}
    return SplitCounts(len(records), len(identities), len(cameras))


def track_numbers(records: Sequence[Record]) -> list[int] | None:
    """Number the tracks of images 0, 1, ... in the order of their first images.

    A track lies within one camera: the same number under two cameras means two tracks. An image
    without a known camera has none, because programs number the tracks of each camera anew.

    Returns:
        The number of each image's track, -1 for an image without one; None where no track has two
        images.
    """
    keys = [(r.camera, r.track) for r in records]
    known = [key for key in keys if UNKNOWN not in key]
    number = {key: at for at, key in enumerate(dict.fromkeys(known))}
    if len(number) == len(known):
        return None
    return [number.get(key, UNKNOWN) for key in keys]


def renumber(records: Sequence[Record]) -> list[Record]:
    """Number the identities 0, 1, ... in ascending order of their old numbers; -1 stays -1."""
    identities = sorted({r.identity for r in records} - {UNKNOWN})
    new_number = {identity: number for number, identity in enumerate(identities)}
    return [r._replace(identity=new_number.get(r.identity, UNKNOWN)) for r in records]


def keep_test_apart(images: ImageSet) -> ImageSet:
    """Shift test identities past the training identities, so that no number means two people.

    Junk keeps the identity -1.
    """
    shift = 1 + max((r.identity for r in images.train), default=UNKNOWN)
    return replace(
        images, query=_shifted(images.query, shift), gallery=_shifted(images.gallery, shift)
    )


def _shifted(records: Sequence[Record], shift: int) -> list[Record]:
    shifted = []
    for record in records:
        if record.identity >= 0:
            record = record._replace(identity=record.identity + shift)
        shifted.append(record)
    return shifted


def join_sources(sets: Sequence[ImageSet]) -> ImageSet:
    """Join the training images of labelled sets into one set.

    People and cameras of different sets are different ones. A single set is returned as it is.

    Args:
        sets: One or more sets.
    """
    if len(sets) == 1:
        return sets[0]
    train: list[Record] = []
    passed_over: dict[str, list[Path]] = {}
    for images in sets:
        identity = 1 + max((record.identity for record in train), default=UNKNOWN)
        camera = 1 + max((record.camera for record in train), default=UNKNOWN)
        for record in images.train:
            known = record.camera != UNKNOWN
            record = record._replace(camera=record.camera + camera if known else UNKNOWN)
            train += _shifted([record], identity)
        for reason, paths in images.passed_over.items():
            passed_over.setdefault(reason, []).extend(paths)
    roots = [str(images.root.absolute()) for images in sets]
    return ImageSet(
        "+".join(images.name for images in sets),
        Path(os.path.commonpath(roots)),
        [record._replace(path=record.path.absolute()) for record in train],
        [],
        [],
        passed_over=passed_over,
        outside=[path for images in sets for path in images.outside],
    )
