"""Lines, warnings and tables show names of any bytes, in any encoding of the terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from fastreid_al.data.pixels import BadImage
from fastreid_al.engine.console import Reporter

NAME = "行人\x1b[2J\n\udcd5.jpg"


def reporter(encoding: str) -> tuple[Reporter, io.BytesIO]:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding, write_through=True)
    return Reporter(Console(file=file, soft_wrap=True, width=200)), raw


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("utf-8", r"行人\x1b[2J\n\xd5.jpg"), ("ascii", r"\u884c\u4eba\x1b[2J\n\xd5.jpg")],
)
def test_a_name_is_shown_on_one_line(encoding: str, shown: str) -> None:
    out, raw = reporter(encoding)
    out.bad_images("train", [BadImage(Path(NAME), "not an image")])
    out.line(f"{NAME} was read")
    lines = raw.getvalue().decode(encoding).splitlines()
    assert lines[1:] == [f"  {shown}: not an image", f"{shown} was read"]


def test_a_table_shows_names_without_what_a_terminal_would_execute() -> None:
    out, raw = reporter("utf-8")
    out.table(f"Scores of {NAME}", ["", "mAP"], [[NAME, "1.0"]])
    text = raw.getvalue().decode()
    assert "\x1b" not in text and text.count(r"行人\x1b[2J\n\xd5.jpg") == 2


def test_what_a_command_is_complete_without_fails_with_a_warning() -> None:
    out, raw = reporter("utf-8")
    assert out.attempt("the figure", lambda: None) and raw.getvalue() == b""
    assert not out.attempt("the figure", lambda: 1 // 0)
    assert raw.getvalue().decode() == (
        "warning: the figure could not be made (integer division or modulo by zero); "
        "all else is complete\n"
    )
