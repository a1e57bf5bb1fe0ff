"""Sets of individual animals."""

from __future__ import annotations

from pathlib import Path

from fastreid_al.data import load
from tests.support.image_sets import fails, labels, put


def test_a_folder_for_each_individual(tmp_path: Path) -> None:
    put(tmp_path, "images/zoe/1.jpg", "images/zoe/2020/2.jpg", "images/amy/1.jpg")
    assert labels(load("wildlife", tmp_path, verbose=False).train) == [(0, -1), (1, -1), (1, -1)]


def test_a_table(tmp_path: Path) -> None:
    put(tmp_path, "img/1.jpg", "img/2.jpg")
    (tmp_path / "metadata.csv").write_text(
        "image_id,identity,path,date\n0,zoe,img/1.jpg,2020-01-01\n1,amy,img/2.jpg,\n"
    )
    images = load("wildlife", tmp_path, verbose=False)
    assert labels(images.train) == [(1, -1), (0, -1)]
    assert images.train[0].caption == "time 2020-01-01"


def test_images_without_an_individual_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "1.jpg", "zoe/2.jpg")
    fails("1 images in no individual's folder", "wildlife", tmp_path)
