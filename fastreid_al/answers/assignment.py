"""Which question goes to whom, and when it is settled."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ..errors import LedgerError, printable
from . import gold, people, views
from .checks import Checks
from .database import EVENTS, LEASES, PEOPLE, QUESTIONS
from .leases import Lease, Leases
from .ledger import MEMBER
from .quality import Quality
from .question import Verdict
from .tally import DECISIONS, Tally, Work
from .tasks import Item, Person, Task
from .votes import Standing, Vote, standing

#: Tasks that are looked at together when one is chosen.
_CHUNK = 32
#: Reasons of questions whose "same" joins two clusters.
_MERGES = ("merge", "confirm")
_LARGEST_ID = 2**63 - 1
#: Names the task of a question.
_TASK = sa.func.coalesce(QUESTIONS.c.sheet, QUESTIONS.c.id)


class Assignment:
    """Chooses the tasks of people, and settles questions.

    Its methods take a connection in a transaction, so that what they read and write is one step.

    Args:
        name: Name of the ledger, for messages.
        lease_seconds: How long a task stays with a person without a heartbeat.
        checks: Shares of the answers that are checked.
    """

    def __init__(self, name: str, lease_seconds: float, checks: Checks) -> None:
        self.name = name
        self.leases = Leases(lease_seconds)
        self.quality = Quality()
        self.tally = Tally()
        self._checks = checks

    def questions(self, connection: Connection, numbers: Collection[int]) -> list[Any]:
        """Return the rows of questions, in the order of their numbers."""
        wanted = sa.select(QUESTIONS).where(QUESTIONS.c.id.in_(numbers))
        return list(connection.execute(wanted.order_by(QUESTIONS.c.id)))

    def rows(self, connection: Connection, task_id: int) -> list[Any]:
        """Return the questions of a task.

        Raises:
            LedgerError: There is no such task.
        """
        number = as_number_of("task", task_id)
        wanted = (QUESTIONS.c.id == number) | (QUESTIONS.c.sheet == number)
        query = sa.select(QUESTIONS).where(wanted).order_by(QUESTIONS.c.id)
        rows = list(connection.execute(query))
        if not rows or task_of(rows[0]) != number:
            raise LedgerError(f"{self.name} has no task {number}")
        return rows

    def votes(self, connection: Connection, numbers: Collection[int]) -> dict[int, list[Vote]]:
        """Return the verdicts in force about each question, in the order of their events."""
        c = EVENTS.c
        columns = c.id, c.question, c.person, c.verdict, c.reason, c.gesture, PEOPLE.c.role
        wanted = (
            sa.select(*columns)
            .select_from(EVENTS.outerjoin(PEOPLE, PEOPLE.c.id == c.person))
            .where(c.question.in_(numbers) & (c.kind == "answer") & gold.in_force())
            .order_by(c.id)
        )
        votes: dict[tuple[int, Any], Vote] = {}
        last: dict[tuple[int, Any], int] = {}
        for row in connection.execute(wanted):
            key = row.question, row.gesture or row.id
            last[key] = row.id
            if row.reason != MEMBER:
                reviews = row.role in people.REVIEWERS
                votes[key] = Vote(row.person or 0, row.verdict, row.id, reviews)
        found: dict[int, list[Vote]] = {number: [] for number in numbers}
        for key, vote in votes.items():
            # A question is settled when all of the decision is written, its thumbnails too.
            found[key[0]].append(vote._replace(event=last[key]))
        return found

    def _standings(
        self, connection: Connection, rows: Sequence[Any], now: float
    ) -> dict[int, tuple[Standing, list[Vote]]]:
        """Where each question stands, and its votes."""
        here = people.present(connection, now)
        votes = self.votes(connection, [row.id for row in rows])
        found = {}
        for row in rows:
            merges = row.reason in _MERGES
            says_same = any(vote.verdict == Verdict.SAME.value for vote in votes[row.id])
            erring = self.quality.erring(connection) if merges and says_same else ()
            checked = self._checked(connection, row, votes[row.id])
            got = standing(
                votes[row.id], row.votes, here, merges=merges, erring=erring, checked=checked
            )
            is_settled = row.status == "open" and got.status == "answered"
            if is_settled and self._is_asked_again(connection, row, votes[row.id], now):
                got = Standing("open", wanted=1)
            found[row.id] = got, votes[row.id]
        return found

    def _is_asked_again(
        self, connection: Connection, row: Any, votes: Sequence[Vote], now: float
    ) -> bool:
        """Whether somebody was given a question after its last answer, and has it now.

        What is known of people changes with each answer, and with it how many answers a question
        needs. The answer of somebody who has the question already counts nevertheless.
        """
        c = LEASES.c
        voters = {vote.person for vote in votes}
        last = sa.select(EVENTS.c.answered_at).where(EVENTS.c.id == votes[-1].event)
        has = (c.question == task_of(row)) & c.person.not_in(voters) & self.leases.is_valid(now)
        given = sa.select(c.person).where(has & (c.since >= last.scalar_subquery()))
        return connection.execute(given.limit(1)).first() is not None

    def _checked(self, connection: Connection, row: Any, votes: Sequence[Vote]) -> set[int]:
        """Those who answered a question and whose answer a second person gives too."""
        voters = {vote.person for vote in votes}
        if not voters or not self._checks.again_unsure:
            return set()
        if len(voters) > 1 and row.settled_event is None:
            # It was drawn before. People who turned out to be careful since do not end it.
            return voters
        known = self.quality.estimates(connection)
        task = task_of(row)
        return {p for p in voters if self._checks.asks_again(p, task, known.get(p))}

    def update(self, connection: Connection, rows: Sequence[Any], now: float) -> int:
        """Write where questions stand, and return how many are not open any more.

        A question about an image that was erased is withdrawn where it would be open again.
        """
        settled = 0
        standings = self._standings(connection, rows, now)
        erased = views.erased(connection, [i for row in rows for i in (row.left_id, row.right_id)])
        for row in rows:
            stands, _ = standings[row.id]
            is_gone = stands.status != "answered" and {row.left_id, row.right_id} & erased
            status = "withdrawn" if is_gone else stands.status
            if (row.status, row.settled_event) != (status, stands.event):
                values = {"status": status, "settled_event": stands.event}
                chosen = QUESTIONS.c.id == row.id
                connection.execute(QUESTIONS.update().where(chosen), values)
            settled += status != "open"
        return settled

    def settle(self, connection: Connection, now: float) -> int:
        """Settle open questions that waited for people who have left, and return how many."""
        c = EVENTS.c
        voted = sa.exists().where(
            (c.question == QUESTIONS.c.id) & (c.kind == "answer") & gold.in_force()
        )
        wanted = (QUESTIONS.c.status == "open") & QUESTIONS.c.gold.is_(None)
        query = sa.select(QUESTIONS).where(wanted & voted.correlate(QUESTIONS))
        rows = connection.execute(query).all()
        return self.update(connection, rows, now) if rows else 0

    def left(
        self, connection: Connection, who: Person, lease: Lease | None, rows: Sequence[Any]
    ) -> list[Any]:
        """Return the questions of a task that a person has to answer.

        Those that are settled are among them only if they were given to the person afterwards: to
        answer again what was taken back, or because the answers of the task are known. On a sheet
        of which others are still open, the person does not see the settled ones.
        """
        votes = self.votes(connection, [row.id for row in rows])
        own = {row.id for row in rows if any(vote.person == who.id for vote in votes[row.id])}
        asked = [row for row in rows if row.id not in own and row.status != "withdrawn"]
        before = set()
        if lease is not None:
            before = {row.id for row in asked if self.was_settled(connection, row, lease)}
        if before and len(before) < len(asked):
            before &= self._taken_back(connection, who, before)
        left = []
        for row in rows:
            if row.status == "review":
                if who.role in people.REVIEWERS:
                    left.append(row)
            elif row.id in own or row.status == "withdrawn":
                continue
            elif row.gold is not None or row.status == "open" or row.id in before:
                left.append(row)
        return left

    @staticmethod
    def _taken_back(connection: Connection, who: Person, numbers: Collection[int]) -> set[int]:
        """The questions that a person decided before; no such answer is in force."""
        c = EVENTS.c
        mine = (c.person == who.id) & c.question.in_(numbers) & c.kind.in_(DECISIONS)
        return set(connection.execute(sa.select(c.question).where(mine)).scalars())

    def was_settled(self, connection: Connection, row: Any, lease: Lease) -> bool:
        """Return whether a question was settled when it was given to a person."""
        if row.settled_event is None:
            return False
        at = sa.select(EVENTS.c.answered_at).where(EVENTS.c.id == row.settled_event)
        return bool(connection.execute(at).scalar_one() <= lease.since)

    def held(
        self, connection: Connection, who: Person, now: float
    ) -> list[tuple[Lease, list[Any]]]:
        """Return the tasks that a person has, with the questions that are left to answer."""
        found = []
        for lease in self.leases.held(connection, who.id, now):
            left = self.left(connection, who, lease, self.rows(connection, lease.task))
            if left:
                found.append((lease, left))
        return found

    def may_keep(
        self,
        connection: Connection,
        who: Person,
        lease: Lease,
        rows: Sequence[Any],
        now: float,
    ) -> bool:
        """Return whether a person may go on with the questions of a task."""
        if not rows or self.leases.lasts(lease, now):
            return bool(rows)
        holders = self.leases.of_tasks(connection, [lease.task], now)[lease.task] - {who.id}
        return self._want_one_more(self._standings(connection, rows, now), holders)

    @staticmethod
    def _want_one_more(
        standings: dict[int, tuple[Standing, list[Vote]]], holders: set[int]
    ) -> bool:
        """Whether one of some questions wants one more person than those who have it."""
        return any(
            stands.wanted > len(holders - {vote.person for vote in votes})
            for stands, votes in standings.values()
        )

    def choose(self, connection: Connection, who: Person, held: int, now: float) -> list[Any]:
        """Return the questions of the next task for a person; empty without one.

        Args:
            connection: A transaction.
            who: The person.
            held: Tasks that the person has.
            now: The time.
        """
        waiting = self._waiting(connection, who, now)
        chosen: list[Any] = []
        for start in range(0, len(waiting), _CHUNK):
            chosen = self._first_free(connection, who, waiting[start : start + _CHUNK], now)
            if chosen:
                break
        if not chosen or not (self._checks.known or self._checks.known_unsure):
            return chosen
        self.tally.catch_up(connection)
        count = held + views.count_given(connection, who.id, self.tally)
        share = self._checks.share_known(self.quality.estimates(connection).get(who.id))
        if gold.is_due(who.id, count, share):
            # It looks like the task that it stands before.
            is_sheet = chosen[0].sheet is not None
            number = gold.choose(connection, who.id, count, now, is_sheet)
            if number is not None:
                return self.rows(connection, number)
        return chosen

    def _waiting(self, connection: Connection, who: Person, now: float) -> list[int]:
        """Tasks that wait for an answer, in the order in which a person gets them.

        What others disagree about comes first for a reviewer, then what somebody did not answer in
        time; what the person skipped comes last.
        """
        skipped = views.skipped_at(who.id)
        statuses = ("open", "review") if who.role in people.REVIEWERS else ("open",)
        ended = sa.exists().where((LEASES.c.question == _TASK) & ~self.leases.is_valid(now))
        wanted = (
            sa.select(_TASK)
            .where(QUESTIONS.c.status.in_(statuses) & QUESTIONS.c.gold.is_(None))
            .order_by(
                sa.case((skipped.is_(None), 0), else_=1),
                skipped,
                sa.case((QUESTIONS.c.status == "review", 0), else_=1),
                sa.case((ended.correlate(QUESTIONS), 0), else_=1),
                QUESTIONS.c.known_event,
                QUESTIONS.c.id,
            )
        )
        return list(dict.fromkeys(connection.execute(wanted).scalars()))

    def _first_free(
        self, connection: Connection, who: Person, tasks: list[int], now: float
    ) -> list[Any]:
        """The questions of the first task that wants this person; empty without one."""
        of_task: dict[int, list[Any]] = defaultdict(list)
        query = sa.select(QUESTIONS).where(_TASK.in_(tasks)).order_by(QUESTIONS.c.id)
        for row in connection.execute(query):
            of_task[task_of(row)].append(row)
        holders = self.leases.of_tasks(connection, tasks, now)
        for task in tasks:
            if who.id in holders[task]:
                continue
            left = self.left(connection, who, None, of_task[task])
            standings = self._standings(connection, left, now)
            if left and self._want_one_more(standings, holders[task]):
                return left
        return []

    def task(
        self, connection: Connection, who: Person, lease: Lease, rows: Sequence[Any], ahead: int
    ) -> Task:
        """Return what a person sees of the questions of a task.

        Args:
            connection: A transaction.
            who: The person.
            lease: The person's lease on the task.
            rows: The questions that are left to answer.
            ahead: Tasks that the person has before it.
        """
        first = rows[0]
        erased = views.erased(connection, all_images(rows))
        left, *right = (
            tuple(image for image in images_of(text) if image not in erased)
            for text in (first.left_images, *(row.right_images for row in rows))
        )
        run = views.current_run(connection)
        self.tally.catch_up(connection)
        work = self.tally.of_run(run).get(who.id, Work())
        number = work.gestures + ahead + 1
        # The total does not tell that an answer was known: it grows with none of them.
        total = work.gestures - work.known + views.count_remaining(connection, run)
        return Task(
            id=lease.task,
            sheet=first.sheet is not None,
            items=tuple(
                Item(row.id, row.right_id, group) for row, group in zip(rows, right, strict=True)
            ),
            left=first.left_id,
            left_images=left,
            reason=first.reason,
            similarity=first.similarity,
            probability=first.probability,
            asked_at=lease.since,
            number=number,
            total=max(number, total),
        )


def task_of(row: Any) -> int:
    """Return the task of a question."""
    return int(row.id if row.sheet is None else row.sheet)


def images_of(text: str) -> tuple[int, ...]:
    """Return the images of a group, from the column that holds them."""
    return tuple(json.loads(text))


def all_images(rows: Sequence[Any]) -> list[int]:
    """Return the images of all groups of some questions."""
    texts = [text for row in rows for text in (row.left_images, row.right_images)]
    return [image for text in texts for image in images_of(text)]


def as_number_of(what: str, value: object) -> int:
    """Return the number of something in the ledger.

    Raises:
        LedgerError: It is no such number.
    """
    if type(value) is not int or not 0 <= value <= _LARGEST_ID:
        raise LedgerError(f"got {what} {shortened(value)}, expected its number")
    return value


def shortened(value: object) -> str:
    """Return a value of unknown origin as a message may show it."""
    return printable(repr(value)[:50])
