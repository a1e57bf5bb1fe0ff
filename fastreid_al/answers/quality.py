"""How often the people of a ledger err, estimated again after some answers."""

from __future__ import annotations

from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from . import gold
from .agreement import ErrorEstimate, Gold, Vote, estimate_errors
from .database import EVENTS, QUESTIONS
from .ledger import MEMBER
from .question import Verdict

#: Events after which the estimates are made again: so many, or this share of all.
_FRESH = 20
_FRESH_SHARE = 0.05
#: Most events after which they are made again: a person who is new to a large ledger is known soon.
_LATEST = 100
#: Answers that something else checks, below which nothing is said of a person.
_ENOUGH = 10
#: A person errs often if the estimate says with 95 % that more than this share is wrong.
_OFTEN = 0.05
_DECIDING = (Verdict.SAME.value, Verdict.DIFFERENT.value)


class GoldAnswer(NamedTuple):
    """An answer to a question whose answer is known.

    Args:
        person: Number of the person.
        pair: Numbers of the two images.
        said: The verdict.
        truth: The known verdict.
    """

    person: int
    pair: tuple[int, int]
    said: str
    truth: str


class Quality:
    """The error estimates of a ledger's people."""

    def __init__(self) -> None:
        self._event = -_FRESH
        self._estimates: dict[int, ErrorEstimate] = {}

    def estimates(self, connection: Connection) -> dict[int, ErrorEstimate]:
        """Return the estimate of each person with enough answers, by number."""
        last = connection.execute(sa.select(sa.func.max(EVENTS.c.id))).scalar() or 0
        if last >= self._event + max(_FRESH, min(_FRESH_SHARE * self._event, _LATEST)):
            found = estimate_errors(*votes_and_gold(connection))
            enough = {p: e for p, e in found.items() if e.compared >= _ENOUGH}
            self._estimates = {int(person): estimate for person, estimate in enough.items()}
            self._event = last
        return self._estimates

    def erring(self, connection: Connection) -> set[int]:
        """Return the numbers of the people who err often."""
        return {p for p, estimate in self.estimates(connection).items() if estimate.low > _OFTEN}


def votes_and_gold(connection: Connection) -> tuple[list[Vote], list[Gold]]:
    """Return the votes of all people, and their answers to questions whose answer is known.

    The name of a person is their number as text; an item is a pair of images.
    """
    same = Verdict.SAME.value
    votes: list[Vote] = [
        (str(row.person), _pair(row), row.verdict == same)
        for row in connection.execute(_deciding("answer"))
    ]
    known: list[Gold] = [
        (str(a.person), a.pair, a.said == same, a.truth == same) for a in gold_answers(connection)
    ]
    return votes, known


def gold_answers(connection: Connection) -> list[GoldAnswer]:
    """Return the "same" and "different" in force to questions whose answer is known."""
    rows = connection.execute(_deciding("gold")).all()
    truths = _truths(connection, {row.question for row in rows})
    return [
        GoldAnswer(row.person, _pair(row), row.verdict, truths[row.question])
        for row in rows
        if row.question in truths
    ]


def _deciding(kind: str) -> sa.Select[Any]:
    c = EVENTS.c
    columns = c.id, c.person, c.left_id, c.right_id, c.verdict, c.question
    main = c.reason.is_(None) | (c.reason != MEMBER)
    by_person = c.person.is_not(None) & c.verdict.in_(_DECIDING)
    wanted = (c.kind == kind) & main & by_person & gold.in_force()
    return sa.select(*columns).where(wanted).order_by(c.id)


def _truths(connection: Connection, questions: set[int]) -> dict[int, str]:
    """The known answer of each question that has one."""
    said: dict[int, list[tuple[int, str]]] = {number: [] for number in questions}
    c = EVENTS.c
    wanted = (c.kind == "answer") & (c.reason != MEMBER) & gold.in_force()
    columns = c.question, c.person, c.verdict
    for number in questions:
        for row in connection.execute(sa.select(*columns).where((c.question == number) & wanted)):
            if row.person is not None:
                said[number].append((row.person, row.verdict))
    marked = dict(
        connection.execute(
            sa.select(QUESTIONS.c.id, QUESTIONS.c.gold).where(QUESTIONS.c.gold.is_not(None))
        ).all()
    )
    known = {number: gold.known_verdict(marked.get(number), said[number]) for number in questions}
    return {number: verdict for number, verdict in known.items() if verdict in _DECIDING}


def _pair(row: Any) -> tuple[int, int]:
    return min(row.left_id, row.right_id), max(row.left_id, row.right_id)
