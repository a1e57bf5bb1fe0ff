"""A set is loaded by its name, its counts are printed, and a wrong path says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastreid_al.data import ImageSet, describe, load
from fastreid_al.data.records import Record, join_sources
from fastreid_al.errors import SettingError
from tests.support.image_sets import fails, put, put_market, put_msmt


def test_counts_are_printed_and_compared_with_the_published_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_market(tmp_path)
    load("market1501", tmp_path)
    printed = capsys.readouterr().out
    assert "train         3 images      2 identities   2 cameras" in printed
    assert (
        "warning: train is not the published set of 12,936 images, 751 identities, 6 cameras"
        in printed
    )
    one = [Record(tmp_path / "a.jpg", 0, 1)]
    train, query, _ = describe(ImageSet("folder", tmp_path, one, one * 2, []))[1:]
    assert train == "  train         1 image       1 identity     1 camera"
    assert query == "  query         2 images      1 identity     1 camera"
    unlabelled = ImageSet("folder", tmp_path, [], [], [])
    assert not any("warning" in line for line in describe(unlabelled))


def test_missing_folder_names_its_nearest_neighbour(tmp_path: Path) -> None:
    (tmp_path / "markets").mkdir()
    fails("does not exist.*nearest there: .*markets", "market1501", tmp_path / "market")
    (tmp_path / "set.zip").write_bytes(b"x")
    fails("is a file; name the folder", "msmt17", tmp_path / "set.zip")
    (tmp_path / "images.csv").write_text("path")
    fails("a table of images is read with `dataset` manifest", "folder", tmp_path / "images.csv")


def test_an_empty_folder_is_reported_with_what_was_looked_for(tmp_path: Path) -> None:
    fails(
        "looked for bounding_box_train in .*Market-1501-v15.09.15.*holds nothing",
        "market1501",
        tmp_path,
    )
    (tmp_path / "photos").mkdir()
    fails("holds photos", "msmt17", tmp_path)
    fails("holds no image", "folder", tmp_path)


def test_a_set_deeper_in_the_folder_is_named(tmp_path: Path) -> None:
    put_msmt(tmp_path / "downloads" / "unpacked")
    fails("nearest: .*downloads/unpacked", "msmt17", tmp_path)


def test_missing_parts_of_a_set_are_named(tmp_path: Path) -> None:
    put_msmt(tmp_path / "m")
    (tmp_path / "m" / "list_gallery.txt").unlink()
    fails("list_gallery.txt does not exist", "msmt17", tmp_path / "m")
    put(tmp_path / "k" / "bounding_box_train", "0001_c1.jpg")
    fails("query does not exist", "market1501", tmp_path / "k")
    put_market(tmp_path / "n")
    put(tmp_path / "n" / "query", "holiday.jpg")
    for image in (tmp_path / "n" / "query").glob("00*"):
        image.unlink()
    fails("none of 1 images.*starts with IDENTITY_cCAMERA", "market1501", tmp_path / "n")
    put(tmp_path / "f", "train/a/1.jpg", "query/a/1.jpg")
    fails("gallery is missing or empty", "folder", tmp_path / "f")
    put(tmp_path / "f" / "train", "loose.jpg")
    fails("next to 1 identity folders", "folder", tmp_path / "f")


def test_unknown_set_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(
        SettingError, match=r"`dataset`: got 'msmt71'.*did you mean msmt17"
    ) as error:
        load("msmt71", tmp_path)
    assert "\n" not in str(error.value)


def test_test_images_without_camera_are_warned_of(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.jpg", "query/b/x.jpg", "gallery/b/y.jpg", "gallery/b/z_c1.jpg")
    [warning] = [x for x in describe(load("folder", tmp_path, verbose=False)) if "warning" in x]
    assert "the camera of 2 of 3 test images is unknown" in warning
    assert "`camera_pattern`" in warning


def test_links_and_what_is_passed_over_are_described(tmp_path: Path) -> None:
    put(tmp_path / "set", "a.jpg")
    put(tmp_path / "other", "b.jpg")
    (tmp_path / "set" / "notes.txt").write_text("x")
    (tmp_path / "set" / "link").symlink_to(tmp_path / "other")
    text = "\n".join(describe(load("folder", tmp_path / "set", verbose=False)))
    assert "passed over 1 .txt files, in no image format that is read (first: notes.txt)" in text
    assert "warning: 1 links lead out of the folder and are followed" in text


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    put(tmp_path / "crops", "a.jpg")
    assert len(load("folder", "~/crops", verbose=False).train) == 1


def test_sources_are_joined_with_people_and_cameras_apart(tmp_path: Path) -> None:
    def source(name: str, *fields: tuple[int, int]) -> ImageSet:
        root = tmp_path / name
        train = [Record(root / f"{i}.jpg", *field) for i, field in enumerate(fields)]
        return ImageSet(name, root, train, train, train)

    one, other = source("a", (0, 1), (1, -1)), source("b", (0, 0), (1, 1))
    assert join_sources([one]) is one
    both = join_sources([one, other])
    assert both.name == "a+b" and both.root == tmp_path
    assert [(r.identity, r.camera) for r in both.train] == [(0, 1), (1, -1), (2, 2), (3, 3)]
    assert both.query == both.gallery == []
