"""Whole runs: what they write, how they stop and resume, and what they refuse."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fastreid_al.answers import Asker, Ledger, Question, Verdict
from fastreid_al.config import MemoryConfig, QuestionConfig, RunConfig
from fastreid_al.data import load
from fastreid_al.engine import Interrupted
from fastreid_al.engine.checkpoint import load_checkpoint
from fastreid_al.errors import DataError, UserError
from fastreid_al.models import BackboneOptions
from fastreid_al.runs import run_training
from fastreid_al.synthetic.dataset import cached_synthetic
from tests.support.image_sets import put
from tests.support.tiny import SYNTHETIC, elsewhere, recorded, same_weights, stop_after, weights

VARIANTS = {
    "instance memory": {},
    "cluster memory": {"memory": MemoryConfig(kind="cluster", hardest=True)},
    "supervised": {"method": "supervised"},
}


def variant(config: RunConfig, name: str) -> RunConfig:
    config = replace(config, **VARIANTS[name])  # type: ignore[arg-type]
    source = "extract" if name == "cluster memory" else "memory"
    return replace(config, cluster=replace(config.cluster, source=source))


def test_a_run_leaves_config_versions_metrics_checkpoints_labels_and_figure(
    config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    finished = run_training(config)
    names = sorted(p.name for p in finished.folder.iterdir())
    assert names == [
        "best.pt",
        "config.json",
        "curves.png",
        "labels.csv",
        "labels.json",
        "last.pt",
        "metrics.jsonl",
        "versions.json",
    ]
    assert Image.open(finished.folder / "curves.png").size[0] > 500
    assert [r["epoch"] for r in recorded(finished.folder)] == [0, 1, 2, 3]
    last = recorded(finished.folder)[-1]
    assert {"loss", "clusters", "mAP", "rank1", "pair_precision", "pair_recall"} <= last.keys()
    assert {"class_purity", "class_completeness", "cross_camera_recall"} <= last.keys()
    assert json.loads((finished.folder / "versions.json").read_text())["torch"].startswith(
        torch.__version__.split("+")[0]
    )
    printed = capsys.readouterr().out
    assert "untrained: mAP" in printed
    assert "best was chosen on the test set" in printed
    assert load_checkpoint(finished.folder / "best.pt")["epoch"] in (1, 2, 3)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_seed_does_not(config: RunConfig) -> None:
    first = run_training(config)
    second = run_training(elsewhere(config, "again"))
    other = run_training(elsewhere(config, "other", seed=1))
    assert same_weights(weights(first.folder), weights(second.folder))
    assert recorded(first.folder) == recorded(second.folder)
    assert not same_weights(weights(first.folder), weights(other.folder))


@pytest.mark.parametrize(
    ("name", "step"),
    [
        pytest.param(
            name, step, marks=() if (name, step) == ("instance memory", 4) else pytest.mark.slow
        )
        for name in VARIANTS
        for step in (2, 4, 6)
    ],
)
def test_a_stopped_run_resumes_to_bit_identical_weights(
    config: RunConfig,
    name: str,
    step: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = variant(config, name)
    whole = run_training(elsewhere(config, "whole"))
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        with pytest.raises(Interrupted) as stopped:
            run_training(config)
    assert stopped.value.signum == signal.SIGTERM
    command = f"python -m fastreid_al.train `run_dir` {config.run_dir} `resume`"
    assert f"continue with: {command}\n" in capsys.readouterr().out
    assert load_checkpoint(Path(str(config.run_dir)) / "last.pt")["step"] == step % 4
    resumed = run_training(config, resume=True)
    assert same_weights(weights(resumed.folder), weights(whole.folder))
    assert recorded(resumed.folder) == recorded(whole.folder)


def test_resume_of_a_finished_run_changes_nothing(config: RunConfig) -> None:
    finished = run_training(config)
    before = weights(finished.folder)
    assert run_training(config, resume=True).history == finished.history
    assert same_weights(before, weights(finished.folder))


def test_resume_with_no_epoch_left_says_that_nothing_is_trained(
    config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(config, epochs=2)
    run_training(config)
    assert "nothing is trained" not in capsys.readouterr().out
    for epochs in (2, 1):
        assert len(run_training(replace(config, epochs=epochs), resume=True).history) == 3
        said = f"2 epochs are trained already and `epochs` is {epochs}: nothing is trained"
        assert said in capsys.readouterr().out.splitlines()


def test_a_run_folder_is_not_overwritten(config: RunConfig) -> None:
    run_training(replace(config, epochs=1))
    with pytest.raises(UserError, match=r"already holds a run: continue it with `resume`"):
        run_training(config)


@pytest.mark.slow
def test_a_run_among_its_images_is_refused_and_leaves_them_readable(
    config: RunConfig, tmp_path: Path
) -> None:
    crops = tmp_path / "crops"
    put(crops, *(f"{number}.jpg" for number in range(16)))
    config = replace(config, dataset="folder", data_root=str(crops), run_dir=str(crops))
    with pytest.raises(UserError, match=r"`run_dir`: .* it holds 16 "):
        run_training(config)
    assert len(list(crops.iterdir())) == len(load("folder", crops, verbose=False).train) == 16


def test_more_epochs_can_be_asked_for_on_resume(config: RunConfig) -> None:
    run_training(replace(config, epochs=2))
    longer = run_training(config, resume=True)
    assert same_weights(
        weights(longer.folder), weights(run_training(elsewhere(config, "whole")).folder)
    )


def test_a_run_inside_the_image_folder_does_not_train_on_its_own_figure(
    config: RunConfig, tmp_path: Path
) -> None:
    crops = tmp_path / "crops"
    shutil.copytree(cached_synthetic(config.synthetic) / "train", crops)
    inside = replace(
        config, dataset="folder", data_root=str(crops), run_dir=str(crops / "runs" / "a"), epochs=1
    )
    finished = run_training(inside)
    assert (finished.folder / "curves.png").exists()
    run_training(replace(inside, epochs=2), resume=True)


@pytest.fixture
def copied(config: RunConfig, tmp_path: Path) -> RunConfig:
    """The tiny set, copied so that it can be damaged."""
    shutil.copytree(cached_synthetic(config.synthetic), tmp_path / "MSMT17_V1")
    return replace(config, dataset="msmt17", data_root=str(tmp_path))


def train_images(config: RunConfig) -> list[Path]:
    return sorted((Path(config.data_root) / "MSMT17_V1" / "train").rglob("*.jpg"))


def test_unreadable_images_are_named_counted_and_left_out(
    copied: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = train_images(copied)[5]
    damaged.write_bytes(damaged.read_bytes()[:200])
    run_training(replace(copied, epochs=1))
    printed = capsys.readouterr().out
    assert "warning: 1 train image(s) could not be read and are left out:" in printed
    assert damaged.name in printed


def test_too_few_readable_images_are_refused(copied: RunConfig) -> None:
    for path in train_images(copied):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="0 readable training images"):
        run_training(copied)


def test_few_unlabelled_images_of_one_camera_train_with_warnings(
    copied: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "crops").mkdir()
    for number, path in enumerate(train_images(copied)[:7]):
        shutil.copy(path, tmp_path / "crops" / f"{number}_c1.jpg")
    none = replace(copied.cluster, min_samples=8)
    config = replace(copied, dataset="folder", data_root=str(tmp_path / "crops"), cluster=none)
    finished = run_training(config)
    printed = capsys.readouterr().out
    assert "7 images are fewer than `cluster.k1` 8" in printed
    assert "7 images are fewer than a batch of 16" in printed
    assert "mAP" not in finished.history[-1]
    assert not {"pair_precision", "class_purity"} & finished.history[-1].keys()
    with pytest.raises(UserError, match="7 of 7 images have no identity"):
        run_training(elsewhere(config, "supervised", method="supervised"))


@pytest.mark.parametrize(
    "change", [{"epochs": 0}, {"device": "cuda:99"}, {"device": "gpu"}, {"seed": -1}]
)
def test_settings_that_cannot_work_are_refused_at_once(config: RunConfig, change: dict) -> None:
    with pytest.raises(UserError, match=f"`{next(iter(change))}`"):
        run_training(replace(config, **change))
    assert not Path(str(config.run_dir)).exists()


def ask_first_pairs(features: Tensor, labels: Tensor, asker: Asker, config: QuestionConfig) -> None:
    """Ask whether the first image shows the same person as each of the next three."""
    for other in range(1, 4):
        asker.ask_pair(0, other)


class AlwaysDifferent:
    """An annotator who has seen everything once."""

    name = "always different"

    def answer(self, question: Question) -> Verdict:
        return Verdict.DIFFERENT


class TwoLayers(nn.Module):
    """A backbone of the caller's own."""

    features = 16

    def __init__(self, options: BackboneOptions) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, self.features, 3, stride=4)
        self.norm = nn.BatchNorm2d(self.features)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.convolution(images)).relu().mean((2, 3))


def test_objects_replace_the_names_of_the_configuration(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = replace(load("synthetic", synthetic=SYNTHETIC, verbose=False), name="mine")
    config = replace(config, epochs=1, evaluate_every=0, questions=QuestionConfig(start=0))
    finished = run_training(
        replace(config, dataset="folder", data_root=str(tmp_path / "not read")),
        strategy=ask_first_pairs,
        annotator=AlwaysDifferent(),
        dataset=images,
        model=TwoLayers,
    )
    assert "mine in" in capsys.readouterr().out
    assert load_checkpoint(finished.folder / "last.pt")["network"]["name"] == "TwoLayers"
    record = finished.history[-1]
    assert record["questions"] == record["answered_different"] == 3
    with Ledger.open(str(finished.folder / "answers.sqlite"), write=False) as ledger:
        assert [event.annotator for event in ledger.events()] == ["always different"] * 3
