"""Reads text files that come with image sets: lists, splits, manifests."""

from __future__ import annotations

import codecs
from pathlib import Path

from ..errors import DataError

#: A list of a million images is some 100 MB.
_LARGEST = 2**31
#: What separates the cells of a table.
_DELIMITERS = (",", ";", "\t")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(file: Path) -> str:
    """Read a text file: UTF-8, or UTF-16 where it begins with a byte order mark.

    Bytes that are not UTF-8 are kept, as in the names of files (PEP 383), so that a list in another
    encoding names the files that it means.

    Args:
        file: The file.

    Raises:
        DataError: It cannot be read, is not text, or is larger than 2 GiB.
    """
    try:
        if file.stat().st_size > _LARGEST:
            raise DataError(f"{file} is larger than 2 GiB, expected a list of images")
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror})") from error
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            try:
                return content.decode(encoding)
            except UnicodeDecodeError as error:
                raise DataError(f"{file} is damaged ({error.reason})") from error
    if b"\0" in content:
        raise DataError(f"{file} is not a text file: it holds zero bytes")
    return content.decode("utf-8", "surrogateescape")


def delimiter_of(text: str) -> str:
    """What separates the cells of a CSV file: a comma, a semicolon or a tab.

    Office programs write semicolons where the comma is a decimal sign.

    Args:
        text: The file, or its beginning; its first line that is not empty names the columns.
    """
    return max(_DELIMITERS, key=text.lstrip().partition("\n")[0].count)


def inside(folder: Path, name: str) -> Path | None:
    """The file that a list names below a folder; None where the name leads out of the folder.

    Args:
        folder: The folder.
        name: Relative path with slashes or backslashes.
    """
    parts = [part for part in name.replace("\\", "/").split("/") if part != "."]
    if not parts or not parts[0] or ".." in parts:
        return None
    return folder.joinpath(*parts)
