"""The training loop: how it ends when training cannot continue."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastreid_al.config import RunConfig
from fastreid_al.engine.checkpoint import load_checkpoint, save_checkpoint
from fastreid_al.errors import TrainingError
from fastreid_al.methods.contrastive import ContrastiveMethod
from fastreid_al.runs import run_training
from tests.support.tiny import weights


def test_nothing_to_contrast_is_one_line_and_keeps_the_checkpoint(
    config: RunConfig,
) -> None:
    run_training(replace(config, epochs=1))
    before = (Path(str(config.run_dir)) / "last.pt").read_bytes()
    harsh = replace(config, cluster=replace(config.cluster, noise="drop", min_samples=60))
    with pytest.raises(TrainingError, match="every image is noise"):
        run_training(harsh, resume=True)
    assert (Path(str(config.run_dir)) / "last.pt").read_bytes() == before


def test_divergence_is_one_line_and_keeps_the_checkpoint(config: RunConfig) -> None:
    run_training(replace(config, epochs=1))
    run = Path(str(config.run_dir))
    state = load_checkpoint(run / "last.pt")
    state["optimizer"]["param_groups"][0]["lr"] = float("inf")
    save_checkpoint(run / "last.pt", state)
    with pytest.raises(TrainingError, match=r"not finite.*optimizer.lr"):
        run_training(config, resume=True)
    assert all(torch.isfinite(v).all() for v in weights(run).values())


def test_a_step_that_runs_out_of_memory_is_one_line(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("too much")

    monkeypatch.setattr(ContrastiveMethod, "loss", full)
    with pytest.raises(
        TrainingError,
        match=r"ran out of memory.* A smaller `batch.size` than 16, or more ranks than 1",
    ):
        run_training(replace(config, evaluate_every=0))
