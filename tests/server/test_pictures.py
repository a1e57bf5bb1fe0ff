"""Images are found by their number alone, and only below the folder of the set."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastreid_al.data.cache import digest_of
from fastreid_al.server import pictures as module
from fastreid_al.server.pictures import Pictures, UnshownError, records_by_name
from tests.support.labelling import draw_images


@pytest.mark.parametrize("path", ["../secret.jpg", "/etc/passwd", "a/../../secret.jpg", "", "\0"])
def test_a_ledger_cannot_show_other_files_of_the_machine(tmp_path: Path, path: str) -> None:
    draw_images(tmp_path / "set", 1)
    (tmp_path / "secret.jpg").write_bytes((tmp_path / "set/000.jpg").read_bytes())
    with pytest.raises(UnshownError):
        Pictures(tmp_path / "set").picture(path, "", 96)


def test_a_link_out_of_the_folder_is_not_followed_for_an_unknown_set(tmp_path: Path) -> None:
    draw_images(tmp_path / "set", 1)
    draw_images(tmp_path / "other", 1)
    (tmp_path / "set/link.jpg").symlink_to(tmp_path / "other/000.jpg")
    with pytest.raises(UnshownError):
        Pictures(tmp_path / "set").picture("link.jpg", "", 96)


@pytest.mark.parametrize("known", [True, False])
def test_an_image_that_was_moved_is_found_by_its_content(tmp_path: Path, known: bool) -> None:
    """In a set that is known, and below a folder of which nothing is known."""
    records = draw_images(tmp_path / "set", 3)
    digests = [digest_of(record.path.read_bytes()) for record in records]
    names = records_by_name(tmp_path / "set", records) if known else None
    pictures = Pictures(tmp_path / "set", names)
    moved = pictures.picture("away/old.jpg", digests[1], 96)
    assert moved == pictures.picture("001.jpg", digests[1], 96)
    # Two files changed places: each is the image of its content.
    assert pictures.picture("000.jpg", digests[2], 96) == pictures.picture("002.jpg", "", 96)
    assert pictures.find_moved([digests[0], "0" * 32, ""]) == {digests[0]}


def test_an_image_without_a_known_content_is_not_looked_for(tmp_path: Path) -> None:
    pictures = Pictures(tmp_path, records_by_name(tmp_path, draw_images(tmp_path, 1)))
    with pytest.raises(UnshownError) as caught:
        pictures.picture("old.jpg", "", 96)
    assert str(caught.value) == "the image is not in the set any more"


def test_files_are_read_again_only_after_some_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    (record,) = draw_images(tmp_path / "new", 1)
    digest = digest_of(record.path.read_bytes())
    pictures = Pictures(tmp_path / "set", clock=lambda: now[0])
    (tmp_path / "set").mkdir()
    looked = []
    plain = module.file_digests

    def counted(paths: list[Path], *more: object) -> list[str]:
        looked.append(len(paths))
        return plain(paths, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "file_digests", counted)
    for _ in range(3):
        with pytest.raises(UnshownError, match="no other file has its content"):
            pictures.picture("a.jpg", digest, 96)
    assert looked == [0]
    record.path.rename(tmp_path / "set" / "b.jpg")
    now[0] = 601.0
    pictures.picture("a.jpg", digest, 96)
    assert looked == [0, 1]


def test_a_file_out_of_the_folder_is_not_found_by_content(tmp_path: Path) -> None:
    (other,) = draw_images(tmp_path / "other", 1)
    draw_images(tmp_path / "set", 0)
    (tmp_path / "set").mkdir(exist_ok=True)
    (tmp_path / "set/link.jpg").symlink_to(other.path)
    with pytest.raises(UnshownError):
        Pictures(tmp_path / "set").picture("a.jpg", digest_of(other.path.read_bytes()), 96)


def test_a_damaged_image_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"not an image")
    with pytest.raises(UnshownError, match="damaged"):
        Pictures(tmp_path).picture("a.jpg", "", 96)
    with pytest.raises(UnshownError, match="cannot be read"):
        Pictures(tmp_path).picture("b.jpg", "", 96)


def test_a_picture_is_forgotten_when_it_is_erased(tmp_path: Path) -> None:
    draw_images(tmp_path, 1)
    pictures = Pictures(tmp_path)
    pictures.picture("000.jpg", "", 96)
    pictures.forget("000.jpg", "")
    (tmp_path / "000.jpg").unlink()
    with pytest.raises(UnshownError):
        pictures.picture("000.jpg", "", 96)
