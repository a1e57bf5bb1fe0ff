"""The service that hands out the questions of a ledger to people and takes their answers."""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ..arguments import as_callable, as_instance, as_integer, as_number
from ..errors import LedgerError, printable
from . import gold, people, views
from .closure import Closure
from .database import EVENTS, IMAGES, LEASES, PEOPLE, QUESTIONS
from .impacts import Impacts, impact_of, together
from .leases import Lease, Leases, skip, unskip
from .ledger import MEMBER, Ledger, insert_event
from .quality import Quality
from .question import Verdict
from .tasks import (
    TAGS,
    THUMBNAILS,
    Decision,
    ImageEntry,
    Impact,
    Item,
    MemberPage,
    Outcome,
    Person,
    PersonFigures,
    Progress,
    Step,
    Submission,
    Task,
)
from .votes import Standing, Vote, standing

__all__ = [
    "TAGS",
    "THUMBNAILS",
    "AnswerService",
    "Decision",
    "ImageEntry",
    "Impact",
    "Item",
    "MemberPage",
    "Outcome",
    "Person",
    "PersonFigures",
    "Progress",
    "Step",
    "Submission",
    "Task",
]

#: Tasks that a person may hold beside the next one.
_MOST_AHEAD = 8
#: Tasks that are looked at together when one is chosen.
_CHUNK = 32
#: Reasons of questions whose "same" joins two clusters.
_MERGES = ("merge", "confirm")
_LONGEST = {"token": 200, "comment": 10_000}
_LARGEST_ID = 2**63 - 1
#: Seconds that a decision may take, and be idle.
_MOST_SECONDS = 1e6
_SOURCES = ("web", "terminal", "import")
#: What the first image of a task, or the only question's own number, names it by.
_TASK = sa.func.coalesce(QUESTIONS.c.sheet, QUESTIONS.c.id)


class AnswerService:
    """Hands out the questions of a ledger to people, and takes their answers.

    It may be used by several threads: one lock stands around one connection. Everything that it
    acknowledges is in the ledger, so that another service may go on where this one was killed. It
    keeps the closure of the answers in memory, about 1 KB an answer.

    Each method raises `LedgerError`, one line, where the ledger cannot be used, an argument names
    something that does not exist, or the person may not do it. A service that opened its ledger
    itself connects again after the connection to a server was lost.

    Args:
        ledger: A ledger that is open for writing.
        lease_seconds: How long a task stays with a person without a heartbeat.
        gold_share: Share of the tasks whose answer is known.
        clock: Returns the time in unix seconds.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        lease_seconds: float = 90.0,
        gold_share: float = 0.05,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ledger = as_instance("ledger", ledger, Ledger)
        self._clock = as_callable("clock", clock, "a function that returns unix seconds")
        self._leases = Leases(float(as_number("lease_seconds", lease_seconds, 1e-3)))
        self._gold_share = float(as_number("gold_share", gold_share, 0, 1))
        self._lock = threading.RLock()
        self._url: str | None = None
        self._closed = False
        self._impacts = Impacts()
        self._quality = Quality()
        with self._reading() as connection:
            self._impacts.catch_up(connection)

    @classmethod
    def open(
        cls,
        url: str,
        *,
        lease_seconds: float = 90.0,
        gold_share: float = 0.05,
        clock: Callable[[], float] = time.time,
    ) -> AnswerService:
        """Open a ledger as its annotation server, and return its service.

        Args:
            url: Path of an SQLite file, or a URL.
            lease_seconds: How long a task stays with a person without a heartbeat.
            gold_share: Share of the tasks whose answer is known.
            clock: Returns the time in unix seconds.

        Raises:
            LedgerError: It cannot be opened, or has another server.
        """
        ledger = Ledger.open(url, role="server")
        try:
            service = cls(ledger, lease_seconds=lease_seconds, gold_share=gold_share, clock=clock)
        except BaseException:
            ledger.close()
            raise
        service._url = url
        return service

    def close(self) -> None:
        """Close the ledger, if this service opened it."""
        with self._lock:
            self._closed = True
            if self._url is not None:
                self._ledger.close()

    def __enter__(self) -> AnswerService:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def name(self) -> str:
        """Name of the ledger, without a password."""
        return self._ledger.name

    @property
    def lease_seconds(self) -> float:
        """How long a task stays with a person without a heartbeat."""
        return self._leases.seconds

    # People.

    def add_person(self, name: str, role: str = "annotate") -> tuple[Person, str]:
        """Add a person, and return them with their token, of which only a digest is kept.

        Args:
            name: Name, which no other person has.
            role: "annotate", "review" or "admin".
        """
        token = people.new_token()
        with self._writing() as connection:
            return people.make_person(connection, name, role, self._clock(), token), token

    def person_named(self, name: str, role: str = "annotate") -> Person:
        """Return the person of a name; a new one without a token if there is none.

        Args:
            name: Name of the person.
            role: What a new person may do.
        """
        with self._writing() as connection:
            found = people.find_person(connection, people.check_name(name))
            return found or people.make_person(connection, name, role, self._clock())

    def person_of_token(self, token: str) -> Person | None:
        """Return the person whose token it is; None for an unknown one or a disabled person."""
        with self._reading() as connection:
            return people.person_of_token(connection, token)

    def disable(self, person: Person) -> None:
        """Let a person answer no more; their answers stay, and their tasks go to others."""
        with self._writing() as connection:
            chosen = PEOPLE.c.id == as_instance("person", person, Person).id
            values = {"disabled_at": self._clock()}
            if not connection.execute(PEOPLE.update().where(chosen), values).rowcount:
                raise LedgerError(f"there is no person {person.id}")
            self._leases.end_all(connection, person.id)

    def people(self) -> list[PersonFigures]:
        """Return what is known of each person's work, in the order of their numbers."""
        with self._reading() as connection:
            return views.figures(connection, self._quality.estimates(connection))

    # Work.

    def next_task(self, person: Person, ahead: int = 0) -> Task | None:
        """Return a task and give it to the person for some time; None if there is none for them.

        A task that the person holds already is returned again: after a page was loaded anew, the
        person sees the same one.

        Args:
            person: The person.
            ahead: Tasks that the client has already and does not ask for again: 1 to load the next
                task while one is shown.
        """
        ahead = as_integer("ahead", ahead, 0, _MOST_AHEAD)
        with self._writing() as connection:
            now = self._clock()
            who = people.admit(connection, person, now)
            self._settle(connection, now)
            held = self._held(connection, who, now)
            if len(held) > ahead:
                lease, rows = held[ahead]
                lease = self._leases.renew(connection, lease, now)
                return self._task(connection, who, lease, rows, ahead)
            rows = self._choose(connection, who, len(held), now)
            if not rows:
                return None
            lease = self._leases.give(connection, _task_of(rows[0]), who.id, now)
            return self._task(connection, who, lease, rows, len(held))

    def heartbeat(self, person: Person, task_id: int) -> bool:
        """Let the person keep a task; return whether they still have it.

        They do not if the lease has ended and somebody else has the task, or if it was answered or
        withdrawn. An answer to it is then kept as a late one.
        """
        with self._writing() as connection:
            now = self._clock()
            who = people.admit(connection, person, now)
            self._settle(connection, now)
            rows = self._rows(connection, task_id)
            lease = self._leases.find(connection, task_id, who.id)
            if lease is None:
                return False
            left = self._left(connection, who, lease, rows)
            ended = not self._leases.lasts(lease, now)
            if not left or (ended and not self._has_room(connection, who, left, now)):
                return False
            self._leases.renew(connection, lease, now)
            return True

    def release(self, person: Person, task_id: int) -> None:
        """Give a task back, which others may then get at once."""
        with self._writing() as connection:
            who = people.admit(connection, person, self._clock())
            self._rows(connection, task_id)
            self._leases.end(connection, task_id, who.id)

    def skip(self, person: Person, task_id: int) -> None:
        """Give a task back, which comes back to this person after all others."""
        with self._writing() as connection:
            now = self._clock()
            who = people.admit(connection, person, now)
            self._rows(connection, task_id)
            if self._leases.find(connection, task_id, who.id) is None:
                raise LedgerError(_not_given(task_id, who))
            self._leases.end(connection, task_id, who.id)
            skip(connection, task_id, who.id, now)

    def submit(self, person: Person, submission: Submission) -> Outcome:
        """Write a person's decision; when this returns, it is on the disk.

        A submission with the token of an earlier one is not written again.
        """
        sent = as_instance("submission", submission, Submission)
        with self._lock:
            with self._writing() as connection:
                now = self._clock()
                who = people.admit(connection, person, now)
                _check_submission(sent)
                repeated = self._repeated(connection, who, sent)
                if repeated:
                    return Outcome(tuple(repeated), "repeated")
                events, is_late = self._record(connection, who, sent, now)
            # The answer is on the disk: what follows must not make it look lost.
            impact = None
            with contextlib.suppress(LedgerError), self._reading() as connection:
                found = self._impacts.catch_up(connection, events)
                impact = together(found[event] for event in events if event in found)
        against = () if impact is None else impact.against
        return Outcome(tuple(events), "late" if is_late else "recorded", against, impact)

    def undo(self, person: Person, event: int | None = None) -> Task | None:
        """Take back a decision, and return its task, which is the person's next one.

        Args:
            person: The person.
            event: An event of the decision; the person's last one in this run when not given. Only
                an admin takes back the decisions of others.

        Returns:
            The task. None if there is nothing to take back, or if it cannot be answered again: it
            was withdrawn, or it is somebody else's.
        """
        with self._writing() as connection:
            now = self._clock()
            who = people.admit(connection, person, now)
            chosen = self._undoable(connection, who, event)
            if not chosen:
                return None
            for row in chosen:
                values = {
                    "kind": "undo",
                    "annotator": who.name,
                    "asked_at": now,
                    "answered_at": now,
                    "undoes": row.id,
                    "run": row.run,
                    "question": row.question,
                    "person": who.id,
                    "gesture": row.gesture,
                }
                insert_event(connection, values)
            numbers = list(dict.fromkeys(row.question for row in chosen))
            rows = [row for row in self._questions(connection, numbers) if _is_open_to_all(row)]
            self._update(connection, rows, now)
            owner = chosen[0].person
            if not rows or owner != who.id:
                return None
            task_id = _task_of(rows[0])
            unskip(connection, task_id, who.id)
            lease = self._leases.give(connection, task_id, who.id, now, first=True)
            left = self._left(connection, who, lease, self._rows(connection, task_id))
            return self._task(connection, who, lease, left, 0) if left else None

    def settle(self) -> int:
        """Settle questions that waited for people who have left, and return how many.

        `next_task` and `heartbeat` do the same. A server calls it where nobody might.
        """
        with self._writing() as connection:
            return self._settle(connection, self._clock())

    # Views.

    def progress(self, person: Person) -> Progress:
        """Return how far the run of the newest question is."""
        with self._reading() as connection:
            now = self._clock()
            here = people.present(connection, now)
            return views.progress(connection, as_instance("person", person, Person), here)

    def mine(self, person: Person, limit: int = 50) -> list[Decision]:
        """Return the last decisions of a person, the newest first.

        Args:
            person: The person.
            limit: How many.
        """
        limit = as_integer("limit", limit, 1)
        with self._reading() as connection:
            return views.decisions(connection, as_instance("person", person, Person), limit)

    def image(self, image_id: int) -> ImageEntry:
        """Return an image of the ledger."""
        with self._reading() as connection:
            return views.images(connection, [_number("image", image_id)])[0]

    def members(self, question_id: int, side: int, page: int = 0) -> MemberPage:
        """Return a page of the images of a group.

        Args:
            question_id: The question.
            side: 0 for the group of the first image, 1 for that of the second.
            page: Number of the page, from 0.
        """
        side = as_integer("side", side, 0, 1)
        page = as_integer("page", page, 0)
        with self._reading() as connection:
            rows = self._questions(connection, [_number("question", question_id)])
            if not rows:
                raise LedgerError(f"{self.name} has no question {question_id}")
            group = _images(rows[0].right_images if side else rows[0].left_images)
            erased = views.erased(connection, group)
            group = tuple(image for image in group if image not in erased)
            shown = group[page * THUMBNAILS : (page + 1) * THUMBNAILS]
            pages = -(-len(group) // THUMBNAILS)
            entries = views.images(connection, shown)
            return MemberPage(tuple(entries), page, pages, len(group))

    def effect(self, event: int) -> Impact:
        """Return what an answer changed, given the answers before it that are in force.

        Reads all answers before it.
        """
        event = _number("event", event)
        with self._reading() as connection:
            kind = connection.execute(sa.select(EVENTS.c.kind).where(EVENTS.c.id == event)).scalar()
            if kind != "answer":
                raise LedgerError(f"{self.name} has no answer {event}")
            before = Impacts()
            before.catch_up(connection, until=event - 1)
            return before.catch_up(connection, [event], until=event)[event]

    def preview(self, left: int, right: int, verdict: Verdict | str) -> Impact:
        """Return what an answer about two images would change.

        Reads all answers.

        Args:
            left: One image.
            right: The other image.
            verdict: The verdict.
        """
        with self._lock:
            closure = Closure.replay(self._numbered().answers())
            answer = views.imagined(left, right, Verdict(verdict))
            return impact_of(closure, answer)

    def proof(self, a: int, b: int) -> list[Step]:
        """Return the answers that prove what is known of two images, in the order of a path from a
        to b; empty where nothing is known.

        Reads all answers.
        """
        a, b = _number("a", a), _number("b", b)
        with self._lock:
            self._connect()
            chain = Closure.replay(self._numbered().answers()).chain(a, b)
            with self._reading() as connection:
                return views.steps(connection, chain)

    def erase(self, image_id: int, person: Person, reason: str) -> int:
        """Show an image no more, and return the event that says so.

        Open questions about it are withdrawn; others are shown without it. Its number, its path,
        and the answers about it stay.

        Args:
            image_id: The image.
            person: An admin.
            reason: Why.
        """
        with self._writing() as connection:
            now = self._clock()
            who = people.admit(connection, person, now)
            if who.role != "admin":
                raise LedgerError(f"{printable(who.name)} may not erase images; ask an admin")
            entry = views.images(connection, [_number("image", image_id)])[0]
            if entry.erased:
                raise LedgerError(f"image {image_id} was erased before")
            connection.execute(IMAGES.update().where(IMAGES.c.id == entry.id), {"erased_at": now})
            shows = (QUESTIONS.c.left_id == entry.id) | (QUESTIONS.c.right_id == entry.id)
            waits = QUESTIONS.c.status.in_(("open", "review"))
            connection.execute(QUESTIONS.update().where(shows & waits), {"status": "withdrawn"})
            values = {
                "kind": "erase",
                "left_id": entry.id,
                "annotator": who.name,
                "asked_at": now,
                "answered_at": now,
                "person": who.id,
                "comment": _text("reason", reason),
            }
            return insert_event(connection, values)

    def rows(self, images: Sequence[int]) -> list[int]:
        """Return the row of each image in the training set of the ledger, -1 where it is not in it.

        Without a training set, it is the number of the image.
        """
        with self._lock:
            return [self._ledger.row_of(image) for image in images]

    # The connection.

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Connection]:
        with self._lock:
            self._connect()
            with self._ledger.store.reading() as connection:
                yield connection

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self._lock:
            self._connect()
            with self._ledger.store.writing() as connection:
                yield connection

    def _connect(self) -> None:
        """Open the ledger again, if the connection to its server was lost."""
        if self._closed:
            raise LedgerError(f"the service of {self.name} is closed")
        if self._url is not None and self._ledger.store.is_lost:
            self._ledger.close()
            self._ledger = Ledger.open(self._url, role="server")

    def _numbered(self) -> Ledger:
        """The ledger, as one without a training set: images are numbers."""
        self._connect()
        return Ledger(self._ledger.store, None)

    # Questions.

    def _questions(self, connection: Connection, numbers: Collection[int]) -> list[Any]:
        wanted = sa.select(QUESTIONS).where(QUESTIONS.c.id.in_(numbers))
        return list(connection.execute(wanted.order_by(QUESTIONS.c.id)))

    def _rows(self, connection: Connection, task_id: int) -> list[Any]:
        """The questions of a task."""
        number = _number("task", task_id)
        wanted = sa.select(QUESTIONS).where(
            (QUESTIONS.c.id == number) | (QUESTIONS.c.sheet == number)
        )
        rows = list(connection.execute(wanted.order_by(QUESTIONS.c.id)))
        if not rows or _task_of(rows[0]) != number:
            raise LedgerError(f"{self.name} has no task {number}")
        return rows

    def _votes(self, connection: Connection, numbers: Collection[int]) -> dict[int, list[Vote]]:
        """The verdicts in force about each question."""
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
            found[key[0]].append(vote._replace(event=last[key]))
        return found

    def _standings(
        self, connection: Connection, rows: Sequence[Any], now: float
    ) -> dict[int, tuple[Standing, list[Vote]]]:
        """Where each question stands, and its votes."""
        here = people.present(connection, now)
        votes = self._votes(connection, [row.id for row in rows])
        found = {}
        for row in rows:
            merges = row.reason in _MERGES
            erring = self._quality.erring(connection) if merges and votes[row.id] else ()
            got = standing(votes[row.id], row.votes, here, merges=merges, erring=erring)
            found[row.id] = got, votes[row.id]
        return found

    def _update(self, connection: Connection, rows: Sequence[Any], now: float) -> int:
        """Write where questions stand, and return how many were settled."""
        settled = 0
        for number, (stands, _) in self._standings(connection, rows, now).items():
            values = {"status": stands.status, "settled_event": stands.event}
            connection.execute(QUESTIONS.update().where(QUESTIONS.c.id == number), values)
            settled += stands.status != "open"
        return settled

    def _settle(self, connection: Connection, now: float) -> int:
        c = EVENTS.c
        voted = sa.exists().where(
            (c.question == QUESTIONS.c.id) & (c.kind == "answer") & gold.in_force()
        )
        wanted = (QUESTIONS.c.status == "open") & QUESTIONS.c.gold.is_(None) & voted
        rows = connection.execute(sa.select(QUESTIONS).where(wanted)).all()
        return self._update(connection, rows, now) if rows else 0

    def _left(
        self, connection: Connection, who: Person, lease: Lease | None, rows: Sequence[Any]
    ) -> list[Any]:
        """The questions of a task that a person has to answer.

        Those that are settled are among them only if they were given to the person afterwards: to
        answer again what was taken back, or because the answer is known.
        """
        votes = self._votes(connection, [row.id for row in rows])
        left = []
        for row in rows:
            voted = any(vote.person == who.id for vote in votes[row.id])
            if row.status == "review":
                if who.role in people.REVIEWERS:
                    left.append(row)
            elif voted or row.status == "withdrawn":
                continue
            elif (
                row.gold is not None
                or row.status == "open"
                or (lease is not None and self._was_settled(connection, row, lease))
            ):
                left.append(row)
        return left

    def _was_settled(self, connection: Connection, row: Any, lease: Lease) -> bool:
        """Whether a question was settled when it was given to a person."""
        if row.settled_event is None:
            return False
        at = sa.select(EVENTS.c.answered_at).where(EVENTS.c.id == row.settled_event)
        return bool(connection.execute(at).scalar_one() <= lease.since)

    def _held(
        self, connection: Connection, who: Person, now: float
    ) -> list[tuple[Lease, list[Any]]]:
        """The tasks that a person has, with the questions that are left to answer."""
        found = []
        for lease in self._leases.held(connection, who.id, now):
            left = self._left(connection, who, lease, self._rows(connection, lease.task))
            if left:
                found.append((lease, left))
        return found

    def _has_room(
        self, connection: Connection, who: Person, rows: Sequence[Any], now: float
    ) -> bool:
        """Whether one of the questions of a task wants one more person."""
        task = _task_of(rows[0])
        holders = self._leases.of_tasks(connection, [task], now)[task] - {who.id}
        return self._wants(self._standings(connection, rows, now), holders)

    @staticmethod
    def _wants(standings: dict[int, tuple[Standing, list[Vote]]], holders: set[int]) -> bool:
        return any(
            stands.wanted > len(holders - {vote.person for vote in votes})
            for stands, votes in standings.values()
        )

    def _choose(self, connection: Connection, who: Person, held: int, now: float) -> list[Any]:
        """The questions of the next task for a person; empty without one."""
        waiting = self._waiting(connection, who, now)
        chosen: list[Any] = []
        for start in range(0, len(waiting), _CHUNK):
            chosen = self._first_free(connection, who, waiting[start : start + _CHUNK], now)
            if chosen:
                break
        if not chosen or not self._gold_share:
            return chosen
        count = held + views.count_given(connection, who.id)
        if gold.is_due(who.id, count, self._gold_share):
            number = gold.choose(connection, who.id, count)
            if number is not None:
                return self._questions(connection, [number])
        return chosen

    def _waiting(self, connection: Connection, who: Person, now: float) -> list[int]:
        """Tasks that wait for an answer, in the order in which a person gets them.

        What others disagree about comes first for a reviewer, then what somebody else did not
        answer in time; what the person skipped comes last.
        """
        skipped = views.skipped_at(who.id)
        statuses = ("open", "review") if who.role in people.REVIEWERS else ("open",)
        ended = sa.exists().where((LEASES.c.question == _TASK) & ~self._leases.is_valid(now))
        wanted = (
            sa.select(_TASK)
            .where(QUESTIONS.c.status.in_(statuses) & QUESTIONS.c.gold.is_(None))
            .order_by(
                sa.case((skipped.is_(None), 0), else_=1),
                skipped,
                sa.case((QUESTIONS.c.status == "review", 0), else_=1),
                sa.case((ended, 0), else_=1),
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
        for row in connection.execute(
            sa.select(QUESTIONS).where(_TASK.in_(tasks)).order_by(QUESTIONS.c.id)
        ):
            of_task[_task_of(row)].append(row)
        holders = self._leases.of_tasks(connection, tasks, now)
        for task in tasks:
            if who.id in holders[task]:
                continue
            left = self._left(connection, who, None, of_task[task])
            if left and self._wants(self._standings(connection, left, now), holders[task]):
                return left
        return []

    def _task(
        self, connection: Connection, who: Person, lease: Lease, rows: Sequence[Any], ahead: int
    ) -> Task:
        """What a person sees of the questions of a task."""
        first = rows[0]
        groups = [_images(first.left_images), *(_images(row.right_images) for row in rows)]
        erased = views.erased(connection, [image for group in groups for image in group])
        left, *right = (tuple(i for i in group if i not in erased) for group in groups)
        run = views.current_run(connection)
        number = views.count_decided(connection, who.id, run) + ahead + 1
        remaining = views.count_remaining(connection, run)
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
            total=max(number, number - ahead - 1 + remaining),
        )

    # Submissions.

    def _repeated(self, connection: Connection, who: Person, sent: Submission) -> list[int]:
        """Events of the decision that was sent with the same token before."""
        c = EVENTS.c
        first = connection.execute(
            sa.select(c.person, c.gesture, c.question).where(c.token == sent.token)
        ).first()
        if first is None:
            return []
        rows = self._questions(connection, [first.question])
        if first.person != who.id or not rows or _task_of(rows[0]) != sent.task_id:
            raise LedgerError("the token of this answer was used for another one; make a new token")
        written = (c.gesture == first.gesture) & (c.person == who.id) & (c.kind != "undo")
        of_task = c.question.in_([row.id for row in self._rows(connection, sent.task_id)])
        wanted = sa.select(c.id).where(of_task & written).order_by(c.id)
        return list(connection.execute(wanted).scalars())

    def _record(
        self, connection: Connection, who: Person, sent: Submission, now: float
    ) -> tuple[list[int], bool]:
        """Write a decision; returns its events, and whether it came too late to settle anything."""
        rows = self._rows(connection, sent.task_id)
        lease = self._leases.find(connection, sent.task_id, who.id)
        if lease is None:
            raise LedgerError(_not_given(sent.task_id, who))
        left = self._left(connection, who, lease, rows)
        verdicts = _verdicts(sent, rows, [row.id for row in left])
        judged = [row for row in rows if row.id in verdicts]
        erased = views.erased(connection, _all_images(judged))
        members = _judged_members(sent, judged, erased)
        kinds = {row.id: self._kind(connection, who, row, lease) for row in judged}
        events = self._write(connection, who, sent, now, judged, verdicts, kinds, members)
        self._leases.end(connection, sent.task_id, who.id)
        unskip(connection, sent.task_id, who.id)
        waiting = [
            row for row in judged if row.status in ("open", "review") and kinds[row.id] == "answer"
        ]
        self._update(connection, waiting, now)
        return events, not waiting and "gold" not in kinds.values()

    def _kind(self, connection: Connection, who: Person, row: Any, lease: Lease) -> str:
        """ "gold" for an answer to a question whose answer is known, else "answer"."""
        if row.gold is not None:
            return "gold"
        if row.status != "answered" or not self._was_settled(connection, row, lease):
            return "answer"
        before = connection.execute(
            sa.select(EVENTS.c.kind)
            .where(
                (EVENTS.c.question == row.id)
                & (EVENTS.c.person == who.id)
                & EVENTS.c.kind.in_(("answer", "gold"))
            )
            .order_by(EVENTS.c.id.desc())
            .limit(1)
        ).scalar()
        # A person who took an answer back answers the question again.
        return "answer" if before == "answer" else "gold"

    def _write(
        self,
        connection: Connection,
        who: Person,
        sent: Submission,
        now: float,
        rows: Sequence[Any],
        verdicts: dict[int, str],
        kinds: dict[int, str],
        members: dict[int, list[tuple[int, int, str]]],
    ) -> list[int]:
        """Write the events of a decision: of each question its verdict, then its thumbnails."""
        gesture = uuid.uuid4().hex
        each = sent.active_seconds / len(rows)
        erased = views.erased(connection, _all_images(rows))
        events = []
        for index, row in enumerate(rows):
            shown = _shown(sent, row, erased)
            values = {
                "kind": kinds[row.id],
                "left_id": row.left_id,
                "right_id": row.right_id,
                "verdict": verdicts[row.id],
                "annotator": who.name,
                # The seconds of a sheet are divided among its questions.
                "asked_at": now - each,
                "answered_at": now,
                "epoch": row.epoch,
                "reason": row.reason,
                "score": row.score,
                "similarity": row.similarity,
                "need": row.need,
                "confirms": row.confirms,
                "shown": json.dumps(views.paths(connection, shown)),
                "run": row.run,
                "question": row.id,
                "person": who.id,
                "gesture": gesture,
                "source": sent.source,
            }
            if index == 0:
                values |= {
                    "token": sent.token,
                    "idle": float(sent.idle_seconds),
                    "comment": sent.comment or None,
                    "tags": ",".join(dict.fromkeys(sent.tags)) or None,
                }
            events.append(insert_event(connection, values))
            for left, right, verdict in members[row.id]:
                member = {
                    "kind": kinds[row.id],
                    "left_id": left,
                    "right_id": right,
                    "verdict": verdict,
                    "annotator": who.name,
                    "asked_at": now,
                    "answered_at": now,
                    "epoch": row.epoch,
                    "reason": MEMBER,
                    "run": row.run,
                    "question": row.id,
                    "person": who.id,
                    "gesture": gesture,
                    "source": sent.source,
                }
                events.append(insert_event(connection, member))
        return events

    def _undoable(self, connection: Connection, who: Person, event: int | None) -> list[Any]:
        """Events of the decision that is to be taken back."""
        c = EVENTS.c
        columns = c.id, c.person, c.gesture, c.question, c.run, c.kind
        decisions = c.kind.in_(("answer", "gold")) & gold.in_force() & c.question.is_not(None)
        if event is None:
            own = (c.person == who.id) & (c.run == views.current_run(connection))
            wanted = sa.select(*columns).where(own & decisions).order_by(c.id.desc()).limit(1)
        else:
            wanted = sa.select(*columns).where((c.id == _number("event", event)) & decisions)
        found = connection.execute(wanted).first()
        if found is None:
            if event is None:
                return []
            raise LedgerError(f"{self.name} has no answer {event} that could be taken back")
        if found.person != who.id and who.role != "admin":
            raise LedgerError(
                f"event {event} is not an answer of {printable(who.name)}; ask an admin"
            )
        same = (c.gesture == found.gesture) & (c.person == found.person)
        if found.gesture is None:
            same = c.id == found.id
        return list(connection.execute(sa.select(*columns).where(same & decisions).order_by(c.id)))


def _task_of(row: Any) -> int:
    return int(row.id if row.sheet is None else row.sheet)


def _is_open_to_all(row: Any) -> bool:
    """Whether a question can still be answered."""
    return bool(row.status != "withdrawn")


def _not_given(task_id: int, who: Person) -> str:
    return (
        f"task {task_id} is not with {printable(who.name)}: it was answered, skipped or given "
        "back, or was never given; ask for the next task"
    )


def _number(name: str, value: object) -> int:
    """Return the number of something in the ledger."""
    if type(value) is not int or not 0 <= value <= _LARGEST_ID:
        raise LedgerError(f"got {name} {printable(repr(value)[:50])}, expected its number")
    return value


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise LedgerError(f"got {name} of type {type(value).__name__}, expected text")
    return value


def _images(text: str) -> tuple[int, ...]:
    """Return the images of a group."""
    return tuple(json.loads(text))


def _all_images(rows: Sequence[Any]) -> list[int]:
    return [
        image for row in rows for image in (*_images(row.left_images), *_images(row.right_images))
    ]


def _check_submission(sent: Submission) -> None:
    """Refuse a submission whose fields no client would send."""
    _number("task", sent.task_id)
    for name in ("token", "comment"):
        text = getattr(sent, name)
        if text is None and name == "comment":
            continue
        if not isinstance(text, str) or not bool(text) <= len(text) <= _LONGEST[name]:
            raise LedgerError(
                f"got {name} of type {type(text).__name__}, expected text of at most "
                f"{_LONGEST[name]} characters"
            )
    if not sent.token:
        raise LedgerError("got an empty token, expected a new one for each answer")
    for name in ("active_seconds", "idle_seconds"):
        value = getattr(sent, name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or not 0 <= value <= _MOST_SECONDS:
            raise LedgerError(f"got {name} {printable(repr(value)[:50])}, expected 0 to 1e6")
    if sent.source not in _SOURCES:
        raise LedgerError(
            f"got source {printable(repr(sent.source)[:50])}, expected {', '.join(_SOURCES)}"
        )
    for tag in sent.tags:
        if tag not in TAGS:
            raise LedgerError(f"got tag {printable(repr(tag)[:50])}, expected {', '.join(TAGS)}")
    for image in (*sent.odd, *(sent.shown or ())):
        _number("image", image)


def _verdicts(sent: Submission, rows: Sequence[Any], left: Sequence[int]) -> dict[int, str]:
    """Return the verdict of each question of a submission."""
    known = {row.id for row in rows}
    verdicts: dict[int, str] = {}
    for number, verdict in sent.verdicts.items():
        if number not in known:
            raise LedgerError(f"task {sent.task_id} has no question {printable(repr(number)[:50])}")
        try:
            verdicts[number] = Verdict(verdict).value
        except ValueError:
            raise LedgerError(
                f"got verdict {printable(repr(verdict)[:50])}, expected one of "
                f"{', '.join(v.value for v in Verdict)}"
            ) from None
    missing = set(left) - set(verdicts)
    if missing or not verdicts:
        raise LedgerError(
            f"got verdicts for {len(verdicts)} of the {len(set(left) | set(verdicts))} questions "
            f"of task {sent.task_id}, expected one for each"
        )
    return verdicts


def _shown(sent: Submission, row: Any, erased: Collection[int]) -> tuple[list[int], list[int]]:
    """Return the images that were shown on each side: the large one, then the thumbnails."""
    sides = []
    for large, text in ((row.left_id, row.left_images), (row.right_id, row.right_images)):
        others = [i for i in _images(text) if i != large and i not in erased]
        if sent.shown is None:
            others = others[:THUMBNAILS]
        else:
            shown = set(sent.shown)
            others = [image for image in others if image in shown]
        sides.append([large, *others])
    return sides[0], sides[1]


def _judged_members(
    sent: Submission, rows: Sequence[Any], erased: Collection[int]
) -> dict[int, list[tuple[int, int, str]]]:
    """Return the thumbnails that were judged, by question: large image, thumbnail, verdict.

    Those of the first image belong to the first question of a sheet.
    """
    odd = set(sent.odd)
    found: dict[int, list[tuple[int, int, str]]] = {}
    known: set[int] = set()
    for index, row in enumerate(rows):
        found[row.id] = []
        sides = [(row.right_id, row.right_images)]
        if index == 0:
            sides.insert(0, (row.left_id, row.left_images))
        shown = _shown(sent, row, erased)
        for large, text in sides:
            others = dict.fromkeys(i for i in _images(text) if i != large and i not in erased)
            known |= set(others)
            seen = {*shown[0], *shown[1]}
            for image in others:
                if image in odd:
                    found[row.id].append((large, image, Verdict.DIFFERENT.value))
                elif sent.all_confirmed and image in seen:
                    found[row.id].append((large, image, Verdict.SAME.value))
    if not odd <= known:
        wrong = min(odd - known)
        raise LedgerError(
            f"image {wrong} is not a thumbnail of task {sent.task_id}, so that it cannot be odd"
        )
    return found
