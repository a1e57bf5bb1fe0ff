"""Fixtures of tests that train."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from fastreid_al.config import RunConfig
from fastreid_al.synthetic.dataset import cached_synthetic
from tests.support.run_fixtures import _cache, _no_figure, config
from tests.support.source_runs import SOURCE, adapted

__all__ = ["_cache", "_no_figure", "config"]


@pytest.fixture
def short(config: RunConfig) -> RunConfig:
    """One epoch of one batch."""
    config = adapted(config)
    return replace(config, epochs=1, batch=replace(config.batch, iterations=1))


@pytest.fixture
def copied(short: RunConfig, tmp_path: Path) -> tuple[RunConfig, Path]:
    """A source on disk, copied so that it can be damaged, and its training images."""
    shutil.copytree(cached_synthetic(SOURCE), tmp_path / "source" / "MSMT17_V1")
    return replace(
        short, source="msmt17", source_root=str(tmp_path / "source")
    ), tmp_path / "source/MSMT17_V1/train"
