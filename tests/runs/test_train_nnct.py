"""Whole runs of NNCT and in camera styles: what they log, how they resume, and what they refuse."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from PIL import Image

from fastreid_al.config import (
    AdaptationConfig,
    ClusterConfig,
    EvaluationConfig,
    ImageConfig,
    NNCTConfig,
    RunConfig,
    StyleConfig,
)
from fastreid_al.data import load
from fastreid_al.data.camera_style import ColourStyle, Styles
from fastreid_al.data.records import STYLE_COPIES
from fastreid_al.engine import Interrupted
from fastreid_al.engine.checkpoint import load_checkpoint, save_checkpoint
from fastreid_al.errors import CheckpointError, DataError, UserError
from fastreid_al.methods import NNCT
from fastreid_al.runs import dry_run, run_training
from fastreid_al.runs.evaluate import evaluate_file
from fastreid_al.synthetic.dataset import cached_synthetic
from tests.support.image_sets import decode_at
from tests.support.tiny import FEATURES, SYNTHETIC, same_state, stop_in_step, tiny_config


def keep_lists(monkeypatch: pytest.MonkeyPatch, capacity: int) -> None:
    """Have the PLMB of a run keep short lists, as for a large set."""
    sparse = partialmethod(NNCT.__init__, layout="sparse", capacity=capacity)
    monkeypatch.setattr(NNCT, "__init__", sparse)


def nnct_config(run_dir: Path) -> RunConfig:
    """Three passes over the tiny set, the first with single labels, in camera styles."""
    config = tiny_config(run_dir)
    return replace(
        config,
        method="nnct",
        evaluate_every=0,
        camstyle="colour",
        image=ImageConfig(height=32, width=16, crop_area=(0.64, 1.0), rotate=10, pad=0),
        network=replace(config.network, bn_group=0, test_features="pool5"),
        batch=replace(config.batch, iterations=0),
        nnct=NNCTConfig(threshold=0.3, single_label=1),
        optimizer=replace(config.optimizer, name="sgd", lr=0.02, backbone_lr=0.01),
    )


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A run of its own."""
    return nnct_config(tmp_path / "run")


def test_a_run_counts_its_labels_and_scores_them_against_identities(config: RunConfig) -> None:
    first, *predicted = run_training(config).history
    assert (first["labels_per_image"], first["label_precision"], first["label_recall"]) == (0, 1, 0)
    for record in predicted:
        assert record["labels_per_image"] > 0
        assert 0 < record["label_precision"] <= 1
        assert 0 < record["label_recall"] <= 1
    assert [r["memory_momentum"] for r in (first, *predicted)] == pytest.approx([0, 0.5 / 3, 1 / 3])
    assert [r["lr"] for r in (first, *predicted)] == pytest.approx([0.02, 0.02, 0.002])


def test_styles_are_given_the_pixels_and_rows_of_the_target_alone(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply, seen = ColourStyle.apply, []

    def recording(style: ColourStyle, pixels: torch.Tensor, styles: Styles) -> torch.Tensor:
        seen.append((pixels, styles.rows))
        return apply(style, pixels, styles)

    monkeypatch.setattr(ColourStyle, "apply", recording)
    source = AdaptationConfig(synthetic=replace(SYNTHETIC, seed=1))
    run_training(replace(config, epochs=1, source="synthetic", adaptation=source))
    records = load("synthetic", synthetic=SYNTHETIC, verbose=False).train
    pixels = decode_at([r.path for r in records], 32, 16).pixels
    assert len(seen) == 4
    assert sorted(torch.cat([rows for _, rows in seen]).tolist()) == list(range(64))
    assert all(torch.equal(given, pixels[rows]) for given, rows in seen)


def test_a_style_changes_what_is_learnt(config: RunConfig) -> None:
    losses = {
        style: run_training(
            replace(config, epochs=1, camstyle=style, run_dir=f"{config.run_dir}-{style}")
        ).history[0]["loss"]
        for style in ("none", "colour")
    }
    assert losses["none"] != losses["colour"]


@pytest.mark.parametrize("style", ["colour", pytest.param("fourier", marks=pytest.mark.slow)])
def test_a_stopped_run_resumes_to_a_bit_identical_state(
    config: RunConfig, style: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = "sparse" if style == "fourier" else "bits"
    if layout == "sparse":
        keep_lists(monkeypatch, capacity=4)
    config = replace(config, camstyle=style)  # type: ignore[arg-type]
    whole = run_training(replace(config, run_dir=f"{config.run_dir}-whole"))
    with monkeypatch.context() as patch:
        stop_in_step(patch, NNCT, 10)
        with pytest.raises(Interrupted):
            run_training(config)
    assert load_checkpoint(Path(str(config.run_dir)) / "last.pt")["step"] == 2
    resumed = run_training(config, resume=True)
    a, b = (load_checkpoint(run.folder / "last.pt") for run in (whole, resumed))
    assert set(a["method"]["label_memory"]) == (
        {"ids", "counts", "dropped"} if layout == "sparse" else {"words"}
    )
    assert same_state(a, b)


def test_learning_rates_of_both_groups_follow_their_settings_on_resume(config: RunConfig) -> None:
    begun = replace(config, optimizer=replace(config.optimizer, momentum=0.0))
    file = run_training(replace(begun, epochs=1)).folder / "last.pt"
    groups = load_checkpoint(file)["optimizer"]["param_groups"]
    assert [(g["lr"], g["nesterov"]) for g in groups] == [(0.02, False), (0.01, False)]
    changed = replace(
        config, optimizer=replace(config.optimizer, lr=0.01, backbone_lr=0.001, momentum=0.5)
    )
    run = run_training(replace(changed, epochs=2), resume=True)
    groups = load_checkpoint(run.folder / "last.pt")["optimizer"]["param_groups"]
    assert [g["lr"] for g in groups] == pytest.approx([0.001, 0.0001])
    assert [(g["momentum"], g["nesterov"]) for g in groups] == [(0.5, True)] * 2
    # The first group holds only the scale of the last BatchNorm: its bias is not trained.
    assert len(groups[0]["params"]) == 1 < len(groups[1]["params"])


def test_features_that_the_run_ranked_are_those_that_evaluation_ranks(config: RunConfig) -> None:
    finished = run_training(config)
    last = str(finished.folder / "last.pt")
    assert (
        evaluate_file(EvaluationConfig(last, synthetic=SYNTHETIC)).mAP
        == finished.history[-1]["mAP"]
    )
    assert evaluate_file(EvaluationConfig(last)).mAP == finished.history[-1]["mAP"]
    other = EvaluationConfig(last, synthetic=SYNTHETIC, test_features="bn")
    assert evaluate_file(other).mAP != finished.history[-1]["mAP"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"nnct": NNCTConfig(threshold=1.0)},
            r"`nnct.threshold`: got -?1.0, expected above -1 and below 1",
        ),
        (
            {"nnct": NNCTConfig(threshold=-1.0)},
            r"`nnct.threshold`: got -?1.0, expected above -1 and below 1",
        ),
        ({"nnct": NNCTConfig(lambda_n=-0.1)}, r"`nnct.lambda_n`: got -0.1, expected 0 or more"),
        ({"neighbours_k": -1}, r"`neighbours_k`: got -1, expected 0 to 1024"),
        (
            {"neighbours_k": 64},
            r"`neighbours_k`: got 64, expected 0 to 63 for 64 images",
        ),
        (
            {"batch": replace(tiny_config(Path()).batch, size=65)},
            r"`batch.size`: got 65, expected at most 64, the number of training images",
        ),
        (
            {"network": replace(tiny_config(Path()).network, bn_group=12)},
            r"`batch.size`: got 16, expected a size that divides into groups of "
            r"`network.bn_group` 12",
        ),
        ({"style": StyleConfig(probability=1.5)}, r"`style.probability`: got 1.5, expected 0 to 1"),
        ({"style": StyleConfig(band=0.0)}, r"`style.band`: got 0.0, expected above 0, up to 0.5"),
        ({"ask": "gain"}, r"`method` nnct asks no questions"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line_by_a_dry_run_too(
    config: RunConfig, change: dict, message: str
) -> None:
    with pytest.raises(UserError, match=message) as refused:
        dry_run(replace(config, **change))
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match=message):
        run_training(replace(config, **change))
    assert not Path(str(config.run_dir)).exists()


def test_a_dry_run_says_what_the_labels_take(
    config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    dry_run(config)
    printed = capsys.readouterr().out
    assert "3 epochs of 4 batches of 16 images" in printed
    assert "images are augmented in camera styles (colour)" in printed
    assert (
        "label memory (PLMB) 0.0 MB as bits; single labels in the first 1 epochs, "
        "then labels above 0.3" in printed
    )
    dry_run(replace(config, nnct=replace(config.nnct, threshold="auto")))
    assert "then labels above their usual similarity, and those of" in capsys.readouterr().out
    dry_run(replace(config, nnct=replace(config.nnct, single_label=3)))
    assert (
        "single labels in all epochs: `nnct.single_label` 3 is not less than `epochs` 3"
        in capsys.readouterr().out
    )


def test_settings_that_do_nothing_are_named(
    config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    dry_run(
        replace(config, source_root="elsewhere", image=replace(config.image, height=32, width=32))
    )
    printed = capsys.readouterr().out
    assert "warning: `source_root` does nothing without `source`" in printed
    assert "warning: no random crop will be made: at 32 x 32" in printed
    dry_run(replace(config, method="ucal", camstyle="none", style=StyleConfig(probability=0.5)))
    printed = capsys.readouterr().out
    for key in ("nnct.threshold", "nnct.single_label"):
        because = "does nothing with `method` ucal; it is read with `method` nnct"
        assert f"warning: `{key}` {because}" in printed
    assert "warning: `style.probability` does nothing without `camstyle`" in printed
    plain = replace(config, cluster=ClusterConfig(), batch=replace(config.batch, size=2))
    dry_run(plain)
    assert "warning" not in capsys.readouterr().out


def test_labels_that_short_lists_had_no_room_for_are_counted(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keep_lists(monkeypatch, capacity=2)
    few = replace(config, epochs=2, nnct=NNCTConfig(threshold=-0.5, single_label=1))
    history = run_training(few).history
    assert history[0]["labels_dropped"] == 0 < history[1]["labels_dropped"]
    assert "labels dropped in all (their lists were full)" in capsys.readouterr().out


def test_osnet_is_evaluated_without_fc_when_it_was_trained_without(
    config: RunConfig,
) -> None:
    finished = run_training(
        replace(
            config,
            model="osnet_x0_25",
            epochs=1,
            network=replace(config.network, osnet_fc=False),
        )
    )
    last = finished.folder / "last.pt"
    state = load_checkpoint(last)
    assert not any(".fc." in name for name in state["model"] if "gate" not in name)
    assert state["method"]["bank"].shape == (64, 128)
    assert (
        evaluate_file(EvaluationConfig(str(last), synthetic=SYNTHETIC)).mAP
        == finished.history[-1]["mAP"]
    )


@pytest.mark.parametrize("part", ["bank", "label_memory"])
def test_memories_of_another_number_of_images_are_refused_on_resume(
    config: RunConfig, part: str
) -> None:
    file = run_training(replace(config, epochs=1)).folder / "last.pt"
    state = load_checkpoint(file)
    other = NNCT(60, 1, config.nnct, config.batch, 3, 0)
    other.memory.bank = torch.zeros(60, FEATURES)
    state["method"][part] = other.state_dict()[part]
    save_checkpoint(file, {k: v for k, v in state.items() if k != "format"})
    with pytest.raises(
        CheckpointError,
        match=r"the checkpoint does not fit the run: .*64.*; resume with the images",
    ) as no:
        run_training(config, resume=True)
    assert "\n" not in str(no.value)


def test_camstyle_copies_next_to_crops_are_not_training_images(
    with_copies: tuple[RunConfig, Path],
) -> None:
    folder = with_copies[1]
    crops = folder.parent / "crops"
    shutil.copytree(folder.parent / "train", crops)
    shutil.move(folder, crops / folder.name)
    assert len(load("folder", crops, verbose=False).train) == 64


@pytest.fixture
def with_copies(config: RunConfig, tmp_path: Path) -> tuple[RunConfig, Path]:
    """The tiny set on disk, and a copy of its first image in the style of each other camera."""
    root = tmp_path / "MSMT17_V1"
    shutil.copytree(cached_synthetic(SYNTHETIC), root)
    (root / STYLE_COPIES).mkdir()
    first = sorted((root / "train").rglob("*.jpg"))[0]
    own = int(first.stem.split("_")[2])
    for camera in {1, 2, 3} - {own}:
        Image.new("RGB", (20, 40), (80 * camera, 0, 0)).save(
            root / STYLE_COPIES / f"{first.stem}_fake_{camera}.jpg"
        )
    return replace(
        config, dataset="msmt17", data_root=str(tmp_path), camstyle="files"
    ), root / STYLE_COPIES


def test_copies_that_changed_are_refused_on_resume(
    with_copies: tuple[RunConfig, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    config, folder = with_copies
    dry_run(config)
    assert "in camera styles, from 2 copies: 0.00 GiB in memory" in capsys.readouterr().out
    run_training(replace(config, epochs=1))
    printed = capsys.readouterr().out
    assert "126 of 128 copies in other cameras' styles are missing" in printed
    assert "camera styles: 2 copies in the styles of 3 cameras" in printed
    copy = sorted(folder.iterdir())[0]
    copy.write_bytes(copy.read_bytes() + b" ")
    with pytest.raises(CheckpointError, match=rf"1 changed \(first: {STYLE_COPIES}\)"):
        run_training(config, resume=True)


def test_copies_for_other_cameras_are_refused(with_copies: tuple[RunConfig, Path]) -> None:
    config, folder = with_copies
    copy = sorted(folder.iterdir())[0]
    copy.rename(copy.with_name(copy.name.rsplit("_", 1)[0] + "_9.jpg"))
    for begin in (dry_run, run_training):
        with pytest.raises(
            DataError, match=r"is for camera 9; the training images' cameras are 1, 2, 3"
        ):
            begin(config)


def test_absent_copies_are_reported_once_and_the_run_continues(
    config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    run_training(replace(config, epochs=1, camstyle="files"))
    assert capsys.readouterr().out.count("training goes on without camera styles") == 1
