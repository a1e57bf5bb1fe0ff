"""Folders of images: this project's readers read them back, and nothing of the user's is lost."""

from __future__ import annotations

import csv
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastreid_al.data import ImageSet, Record, load
from fastreid_al.errors import UserError
from fastreid_al.labels import LabelTable
from fastreid_al.labels import folders as module
from fastreid_al.labels.folders import FolderForm, check_folder, suffix_of, write_folders
from tests.support.image_sets import put, put_noise

#: What CVAT and Datumaro expect of a name.
DATUMARO = re.compile(r"^(-?\d+)_c(\d+)s(\d+)_.*")


def image_set(root: Path, cameras: list[int], test: bool = False) -> ImageSet:
    """Six images in subfolders, with names of any bytes, and test images."""
    names = ["x/1_c9.jpg", "y/1_c9.jpg", "two, words.jpg", "a\nb.jpg", "z/=5.jpg", "z/6.jpg"]
    for seed, name in enumerate(names):
        put_noise(root, name, seed)
    train = [Record(root / name, -1, camera) for name, camera in zip(names, cameras, strict=True)]
    query, gallery = [], []
    if test:
        put(root, "q.jpg", "g.jpg", "junk.jpg")
        query = [Record(root / "q.jpg", 50, cameras[0])]
        gallery = [Record(root / "g.jpg", 50, cameras[-1]), Record(root / "junk.jpg", -1, 3)]
    return ImageSet("manifest", root, train, query, gallery)


def table(identities: list[int], unread: tuple[int, ...] = ()) -> LabelTable:
    n = len(identities)
    sources = np.ones(n, dtype=np.uint8)
    sources[list(unread)] = 0
    zeros = np.zeros(n)
    return LabelTable(
        [str(i) for i in range(n)],
        np.array(identities),
        np.full(n, -1),
        np.ones(n, dtype=int),
        zeros,
        zeros,
        sources,
        zeros > 0,
    )


def content(path: Path) -> bytes:
    return path.read_bytes()


def read_back(found: ImageSet, out: Path, images: ImageSet) -> dict[str, tuple[int, int]]:
    """Identity and camera of each training image that was read back, by its path in the set."""
    with open(out / "files.csv", encoding="utf-8", newline="") as file:
        origin = {row["file"]: row["path"] for row in csv.DictReader(file)}
    result = {}
    for record in found.train:
        path = origin[record.path.relative_to(out).as_posix()]
        assert content(images.root / path) == content(record.path)
        result[path] = record.identity, record.camera
    return result


IDENTITIES = [7, 7, -1, 12, 12, 3]
CAMERAS = [2, 4, 2, 4, 2, 2]


def expected(images: ImageSet, cameras: list[int]) -> dict[str, tuple[int, int]]:
    numbers = {3: 0, 7: 1, 12: 2}
    return {
        str(record.path.relative_to(images.root)): (numbers[identity], camera)
        for record, identity, camera in zip(images.train, IDENTITIES, cameras, strict=True)
        if identity >= 0
    }


@pytest.mark.parametrize("link", [False, True])
def test_identity_folders_are_read_back(tmp_path: Path, link: bool) -> None:
    images = image_set(tmp_path / "set", CAMERAS)
    out = tmp_path / "out"
    assert write_folders(table(IDENTITIES), images, out, "imagefolder", link) == 5
    assert sorted(path.name for path in out.iterdir()) == ["0003", "0007", "0012", "files.csv"]
    found = load("folder", out, identity_pattern=r"^(\d+)/", verbose=False)
    assert read_back(found, out, images) == expected(images, CAMERAS)
    assert found.train[0].path.is_symlink() == link


def test_unknown_cameras_stay_unknown_in_identity_folders(tmp_path: Path) -> None:
    cameras = [-1, 4, 2, -1, 2, 2]
    images = image_set(tmp_path / "set", cameras)
    write_folders(table(IDENTITIES), images, tmp_path / "out", "imagefolder", False)
    found = load("folder", tmp_path / "out", identity_pattern=r"^(\d+)/", verbose=False)
    assert read_back(found, tmp_path / "out", images) == expected(images, cameras)


@pytest.mark.parametrize("link", [False, True])
def test_market_folders_are_read_back_with_test_images(tmp_path: Path, link: bool) -> None:
    images = image_set(tmp_path / "set", CAMERAS, test=True)
    out = tmp_path / "out"
    assert write_folders(table(IDENTITIES), images, out, "market1501", link) == 9
    found = load("market1501", out, verbose=False)
    assert read_back(found, out, images) == expected(images, CAMERAS)
    assert [(r.identity, r.camera) for r in found.query] == [(16, 2)]
    assert {(r.identity, r.camera) for r in found.gallery} == {(16, 2), (-1, 3), (-1, 2)}
    names = [path.name for path in out.rglob("*.jpg")]
    assert all(DATUMARO.match(name) for name in names)
    assert "0007_c2s1_000001_00.jpg" in names and "-1_c2s1_000003_00.jpg" in names


def test_market_folders_without_test_images_are_read_as_a_folder(tmp_path: Path) -> None:
    images = image_set(tmp_path / "set", [0, 1, -1, 1, 0, -1])
    out = tmp_path / "out"
    assert write_folders(table(IDENTITIES, unread=(2,)), images, out, "market1501", False) == 5
    train = out / "bounding_box_train"
    assert [path.name for path in out.iterdir() if path.is_dir()] == [train.name]
    found = load("folder", train, identity_pattern=r"^(\d+)_c", verbose=False)
    # Cameras begin at 1, and 0 is an unknown one.
    assert read_back(found, out, images) == expected(images, [1, 2, 0, 2, 1, 0])


def test_files_keep_their_format(tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 8))
    for name in ("a.png", "b.webp", "c.tif", "d.bmp", "e.gif", "f.jpeg"):
        picture.save(tmp_path / name)
    (tmp_path / "f.jpeg").rename(tmp_path / "g.png")  # a wrong suffix
    (tmp_path / "h.odd").write_bytes(b"no image")
    found = [suffix_of(path) for path in sorted(tmp_path.iterdir())]
    assert found == ["png", "webp", "tif", "bmp", "gif", "jpg", "odd"]


def test_numbers_of_many_digits_stay_in_order(tmp_path: Path) -> None:
    images = image_set(tmp_path / "set", CAMERAS)
    write_folders(table([12345, 12345, 2, 2, 2, -1]), images, tmp_path / "out", "imagefolder", True)
    assert sorted(os.listdir(tmp_path / "out")) == ["00002", "12345", "files.csv"]


def test_only_an_export_is_replaced(tmp_path: Path) -> None:
    images = image_set(tmp_path / "set", CAMERAS)
    out = tmp_path / "out"
    check_folder(out)
    write_folders(table(IDENTITIES), images, out, "imagefolder", False)
    check_folder(out)
    write_folders(table([1, 1, -1, -1, -1, -1]), images, out, "imagefolder", False)
    assert sorted(os.listdir(out)) == ["0001", "files.csv"]
    for make in (
        lambda path: put(path, "mine.jpg"),
        lambda path: path.write_text("mine"),
        lambda path: path.symlink_to(out),
    ):
        other = tmp_path / "other"
        make(other)
        with pytest.raises(UserError, match=r"name another (folder )?with `out`"):
            check_folder(other)
        shutil.rmtree(other) if other.is_dir() and not other.is_symlink() else other.unlink()
    assert sorted(os.listdir(tmp_path)) == ["out", "set"]


def test_an_export_with_a_file_of_the_users_is_not_replaced(tmp_path: Path) -> None:
    images = image_set(tmp_path / "set", CAMERAS)
    out = tmp_path / "out"
    write_folders(table(IDENTITIES), images, out, "imagefolder", True)
    (out / "0007" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds 0007/notes.txt, which no export wrote"):
        write_folders(table(IDENTITIES), images, out, "imagefolder", True)
    assert (out / "0007" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("form", ["imagefolder", "market1501"])
def test_a_failure_leaves_the_old_folder_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: FolderForm
) -> None:
    images = image_set(tmp_path / "set", CAMERAS)
    out = tmp_path / "out"
    write_folders(table(IDENTITIES), images, out, form, False)
    before = sorted(path for path in out.rglob("*"))
    images.train[3].path.unlink()
    with pytest.raises(UserError, match=r"could not copy .*No such file.*is unchanged"):
        write_folders(table(IDENTITIES), images, out, form, False)

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "copy_file", full)
    with pytest.raises(UserError, match="No space left on device") as said:
        write_folders(table(IDENTITIES), images, out, form, False)
    assert "\n" not in str(said.value)
    assert sorted(path for path in out.rglob("*")) == before
    assert sorted(os.listdir(tmp_path)) == ["out", "set"]


def test_nothing_to_write_is_an_error(tmp_path: Path) -> None:
    images = image_set(tmp_path / "set", CAMERAS)
    with pytest.raises(UserError, match="no image has an identity"):
        write_folders(table([-1] * 6), images, tmp_path / "out", "imagefolder", False)
    assert not (tmp_path / "out").exists()


def test_progress_is_counted(tmp_path: Path) -> None:
    images = image_set(tmp_path / "set", CAMERAS)
    seen: list[tuple[int, int]] = []
    update: Callable[[int, int], None] = lambda *done: seen.append(done)  # noqa: E731
    write_folders(table(IDENTITIES), images, tmp_path / "out", "imagefolder", False, update)
    assert seen == [(i, 5) for i in range(1, 6)]
