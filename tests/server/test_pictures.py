"""Images are found by their number alone, and only below the folder of the set."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastreid_al.answers.ledger import ImageKeys
from fastreid_al.data.cache import digest_of
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


def test_a_renamed_image_is_found_by_its_content(tmp_path: Path) -> None:
    records = draw_images(tmp_path, 2)
    names = [record.path.name for record in records]
    digests = [digest_of(record.path.read_bytes()) for record in records]
    keys = ImageKeys("set", names, digests)
    pictures = Pictures(tmp_path, records_by_name(tmp_path, records), keys)
    assert pictures.picture("old.jpg", digests[1], 96) == pictures.picture(names[1], "", 96)


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
