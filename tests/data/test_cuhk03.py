"""CUHK03 with the new protocol, in two layouts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastreid_al.data import load
from tests.support.image_sets import fails, labels, put


@pytest.mark.parametrize("crops", ["labeled", "detected"])
def test_the_layout_of_market(tmp_path: Path, crops: str) -> None:
    root = tmp_path / "CUHK03-NP" / crops
    put(root / "bounding_box_train", "0003_c1_1.png", "0009_c2_6.png")
    put(root / "query", "0001_c1_1.png")
    put(root / "bounding_box_test", "0001_c2_1.png")
    images = load(f"cuhk03_{crops}", tmp_path, verbose=False)
    assert labels(images.train) == [(0, 1), (1, 2)]
    assert labels(images.gallery) == [(3, 2)]


def test_lists_of_a_new_protocol(tmp_path: Path) -> None:
    root = tmp_path / "cuhk03"
    put(root / "images_labeled", "1_001_1_01.png", "1_001_2_06.png", "1_002_1_01.png")
    splits = {
        "train": [["/home/x/cuhk03/images_labeled/1_002_1_01.png", 4, 0]],
        "query": [["images_labeled/1_001_1_01.png", 0, 0]],
        "gallery": [["C:\\\\cuhk03\\images_labeled\\1_001_2_06.png", 0, 1]],
    }
    file = root / "splits_new_labeled.json"
    file.write_text(json.dumps([splits]))
    images = load("cuhk03_labeled", tmp_path, verbose=False)
    assert labels(images.train) == [(0, 0)]
    assert labels(images.query) == [(1, 0)] and labels(images.gallery) == [(1, 1)]
    for wrong in ([], {"train": []}, {**splits, "train": [["x.png", 1]]}, [[[[]]]]):
        file.write_text(json.dumps(wrong))
        fails("is not|has no lists", "cuhk03_labeled", tmp_path)
    file.write_text("[" * 100_000)
    fails("is not JSON", "cuhk03_labeled", tmp_path)
