"""Ledgers that tests fill."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator

import pytest

from fastreid_al.answers.ledger import ImageKeys, Ledger
from fastreid_al.answers.question import Verdict
from fastreid_al.errors import LedgerError

SAME, DIFFERENT, UNSURE = Verdict.SAME, Verdict.DIFFERENT, Verdict.UNSURE


def keys(n: int = 10, dataset: str = "market1501") -> ImageKeys:
    return ImageKeys(dataset, [f"train/{i}.jpg" for i in range(n)], [f"{i:032x}" for i in range(n)])


def put(ledger: Ledger, left: int, right: int, verdict: Verdict = SAME, **more: object) -> int:
    values = {
        "annotator": "anna",
        "asked_at": 100.0,
        "answered_at": 101.5,
        "epoch": 3,
        "reason": "split",
        **more,
    }
    return ledger.append(left, right, verdict, **values)  # type: ignore[arg-type]


def refused(url: str, *, images: ImageKeys | None = None, write: bool = True) -> str:
    with pytest.raises(LedgerError) as caught:
        Ledger.open(url, images, write=write).close()
    line = str(caught.value)
    assert "\n" not in line
    return line


@contextlib.contextmanager
def without_triggers(file: str) -> Iterator[sqlite3.Connection]:
    """Yield a connection that may damage an SQLite ledger: its triggers are away meanwhile."""
    with contextlib.closing(sqlite3.connect(file)) as connection:
        wanted = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
        triggers = connection.execute(wanted).fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        yield connection
        for _, statement in triggers:
            connection.execute(statement)
        connection.commit()
