"""MSMT17 is read from its lists and from its repack, and what is wrong with it is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fastreid_al.data import load
from tests.support.image_sets import fails, labels, put, put_msmt


@pytest.mark.parametrize(
    ("place", "folders"),
    [
        ("msmt17/MSMT17_V1", ("train", "test")),
        ("msmt17/MSMT17_V2", ("mask_train_v2", "mask_test_v2")),
        ("MSMT17_V1", ("train", "test")),
        ("", ("train", "test")),
    ],
)
def test_msmt17_lists_give_train_and_val(
    tmp_path: Path, place: str, folders: tuple[str, str]
) -> None:
    put_msmt(tmp_path / place, *folders)
    images = load("msmt17", tmp_path, verbose=False)
    assert labels(images.train) == [(0, 1), (1, 2), (2, 15), (2, 3)]
    assert labels(images.query) == [(3, 1)]
    assert labels(images.gallery) == [(3, 12), (4, 2)]
    without = load("msmt17", tmp_path, validation=False, verbose=False)
    assert labels(without.train) == [(0, 1), (1, 15), (1, 3)]


def test_msmt17_market_style_repack_with_two_digit_cameras(tmp_path: Path) -> None:
    root = tmp_path / "msmt17"
    put(root / "bounding_box_train", "0000_c12_0001.jpg", "0001_c1_0002.jpg")
    put(root / "query", "0000_c15_0001.jpg")
    put(root / "bounding_box_test", "0000_c3_0001.jpg")
    images = load("msmt17", tmp_path, verbose=False)
    assert labels(images.train) == [(0, 12), (1, 1)]
    assert labels(images.query) == [(2, 15)]


def test_list_naming_an_absent_image_is_refused_with_its_line(tmp_path: Path) -> None:
    put_msmt(tmp_path)
    with open(tmp_path / "list_query.txt", "a") as file:
        file.write("0009/0009_000_01_x.jpg 9\n")
    fails("names 1 of 2 images.*line 2: 0009/0009_000_01_x.jpg", "msmt17", tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [("oops", "line 1: 'oops'"), ("a/b_c.jpg 3", "is not 'FOLDER"), ("", "is empty")],
)
def test_unreadable_list_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    put_msmt(tmp_path)
    (tmp_path / "list_val.txt").write_text(line + "\n")
    fails(message, "msmt17", tmp_path)


@pytest.mark.parametrize(
    ("slash", "gap", "end"), [("\\", " ", "\r\n"), ("/", "\t", "\n"), ("/", "  ", "\n")]
)
def test_lists_that_passed_through_other_programs(
    tmp_path: Path, slash: str, gap: str, end: str
) -> None:
    put_msmt(tmp_path)
    for file in tmp_path.glob("list_*.txt"):
        text = file.read_text().replace("/", slash).replace(" ", gap).replace("\n", end)
        file.write_bytes(text.encode("utf-16" if end == "\r\n" else "utf-8"))
    images = load("msmt17", tmp_path, verbose=False)
    assert labels(images.train) == [(0, 1), (1, 2), (2, 15), (2, 3)]


def test_a_list_may_not_lead_out_of_the_set(tmp_path: Path) -> None:
    put_msmt(tmp_path / "set")
    put(tmp_path, "0_0_1_x.jpg")
    (tmp_path / "set" / "list_val.txt").write_text("../../0_0_1_x.jpg 3\n")
    fails("line 1: ../../0_0_1_x.jpg leads out of", "msmt17", tmp_path / "set")


def test_test_lists_alone_are_read(tmp_path: Path) -> None:
    put_msmt(tmp_path)
    (tmp_path / "list_train.txt").unlink()
    (tmp_path / "list_val.txt").unlink()
    shutil.rmtree(tmp_path / "train")
    images = load("msmt17", tmp_path, verbose=False)
    assert (len(images.train), len(images.query), len(images.gallery)) == (0, 1, 2)


def test_paths_that_begin_at_the_root(tmp_path: Path) -> None:
    put_msmt(tmp_path)
    for split in ("train", "val"):
        file = tmp_path / f"list_{split}.txt"
        lines = [f"train/{line}" for line in file.read_text().splitlines()]
        file.write_text("\n".join(lines).replace(" ", ","))
    assert len(load("msmt17", tmp_path, verbose=False).train) == 4
