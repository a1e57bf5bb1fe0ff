"""Questions whose answer is known, which measure how often people err."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from .checks import draw
from .database import EVENTS, IMAGES, QUESTIONS
from .ledger import MEMBER
from .question import Verdict

#: People who must have answered a question alike before its answer is taken for known.
_WITNESSES = 2


@lru_cache(maxsize=8)
def in_force(events: Any = EVENTS) -> sa.ColumnElement[bool]:
    """Return the condition for events that were not undone."""
    undos = EVENTS.alias()
    undone = sa.exists().where((undos.c.undoes == events.c.id) & (undos.c.kind == "undo"))
    return ~undone.correlate(events)


def is_due(person: int, count: int, share: float) -> bool:
    """Return whether a person's next task is one whose answer is known.

    Args:
        person: Number of the person.
        count: Tasks that the person was given before.
        share: Share of such tasks.
    """
    return draw(person, count) < share


def choose(connection: Connection, person: int, count: int) -> int | None:
    """Return a question whose answer is known and that a person has not seen; None without one.

    Args:
        connection: A transaction.
        person: Number of the person.
        count: Tasks that the person was given before.
    """
    seen = sa.exists().where(
        (EVENTS.c.question == QUESTIONS.c.id)
        & (EVENTS.c.person == person)
        & EVENTS.c.kind.in_(("answer", "gold"))
    )
    images = QUESTIONS.c.left_id, QUESTIONS.c.right_id
    erased = sa.exists().where(IMAGES.c.id.in_(images) & IMAGES.c.erased_at.is_not(None))
    known = QUESTIONS.c.gold.is_not(None) & (QUESTIONS.c.status != "withdrawn")
    agreed = (QUESTIONS.c.status == "answered") & QUESTIONS.c.id.in_(_agreed())
    wanted = sa.select(QUESTIONS.c.id).where(
        QUESTIONS.c.sheet.is_(None)
        & (known | agreed)
        & ~seen.correlate(QUESTIONS)
        & ~erased.correlate(QUESTIONS)
    )
    found = connection.execute(wanted.order_by(QUESTIONS.c.id)).scalars().all()
    return found[int(draw(person, -1 - count) * len(found))] if found else None


def known_verdict(gold: str | None, verdicts: Sequence[tuple[int, str]]) -> str | None:
    """Return the answer of a question that is taken for known.

    Args:
        gold: What the question says itself.
        verdicts: Person and verdict of each answer in force.
    """
    if gold is not None:
        return gold
    people = {person for person, _ in verdicts}
    said = {verdict for _, verdict in verdicts}
    decides = said in ({Verdict.SAME.value}, {Verdict.DIFFERENT.value})
    return said.pop() if decides and len(people) >= _WITNESSES else None


def _agreed() -> sa.Select[Any]:
    """Questions that enough people answered alike."""
    c = EVENTS.c
    counts = sa.func.count(c.person.distinct()) >= _WITNESSES
    alike = sa.func.min(c.verdict) == sa.func.max(c.verdict)
    decided = sa.func.min(c.verdict).in_((Verdict.SAME.value, Verdict.DIFFERENT.value))
    wanted = (c.kind == "answer") & c.question.is_not(None) & (c.reason != MEMBER) & in_force()
    return sa.select(c.question).where(wanted).group_by(c.question).having(counts & alike & decided)
