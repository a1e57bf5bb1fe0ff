"""Names of any bytes in messages: shown safely, on one line, and readable back."""

from __future__ import annotations

import os
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastreid_al.errors import (
    SettingError,
    UserError,
    counted,
    one_line,
    parse_printable,
    printable,
)

NAMES = st.binary(max_size=20).map(os.fsdecode) | st.text(st.characters(codec=None), max_size=20)


def test_one_of_a_kind_is_singular() -> None:
    assert [counted(n, "query", "queries") for n in (0, 1, 2, 2000)] == [
        "0 queries",
        "1 query",
        "2 queries",
        "2,000 queries",
    ]


@given(NAMES)
def test_a_printable_name_is_read_back(name: str) -> None:
    shown = printable(name)
    assert parse_printable(shown) == name
    assert one_line(shown) == shown
    shown.encode()  # no surrogates are left
    assert not any(char < " " or "\x7f" <= char < "\xa0" for char in shown)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain_c1.jpg", "plain_c1.jpg"),
        ("行人 1　.jpg", "行人 1　.jpg"),
        (b"\xd5\xd5_c1.jpg", r"\xd5\xd5_c1.jpg"),
        ("\x1b[31mred\n.jpg", r"\x1b[31mred\n.jpg"),
        ("a\\b.jpg", r"a\\b.jpg"),
        ("gpj.\u202eexe", r"gpj.\u202eexe"),
        ("\x85\u2028", r"\u0085\u2028"),
    ],
)
def test_a_name_is_shown_without_what_a_terminal_would_execute(
    name: str | bytes, shown: str
) -> None:
    assert printable(name) == shown


def test_a_message_is_one_line_whatever_it_holds() -> None:
    name = os.fsdecode(b"/x/\xd5")
    text = str(UserError(f"{name} is gone\nwarning: \x1b[2J"))
    assert text == r"/x/\xd5 is gone\nwarning: \x1b[2J"
    error = pickle.loads(pickle.dumps(SettingError("data_root", "\udcd5", "a folder")))
    assert "\\xd5" in str(error) or "\\udcd5" in str(error)


def test_a_printable_name_is_not_escaped_again_in_a_message() -> None:
    shown = printable("a\\b\n")
    assert str(UserError(shown)) == shown == r"a\\b\n"
