"""Every layout on disk is read alike, and a wrong path says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from fastreid_al.data import ImageSet, describe, load
from fastreid_al.data.records import count
from fastreid_al.errors import DataError


def put(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 8)).save(path)


def put_market(root: Path) -> None:
    put(
        root / "bounding_box_train",
        "0007_c1s1_000451_03.jpg",
        "0002_c1s1_000451_03.jpg",
        "0002_c6s1_000001_01.jpg",
    )
    put(root / "query", "0001_c1s1_000001_00.jpg", "0003_c2s1_000001_00.jpg")
    put(
        root / "bounding_box_test",
        "-1_c1s1_000001_00.jpg",
        "0000_c2s1_000001_00.jpg",
        "0001_c3s1_000001_00.jpg",
    )
    (root / "bounding_box_train" / "Thumbs.db").write_bytes(b"x")


def put_msmt(root: Path, train: str = "train", test: str = "test") -> None:
    name = "{p:04d}/{p:04d}_{i:03d}_{c:02d}_0303morning_0008_0.jpg"
    splits = {
        "train": (train, [(0, 0, 1), (2, 0, 15), (2, 1, 3)]),
        "val": (train, [(1, 0, 2)]),
        "query": (test, [(0, 0, 1)]),
        "gallery": (test, [(0, 1, 12), (1, 0, 2)]),
    }
    for split, (folder, items) in splits.items():
        files = [name.format(p=p, i=i, c=c) for p, i, c in items]
        put(root / folder, *files)
        lines = [f"{file} {p}" for file, (p, _, _) in zip(files, items, strict=True)]
        (root / f"list_{split}.txt").write_text("\n".join(lines) + "\n")


def labels(records: list) -> list[tuple[int, int]]:
    return [(r.identity, r.camera) for r in records]


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


def test_counts_are_printed_and_differences_from_the_published_set_are_named(
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
    unlabelled = ImageSet("folder", tmp_path, [], [], [])
    assert not any("warning" in line for line in describe(unlabelled))


def fails(message: str, name: str, root: Path) -> None:
    with pytest.raises(DataError, match=message) as error:
        load(name, root, verbose=False)
    assert "\n" not in str(error.value)


def test_missing_folder_names_its_nearest_neighbour(tmp_path: Path) -> None:
    (tmp_path / "markets").mkdir()
    fails("does not exist.*nearest there: .*markets", "market1501", tmp_path / "market")
    (tmp_path / "set.zip").write_bytes(b"x")
    fails("is a file", "msmt17", tmp_path / "set.zip")


def test_empty_folder_says_what_was_looked_for_and_what_lies_there(tmp_path: Path) -> None:
    fails(
        "looked for bounding_box_train in .*Market-1501-v15.09.15.*holds nothing",
        "market1501",
        tmp_path,
    )
    (tmp_path / "photos").mkdir()
    fails("holds photos", "msmt17", tmp_path)
    fails("holds no image", "folder", tmp_path)


def test_a_set_that_lies_deeper_is_pointed_at(tmp_path: Path) -> None:
    put_msmt(tmp_path / "downloads" / "unpacked")
    fails("nearest: .*downloads/unpacked", "msmt17", tmp_path)


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


def test_missing_parts_of_a_set_are_named(tmp_path: Path) -> None:
    put_msmt(tmp_path / "m")
    (tmp_path / "m" / "list_gallery.txt").unlink()
    fails("list_gallery.txt does not exist", "msmt17", tmp_path / "m")
    put(tmp_path / "k" / "bounding_box_train", "0001_c1.jpg")
    fails("query does not exist", "market1501", tmp_path / "k")
    put_market(tmp_path / "n")
    put(tmp_path / "n" / "query", "holiday.jpg")
    fails("holiday.jpg.*does not start with IDENTITY_cCAMERA", "market1501", tmp_path / "n")
    put(tmp_path / "f", "train/a/1.jpg", "query/a/1.jpg")
    fails("gallery is missing or empty", "folder", tmp_path / "f")
    put(tmp_path / "f" / "train", "loose.jpg")
    fails("beside 1 identity folders", "folder", tmp_path / "f")


def test_unknown_set_names_the_nearest(tmp_path: Path) -> None:
    fails("did you mean msmt17", "msmt71", tmp_path)
