"""The tiny image set, drawn once a session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import SYNTHETIC, tiny_config

from fastreid_al.config import RunConfig
from fastreid_al.data.synthetic import cached_synthetic


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTREID_AL_CACHE", str(tmp_path_factory.mktemp("cache")))
        cached_synthetic(SYNTHETIC)
        yield


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A run of its own."""
    return tiny_config(tmp_path / "run")
