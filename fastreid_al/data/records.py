"""What an image set is: records of (path, identity, camera) in three splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

UNKNOWN = -1
#: Folder of CamStyle's copies below a set's own folder.
STYLE_COPIES = "bounding_box_train_camstyle"
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})


class Record(NamedTuple):
    """One image. `identity` is -1 for junk or when unknown, `camera` is -1 when unknown."""

    path: Path
    identity: int
    camera: int


class SplitCounts(NamedTuple):
    """Images, identities (junk left out) and cameras of a split."""

    images: int
    identities: int
    cameras: int


@dataclass(frozen=True)
class ImageSet:
    """An image set on disk.

    Args:
        name: Its name, one of `fastreid_al.config.Dataset`.
        root: The set's own folder; record paths lie below it.
        train: Training images. Identities are numbered 0, 1, ... without gaps, the same on every machine.
        query: Query images. Test identities never collide with training identities.
        gallery: Gallery images, junk (identity -1) included.
    """

    name: str
    root: Path
    train: list[Record]
    query: list[Record]
    gallery: list[Record]

    @property
    def splits(self) -> dict[str, list[Record]]:
        """The three splits by name."""
        return {"train": self.train, "query": self.query, "gallery": self.gallery}


def count(records: Sequence[Record]) -> SplitCounts:
    """Count images, identities and cameras."""
    identities = {r.identity for r in records} - {UNKNOWN}
    cameras = {r.camera for r in records} - {UNKNOWN}
    return SplitCounts(len(records), len(identities), len(cameras))


def renumber(records: Sequence[Record]) -> list[Record]:
    """Number the identities 0, 1, ... in ascending order of their old numbers; unknown stays unknown."""
    order = {
        identity: new
        for new, identity in enumerate(sorted({r.identity for r in records} - {UNKNOWN}))
    }
    return [r._replace(identity=order.get(r.identity, UNKNOWN)) for r in records]


def keep_test_apart(images: ImageSet) -> ImageSet:
    """Shift test identities past the training identities, so that no number means two people; junk stays -1."""
    shift = 1 + max((r.identity for r in images.train), default=UNKNOWN)

    def shifted(records: list[Record]) -> list[Record]:
        return [r._replace(identity=r.identity + shift) if r.identity >= 0 else r for r in records]

    return ImageSet(
        images.name, images.root, images.train, shifted(images.query), shifted(images.gallery)
    )
