"""A tree of crops is read with and without identities."""

from __future__ import annotations

from pathlib import Path

from fastreid_al.data import load
from fastreid_al.data.records import count
from tests.support.image_sets import labels, put


def test_folder_of_identities(tmp_path: Path) -> None:
    put(tmp_path / "train", "anna/a_c3.png", "anna/b_c11_x.webp", "bob/c.bmp")
    put(tmp_path / "query", "carl/d_c1.jpg")
    put(tmp_path / "gallery", "carl/e_c2.jpg", "dora/f_c2.jpeg")
    images = load("folder", tmp_path, verbose=False)
    assert labels(images.train) == [(0, 3), (0, 11), (1, -1)]
    assert count(images.train) == (3, 2, 2)
    query, gallery = images.query[0], images.gallery
    assert query.identity == gallery[0].identity != gallery[1].identity
    assert min(r.identity for r in gallery) > max(r.identity for r in images.train)


def test_plain_folder_of_unlabelled_crops(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "sub/b_c2.png")
    (tmp_path / "notes.txt").write_text("x")
    images = load("folder", tmp_path, verbose=False)
    assert labels(images.train) == [(-1, -1), (-1, 2)]
    assert images.query == images.gallery == []
