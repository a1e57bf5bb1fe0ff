"""A set is described without training on it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fastreid_al.cli import main, parse_training
from fastreid_al.data import load
from fastreid_al.data.pixels import decode
from fastreid_al.errors import DataError
from fastreid_al.runs.data_check import check_data
from tests.support.image_sets import put, put_market, put_noise


def test_counts_copies_formats_and_what_is_left_out(tmp_path: Path) -> None:
    put_market(tmp_path)
    query = tmp_path / "query"
    shutil.copy(query / "0001_c1s1_000001_00.jpg", tmp_path / "bounding_box_test/0001_c4.jpg")
    (query / "0003_c2s1_000001_00.jpg").write_bytes(b"broken")
    (query / "notes.txt").write_text("x")
    report = check_data(tmp_path).as_json()
    assert report["dataset"] == "market1501" and "dukemtmcreid" in report["fits"]
    train = report["splits"]["train"]
    assert (train["images"], train["identities"]) == (3, 2)
    assert train["images_of_an_identity"] == {"least": 1, "median": 1.5, "most": 2}
    assert train["images_of_camera"] == {"1": 2, "6": 1}
    assert report["splits"]["gallery"]["images_without_identity"] == 1
    assert report["formats"] == {"JPEG": 8}
    assert report["sizes"]["width in pixels"] == {"least": 4, "median": 4, "most": 4}
    [unreadable] = report["unreadable"]
    assert unreadable["path"] == "query/0003_c2s1_000001_00.jpg"
    assert unreadable["reason"] == "not an image"
    assert report["copies"]["images in query and in gallery"] == 1
    assert report["passed_over"][".txt files, in no image format that is read"] == [
        "query/notes.txt"
    ]


def test_names_every_image_that_a_training_leaves_out_with_its_reason(tmp_path: Path) -> None:
    put(tmp_path, "whole.jpg")
    put_noise(tmp_path, "cut.jpg", seed=1)
    put_noise(tmp_path, "cut.png", seed=2)
    for name in ("cut.jpg", "cut.png"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no image")
    report = check_data(tmp_path).as_json()
    found = {item["path"]: item["reason"] for item in report["unreadable"]}
    left_out = decode([r.path for r in load("folder", tmp_path, verbose=False).train], 8, 4).bad
    assert found == {image.path.name: image.reason for image in left_out}
    assert sorted(found) == ["cut.jpg", "cut.png", "empty.jpg", "text.jpg"]
    assert found["empty.jpg"] == "the file is empty"
    assert report["formats"] == {"JPEG": 1}


def test_the_command_prints_lines_or_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, "a_c1.jpg", "b_c2.png")
    (tmp_path / "images.csv").write_text("path,identity\na_c1.jpg,ann\n")
    main(["data", "check", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "train         2 images" in printed
    assert "formats: 1 JPEG, 1 PNG" in printed
    assert "the layout is of no known set" in printed
    main(["data", "check", "--manifest", str(tmp_path / "images.csv"), "--json"])
    assert json.loads(capsys.readouterr().out)["splits"]["train"]["identities"] == 1
    with pytest.raises(SystemExit):
        main(["data", "check"])
    assert "name the folder of the images" in capsys.readouterr().err


def test_a_manifest_is_a_set_of_a_training(tmp_path: Path) -> None:
    config, _ = parse_training(["--manifest", "~/images.csv"])
    assert config.dataset == "manifest"
    assert config.data_root == str(Path.home() / "images.csv")
    with pytest.raises(SystemExit):
        parse_training(["--manifest", "a.csv", "--dataset", "msmt17"])


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        check_data(tmp_path / "none")
