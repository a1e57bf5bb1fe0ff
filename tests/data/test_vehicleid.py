"""VehicleID: lists, three sizes of test set, no cameras."""

from __future__ import annotations

from pathlib import Path

from fastreid_al.data import describe, load
from tests.support.image_sets import fails, labels, put_vehicleid


def test_one_image_of_each_vehicle_is_in_the_gallery(tmp_path: Path) -> None:
    put_vehicleid(tmp_path)
    images = load("vehicleid", tmp_path, verbose=False)
    assert labels(images.train) == [(1, -1), (0, -1)]
    assert sorted(r.identity for r in images.gallery) == [7, 8]
    assert sorted(r.identity for r in images.query) == [7, 7, 8]
    assert {r.path for r in images.query}.isdisjoint(r.path for r in images.gallery)
    assert images == load("vehicleid", tmp_path, verbose=False)
    assert len(load("vehicleid2400", tmp_path, verbose=False).gallery) == 3
    assert load("vehicleid1600", tmp_path, verbose=False).query == []
    assert not any("warning" in line for line in describe(images))


def test_lists_that_are_wrong(tmp_path: Path) -> None:
    put_vehicleid(tmp_path)
    lists = tmp_path / "train_test_split"
    (lists / "train_list.txt").write_text("0000000 seven\n")
    fails("line 1: '0000000 seven' is not 'IMAGE VEHICLE'", "vehicleid", tmp_path)
    (lists / "train_list.txt").write_text("0000099 7\n")
    fails("1 of 1 images that are not there", "vehicleid", tmp_path)
