"""How much each person answered, counted from a ledger's events as they come."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from .database import EVENTS
from .ledger import MEMBER

#: Decisions of people, answers to questions whose answer is known among them.
DECISIONS = ("answer", "gold")


@dataclass
class Work:
    """What a person did in a run, without what was taken back.

    Args:
        answers: Answers, without those about thumbnails.
        gestures: Decisions.
        seconds: Active seconds.
        known: Decisions about questions whose answer is known, which are among `gestures`.
    """

    answers: int = 0
    gestures: int = 0
    seconds: float = 0.0
    known: int = 0


class Tally:
    """The work of each person in each run, kept up to date."""

    def __init__(self) -> None:
        self._last = 0
        self._work: dict[tuple[str, int], Work] = defaultdict(Work)
        #: Decisions of each person, those that were taken back too.
        self._given: dict[int, int] = defaultdict(int)

    def catch_up(self, connection: Connection) -> None:
        """Take in the events since the last call."""
        undone = EVENTS.alias()
        rows = connection.execute(
            sa.select(EVENTS.c.id, *_columns(EVENTS))
            .where((EVENTS.c.id > self._last) & EVENTS.c.kind.in_(DECISIONS))
            .order_by(EVENTS.c.id)
        ).all()
        undos = connection.execute(
            sa.select(EVENTS.c.id, *_columns(undone))
            .select_from(EVENTS.join(undone, undone.c.id == EVENTS.c.undoes))
            .where((EVENTS.c.id > self._last) & (EVENTS.c.kind == "undo"))
            .order_by(EVENTS.c.id)
        ).all()
        for row in rows:
            self._count(row, 1)
            self._given[row.person or 0] += _begins(row)
        for row in undos:
            if row.kind in DECISIONS:
                self._count(row, -1)
        self._last = max([self._last, *(part[-1].id for part in (rows, undos) if part)])

    def _count(self, row: Any, sign: int) -> None:
        if row.person is None:
            return
        work = self._work[row.run or "", row.person]
        work.answers += sign * (row.reason != MEMBER)
        work.gestures += sign * _begins(row)
        work.seconds += sign * max(0.0, row.answered_at - row.asked_at)
        work.known += sign * (row.kind == "gold" and _begins(row))

    def given(self, person: int) -> int:
        """Return how many decisions a person made, those that were taken back too."""
        return self._given[person]

    def of_run(self, run: str) -> dict[int, Work]:
        """Return the work of each person in a run, by number."""
        return {person: work for (name, person), work in self._work.items() if name == run}

    def of_people(self) -> dict[int, Work]:
        """Return the work of each person in all runs, by number."""
        found: dict[int, Work] = defaultdict(Work)
        for (_, person), work in self._work.items():
            total = found[person]
            total.answers += work.answers
            total.gestures += work.gestures
            total.seconds += work.seconds
            total.known += work.known
        return dict(found)


def _columns(events: Any) -> list[Any]:
    names = ("kind", "person", "run", "reason", "gesture", "token", "asked_at", "answered_at")
    return [events.c[name] for name in names]


def _begins(row: Any) -> bool:
    """Whether an event is the first of a decision, which alone has a token."""
    return row.gesture is None or row.token is not None
