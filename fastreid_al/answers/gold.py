"""Questions whose answer is known, which measure how often people err."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from .checks import draw
from .database import EVENTS, IMAGES, LEASES, QUESTIONS
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


def choose(
    connection: Connection, person: int, count: int, now: float, sheet: bool = False
) -> int | None:
    """Return a task whose answer is known and that a person has not seen; None without one.

    A sheet is known if all of its questions are settled, and the answers of half of them or more
    are known. Its other answers measure nobody.

    Args:
        connection: A transaction.
        person: Number of the person.
        count: Tasks that the person was given before.
        now: The time.
        sheet: Whether it is a sheet, as the task that it stands before.
    """
    c = QUESTIONS.c
    seen = sa.exists().where(
        (EVENTS.c.question == c.id)
        & (EVENTS.c.person == person)
        & EVENTS.c.kind.in_(("answer", "gold"))
    )
    # What the person has before them would begin anew, and its time would be lost.
    task = sa.func.coalesce(c.sheet, c.id)
    has = sa.exists().where(
        (LEASES.c.question == task) & (LEASES.c.person == person) & (LEASES.c.until > now)
    )
    images = c.left_id, c.right_id
    erased = sa.exists().where(IMAGES.c.id.in_(images) & IMAGES.c.erased_at.is_not(None))
    is_given = c.gold.is_not(None) & (c.status != "withdrawn")
    agreed = (c.status == "answered") & c.id.in_(_agreed())
    excluded = seen.correlate(QUESTIONS) | erased.correlate(QUESTIONS) | has.correlate(QUESTIONS)
    if sheet:
        of_question = sa.select(
            c.sheet,
            sa.case((is_given | agreed, 1), else_=0).label("known"),
            sa.case((is_given | (c.status == "answered"), 1), else_=0).label("settled"),
            sa.case((excluded, 1), else_=0).label("excluded"),
        )
        each = of_question.where(c.sheet.is_not(None)).subquery().c
        total = sa.func.count()
        fits = (sa.func.sum(each.settled) == total) & (2 * sa.func.sum(each.known) >= total)
        wanted = sa.select(each.sheet).group_by(each.sheet).order_by(each.sheet)
        wanted = wanted.having(fits & (sa.func.sum(each.excluded) == 0))
    else:
        wanted = sa.select(c.id).where(c.sheet.is_(None) & (is_given | agreed) & ~excluded)
        wanted = wanted.order_by(c.id)
    found = connection.execute(wanted).scalars().all()
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
