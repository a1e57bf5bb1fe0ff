"""Ledgers of format 1 are read as they are, and upgraded without loss when they are written."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from fastreid_al.answers.ledger import Ledger
from fastreid_al.answers.question import Verdict
from fastreid_al.errors import LedgerError
from tests.support.ledgers import keys, put

#: The tables as version 0.6 made them.
FORMAT_1 = """
CREATE TABLE meta ("key" TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY ("key"));
CREATE TABLE images (id INTEGER NOT NULL, path TEXT NOT NULL, digest TEXT NOT NULL,
    PRIMARY KEY (id));
CREATE TABLE events (id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL,
    left_id INTEGER, right_id INTEGER, verdict TEXT, annotator TEXT NOT NULL,
    asked_at DOUBLE NOT NULL, answered_at DOUBLE NOT NULL, epoch INTEGER, reason TEXT,
    score DOUBLE, similarity DOUBLE, need INTEGER DEFAULT '1' NOT NULL, confirms INTEGER,
    undoes INTEGER, shown TEXT, run TEXT,
    FOREIGN KEY(left_id) REFERENCES images (id), FOREIGN KEY(right_id) REFERENCES images (id),
    FOREIGN KEY(confirms) REFERENCES events (id), FOREIGN KEY(undoes) REFERENCES events (id));
INSERT INTO meta VALUES ('format', '1'), ('dataset', 'market1501');
INSERT INTO images VALUES (0, 'train/3.jpg', '00000000000000000000000000000003'),
    (1, 'train/7.jpg', ''), (2, 'train/1.jpg', '');
INSERT INTO events VALUES
    (1, 'answer', 0, 1, 'same', 'anna', 10.0, 11.5, 3, 'merge', 0.5, 0.25, 2, NULL, NULL,
     '[["a.jpg"], ["b.jpg"]]', 'old'),
    (2, 'answer', 1, 2, 'different', 'anna', 12.0, 13.0, 3, 'split', NULL, NULL, 1, NULL, NULL,
     NULL, 'old'),
    (3, 'undo', NULL, NULL, NULL, 'anna', 14.0, 14.0, NULL, NULL, NULL, NULL, 1, NULL, 2, NULL,
     NULL);
"""


@pytest.fixture
def old(tmp_path: Path) -> str:
    file = str(tmp_path / "answers.sqlite")
    with contextlib.closing(sqlite3.connect(file)) as database:
        database.executescript(FORMAT_1)
    return file


def content(file: str) -> tuple[object, ...]:
    with Ledger.open(file, keys(), write=False) as ledger:
        return (
            ledger.answers(),
            list(ledger.events()),
            ledger.images(),
            ledger.dataset(),
            ledger.seconds(),
            ledger.integrity(),
        )


def version(file: str) -> str:
    with contextlib.closing(sqlite3.connect(file)) as database:
        return database.execute("SELECT value FROM meta WHERE key = 'format'").fetchone()[0]


def test_a_reader_leaves_format_1_as_it_is(old: str) -> None:
    before = Path(old).read_bytes()
    answers, events, *_, problems = content(old)
    assert [answer.verdict for answer in answers] == [Verdict.SAME]
    assert [event.kind for event in events] == ["answer", "answer", "undo"]
    assert {event.source for event in events} == {None}
    assert problems == []
    assert version(old) == "1"
    assert Path(old).read_bytes() == before


@pytest.mark.parametrize("role", ["trainer", "server", "command"])
def test_a_writer_upgrades_format_1_and_loses_nothing(old: str, role: str) -> None:
    before = content(old)
    with Ledger.open(old, keys(), role=role):  # type: ignore[arg-type]
        pass
    assert version(old) == "2"
    assert content(old) == before
    with Ledger.open(old, keys()) as ledger:
        assert put(ledger, 3, 5) == 4
    assert len(content(old)[0]) == 2  # type: ignore[arg-type]


def test_a_trainer_and_a_server_write_at_once_and_no_two_of_a_kind(tmp_path: Path) -> None:
    file = str(tmp_path / "answers.sqlite")
    with Ledger.open(file, keys()) as trainer, Ledger.open(file, keys(), role="server") as server:
        put(trainer, 3, 5)
        assert server.undo(1, "anna") == 2
        put(trainer, 3, 5)
        put(server, 3, 5, Verdict.DIFFERENT)
        with Ledger.open(file, keys(), role="command") as command:
            assert command.undo(4, "ben") == 5
        assert [answer.event for answer in trainer.answers()] == [3]
        for role in ("trainer", "server"):
            with pytest.raises(LedgerError, match="in use by process"):
                Ledger.open(file, keys(), role=role)  # type: ignore[arg-type]
        with pytest.raises(LedgerError, match="only a trainer or an import adds images"):
            put(server, 1, 2)
    with Ledger.open(file, keys(), role="server"):
        pass
