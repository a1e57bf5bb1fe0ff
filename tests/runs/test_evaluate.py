"""Scores of a file on a test set."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch

from fastreid_al.answers.report import parse_cell
from fastreid_al.config import EngineConfig, EvaluationConfig, RunConfig, ScoringConfig
from fastreid_al.engine.console import Reporter
from fastreid_al.errors import CheckpointError, DataError, UserError, printable
from fastreid_al.evaluate import main as evaluate_main
from fastreid_al.models import build_model
from fastreid_al.runs import run_training
from fastreid_al.runs.evaluate import evaluate_file
from fastreid_al.runs.trained import engine_of_checkpoint
from tests.support.image_sets import put_noise
from tests.support.tiny import MODEL, SYNTHETIC, weights


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
    evaluate_main(["--checkpoint", str(tmp_path / "bare.pth"), "--model", MODEL, *size, *flags])
    assert f"{100 * last['mAP']:.1f}" in capsys.readouterr().out
    with pytest.raises(UserError, match="name its backbone with `model`"):
        evaluate_main(["--checkpoint", str(tmp_path / "bare.pth"), *flags])
    with pytest.raises(CheckpointError, match="trained with `model` tiny, not resnet18"):
        evaluate_main(
            ["--checkpoint", str(finished.folder / "best.pt"), "--model", "resnet18", *flags]
        )


def test_mirror_images_are_averaged_where_the_run_did_so(
    config: RunConfig, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    engine = replace(config.engine, flip_features=True)
    finished = run_training(replace(config, epochs=1, engine=engine))
    mean_ap = finished.history[-1]["mAP"]
    checkpoint = finished.folder / "last.pt"
    capsys.readouterr()
    scores = evaluate_file(EvaluationConfig(str(checkpoint)))
    assert scores is not None and scores.mAP == pytest.approx(mean_ap, rel=1e-6)
    assert "averaged with those of mirror images, as in the run" in capsys.readouterr().out
    # Elsewhere nothing is known of the run.
    alone = shutil.copy(checkpoint, tmp_path / "alone.pt")
    evaluate_file(EvaluationConfig(str(alone), dataset="synthetic", synthetic=config.synthetic))
    assert "mirror images" not in capsys.readouterr().out


def test_the_folder_of_a_run_stands_for_its_last_checkpoint(
    config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    finished = run_training(replace(config, epochs=1))
    capsys.readouterr()
    scores = evaluate_file(EvaluationConfig(str(finished.folder)))
    assert scores is not None and scores.mAP == pytest.approx(finished.history[-1]["mAP"], rel=1e-6)
    (finished.folder / "last.pt").unlink()
    with pytest.raises(
        CheckpointError, match=r"has no last\.pt: the run has not saved a checkpoint"
    ):
        evaluate_file(EvaluationConfig(str(finished.folder)))


def test_a_configuration_that_cannot_be_read_loses_mirror_images_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine, file = EngineConfig(), tmp_path / "config.json"
    flipped = replace(engine, flip_features=True)
    reporter, checkpoint = Reporter(), tmp_path / "last.pt"
    assert engine_of_checkpoint(engine, checkpoint, reporter) == engine
    assert capsys.readouterr().out == ""
    for content in (b'{"engine": {"flip_features": true}', b"\xff", b'{"vocab_size": 7}'):
        file.write_bytes(content)
        assert engine_of_checkpoint(engine, checkpoint, reporter) == engine
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith("warning: ") and str(file) in line
        assert "set `engine.flip_features`" in line
        # Who asks for mirror images loses none.
        assert engine_of_checkpoint(flipped, checkpoint, reporter) == flipped
        assert capsys.readouterr().out == ""


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
    printed = capsys.readouterr().out
    assert "re-ranked" not in printed
    assert "ranking" in printed and "by the features" in printed
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


@pytest.fixture
def crops(tmp_path: Path) -> EvaluationConfig:
    """Scores random weights on crops of one camera."""
    torch.save(build_model("osnet_x0_25", "none").state_dict(), tmp_path / "weights.pt")
    for person in range(3):
        put_noise(tmp_path / "set", f"train/p{person}/{person}_c1.jpg", seed=person)
        put_noise(tmp_path / "set", f"query/q{person}/{person}_c1.jpg", seed=10 + person)
        put_noise(tmp_path / "set", f"gallery/q{person}/{person}_c1.jpg", seed=20 + person)
    return EvaluationConfig(
        str(tmp_path / "weights.pt"),
        "folder",
        str(tmp_path / "set"),
        model="osnet_x0_25",
        height=32,
        width=16,
    )


def test_no_match_is_no_score_and_an_error(
    crops: EvaluationConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match=r"query's own camera.*`evaluation.same_camera` include"):
        evaluate_file(crops)
    printed = capsys.readouterr().out
    assert "0.0" not in printed.split("Test set")[1]
    ranking = evaluate_file(replace(crops, evaluation=ScoringConfig("include")))
    assert ranking is not None and ranking.queries == 3


def test_no_identity_in_the_gallery_is_the_reason(crops: EvaluationConfig) -> None:
    for person in range(3):
        (Path(crops.data_root) / f"query/q{person}").rename(f"{crops.data_root}/query/x{person}")
    with pytest.raises(DataError, match="no gallery image shows an identity of the queries"):
        evaluate_file(crops)


def test_images_in_two_splits_are_counted(
    crops: EvaluationConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(crops.data_root)
    shutil.copy(root / "query/q1/1_c1.jpg", root / "gallery/q1/9_c2.jpg")
    evaluate_file(crops)
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 of 4 gallery images are also query images" in printed


def test_features_of_a_folder_have_names(crops: EvaluationConfig, tmp_path: Path) -> None:
    root = Path(crops.data_root)
    (root / "train/p1/1_c1.jpg").write_bytes(b"broken")
    file = tmp_path / "features.npz"
    both = ScoringConfig("include")
    evaluate_file(replace(crops, save_features=str(file), evaluation=both))
    with np.load(file) as saved:
        assert saved["paths"].tolist() == ["train/p0/0_c1.jpg", "train/p2/2_c1.jpg"]
        assert saved["features"].shape[0] == len(saved["identities"]) == 2
        assert saved["gallery_paths"].tolist() == [f"gallery/q{p}/{p}_c1.jpg" for p in range(3)]
        assert saved["query_features"].shape == saved["gallery_features"].shape
    one = replace(crops, data_root=str(root / "train/p0"), save_features=str(file), force=True)
    assert evaluate_file(one) is None
    with np.load(file) as saved:
        assert saved["paths"].tolist() == ["0_c1.jpg"]
        assert np.isfinite(saved["features"]).all()


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        "\x00",
        "{}",
        '{"dataset": 3, "data_root": "data", "synthetic": {}}',
        '{"dataset": "folder", "data_root": 7, "synthetic": {}}',
        '{"dataset": "synthetic", "data_root": "data", "synthetic": {"height": "tall"}}',
    ],
)
def test_a_damaged_configuration_beside_the_file_is_named(tmp_path: Path, content: str) -> None:
    model = build_model("osnet_x0_25", "none")
    torch.save(model.state_dict(), tmp_path / "x.pth")
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match="is not the configuration of a run; name the image set"):
        evaluate_file(EvaluationConfig(str(tmp_path / "x.pth"), model="osnet_x0_25"))


@pytest.mark.parametrize("network", [{"name": 3}, {"name": "resnet18", "height": -4}])
def test_a_checkpoint_that_lies_about_its_network_is_refused(
    tmp_path: Path, network: dict[str, object]
) -> None:
    state = {"model": build_model("osnet_x0_25", "none").state_dict(), "network": network}
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(UserError, match="is not a checkpoint that a run wrote: network"):
        evaluate_file(EvaluationConfig(str(tmp_path / "x.pth"), dataset="synthetic"))


def test_no_temporary_folder_is_needed_for_pixels_in_memory(
    crops: EvaluationConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", fail)
    crops = replace(crops, evaluation=ScoringConfig("include"))
    assert evaluate_file(crops) is not None


def test_a_checkpoint_of_another_version_is_scored(
    crops: EvaluationConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(crops.data_root).rename(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    settings: dict[str, object] = {"dataset": "folder", "gone": 3, "synthetic": {"gone": 1}}
    settings |= {"evaluation": {"same_camera": "include", "gone": True}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    ranking = evaluate_file(replace(crops, dataset=None, data_root="data"))
    assert ranking is not None and ranking.queries == 3


def test_a_checkpoint_is_scored_as_its_run_was(crops: EvaluationConfig, tmp_path: Path) -> None:
    settings = {"dataset": "folder", "data_root": crops.data_root}
    settings |= {"evaluation": {"same_camera": "include"}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    ranking = evaluate_file(replace(crops, dataset=None, data_root="data"))
    assert ranking is not None and ranking.queries == 3


def put_matches(crops: EvaluationConfig) -> None:
    """Give each query an image of its identity by another camera, under difficult names."""
    root = os.fsencode(crops.data_root)
    names = [b"a,b_c2.jpg", b'"quoted"\nbroken_c2.jpg', b"\xff\xfe_c2.jpg"]
    for person, name in enumerate(names):
        known = root + b"/gallery/q%d/%d_c1.jpg" % (person, person)
        put_noise(Path(crops.data_root), "x_c2.jpg", seed=30 + person)
        os.rename(root + b"/x_c2.jpg", os.path.join(os.path.dirname(known), name))


def test_rankings_are_written_with_paths_ranks_and_ignored_images(
    crops: EvaluationConfig, tmp_path: Path
) -> None:
    put_matches(crops)
    file = tmp_path / "rankings.csv"
    ranking = evaluate_file(replace(crops, save_rankings=str(file)))
    with open(file, newline="", encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened))
    assert list(rows[0]) == ["query", "rank", "gallery", "similarity", "right", "junk"]
    assert ranking is not None
    root = Path(crops.data_root)
    for number in range(3):
        of_query = [r for r in rows if r["query"] == f"query/q{number}/{number}_c1.jpg"]
        paths = [parse_cell(row["gallery"]) for row in of_query]
        assert sorted(paths) == sorted(str(p.relative_to(root)) for p in root.glob("gallery/*/*"))
        assert [row["rank"] for row in of_query if row["junk"] == "false"] == list("12345")
        (ignored,) = [row for row in of_query if row["junk"] == "true"]
        assert (ignored["gallery"], ignored["rank"]) == (f"gallery/q{number}/{number}_c1.jpg", "")
        right = [row for row in of_query if row["right"] == "true" and row["junk"] == "false"]
        assert [int(row["rank"]) for row in right] == [int(ranking.of_queries.first[number])]
        similarity = [float(row["similarity"]) for row in of_query]
        assert similarity == sorted(similarity, reverse=True)
    with pytest.raises(UserError, match=r"rankings.csv exists.*`force`"):
        evaluate_file(replace(crops, save_rankings=str(file)))
    before = file.read_bytes()
    evaluate_file(replace(crops, save_rankings=str(file), force=True))
    assert file.read_bytes() == before


def test_rankings_as_parquet_hold_the_same_rows(crops: EvaluationConfig, tmp_path: Path) -> None:
    put_matches(crops)
    plain, columns = tmp_path / "rankings.csv", tmp_path / "rankings.parquet"
    evaluate_file(replace(crops, save_rankings=str(plain), rerank=True))
    evaluate_file(replace(crops, save_rankings=str(columns)))
    table = pyarrow.parquet.read_table(columns)
    with open(plain, newline="", encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened))
    assert table.column_names == list(rows[0])
    assert len(rows) == table.num_rows == 18
    for row, other in zip(rows, table.to_pylist(), strict=True):
        assert other["gallery"] == printable(parse_cell(row["gallery"]))
        assert str(other["rank"] or "") == row["rank"]
        assert other["similarity"] == pytest.approx(float(row["similarity"]), abs=1e-6)
        assert (str(other["right"]).lower(), str(other["junk"]).lower()) == (
            row["right"],
            row["junk"],
        )


def test_a_rankings_file_that_cannot_be_written_is_refused_before_the_work(
    crops: EvaluationConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = replace(crops, checkpoint=str(tmp_path / "no such file"))
    for name, message in (
        ("rankings.xlsx", r"`save_rankings`: got rankings.xlsx, expected a name that ends in .csv"),
        ("no/rankings.csv", "no is not a folder"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate_file(replace(missing, save_rankings=str(tmp_path / name)))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'fastreid_al\[parquet\]'"):
        evaluate_file(replace(missing, save_rankings=str(tmp_path / "rankings.parquet")))


def test_rankings_need_queries(crops: EvaluationConfig, tmp_path: Path) -> None:
    one = replace(crops, data_root=f"{crops.data_root}/train/p0")
    files = {name: str(tmp_path / name) for name in ("save_features", "save_rankings")}
    files["save_rankings"] += ".csv"
    with pytest.raises(
        DataError,
        match=r"no query and gallery images.*a set that has them with `dataset` and `data_root`",
    ):
        evaluate_file(replace(one, **files))  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_rankings_on_a_full_disk_are_one_line(
    crops: EvaluationConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    put_matches(crops)
    file = tmp_path / f"rankings.{suffix}"
    file.write_bytes(b"before")
    monkeypatch.setattr("fastreid_al.files.NewFile.write", fail)
    with pytest.raises(UserError, match=r"could not write .*\(No space left"):
        evaluate_file(replace(crops, save_rankings=str(file), force=True))
    assert file.read_bytes() == b"before"
    assert list(tmp_path.glob(".fastreid_al*")) == []
