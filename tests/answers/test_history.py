"""The database refuses to change what is history, and a digest tells whether it was changed."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastreid_al.answers import report
from fastreid_al.answers.ledger import Ledger
from fastreid_al.answers.question import Verdict
from fastreid_al.ledger import main
from tests.answers.test_format import FORMAT_1
from tests.support.ledgers import keys, put, without_triggers
from tests.support.queues import publish

#: Statements that change history, by what the refusal names.
CHANGES = [
    ("UPDATE events SET verdict = 'different' WHERE id = 1", "events"),
    ("UPDATE events SET comment = NULL", "events"),
    ("DELETE FROM events WHERE id = 1", "events"),
    ("UPDATE images SET path = 'x' WHERE id = 0", "path and digest of an image"),
    ("UPDATE images SET erased_at = NULL WHERE id = 1", "the time of an erasure"),
    ("DELETE FROM images WHERE id = 1", "images"),
    ("UPDATE questions SET right_id = 2 WHERE id = 1", "what was asked"),
    ("UPDATE questions SET gold = 'same'", "what was asked"),
    ("UPDATE questions SET need = 3 WHERE status <> 'open'", "why a question was asked"),
    ("DELETE FROM questions", "questions"),
    ("UPDATE people SET name = 'eve' WHERE id = 1", "names of people"),
    ("DELETE FROM people", "people"),
]
#: What goes on.
ALLOWED = [
    "UPDATE questions SET need = 3, reason = 'merge' WHERE status = 'open'",
    "UPDATE questions SET status = 'withdrawn', settled_event = 1",
    "UPDATE images SET erased_at = 5.0 WHERE id = 0",
    "UPDATE people SET role = 'admin', secret = NULL, seen_at = 2.0, disabled_at = 3.0",
]
PERSON = "INSERT INTO people (name, role, made_at) VALUES ('anna', 'annotate', 0)"
SETTLED = "UPDATE questions SET status = 'withdrawn' WHERE id = 2"
ERASURE = "UPDATE images SET erased_at = 4.0 WHERE id = 1"


def fill(url: str) -> None:
    with Ledger.open(url) as ledger:
        put(ledger, 0, 1)
        publish(ledger, [(0, 1), (2, 3)])
        with ledger.store.writing() as connection:
            connection.exec_driver_sql(PERSON)
            connection.exec_driver_sql(ERASURE)
            connection.exec_driver_sql(SETTLED)


@pytest.fixture
def guarded(file: str) -> Iterator[sqlite3.Connection]:
    fill(file)
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
        yield connection


@pytest.mark.parametrize(("change", "what"), CHANGES)
def test_sqlite_refuses_to_change_history(
    guarded: sqlite3.Connection, change: str, what: str
) -> None:
    before = list(guarded.iterdump())
    with pytest.raises(sqlite3.IntegrityError) as caught:
        guarded.execute(change)
    assert str(caught.value) == f"the ledger is append-only: {what} cannot be changed"
    assert list(guarded.iterdump()) == before


@pytest.mark.parametrize("table", ["events", "images", "questions", "people"])
def test_sqlite_refuses_to_replace_a_row(guarded: sqlite3.Connection, table: str) -> None:
    # REPLACE deletes a row, for which SQLite runs no trigger of a deletion.
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        guarded.execute(f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}")


@pytest.mark.parametrize("change", ALLOWED)
def test_sqlite_lets_go_on_what_is_no_history(guarded: sqlite3.Connection, change: str) -> None:
    assert guarded.execute(change).rowcount > 0


def test_postgresql_refuses_to_change_history(database: str) -> None:
    import psycopg

    fill(database)
    with psycopg.connect(database, autocommit=True) as connection:
        changes = [*CHANGES, ("TRUNCATE events", "events"), ("TRUNCATE people CASCADE", "people")]
        for change, what in changes:
            with pytest.raises(psycopg.errors.RaiseException) as caught:
                connection.execute(change)
            line = f"the ledger is append-only: {what} cannot be changed"
            assert str(caught.value).splitlines()[0] == line
        for change in ALLOWED:
            assert connection.execute(change).rowcount > 0
    with Ledger.open(database, write=False) as ledger:
        assert ledger.integrity() == []
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("ALTER TABLE events DISABLE TRIGGER events_keep")
    with Ledger.open(database, write=False) as ledger:
        (line,) = ledger.integrity()
        assert "(no trigger events_keep)" in line


def test_a_ledger_that_is_upgraded_is_protected(file: str) -> None:
    with contextlib.closing(sqlite3.connect(file)) as database:
        database.executescript(FORMAT_1)
    assert report.check(file) == []
    Ledger.open(file, keys()).close()
    assert report.check(file) == []
    with (
        contextlib.closing(sqlite3.connect(file)) as database,
        pytest.raises(sqlite3.IntegrityError, match="append-only"),
    ):
        database.execute("DELETE FROM events WHERE id = 3")


def test_triggers_that_are_missing_are_named_and_added_by_a_writer(file: str) -> None:
    fill(file)
    with contextlib.closing(sqlite3.connect(file)) as database:
        database.execute("DROP TRIGGER events_stay")
    (line,) = report.check(file)
    assert "(no trigger events_stay)" in line and "a run or a page" in line
    Ledger.open(file, role="command").close()
    assert report.check(file) == []


def test_the_digest_tells_whether_history_was_changed(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(file)
    before = report.digest(file)
    main(["digest", file])
    assert capsys.readouterr().out == before + "\n"
    with Ledger.open(file) as ledger:
        ledger.undo(1, "anna")
        put(ledger, 4, 5, Verdict.DIFFERENT)
    # What was appended since does not count, also not the undo of an earlier event.
    assert report.digest(file, as_of=1) == before
    assert report.digest(file) != before
    other = file + ".other"
    for change in (
        "UPDATE events SET verdict = 'different' WHERE id = 1",
        "UPDATE events SET answered_at = 0.0 WHERE id = 1",
        "UPDATE images SET digest = 'x' WHERE id = 0",
    ):
        shutil.copy(file, other)
        with without_triggers(other) as connection:
            connection.execute(change)
        assert report.digest(other, as_of=1) != before
        Path(other).unlink()


def test_the_digest_is_that_of_every_database(file: str, database: str) -> None:
    for url in (file, database):
        with Ledger.open(url, keys()) as ledger:
            put(ledger, 0, 1, score=0.1, answered_at=1e9 + 1 / 3, shown=(["é"], ["b"]))
    assert report.digest(file) == report.digest(database)
