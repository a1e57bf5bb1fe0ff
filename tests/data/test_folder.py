"""A tree of crops is read with and without identities."""

from __future__ import annotations

from pathlib import Path

from fastreid_al.data import load
from fastreid_al.data.records import count
from tests.support.image_sets import fails, labels, put, put_market, put_vehicleid


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


def test_query_and_gallery_alone_are_read_as_they_lie(tmp_path: Path) -> None:
    put(tmp_path, "Query/a/1_c1.jpg", "gallery/a/2_c2.jpg", "gallery/b/3_c2.jpg")
    images = load("folder", tmp_path, verbose=False)
    assert images.train == []
    assert labels(images.query) == [(0, 1)]
    assert labels(images.gallery) == [(0, 2), (1, 2)]


def test_folders_that_are_kept_for_testing_are_not_trained_on(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "set/b.jpg", "set/bbox_test/c.jpg", "val/d.jpg", "Test/e.jpg")
    images = load("folder", tmp_path, verbose=False)
    assert [r.path.name for r in images.train] == ["a.jpg", "b.jpg"]
    [(reason, folders)] = images.passed_over.items()
    assert "kept for testing" in reason and len(folders) == 3
    assert len(load("folder", tmp_path / "Test", verbose=False).train) == 1
    put(tmp_path / "only", "test/a.jpg")
    fails("no image at any depth.*1 folders whose name says", "folder", tmp_path / "only")


def test_what_lies_beside_the_splits_is_counted(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.jpg", "extra/2.jpg", "test/3.jpg")
    (tmp_path / "train" / "a" / "._1.jpg").write_bytes(b"Mac OS X")
    images = load("folder", tmp_path, verbose=False)
    assert len(images.train) == 1
    counts = {reason: len(paths) for reason, paths in images.passed_over.items()}
    assert counts == {
        "hidden files and folders": 1,
        "folders beside train, query and gallery": 2,
    }


def test_identities_and_cameras_by_patterns(tmp_path: Path) -> None:
    put(tmp_path, "north_ann_1.jpg", "south_bob_2.jpg", "south_ann_3.jpg")
    images = load(
        "folder",
        tmp_path,
        verbose=False,
        identity_pattern=r"_([a-z]+)_",
        camera_pattern="^(north|south)",
    )
    assert labels(images.train) == [(0, 0), (0, 1), (1, 1)]


def test_cameras_are_numbered_alike_in_all_splits(tmp_path: Path) -> None:
    put(tmp_path, "train/a/cam_x_1.jpg", "query/b/cam_z_1.jpg", "gallery/b/cam_y_1.jpg")
    images = load("folder", tmp_path, verbose=False)
    assert [r.camera for r in (*images.train, *images.query, *images.gallery)] == [0, 2, 1]


def test_two_folders_of_one_split_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.jpg", "Train/a/2.jpg")
    fails("holds Train and train; join the two", "folder", tmp_path)


def test_a_published_set_below_the_folder_is_left_out(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg")
    put_vehicleid(tmp_path / "VehicleID_V1.0")
    images = load("folder", tmp_path, verbose=False)
    assert len(images.train) == 1
    [(reason, _)] = images.passed_over.items()
    assert reason == "folders of published sets, which have readers of their own"


def test_a_folder_of_nothing_but_a_published_set_is_refused_with_its_reader(
    tmp_path: Path,
) -> None:
    put_market(tmp_path / "Market-1501-v15.09.15")
    own = tmp_path / "Market-1501-v15.09.15"
    fails(
        f"no image at any depth outside {own}, which has the layout of market1501 or .*; "
        f"read it with `dataset` market1501 and `data_root` {own}$",
        "folder",
        tmp_path,
    )
    own.rename(tmp_path / "DukeMTMC-reID")
    fails("read it with `dataset` dukemtmcreid and", "folder", tmp_path)


def test_a_split_that_is_a_link_out_of_the_folder_is_reported(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere", "ann/1.jpg")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train").symlink_to(tmp_path / "elsewhere")
    images = load("folder", tmp_path / "set", verbose=False)
    assert list(images.outside) == [tmp_path / "set" / "train"]
    put(tmp_path / "set", "real/ann/2.jpg")
    (tmp_path / "set" / "train").unlink()
    (tmp_path / "set" / "train").symlink_to("real")
    assert not load("folder", tmp_path / "set", verbose=False).outside
