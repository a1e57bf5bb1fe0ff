"""Records of an image set: path, identity and camera of each image, in three splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

#: Identity of junk images and of images without a label; camera of images whose camera is unknown.
UNKNOWN = -1
#: Folder of CamStyle's copies, below a set's own folder.
STYLE_COPIES = "bounding_box_train_camstyle"
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})


class Record(NamedTuple):
    """One image. `identity` is -1 for junk or when unknown, `camera` is -1 when unknown."""

    path: Path
    identity: int
    camera: int


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
    """

    name: str
    root: Path
    train: list[Record]
    query: list[Record]
    gallery: list[Record]
    published: Mapping[str, SplitCounts] = field(default_factory=dict)

    @property
    def splits(self) -> dict[str, list[Record]]:
        """The three splits by name."""
        return {"train": self.train, "query": self.query, "gallery": self.gallery}


def count(records: Sequence[Record]) -> SplitCounts:
    """Count images, identities and cameras; junk and unknown cameras are not counted."""
    identities = {r.identity for r in records} - {UNKNOWN}
    cameras = {r.camera for r in records} - {UNKNOWN}
    return SplitCounts(len(records), len(identities), len(cameras))


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
