"""Market-1501's layout is read wherever it lies, and what is wrong with it is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fastreid_al.data import load
from tests.support.image_sets import labels, put, put_market


@pytest.mark.parametrize(
    "place", ["market1501/Market-1501-v15.09.15", "Market-1501-v15.09.15", "market1501", ""]
)
def test_market_is_found_from_the_data_root_or_its_own_folder(tmp_path: Path, place: str) -> None:
    put_market(tmp_path / place)
    images = load("market1501", tmp_path, verbose=False)
    assert labels(images.train) == [(0, 1), (0, 6), (1, 1)]
    assert labels(images.query) == [(3, 1), (5, 2)]
    assert labels(images.gallery) == [(-1, 1), (2, 2), (3, 3)]


def test_a_folder_named_like_an_identity_does_not_confuse_the_parser(tmp_path: Path) -> None:
    root = tmp_path / "x1_c2" / "0009_c9"
    put_market(root)
    assert labels(load("dukemtmcreid", root, verbose=False).train) == [(0, 1), (0, 6), (1, 1)]


def test_what_is_no_image_of_the_set_is_counted(tmp_path: Path) -> None:
    put_market(tmp_path)
    put(tmp_path / "query", "holiday.jpg", "sub/0001_c1.jpg")
    (tmp_path / "query" / "._0001_c1s1_000001_00.jpg").write_bytes(b"Mac OS X")
    images = load("market1501", tmp_path, verbose=False)
    assert len(images.query) == 2
    assert {reason: len(paths) for reason, paths in images.passed_over.items()} == {
        "files and folders of the system": 1,
        "folders": 1,
        "hidden files and folders": 1,
        "images whose name does not start with IDENTITY_cCAMERA": 1,
    }


def test_query_and_gallery_without_training_images(tmp_path: Path) -> None:
    put_market(tmp_path)
    shutil.rmtree(tmp_path / "bounding_box_train")
    images = load("market1501", tmp_path, verbose=False)
    assert (len(images.train), len(images.query), len(images.gallery)) == (0, 2, 3)
