"""The table holds names of any bytes, and is read back as it was."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import numpy as np
import pytest

from fastreid_al.errors import UserError
from fastreid_al.labels import LabelTable, read_numbers, write_table
from fastreid_al.labels.table import COLUMNS

NAMES = [
    "a.jpg",
    "with, comma.jpg",
    'with "quotes".jpg',
    "line\nbreak.jpg",
    "return\rhere.jpg",
    os.fsdecode(b"latin-\xe9.jpg"),
    "größe/日本.jpg",
    "=cmd.jpg",
]


def table(paths: list[str] = NAMES) -> LabelTable:
    n = len(paths)
    return LabelTable(
        paths,
        np.arange(n) - 1,
        np.full(n, -1),
        np.full(n, 2),
        np.linspace(0, 1, n),
        np.where(np.arange(n) == 0, np.nan, -1e-9),
        np.full(n, 1, dtype=np.uint8),
        np.arange(n) % 2 == 0,
    )


def written(content: LabelTable) -> bytes:
    file = io.BytesIO()
    write_table(content, file)
    return file.getvalue()


def test_names_of_any_bytes_are_read_back(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes(written(table()))
    assert read_numbers(tmp_path / "labels.csv") == {p: i - 1 for i, p in enumerate(NAMES)}


def test_any_reader_of_csv_sees_the_columns() -> None:
    text = written(table()).decode("utf-8", "surrogateescape")
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert tuple(rows[0]) == COLUMNS and [row[0] for row in rows[1:]] == NAMES
    assert rows[1][1:] == ["-1", "-1", "2", "0.0000", "", "model", "yes"]
    assert rows[2][4:] == ["0.1429", "0.0000", "model", "no"]
    assert b"latin-\xe9.jpg,4," in written(table())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not a table of identities"),
        ("path,camera\na,1\n", "expected path,identity"),
        ("path,identity\na,x\n", "line 2"),
        ("path,identity\na,1\nb\n", "line 3"),
        ("path,identity\na,-2\n", "line 2"),
        ("path,identity\na," + "9" * 30 + "\n", "line 2"),
        ('path,identity\n"a,1\n', "line"),
        ("path,identity\na,1\0\n", "not a text file"),
    ],
)
def test_another_file_is_refused_in_one_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(UserError, match=message) as said:
        read_numbers(tmp_path / "x.csv")
    assert "\n" not in str(said.value)


def test_columns_may_be_moved_and_added(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("note,identity,path\nhm,3,a\n\n,-1,b\n")
    assert read_numbers(tmp_path / "x.csv") == {"a": 3, "b": -1}
    (tmp_path / "y.csv").write_bytes("\ufeffnote;identity;path\r\nhm;3;a,b\r\n;-1;b\r\n".encode())
    assert read_numbers(tmp_path / "y.csv") == {"a,b": 3, "b": -1}
