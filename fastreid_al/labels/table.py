"""The table of identities: a line for each image, as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.text import delimiter_of, read_text
from ..errors import UserError, printable

COLUMNS = ("path", "identity", "camera", "cluster_size", "confidence", "margin", "source", "review")
#: What decided an identity, by the number in `LabelTable.sources`.
SOURCES = ("", "model", "implied", "answered", "given")
UNREAD, MODEL, IMPLIED, ANSWERED, GIVEN = range(len(SOURCES))
#: Numbers of identities have at most so many digits.
_DIGITS = 15


@dataclass(frozen=True)
class LabelTable:
    """A row for each training image of a set, in the order of the set.

    A row takes 50 bytes and its path: 6 MB at n = 32,621 and 170 MB at 1e6 with paths of 70
    characters.

    Args:
        paths: n paths relative to the set's root, with forward slashes.
        identities: (n,) int64, -1 for none.
        cameras: (n,) int64, -1 where unknown.
        sizes: (n,) int64 images of the identity; 1 for an image without one, 0 for an image that
            could not be read.
        confidence: (n,) float64 in [0, 1], 0 without an identity.
        margins: (n,) float64, NaN where undefined.
        sources: (n,) uint8, index in `SOURCES`.
        review: (n,) bool, whether a person should check the identity.
    """

    paths: list[str]
    identities: np.ndarray
    cameras: np.ndarray
    sizes: np.ndarray
    confidence: np.ndarray
    margins: np.ndarray
    sources: np.ndarray
    review: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def rows(self) -> Iterator[tuple[str, str, str, str, str, str, str, str]]:
        """Yield the texts of each row, by `COLUMNS`."""
        for row, path in enumerate(self.paths):
            margin = self.margins[row]
            yield (
                path,
                str(self.identities[row]),
                str(self.cameras[row]),
                str(self.sizes[row]),
                _decimal(self.confidence[row]),
                "" if np.isnan(margin) else _decimal(margin),
                SOURCES[self.sources[row]],
                "yes" if self.review[row] else "no",
            )


def _decimal(value: float) -> str:
    """Four decimals, without a minus before 0."""
    return f"{round(float(value), 4) + 0.0:.4f}"


def write_table(table: LabelTable, file: Any) -> None:
    """Write a table as CSV: commas, line feeds, UTF-8, and other bytes of names as they are.

    Args:
        table: The table.
        file: An open binary file.
    """
    file.write((",".join(COLUMNS) + "\n").encode())
    for path, *others in table.rows():
        line = ",".join([quoted(path), *others]) + "\n"
        file.write(line.encode("utf-8", "surrogateescape"))


def quoted(text: str) -> str:
    """A text as a field of CSV, in quotes where it holds a comma, a quote or a line break."""
    # csv.writer leaves a carriage return alone unless lines end in one.
    if any(char in text for char in ',"\r\n'):
        return '"' + text.replace('"', '""') + '"'
    return text


def read_numbers(file: Path) -> dict[str, int]:
    """Read the identity of each image from a table that `write_table` wrote.

    Args:
        file: The table; other programs may have changed the order of its columns and rows, and
            added columns.

    Returns:
        Identity by path, -1 for none: 200 bytes an image.

    Raises:
        UserError: It cannot be read, or is no such table.
    """
    text = read_text(file)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter_of(text), strict=True)
    numbers: dict[str, int] = {}
    try:
        header = next(reader, [])
        if not {"path", "identity"} <= set(header):
            raise UserError(
                f"{printable(file)} is not a table of identities: got the columns "
                f"{','.join(header)[:100]!r}, expected {','.join(COLUMNS)}; name another with "
                "`like`"
            )
        path, identity = header.index("path"), header.index("identity")
        for row in reader:
            if row:
                numbers[row[path]] = _number(row[identity])
    except (csv.Error, IndexError, ValueError) as error:
        raise UserError(
            f"{printable(file)} line {reader.line_num}: expected a path and an identity, a whole "
            f"number ({error}); correct the line, or name another table with `like`"
        ) from error
    return numbers


def _number(text: str) -> int:
    """An identity, from -1 on."""
    number = int(text) if len(text) <= _DIGITS else -2
    if number < -1:
        raise ValueError(f"{text!r:.40}")
    return number
