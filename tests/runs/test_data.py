"""The images of a run: which sources are refused."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from fastreid_al.cli import parse_training
from fastreid_al.config import (
    AdaptationConfig,
    RunConfig,
)
from fastreid_al.data import Record, load
from fastreid_al.engine import TrainingLoop
from fastreid_al.errors import DataError, SettingError, UserError
from fastreid_al.runs import dry_run, run_training
from fastreid_al.synthetic.dataset import cached_synthetic
from tests.support.image_sets import put, put_noise
from tests.support.source_runs import SOURCE
from tests.support.tiny import SYNTHETIC


def test_the_source_must_be_another_set(config: RunConfig, tmp_path: Path) -> None:
    same = replace(config, source="synthetic", adaptation=AdaptationConfig(synthetic=SYNTHETIC))
    with pytest.raises(
        DataError,
        match=r"show the same people: both are rendered with seed 0; .*`adaptation.synthetic.seed`",
    ):
        run_training(same)
    (tmp_path / "link").symlink_to(cached_synthetic(SYNTHETIC), target_is_directory=True)
    with pytest.raises(
        DataError,
        match=r"64 training images of the source are in the set to train on .*`source_root`",
    ):
        dry_run(replace(config, source="msmt17", source_root=str(tmp_path / "link")))
    larger = AdaptationConfig(synthetic=replace(SYNTHETIC, train_images=80))
    with pytest.raises(
        DataError,
        match=r"show the same people: both are rendered with seed 0; .*`adaptation.synthetic.seed`",
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
        DataError, match=r"64 training images of the source are in the set to train on \(first: "
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
    with pytest.raises(DataError, match="the source has 1 identity in 36 training images"):
        run_training(flat)


def test_identities_that_cannot_be_read_are_counted_after_decoding(
    copied: tuple[RunConfig, Path],
) -> None:
    config, train = copied
    kept = sorted(p for p in train.iterdir() if p.is_dir())[0]
    for path in train.rglob("*.jpg"):
        if path.parent != kept:
            path.write_bytes(b"")
    with pytest.raises(DataError, match="the source has 1 identity in"):
        run_training(config)


def test_a_missing_source_names_its_own_option(short: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"folder .*nowhere does not exist; .*`source_root`"):
        run_training(replace(short, source="msmt17", source_root=str(tmp_path / "nowhere")))
    bad = AdaptationConfig(synthetic=replace(SOURCE, cameras=1))
    with pytest.raises(DataError, match=r"`adaptation.synthetic`: cameras must be 2"):
        run_training(replace(short, adaptation=bad))


def test_a_supervised_run_takes_no_source(short: RunConfig) -> None:
    with pytest.raises(UserError, match=r"`source`: got .* a source is for ucal and nnct"):
        run_training(replace(short, method="supervised"))


def test_a_source_smaller_than_a_batch_is_refused_or_warned_of(
    short: RunConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainingLoop, "run", lambda _: None)
    larger = replace(short, batch=replace(short.batch, size=48))
    with pytest.raises(
        UserError,
        match=r"`batch\.size`: got 48, expected at most 36, the number of training images of the",
    ):
        dry_run(replace(larger, method="nnct"))
    run_training(larger)
    assert "36 images of the source are fewer than a batch of 48" in capsys.readouterr().out


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


def test_several_sources_are_joined(short: RunConfig, tmp_path: Path) -> None:
    for name in ("a", "b"):
        for person in range(3):
            for shot in range(4):
                file = f"train/{person}/{person}_c{1 + shot % 2}_{shot}.jpg"
                put_noise(tmp_path / name, file, seed=100 * ord(name) + 10 * person + shot)
    roots = f"{tmp_path / 'a'}, {tmp_path / 'b'}"
    finished = run_training(replace(short, source="folder,folder", source_root=roots))
    assert finished.history[-1]["loss"] > 0
    with pytest.raises(SettingError, match="one folder, or 2 with commas between"):
        run_training(replace(short, source="folder,folder", source_root=f"{roots},c", run_dir=None))


def test_a_set_without_training_images_says_what_is_missing(
    config: RunConfig, tmp_path: Path
) -> None:
    put(tmp_path, "query/a/1_c1.jpg", "gallery/a/2_c2.jpg")
    config = replace(config, dataset="folder", data_root=str(tmp_path))
    with pytest.raises(DataError, match="has query and gallery images, but no images to train on"):
        run_training(config)


@pytest.mark.parametrize("tracks", ["must_link", "none"])
def test_tracks_of_a_manifest_are_must_links(
    config: RunConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    tracks: Literal["must_link", "none"],
) -> None:
    images = read_synthetic_records()
    lines = [f"{r.path},{r.identity},{r.camera},t{r.identity}" for r in images]
    file = tmp_path / "images.csv"
    file.write_text("\n".join(["path,identity,camera,track", *lines]))
    cluster = replace(config.cluster, tracks=tracks)
    run_training(
        replace(config, dataset="manifest", data_root=str(file), epochs=1, cluster=cluster)
    )
    several = Counter((r.identity, r.camera) for r in images)
    count = sum(number > 1 for number in several.values())
    assert count > 0
    line = f"{count} tracks of two or more images"
    assert (line in capsys.readouterr().out) == (tracks == "must_link")


def read_synthetic_records() -> list[Record]:
    """The training images of the tiny synthetic set."""
    return load("synthetic", "", synthetic=SYNTHETIC, verbose=False).train
