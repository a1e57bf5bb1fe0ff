"""Images are found below a folder; what is passed over is counted by its reason."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from fastreid_al.data.walk import Found, find_images, is_test_name
from tests.support.image_sets import put


def names(found: Found, root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in found.images]


def reasons(found: Found) -> dict[str, int]:
    return {reason: len(paths) for reason, paths in found.passed_over.items()}


def test_images_are_known_by_suffix_or_by_content(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "b.JPEG", "c.tiff", "d.webp", "e.ppm", "f/g.png")
    (tmp_path / "a.jpg").rename(tmp_path / "a")
    (tmp_path / "notes.txt").write_text("BM is how this note begins")
    (tmp_path / "README").write_text("P6")
    found = find_images(tmp_path)
    assert names(found, tmp_path) == ["a", "b.JPEG", "c.tiff", "d.webp", "e.ppm", "f/g.png"]
    assert reasons(found) == {
        ".txt files, in no image format that is read": 1,
        "other files, in no image format that is read": 1,
    }


def test_files_of_systems_are_passed_over(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "__MACOSX/a.jpg", "@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", ".hidden/a.jpg")
    (tmp_path / "._a.jpg").write_bytes(b"\0\5\x16\7Mac OS X")
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    found = find_images(tmp_path)
    assert names(found, tmp_path) == ["a.jpg"]
    assert reasons(found) == {
        "hidden files and folders": 2,
        "files and folders of the system": 3,
    }


def test_a_hidden_folder_that_is_named_is_read(tmp_path: Path) -> None:
    put(tmp_path / ".crops", "a.jpg")
    assert len(find_images(tmp_path / ".crops").images) == 1


def test_links_are_followed_and_each_folder_is_read_once(tmp_path: Path) -> None:
    root = tmp_path / "root"
    put(root, "z/a.jpg")
    put(tmp_path / "elsewhere", "b.jpg", "c.jpg")
    (root / "a").symlink_to(root / "z")
    (root / "z" / "loop").symlink_to(root)
    (root / "out").symlink_to(tmp_path / "elsewhere")
    (root / "c.jpg").symlink_to(tmp_path / "elsewhere" / "c.jpg")
    (root / "broken.jpg").symlink_to(tmp_path / "nowhere")
    (root / "self.jpg").symlink_to(root / "self.jpg")
    found = find_images(root)
    assert names(found, root) == ["c.jpg", "out/b.jpg", "out/c.jpg", "z/a.jpg"]
    assert sorted(found.outside) == [root / "c.jpg", root / "out"]
    assert reasons(found) == {
        "folders that were read under another name": 2,
        "broken links": 2,
    }


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.jpg"))
        found = find_images(tmp_path)
    assert names(found, tmp_path) == ["a.jpg"]
    assert reasons(found) == {"neither files nor folders": 3}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_cannot_be_read_is_counted(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "closed/b.jpg")
    (tmp_path / "closed").chmod(0)
    found = find_images(tmp_path)
    (tmp_path / "closed").chmod(0o700)
    assert reasons(found) == {"folders that cannot be read: Permission denied": 1}


def test_names_of_any_bytes_and_depth(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/\xd0\xd0\xc8\xcb\n"
    os.mkdir(folder)
    put(tmp_path, "a.jpg")
    os.link(os.fsencode(tmp_path / "a.jpg"), folder + b"/\xff\x1b[31m.jpg")
    deep = tmp_path
    for _ in range(200):
        deep = deep / "deep"
        deep.mkdir()
    os.link(tmp_path / "a.jpg", deep / "b.jpg")
    found = find_images(tmp_path)
    assert len(found.images) == 3
    assert all(path.read_bytes() for path in found.images)


def test_a_single_level(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "sub/b.jpg")
    found = find_images(tmp_path, deep=False)
    assert names(found, tmp_path) == ["a.jpg"]
    assert reasons(found) == {"folders": 1}


def test_names_of_folders_that_are_kept_for_testing() -> None:
    for name in ("test", "Test", "bbox_test", "bounding_box_test", "image_query", "val", "TEST 2"):
        assert is_test_name(name), name
    for name in ("train", "contest", "valley", "latest", "0001", "attest_me", "queryable"):
        assert not is_test_name(name), name
