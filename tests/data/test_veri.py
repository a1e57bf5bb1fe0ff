"""VeRi-776 is read like Market-1501, from other folders."""

from __future__ import annotations

from pathlib import Path

from fastreid_al.data import load
from tests.support.image_sets import labels, put


def test_veri(tmp_path: Path) -> None:
    root = tmp_path / "VeRi"
    put(root / "image_train", "0001_c001_00016450_0.jpg", "0004_c020_00016450_1.jpg")
    put(root / "image_query", "0002_c002_00030600_0.jpg")
    put(root / "image_test", "0002_c003_00030600_0.jpg")
    images = load("veri776", tmp_path, verbose=False)
    assert labels(images.train) == [(0, 1), (1, 20)]
    assert labels(images.query) == [(4, 2)]
    assert labels(images.gallery) == [(4, 3)]
