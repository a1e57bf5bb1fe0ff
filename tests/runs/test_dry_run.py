"""Dry runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision

from fastreid_al.config import (
    RunConfig,
)
from fastreid_al.errors import WeightsError
from fastreid_al.runs import dry_run
from tests.support.source_runs import adapted


def test_dry_run_writes_nothing(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    dry_run(config)
    assert "none was started" in capsys.readouterr().out
    assert not Path(str(config.run_dir)).exists()


def test_dry_run_downloads_no_weights_and_says_that_a_run_would(
    config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def download(*_: object, **__: object) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    config = replace(config, model="resnet18", weights="imagenet")
    dry_run(config)
    printed = capsys.readouterr().out
    [file] = [
        word.rstrip(";") for word in printed.split() if word.startswith(str(tmp_path / "hub"))
    ]
    assert f"a run would download the ImageNet weights of resnet18 to {file}" in printed
    assert "none was started" in printed
    # Weights that are on disk are read, so that a damaged file is noticed before the run.
    Path(file).parent.mkdir(parents=True)
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), file)
    dry_run(config)
    printed = capsys.readouterr().out
    assert "would download" not in printed and "none was started" in printed
    Path(file).write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="is not a plain weights file"):
        dry_run(config)


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
