"""The results of a run, from which a page is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError
from torch import Tensor

from ..config import RunConfig
from ..data import ImageSet
from ..data.records import UNKNOWN, Record
from ..errors import printable
from ..settings import flatten, settings_of
from .queries import Ranked
from .questions import Answers


@dataclass(frozen=True)
class RunResults:
    """What is known of a run. What could not be had is None, and `problems` says why.

    Args:
        name: Name of the run in the page.
        config: Its configuration.
        history: One record an epoch, as in metrics.jsonl.
        versions: Versions of the software by name.
        answers: The answers of its ledger.
        images: Its image set.
        records: The n training images that could be read.
        features: (n, D) float32, their unit-norm features under the last weights.
        labels: (n,) int64 on the CPU, the cluster of each, -1 outside every cluster.
        ranked: The rankings of its queries.
        problems: Lines that say what is missing and why.
    """

    name: str
    config: RunConfig
    history: Sequence[Mapping[str, Any]]
    versions: Mapping[str, str]
    answers: Answers | None = None
    images: ImageSet | None = None
    records: Sequence[Record] = ()
    features: Tensor | None = None
    labels: Tensor | None = None
    ranked: Ranked | None = None
    problems: Sequence[str] = field(default_factory=tuple)

    @property
    def identities_known(self) -> bool:
        """Whether the true identity of every training image is known."""
        return bool(self.records) and all(r.identity != UNKNOWN for r in self.records)

    def settings(self, anonymise: bool = False) -> dict[str, str]:
        """Return the settings by key as a page shows them, without passwords.

        Args:
            anonymise: Whether only the last part of a path is shown.
        """
        return _shown_settings(self.config, anonymise)


def default_settings() -> dict[str, str]:
    """Return the default of every setting of a run by key, as a page shows it."""
    return _shown_settings(RunConfig(), anonymise=False)


def _shown_settings(config: RunConfig, anonymise: bool) -> dict[str, str]:
    known = settings_of(RunConfig)
    shown = {}
    for key, value in flatten(config).items():
        is_path = key in known and known[key].path and isinstance(value, str)
        shown[key] = _shown(value, is_path and anonymise)
    return shown


def _shown(value: Any, name_only: bool) -> str:
    """A value as text; of a URL without its password, of a path its last part where asked for."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    text = str(list(value)) if isinstance(value, tuple) else str(value)
    if "://" in text:
        try:
            return printable(make_url(text).render_as_string(hide_password=True))
        except (ArgumentError, ValueError):
            return "a URL"
    return printable(Path(text).name if name_only else text)
