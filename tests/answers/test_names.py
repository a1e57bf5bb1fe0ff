"""Names of any bytes in the ledger: stored, read back, exported and printed; damaged columns."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastreid_al.answers import ImageKeys, Ledger, Verdict, report
from fastreid_al.answers.database import Name, stored_name
from fastreid_al.answers.report import ANSWER_COLUMNS, parse_cell, write_rows
from fastreid_al.errors import LedgerError, one_line
from fastreid_al.ledger import main
from tests.support.ledgers import without_triggers

NAMES = (
    "plain_c1.jpg",
    os.fsdecode(b"\xd0\xd0\xc8\xcb/\xd5\xd5_c1_0.jpg"),
    "\x1b[31mred\x1b[0m.jpg",
    "two\nlines\r.jpg",
    '=HYPERLINK("x").jpg',
    "+1.jpg",
    "-1.jpg",
    "@sum.jpg",
    "\ttab.jpg",
    "'quoted.jpg",
    " =padded.jpg",
    "back\\slash.jpg",
    "\u202egpj.exe",
    "行人 一.jpg",
    "//x.jpg",
    "\uff1dwide.jpg",
    'a,b"c.jpg',
    "x" * 4000,
)
ANY = st.binary(max_size=12).map(os.fsdecode) | st.text(st.characters(codec=None), max_size=12)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A ledger with an answer about each name."""
    path = str(tmp_path_factory.mktemp("written") / "answers.sqlite")
    keys = ImageKeys("set \udcd5", NAMES, [f"{i:032x}" for i in range(len(NAMES))])
    with Ledger.open(path, keys) as ledger:
        for row in range(1, len(NAMES)):
            ledger.append(
                *(0, row, Verdict.DIFFERENT),
                annotator="who \udcff",
                asked_at=10.0,
                answered_at=12.0,
                epoch=1,
                reason="split",
                shown=([NAMES[0]], [NAMES[row]]),
                run="run",
            )
    return path


@pytest.fixture
def file(written: str, tmp_path: Path) -> str:
    """A copy of the ledger, which a test may change."""
    return str(shutil.copy(written, tmp_path / "answers.sqlite"))


@given(ANY)
def test_a_stored_name_is_read_back(name: str) -> None:
    stored = stored_name(name)
    stored.encode()
    assert "\0" not in stored
    assert Name().process_result_value(stored, None) == name  # type: ignore[arg-type]


def test_answers_about_names_of_any_bytes_are_kept(file: str) -> None:
    turned = ImageKeys("set \udcd5", NAMES[::-1], ())
    last = len(NAMES) - 1
    with Ledger.open(file, turned) as ledger:
        assert [(a.left, a.right) for a in ledger.answers()] == [
            (last, last - row) for row in range(1, len(NAMES))
        ]
        events = list(ledger.events())
        assert [e.right for e in events] == list(NAMES[1:])
        assert [e.shown for e in events] == [([NAMES[0]], [name]) for name in NAMES[1:]]
        assert events[0].annotator == "who \udcff" and ledger.integrity() == []


def test_names_of_utf_8_are_stored_as_they_are(file: str) -> None:
    with sqlite3.connect(file) as connection:
        stored = [path for (path,) in connection.execute("SELECT path FROM images ORDER BY id")]
    assert stored[1] == r"//\xd0\xd0\xc8\xcb/\xd5\xd5_c1_0.jpg"
    assert (
        stored[13] == "行人 一.jpg" and stored[11] == "back\\slash.jpg" and len(stored[-1]) == 4000
    )


@pytest.mark.parametrize("what", ["answers", "closure"])
def test_exports_are_read_back_and_hold_nothing_that_runs(
    file: str, what: str, tmp_path: Path
) -> None:
    report.export(file, what, "csv", str(tmp_path / "x.csv"))
    text = (tmp_path / "x.csv").read_text("utf-8")
    assert all(line == one_line(line) for line in text.split("\n"))
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [parse_cell(row["right"]) for row in rows] == list(NAMES[1:])
    for row in rows:
        assert not any(str(cell).lstrip().startswith(("=", "+", "-", "@")) for cell in row.values())
    report.export(file, what, "jsonl", str(tmp_path / "x.jsonl"))
    text = (tmp_path / "x.jsonl").read_text("utf-8")
    assert all(line == one_line(line) for line in text.split("\n"))
    assert [json.loads(line)["right"] for line in text.splitlines()] == list(NAMES[1:])
    assert "行人 一.jpg" in text
    assert (tmp_path / "x.csv").stat().st_mode & 0o077 == 0


@given(st.lists(ANY, min_size=1, max_size=3))
def test_every_cell_is_read_back(texts: list[str]) -> None:
    out = io.StringIO()
    write_rows(iter([dict(enumerate(texts))]), list(range(len(texts))), "csv", out)  # type: ignore
    assert [parse_cell(cell) for cell in list(csv.reader(io.StringIO(out.getvalue())))[1]] == texts


def test_a_pair_is_found_by_its_name_and_as_messages_show_it(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (NAMES[1], r"\xd0\xd0\xc8\xcb/\xd5\xd5_c1_0.jpg"):
        report.export(file, "closure", "jsonl", pair=(NAMES[0], name))
        assert json.loads(capsys.readouterr().out)["verdict"] == "different"
    with pytest.raises(LedgerError, match=r"no answer is about \\xff"):
        report.export(file, "closure", "csv", pair=(NAMES[0], "\udcff"))


def test_what_is_printed_is_safe_for_a_terminal(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["show", file])
    for row in (2, 3):
        main(["undo", file, "--event", str(row)])
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and r"\x1b[31mred\x1b[0m.jpg" in printed
    assert r"who \xff" in printed and all(one_line(x) == x for x in printed.splitlines())


def damage(file: str, column: str, value: object, event: int = 2) -> None:
    with without_triggers(file) as connection:
        connection.execute(f"UPDATE events SET {column} = ? WHERE id = ?", (value, event))


@pytest.mark.parametrize(
    "value",
    [
        "",
        "[",
        "3",
        "{}",
        "[]",
        "[[], [], []]",
        "[[1], [2]]",
        "[[], null]",
        b"\xff",
        "[" * 10**5,
        "\0",
    ],
)
def test_a_damaged_list_of_shown_images_is_said_and_the_rest_is_read(
    file: str, value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(file, "shown", value)
    main(["show", file])
    for form in ("csv", "jsonl"):
        main(["export", file, "--format", form])
    assert len(report.show(file)) > 5
    with pytest.raises(SystemExit):
        main(["check", file])
    out = capsys.readouterr().out
    assert "event 2 has a damaged list of the images that were shown" in out
    with Ledger.open(file, write=False) as ledger:
        assert [e.shown[1] for e in ledger.events()] == [
            [] if e.id == 2 else [e.right] for e in ledger.events()
        ]


@pytest.mark.parametrize(
    "column",
    [
        *ANSWER_COLUMNS[1:2],
        "verdict",
        "annotator",
        "asked_at",
        "answered_at",
        "epoch",
        "reason",
        "score",
        "similarity",
        "need",
        "confirms",
        "run",
    ],
)
@pytest.mark.parametrize("value", [b"\xff\xfe", "text", 2.5, float("inf")])
def test_a_damaged_column_is_never_a_traceback_and_check_says_it(
    file: str, column: str, value: object
) -> None:
    damage(file, column, value)
    report.check(file)
    # An unknown verdict, or another kind, is refused by what counts the answers.
    with contextlib.suppress(LedgerError):
        report.show(file)
    # A number becomes text in a column of texts.
    free = column in ("annotator", "reason", "run") and not isinstance(value, bytes)
    if not free and not isinstance(value, float if column not in ("kind", "verdict") else tuple):
        assert any("event 2 " in line for line in report.check(file))
    if value == float("inf") and not free:
        assert any("event 2 " in line for line in report.check(file))
    for form in ("csv", "jsonl"):
        report.export(file, "answers", form, os.devnull)


@pytest.mark.parametrize("event", [0, -1, 2**63, 99999999999999999999, 10**30])
def test_an_event_that_cannot_be_is_refused_in_one_line(file: str, event: int) -> None:
    with pytest.raises(LedgerError, match=f"has no event {event}; its last is 17"):
        report.undo(file, event, "me")
    with Ledger.open(file, write=False) as ledger:
        assert len(ledger.answers(as_of=event)) == (17 if event > 17 else 0)
    with pytest.raises(SystemExit):
        main(["undo", file, "--event", "99999999999999999999"])


def test_seconds_are_never_negative(file: str) -> None:
    damage(file, "answered_at", -21_600.0)
    with Ledger.open(file, write=False) as ledger:
        assert ledger.seconds() == 2.0 * 16
        assert [a.seconds for a in ledger.answers()][:3] == [2.0, 0.0, 2.0]
    assert "time            32.0 s of answering" in report.show(file)


def test_a_ledger_of_a_path_of_any_bytes_is_used(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xd5?#%20.sqlite")
    with Ledger.open(path) as ledger:
        ledger.append(
            *(0, 1, Verdict.SAME), annotator="a", asked_at=0, answered_at=1, epoch=0, reason="split"
        )
    assert report.show(path)[0].endswith(".sqlite") and report.check(path) == []
    assert b"\xd5?#%20.sqlite" in os.listdir(os.fsencode(tmp_path))


@pytest.mark.parametrize("column", ["path", "digest"])
def test_a_damaged_image_is_said_and_the_rest_is_read(file: str, column: str) -> None:
    with without_triggers(file) as connection:
        connection.execute(f"UPDATE images SET {column} = ? WHERE id = 1", (b"\xff\xfe",))
    assert f"image 1 has a damaged {column}" in report.check(file)
    assert len(report.show(file)) > 5
    for what, form in (("answers", "csv"), ("answers", "jsonl"), ("closure", "jsonl")):
        report.export(file, what, form, os.devnull)
