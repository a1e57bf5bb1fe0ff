"""Fixtures of tests that train: the tiny image set, rendered once a session, and a run on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fastreid_al.config import RunConfig
from fastreid_al.runs import train
from fastreid_al.synthetic.dataset import cached_synthetic
from tests.support.tiny import SYNTHETIC, tiny_config


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTREID_AL_CACHE", str(tmp_path_factory.mktemp("cache")))
        cached_synthetic(SYNTHETIC)
        yield


@pytest.fixture(autouse=True)
def _no_figure(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the figure, which takes longer than the training, except in tests of it."""
    if "figure" not in request.node.name:
        monkeypatch.setattr(train, "draw_curves", lambda *_: None)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A run in a folder of its own."""
    return tiny_config(tmp_path / "run")
