"""Scores of a file on a test set."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastreid_al.config import EvaluationConfig
from fastreid_al.models import build_model
from fastreid_al.runs.evaluate import evaluate_file
from tests.support.tiny import SYNTHETIC


def test_reranked_scores_are_printed_below_the_plain_ones_of_the_same_features(
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
