"""Whole runs with a labelled source: what they train, what they leave, how they resume."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from fastreid_al.config import (
    EvaluationConfig,
    QuestionConfig,
    RunConfig,
)
from fastreid_al.engine import Interrupted
from fastreid_al.engine.checkpoint import load_checkpoint
from fastreid_al.errors import CheckpointError
from fastreid_al.methods import NNCT, UCAL
from fastreid_al.models import without_source
from fastreid_al.runs import Finished, run_training
from fastreid_al.runs import train as runner
from fastreid_al.runs.evaluate import evaluate_file
from tests.support.source_runs import adapted
from tests.support.tiny import FEATURES, SYNTHETIC, same_state, stop_in_step, tiny_config

CLASS = {"nnct": NNCT, "instance memory": UCAL, "cluster memory": UCAL}


@pytest.fixture(scope="module", autouse=True)
def _no_figure() -> Iterator[None]:
    """The figure of a run is not what is tested here, and takes longer than its training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "draw_curves", lambda *_: None)
        yield


@pytest.fixture(scope="module", params=CLASS)
def whole(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Finished]:
    """A run that nothing stopped, of each kind."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return request.param, run_training(adapted(tiny_config(folder), request.param))


def test_a_stopped_run_resumes_to_a_bit_identical_state(
    whole: tuple[str, Finished], config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, finished = whole
    config = adapted(config, name)
    with monkeypatch.context() as patch:
        stop_in_step(patch, CLASS[name], 3)
        with pytest.raises(Interrupted):
            run_training(config)
    assert load_checkpoint(Path(str(config.run_dir)) / "last.pt")["step"] == 1
    resumed = run_training(config, resume=True)
    a, b = (load_checkpoint(run.folder / "last.pt") for run in (finished, resumed))
    assert same_state(a, b)


def test_what_is_evaluated_is_the_network_of_the_target(whole: tuple[str, Finished]) -> None:
    name, finished = whole
    last, best = (load_checkpoint(finished.folder / file) for file in ("last.pt", "best.pt"))
    assert any("source_norm" in k for k in last["model"]) == (name != "instance memory")
    assert not any("source_norm" in k for k in best["model"])
    assert same_state(without_source(last["model"]), best["model"])
    for file in ("last.pt", "best.pt"):
        ranking = evaluate_file(EvaluationConfig(str(finished.folder / file), synthetic=SYNTHETIC))
        assert ranking.mAP == finished.history[-1]["mAP"]


def test_domains_train_their_own_batchnorms_and_nnct_its_classifier(
    whole: tuple[str, Finished],
) -> None:
    name, finished = whole
    state = load_checkpoint(finished.folder / "last.pt")
    model, split = state["model"], name != "instance memory"
    batches = 2 * 2 * 2  # epochs x batches x groups of 4 images
    assert model["neck.num_batches_tracked"] == (batches if split else 2 * batches)
    if split:
        assert model["neck.source_norm.num_batches_tracked"] == batches
        assert not torch.equal(model["neck.running_mean"], model["neck.source_norm.running_mean"])
    new_layers = state["optimizer"]["param_groups"][0]["params"]
    assert len(new_layers) == 1 + split + (name == "nnct")
    if name == "nnct":
        (weight,) = state["method"]["layers"].values()
        assert weight.shape == (6, FEATURES)
        assert weight.std() > 2e-3  # of 1e-3 at the start
    else:
        count = int(state["method"]["memory"]["classes"].max()) + 1
        assert len(state["method"]["memory"]["classes"]) == 64 + 36
        assert len(state["method"]["memory"]["bank"]) == (
            count if name == "cluster memory" else 64 + 6
        )


def test_questions_are_asked_only_about_the_target(short: RunConfig) -> None:
    asking = replace(short, ask="gain", questions=QuestionConfig(start=0, per_epoch=5))
    record = run_training(asking).history[-1]
    assert 0 < record["questions"] <= 5
    assert record["share_total"] == record["questions"] / (64 * 63 / 2)


def test_a_source_may_move_but_not_change_on_resume(
    copied: tuple[RunConfig, Path], tmp_path: Path
) -> None:
    config, _ = copied
    run_training(config)
    (tmp_path / "source").rename(tmp_path / "moved")
    # Its test images are never read.
    for path in (tmp_path / "moved" / "MSMT17_V1" / "test").rglob("*.jpg"):
        path.write_bytes(b"")
    longer = replace(config, source_root=str(tmp_path / "moved"))
    run_training(longer, resume=True)
    first, *_ = sorted((tmp_path / "moved" / "MSMT17_V1" / "train").rglob("*.jpg"))
    Image.new("RGB", (20, 40)).save(first)
    with pytest.raises(
        CheckpointError, match=rf"1 changed \(first: source: train/.*{first.name}\)"
    ):
        run_training(longer, resume=True)
    with pytest.raises(
        CheckpointError, match=r"`source` msmt17, the run asks for `source` market1501"
    ):
        run_training(replace(longer, source="market1501"), resume=True)
    heavier = replace(longer, adaptation=replace(longer.adaptation, weight=0.5))
    with pytest.raises(
        CheckpointError, match=r"`adaptation.weight` 0.3, the run asks for `adaptation.weight` 0.5"
    ):
        run_training(heavier, resume=True)
