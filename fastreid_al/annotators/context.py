"""What an annotator that is chosen by name is made from, and its lookup."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .. import plugins
from ..answers.ledger import ImageKeys
from ..answers.question import AnyAnnotator
from ..config import RunConfig
from ..data.records import Record


@dataclass(frozen=True)
class AnnotatorContext:
    """The run that an annotator answers for.

    Args:
        config: Configuration of the run.
        records: The training images by row: path, camera, and identity where it is known.
        keys: Names and digests of the training images, by which a ledger knows them.
        folder: The run folder, where the annotator may write files.
    """

    config: RunConfig
    records: Sequence[Record]
    keys: ImageKeys
    folder: Path


class AnnotatorFactory(Protocol):
    """Makes an annotator for a run; a class whose constructor takes the context is one."""

    def __call__(self, context: AnnotatorContext, /) -> AnyAnnotator:
        """Return the annotator of a run."""


def load_annotator(name: str) -> AnnotatorFactory:
    """Return what makes the annotator of a name.

    Raises:
        SettingError: No annotator has this name.
    """
    return plugins.load(plugins.ANNOTATORS, name, "annotator")
