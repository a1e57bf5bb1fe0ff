"""The protocol of a data set reader, and what a reader may use.

A reader is a function of a folder that returns an `ImageSet`. `load` finds it by name: the built-in
ones are listed in `fastreid_al.plugins`, those of other packages are entry points of the group
`fastreid_al.datasets`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from ..config import SyntheticConfig
from .records import ImageSet


class SetKeys(NamedTuple):
    """Keys of the settings that choose a set, by which error messages name them."""

    name: str = "dataset"
    root: str = "data_root"
    synthetic: str = "synthetic"


TARGET_KEYS = SetKeys()
SOURCE_KEYS = SetKeys("source", "source_root", "adaptation.synthetic")


@dataclass(frozen=True)
class ReadOptions:
    """What a reader may use in addition to the folder; most readers use nothing of it.

    Args:
        validation: Train on the validation images too, where the set has some.
        synthetic: Size and seed of the synthetic set.
        on_progress: Called with (images done, images in all) during slow work.
        keys: Keys of the settings that chose the set, for error messages.
        camera_pattern: Regular expression by which "folder" reads the camera from a file's name;
            usual spellings when not given.
        identity_pattern: Regular expression by which "folder" reads the identity from a file's
            name.
        frames: Images of each tracklet that "mars" reads, at equal distances.
    """

    validation: bool = True
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    on_progress: Callable[[int, int], None] | None = None
    keys: SetKeys = TARGET_KEYS
    camera_pattern: str | None = None
    identity_pattern: str | None = None
    frames: int = 4


class DatasetReader(Protocol):
    """Reads an image set."""

    def __call__(self, root: Path, options: ReadOptions) -> ImageSet:
        """Read the set.

        Args:
            root: The data root or the set's own folder, as the user named it; it may not exist
                (`locate.existing_folder` reports that).
            options: Further settings.

        Raises:
            DataError: The set cannot be read; the message says why and what to do.
        """
        ...
