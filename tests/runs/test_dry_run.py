"""Dry runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastreid_al.config import (
    RunConfig,
)
from fastreid_al.runs import dry_run
from tests.support.source_runs import adapted


def test_dry_run_writes_nothing(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    dry_run(config)
    assert "none was started" in capsys.readouterr().out
    assert not Path(str(config.run_dir)).exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nnct", "loss 0.7 x source + 0.3 x target"),
        ("instance memory", "their identities are classes"),
    ],
)
def test_dry_run_says_what_the_source_is(
    config: RunConfig, name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    dry_run(adapted(config, name))
    printed = capsys.readouterr().out
    assert "source: synthetic in" in printed
    assert "as many images of the source synthetic in addition (6 identities)" in printed
    assert said in printed
    assert not Path(str(config.run_dir)).exists()
