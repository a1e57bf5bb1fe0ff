"""Text files of image sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastreid_al.data.text import inside, read_text
from fastreid_al.errors import DataError


def test_encodings(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    for content in ("é".encode(), "é".encode("utf-8-sig"), "é".encode("utf-16")):
        file.write_bytes(content)
        assert read_text(file) == "é"
    file.write_bytes(b"\xd0\xd0")
    assert read_text(file).encode("utf-8", "surrogateescape") == b"\xd0\xd0"


@pytest.mark.parametrize("content", [b"a\0b", b"\xff\xfe\0", None])
def test_what_is_no_text_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError):
        read_text(tmp_path / "a.txt")


def test_names_stay_inside_their_folder() -> None:
    folder = Path("/set")
    assert inside(folder, "a/b.jpg") == inside(folder, "a\\b.jpg") == folder / "a" / "b.jpg"
    assert inside(folder, "./a.jpg") == folder / "a.jpg"
    for name in ("/etc/passwd", "../a.jpg", "a/../../b.jpg", "", "\\\\host\\a.jpg", "a\\..\\b"):
        assert inside(folder, name) is None, name
