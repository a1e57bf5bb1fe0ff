"""Images that changed since a run began are counted, and the first of each kind is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastreid_al.data import ImageSet, Record
from fastreid_al.data.fingerprint import check_same_data, data_fingerprint, different_images
from fastreid_al.errors import CheckpointError


def test_images_are_described_by_content_or_size_identity_and_camera(tmp_path: Path) -> None:
    (tmp_path / "q.jpg").write_bytes(b"12345")
    train = [Record(tmp_path / "train" / "a.jpg", 0, 2)]
    query = [Record(tmp_path / "q.jpg", 1, 3)]
    gallery = [Record(tmp_path / "gone.jpg", -1, 4)]
    images = ImageSet("folder", tmp_path, train, query, gallery)
    digests = {tmp_path / "q.jpg": "d2"}
    assert data_fingerprint(images, train, ["d1"], digests)["q.jpg"] == "5 1 3 d2"
    assert data_fingerprint(images, train, ["d1"]) == {
        "train/a.jpg": "d1 0 2",
        "q.jpg": "5 1 3",
        "gone.jpg": "unreadable -1 4",
    }


def test_missing_new_and_changed_images_are_named() -> None:
    before = {"a": "1", "b": "2", "c": "3"}
    now = {"a": "1", "b": "9", "d": "4", "e": "5"}
    assert different_images(before, before) == ""
    assert different_images(before, now) == (
        "1 missing (first: c), 2 new (first: d), 1 changed (first: b)"
    )
    check_same_data(before, before)
    with pytest.raises(CheckpointError, match=r"1 missing \(first: c\).*another `run_dir`"):
        check_same_data(before, now)


def test_a_test_image_of_an_earlier_checkpoint_is_known_by_its_size() -> None:
    check_same_data({"q": "5 1 3"}, {"q": "5 1 3 d2"})
    for before, now in (("5 1 3", "6 1 3 d2"), ("5 1 3 d1", "5 1 3 d2"), ("5 1 3 d1", "5 1 3")):
        with pytest.raises(CheckpointError, match=r"1 changed \(first: q\)"):
            check_same_data({"q": before}, {"q": now})


def test_names_of_any_bytes_are_shown() -> None:
    assert different_images({"\udcd5\n": "1"}, {}) == r"1 missing (first: \xd5\n)"
