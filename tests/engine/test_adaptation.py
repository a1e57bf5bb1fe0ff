"""Whole runs with a labelled source: how they go on, what they leave, and what they refuse."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from fastreid_al.cli import parse_training
from fastreid_al.config import (
    AdaptationConfig,
    EvaluationConfig,
    MemoryConfig,
    NNCTConfig,
    QuestionConfig,
    RunConfig,
    SyntheticConfig,
)
from fastreid_al.engine import Interrupted, TrainingLoop
from fastreid_al.engine.checkpoint import load_checkpoint
from fastreid_al.errors import CheckpointError, DataError, UserError
from fastreid_al.methods import NNCT, UCAL
from fastreid_al.models import without_source
from fastreid_al.runs import Finished, dry_run, run_training
from fastreid_al.runs import train as runner
from fastreid_al.runs.evaluate import evaluate_file
from fastreid_al.synthetic.dataset import cached_synthetic
from tests.support.tiny import SYNTHETIC, same_state, stop_in_step, tiny_config

SOURCE = SyntheticConfig(
    train_identities=6,
    train_images=36,
    test_identities=2,
    query_images=4,
    gallery_images=8,
    cameras=2,
    height=64,
    seed=5,
)
CLASS = {"nnct": NNCT, "instance memory": UCAL, "cluster memory": UCAL}


@pytest.fixture(scope="module", autouse=True)
def _no_figure() -> Iterator[None]:
    """The figure of a run is not what is tested here, and takes longer than its training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "draw_curves", lambda *_: None)
        yield


def adapted(config: RunConfig, name: str = "instance memory") -> RunConfig:
    """Two epochs of two batches of each domain; the instance memory shares its BatchNorms."""
    config = replace(
        config,
        epochs=2,
        evaluate_every=0,
        source="synthetic",
        adaptation=AdaptationConfig(synthetic=SOURCE),
        batch=replace(config.batch, size=8, iterations=2),
        image=replace(config.image, height=32, width=16),
        network=replace(config.network, bn_group=4),
    )
    if name == "nnct":
        return replace(config, method="nnct", nnct=NNCTConfig(single_label=1))
    if name == "cluster memory":
        cluster = replace(config.cluster, source="extract", noise="drop")
        return replace(config, memory=MemoryConfig(kind="cluster", hardest=True), cluster=cluster)
    return replace(config, network=replace(config.network, domain_bn=False))


@pytest.fixture(scope="module", params=CLASS)
def whole(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Finished]:
    """A run that nothing stopped, of each kind."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return request.param, run_training(adapted(tiny_config(folder), request.param))


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
        assert weight.shape == (6, 512)
        assert weight.std() > 2e-3  # of 1e-3 at the start
    else:
        count = int(state["method"]["memory"]["classes"].max()) + 1
        assert len(state["method"]["memory"]["classes"]) == 64 + 36
        assert len(state["method"]["memory"]["bank"]) == (
            count if name == "cluster memory" else 64 + 6
        )


def test_questions_are_asked_about_the_target_alone(short: RunConfig) -> None:
    asking = replace(short, ask="ucal", questions=QuestionConfig(start=0, per_epoch=5))
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


def test_the_source_must_be_another_set(config: RunConfig, tmp_path: Path) -> None:
    same = replace(config, source="synthetic", adaptation=AdaptationConfig(synthetic=SYNTHETIC))
    with pytest.raises(
        DataError,
        match=r"show the same people: both are drawn with seed 0; .*--adaptation.synthetic.seed",
    ):
        run_training(same)
    (tmp_path / "link").symlink_to(cached_synthetic(SYNTHETIC), target_is_directory=True)
    with pytest.raises(
        DataError,
        match=r"64 training images of the source are those that are trained on .*--source-root",
    ):
        dry_run(replace(config, source="msmt17", source_root=str(tmp_path / "link")))
    larger = AdaptationConfig(synthetic=replace(SYNTHETIC, train_images=80))
    with pytest.raises(
        DataError,
        match=r"show the same people: both are drawn with seed 0; .*--adaptation.synthetic.seed",
    ):
        dry_run(replace(same, adaptation=larger))
    root = tmp_path / "tree"
    shutil.copytree(cached_synthetic(SYNTHETIC) / "train", root / "train")
    crops = replace(
        config,
        dataset="folder",
        data_root=str(root / "train"),
        source="folder",
        source_root=str(root),
    )
    with pytest.raises(
        DataError, match=r"64 training images of the source are those that are trained on \(first: "
    ):
        dry_run(crops)
    assert not Path(str(config.run_dir)).exists()


def test_the_source_must_be_labelled(copied: tuple[RunConfig, Path], tmp_path: Path) -> None:
    config, train = copied
    crops = tmp_path / "crops"
    crops.mkdir()
    for number, path in enumerate(sorted(train.rglob("*.jpg"))):
        shutil.copy(path, crops / f"{number}_c1.jpg")
    flat = replace(config, source="folder", source_root=str(crops))
    with pytest.raises(DataError, match="36 of 36 training images of the source have no identity"):
        run_training(flat)
    crops.rename(tmp_path / "one")
    (crops / "train").mkdir(parents=True)
    (tmp_path / "one").rename(crops / "train" / "one")
    with pytest.raises(DataError, match="the source has 1 identities in 36 training images"):
        run_training(flat)


def test_identities_that_cannot_be_read_are_counted_after_decoding(
    copied: tuple[RunConfig, Path],
) -> None:
    config, train = copied
    kept = sorted(p for p in train.iterdir() if p.is_dir())[0]
    for path in train.rglob("*.jpg"):
        if path.parent != kept:
            path.write_bytes(b"")
    with pytest.raises(DataError, match="the source has 1 identities in"):
        run_training(config)


def test_a_missing_source_names_its_own_option(short: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"--source msmt17: folder .*nowhere does not exist; .*--source-root"
    ):
        run_training(replace(short, source="msmt17", source_root=str(tmp_path / "nowhere")))
    bad = AdaptationConfig(synthetic=replace(SOURCE, cameras=1))
    with pytest.raises(
        DataError, match=r"--source synthetic: --adaptation.synthetic: cameras must be 2"
    ):
        run_training(replace(short, adaptation=bad))


def test_a_supervised_run_takes_no_source(short: RunConfig) -> None:
    with pytest.raises(UserError, match="`source`: got .* a source is for ucal and nnct"):
        run_training(replace(short, method="supervised"))


def test_a_source_smaller_than_a_batch_is_refused_or_warned_of(
    short: RunConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainingLoop, "run", lambda _: None)
    larger = replace(short, batch=replace(short.batch, size=48))
    with pytest.raises(
        UserError, match=r"--batch.size 48 is more than the 36 training images of the source"
    ):
        dry_run(replace(larger, method="nnct"))
    run_training(larger)
    assert "36 images of the source are fewer than a batch of 48" in capsys.readouterr().out


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
    assert "as many images of the source synthetic again (6 identities)" in printed
    assert said in printed
    assert not Path(str(config.run_dir)).exists()


def test_the_command_line_names_a_source() -> None:
    words = [
        "--source",
        "synthetic",
        "--adaptation.synthetic.seed",
        "7",
        "--adaptation.weight",
        "0.4",
    ]
    config, _ = parse_training([*words, "--network.domain-bn", "false"])
    assert (config.source, config.source_root, config.network.domain_bn) == (
        "synthetic",
        "data",
        False,
    )
    assert (config.adaptation.synthetic.seed, config.adaptation.weight) == (7, 0.4)
    assert parse_training([])[0].source is None
