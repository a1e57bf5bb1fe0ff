"""Scores of a file on a test set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastreid_al.config import EvaluationConfig, RunConfig
from fastreid_al.errors import CheckpointError, UserError
from fastreid_al.evaluate import main as evaluate_main
from fastreid_al.models import build_model
from fastreid_al.runs import run_training
from fastreid_al.runs.evaluate import evaluate_file
from tests.support.tiny import SYNTHETIC, weights


def test_evaluation_of_checkpoint_and_bare_weights_repeats_the_run(
    config: RunConfig, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    finished = run_training(replace(config, epochs=1))
    last = finished.history[-1]
    flags = [f"--synthetic.{k}={v}" for k, v in vars(config.synthetic).items()]
    capsys.readouterr()
    evaluate_main(["--checkpoint", str(finished.folder / "best.pt"), *flags])
    assert f"{100 * last['mAP']:.1f}" in capsys.readouterr().out
    torch.save(weights(finished.folder), tmp_path / "bare.pth")
    size = ["--height", "48", "--width", "24"]
    evaluate_main(
        ["--checkpoint", str(tmp_path / "bare.pth"), "--model", "osnet_x0_25", *size, *flags]
    )
    assert f"{100 * last['mAP']:.1f}" in capsys.readouterr().out
    with pytest.raises(UserError, match="name its backbone with `model`"):
        evaluate_main(["--checkpoint", str(tmp_path / "bare.pth"), *flags])
    with pytest.raises(CheckpointError, match="trained with `model` osnet_x0_25, not resnet18"):
        evaluate_main(
            ["--checkpoint", str(finished.folder / "best.pt"), "--model", "resnet18", *flags]
        )


def test_reranked_scores_are_printed_below_the_plain_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "weights.pt")
    torch.save(build_model("osnet_x0_25", "none").state_dict(), file)
    options = {
        "model": "osnet_x0_25",
        "height": 32,
        "width": 16,
        "synthetic": SYNTHETIC,
        "dataset": "synthetic",
    }
    plain = evaluate_file(EvaluationConfig(file, **options))  # type: ignore[arg-type]
    assert "re-ranked" not in capsys.readouterr().out
    again = evaluate_file(EvaluationConfig(file, rerank=True, **options))  # type: ignore[arg-type]
    printed = [
        line
        for line in capsys.readouterr().out.splitlines()
        if "by the features" in line or "re-ranked" in line
    ]
    assert again.mAP == plain.mAP
    assert f"{100 * plain.mAP:.1f}" in printed[0]
    assert len(printed) == 2
    assert printed[0].split()[-4:] != printed[1].split()[-4:]
