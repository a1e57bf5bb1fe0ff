"""What each answer changes when it is given: the closure of a ledger, kept up to date."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from .closure import Closure, Effect
from .database import EVENTS
from .question import Answer, Verdict
from .tasks import Impact

#: A question and a pair of images, or an event that is no answer of a queue.
_Key = tuple[Any, ...]
#: From so many new events on, the closure is built again: one that has to be corrected for each of
#: many events would take a quadratic time.
_MANY = 100
_VERDICTS = {verdict.value: verdict for verdict in Verdict}
_COLUMNS = [
    getattr(EVENTS.c, name)
    for name in ("id", "kind", "left_id", "right_id", "verdict", "need", "confirms", "question")
]


class Impacts:
    """The closure of a ledger's answers about its numbered images, in the order of their events.

    A trainer applies answers in the order of their questions, so that its closure may differ where
    answers contradict each other. An answer takes about 1 KB. An undo reads all answers again.
    """

    def __init__(self) -> None:
        self._last = 0
        self._forget()

    def _forget(self) -> None:
        self._closure = Closure()
        self._votes: dict[_Key, list[Verdict]] = {}
        self._first: dict[_Key, Answer] = {}

    @property
    def closure(self) -> Closure:
        """The closure of what was taken in."""
        return self._closure

    def catch_up(
        self, connection: Connection, wanted: Collection[int] = (), until: int | None = None
    ) -> dict[int, Impact]:
        """Take in the events since the last call.

        Args:
            connection: A transaction that reads.
            wanted: Events whose impact is returned.
            until: Last event that is taken in; all when not given.

        Returns:
            The impact of the wanted ones among these events.
        """
        found: dict[int, Impact] = {}
        first = min(wanted, default=None)
        rows = connection.execute(_events(self._last, until)).all()
        before = [row for row in rows if first is None or row.id < first]
        if len(before) > _MANY:
            self._replay(connection, before[-1].id)
            rows = rows[len(before) :]
        for row in rows:
            impact = None if row.kind == "undo" else self._add(row)
            if impact is None:
                self._replay(connection, row.id)
                impact = Impact(Effect.OPEN)
            if row.id in wanted:
                found[row.id] = impact
            self._last = row.id
        return found

    def _replay(self, connection: Connection, until: int) -> None:
        """Build the closure again from the answers in force up to an event."""
        undos = EVENTS.alias()
        undone = sa.exists().where(
            (undos.c.undoes == EVENTS.c.id) & (undos.c.kind == "undo") & (undos.c.id <= until)
        )
        wanted = (EVENTS.c.kind == "answer") & (EVENTS.c.id <= until) & ~undone.correlate(EVENTS)
        query = sa.select(*_COLUMNS).where(wanted).order_by(EVENTS.c.id)
        rows = connection.execute(query).all()
        self._forget()
        self._last = until
        for row in rows:
            answer = _answer(row)
            if answer is not None:
                key = _key(row)
                self._votes.setdefault(key, []).append(answer.verdict)
                self._first.setdefault(key, answer)
        for key, first in self._first.items():
            self._closure.add(first._replace(verdict=_most(self._votes[key])))

    def _add(self, row: Any) -> Impact | None:
        """Take in an answer; None where it changes an earlier one, whose closure must be built
        again.
        """
        answer = _answer(row)
        if answer is None:
            return Impact(Effect.UNUSABLE)
        key = _key(row)
        votes = self._votes.setdefault(key, [])
        before = _most(votes) if votes else None
        votes.append(answer.verdict)
        if before is None:
            self._first[key] = answer
            return impact_of(self._closure, answer)
        return Impact(Effect.KNOWN) if _most(votes) is before else None


def impact_of(closure: Closure, answer: Answer) -> Impact:
    """Add an answer to a closure, and return what it changed."""
    members = closure.components()
    sizes = []
    for image in (answer.left, answer.right):
        root = closure.root(image)
        sizes.append(1 if root is None else len(members[root]))
    contradictions = len(closure.contradictions)
    effect = closure.add(answer)
    joined, pairs, apart, cuts = (0, 0), 0, 0, 0
    against: tuple[int, ...] = ()
    if effect is Effect.CONTRADICTION:
        last = closure.contradictions[-1]
        against = last.against
        cuts = len([event for event in last.set_aside if event != answer.event])
    elif len(closure.contradictions) > contradictions:
        against = closure.contradictions[-1].against
    elif effect is Effect.NEW and answer.verdict is Verdict.SAME:
        joined = sizes[0], sizes[1]
        pairs = sizes[0] * sizes[1]
    elif effect is Effect.NEW:
        apart = sizes[0] * sizes[1]
    return Impact(effect, joined, pairs, apart, cuts, against)


def together(impacts: Iterable[Impact]) -> Impact | None:
    """Return the impact of a decision from those of its events, the pair's verdict first."""
    every = list(impacts)
    if not every:
        return None
    contradicts = any(impact.effect is Effect.CONTRADICTION for impact in every)
    joined = next((impact.joined for impact in every if impact.pairs), (0, 0))
    against = dict.fromkeys(event for impact in every for event in impact.against)
    return Impact(
        Effect.CONTRADICTION if contradicts else every[0].effect,
        joined,
        sum(impact.pairs for impact in every),
        sum(impact.apart for impact in every),
        sum(impact.cuts for impact in every),
        tuple(against),
    )


def _events(after: int, until: int | None) -> sa.Select[Any]:
    wanted = (EVENTS.c.id > after) & EVENTS.c.kind.in_(("answer", "undo"))
    if until is not None:
        wanted &= EVENTS.c.id <= until
    return sa.select(*_COLUMNS).where(wanted).order_by(EVENTS.c.id)


def _answer(row: Any) -> Answer | None:
    """Return the answer of an event; None where it is damaged."""
    verdict = _VERDICTS.get(row.verdict)
    if verdict is None or not (type(row.left_id) is type(row.right_id) is type(row.need) is int):
        return None
    if not isinstance(row.confirms, int | None):
        return None
    return Answer(row.id, row.left_id, row.right_id, verdict, max(1, row.need), row.confirms)


def _key(row: Any) -> _Key:
    if row.question is None:
        return (row.id,)
    return row.question, min(row.left_id, row.right_id), max(row.left_id, row.right_id)


def _most(verdicts: list[Verdict]) -> Verdict:
    """Return the verdict of most people, "unsure" where several were given equally often."""
    (verdict, most), *others = Counter(verdicts).most_common()
    return Verdict.UNSURE if others and others[0][1] == most else verdict
