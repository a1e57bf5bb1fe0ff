"""The training loop: how it ends when training cannot continue."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastreid_al.config import RunConfig
from fastreid_al.engine import loop
from fastreid_al.engine.checkpoint import load_checkpoint, save_checkpoint
from fastreid_al.errors import TrainingError
from fastreid_al.methods.contrastive import ContrastiveMethod
from fastreid_al.runs import run_training, train
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
    with pytest.raises(TrainingError, match=r"the last checkpoint is intact. Continue .*\.lr`"):
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


def test_without_a_checkpoint_nothing_is_said_of_resuming(config: RunConfig) -> None:
    diverging = replace(config, evaluate_every=0, optimizer=replace(config.optimizer, lr=1e30))
    with pytest.raises(TrainingError) as refused:
        run_training(diverging)
    assert "diverged" in str(refused.value) and "Start again with a lower" in str(refused.value)
    assert "resume" not in str(refused.value)


def test_a_figure_that_cannot_be_drawn_is_a_warning(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no font\nat all")

    monkeypatch.setattr(train, "draw_curves", broken)
    assert run_training(replace(config, epochs=1)).history[-1]["epoch"] == 1
    warned = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert warned == [
        "warning: the figure of the curves could not be made (no font); all else is complete"
    ]


def test_an_undefined_score_of_an_epoch_is_a_dash() -> None:
    record = {
        **{"epoch": 3, "loss": 1.5, "clusters": 0, "alone": 9, "pair_precision": 1.0},
        **{"pair_recall": 0.0, "class_purity": None, "class_completeness": None},
        **{"seconds": {"labels": 1, "training": 2}, "speed": {"images_per_second": 4}},
    }
    start = "epoch   3: loss 1.500, 0 clusters, 9 images unclustered, "
    end = " (1.0 s labels, 2.0 s training, 4 images/s)"
    assert loop.describe_epoch(record) == (
        f"{start}pair precision 100.0 % recall 0.0 %, class purity - % completeness - %{end}"
    )
    record |= {"drafted_class_purity": 0.5, "drafted_class_completeness": None}
    assert "class purity 50.0 -> - % completeness - -> - %" in loop.describe_epoch(record)
    record |= {"questions": 5, "questions_total": 9, "next_questions": 50, "next_share": 0.012}
    line = loop.describe_epoch(record)
    assert "9 in all), the next 50 would change 1.2 % of the pairs, pair" in line
    line = loop.describe_epoch(record | {"next_share": 0.004})
    assert "change 0.4 % of the pairs, more are hardly worth it, pair" in line
    line = loop.describe_epoch(record | {"next_merged": 6.5})
    assert "9 in all), the next 50 would merge 1.2 % of the clusters, pair" in line
    line = loop.describe_epoch(record | {"next_merged": 0.9})
    assert "merge 1.2 % of the clusters, more are hardly worth it, pair" in line
