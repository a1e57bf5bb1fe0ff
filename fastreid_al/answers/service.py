"""The service that hands out the questions of a ledger to people and takes their answers."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ..arguments import as_callable, as_instance, as_integer, as_number
from ..errors import LedgerError, printable
from . import gold, people, submissions, views
from .assignment import Assignment, as_number_of, images_of, shortened, task_of
from .checks import Checks
from .database import EVENTS, IMAGES, PEOPLE, QUESTIONS
from .impacts import AnswerGraph, impact_of, together
from .leases import skip, unskip
from .ledger import Ledger, insert_event
from .question import Verdict
from .tally import Tally
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
    Status,
    Step,
    Submission,
    Task,
)

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


class AnswerService:
    """Hands out the questions of a ledger to people, and takes their answers.

    It may be used by several threads: one lock stands around one connection. Everything that it
    acknowledges is in the ledger, so that another service may go on where this one was killed. It
    keeps the answers in memory, about 1 KB each.

    Each method raises `LedgerError`, one line, where the ledger cannot be used, an argument names
    something that does not exist, or the person may not do it. A service that opened its ledger
    itself connects again after the connection to a server was lost.

    Args:
        ledger: A ledger that is open for writing.
        lease_seconds: How long a task stays with a person without a heartbeat.
        gold_share: Share of the tasks whose answer is known.
        checks: Shares of the answers that are checked, in place of `gold_share`. Without it, no
            answer is given again to check a person.
        clock: Returns the time in unix seconds.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        lease_seconds: float = 90.0,
        gold_share: float = 0.05,
        checks: Checks | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ledger = as_instance("ledger", ledger, Ledger)
        self._clock = as_callable("clock", clock, "a function that returns unix seconds")
        self._assignment = Assignment(
            ledger.name,
            float(as_number("lease_seconds", lease_seconds, 1e-3)),
            _checks_of(gold_share, checks),
        )
        self._lock = threading.RLock()
        self._url: str | None = None
        self._closed = False
        self._graph = AnswerGraph()
        # What takes long at first is done before anybody waits for it.
        with self._reading() as connection:
            self._graph.catch_up(connection)
            self._assignment.tally.catch_up(connection)
            self._assignment.quality.estimates(connection)

    @classmethod
    def open(
        cls,
        url: str,
        *,
        lease_seconds: float = 90.0,
        gold_share: float = 0.05,
        checks: Checks | None = None,
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
            service = cls(
                ledger,
                lease_seconds=lease_seconds,
                gold_share=gold_share,
                checks=checks,
                clock=clock,
            )
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
        return self._assignment.leases.seconds

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
            self._assignment.leases.end_all(connection, person.id)

    def people(self) -> list[PersonFigures]:
        """Return what is known of each person's work, in the order of their numbers."""
        with self._reading() as connection:
            self._assignment.tally.catch_up(connection)
            estimates = self._assignment.quality.estimates(connection)
            return views.figures(connection, self._assignment.tally, estimates)

    # Work.

    def next_task(self, person: Person, ahead: int = 0, idle: float = 0.0) -> Task | None:
        """Return a task and give it to the person for some time; None if there is none for them.

        A task that the person holds already is returned again: after a page was loaded anew, the
        person sees the same one.

        Args:
            person: The person.
            ahead: Tasks that the client has already and does not ask for again: 1 to load the next
                task while one is shown.
            idle: Seconds since the person did something, such as pressing a key. Who did nothing
                for some minutes is not waited for.
        """
        ahead = as_integer("ahead", ahead, 0, _MOST_AHEAD)
        task = self._give(person, ahead, float(as_number("idle", idle, 0)))
        return None if task is None else self._without_odd_ones(task)

    def _give(self, person: Person, ahead: int, idle: float) -> Task | None:
        """Give a task to a person, after those that they have already."""
        assignment = self._assignment
        with self._writing() as connection:
            now = self._clock()
            who = people.admit(connection, person, now, idle)
            assignment.settle(connection, now)
            held = assignment.held(connection, who, now)
            if len(held) > ahead:
                lease, rows = held[ahead]
                if idle < people.AWAY_SECONDS:
                    lease = assignment.leases.renew(connection, lease, now)
                return assignment.task(connection, who, lease, rows, ahead)
            rows = assignment.choose(connection, who, len(held), now)
            if not rows:
                return None
            number = task_of(rows[0])
            before = assignment.leases.find(connection, number, who.id)
            if before is not None and idle >= people.AWAY_SECONDS:
                # A page that nobody uses has it already, and does not get it for longer.
                is_shown = ahead > len(held)
                return None if is_shown else assignment.task(connection, who, before, rows, 0)
            lease = assignment.leases.give(connection, number, who.id, now)
            return assignment.task(connection, who, lease, rows, len(held))

    def _without_odd_ones(self, task: Task) -> Task:
        """Leave out the small images that are known not to show what their large image shows.

        A group keeps them until its round ends. Somebody would mark them again, or confirm them
        unseen.
        """
        with self._reading() as connection:
            self._graph.catch_up(connection)

        def belonging(large: int, images: tuple[int, ...]) -> tuple[int, ...]:
            closure = self._graph.closure_of(large, *images)
            return tuple(i for i in images if closure.verdict(large, i) is not Verdict.DIFFERENT)

        items = (i._replace(right_images=belonging(i.right, i.right_images)) for i in task.items)
        left_images = belonging(task.left, task.left_images)
        return dataclasses.replace(task, items=tuple(items), left_images=left_images)

    def heartbeat(self, person: Person, task_id: int, idle: float = 0.0) -> bool:
        """Let the person keep a task; return whether they still have it.

        They do not if the lease has ended and somebody else has the task, or if it was answered or
        withdrawn. An answer to it is then kept as a late one. The lease of a person who did
        nothing for some minutes is not renewed.

        Args:
            person: The person.
            task_id: The task.
            idle: Seconds since the person did something.
        """
        idle = float(as_number("idle", idle, 0))
        assignment = self._assignment
        with self._writing() as connection:
            now = self._clock()
            who = people.admit(connection, person, now, idle)
            assignment.settle(connection, now)
            rows = assignment.rows(connection, task_id)
            lease = assignment.leases.find(connection, task_id, who.id)
            if lease is None:
                return False
            left = assignment.left(connection, who, lease, rows)
            keeps = assignment.may_keep(connection, who, lease, left, now)
            if keeps and idle < people.AWAY_SECONDS:
                assignment.leases.renew(connection, lease, now)
            return keeps

    def release(self, person: Person, task_id: int) -> None:
        """Give a task back, which others may then get at once."""
        with self._writing() as connection:
            who = people.admit(connection, person, self._clock())
            self._assignment.rows(connection, task_id)
            self._assignment.leases.end(connection, task_id, who.id)

    def skip(self, person: Person, task_id: int) -> None:
        """Give a task back, which comes back to this person after all others."""
        with self._writing() as connection:
            now = self._clock()
            who = people.admit(connection, person, now)
            self._assignment.rows(connection, task_id)
            leases = self._assignment.leases
            if leases.find(connection, task_id, who.id) is None:
                raise LedgerError(submissions.not_given(task_id, who))
            leases.end(connection, task_id, who.id)
            skip(connection, task_id, who.id, now)

    def submit(self, person: Person, submission: Submission) -> Outcome:
        """Write a person's decision; when this returns, it is on the disk.

        A submission with the token of an earlier one is not written again.
        """
        sent = as_instance("submission", submission, Submission)
        assignment = self._assignment
        with self._lock:
            with self._writing() as connection:
                now = self._clock()
                who = people.admit(connection, person, now)
                submissions.check_submission(sent)
                events = submissions.repeated(connection, assignment, who, sent)
                if events:
                    return Outcome(tuple(events), "repeated")
                written = submissions.record(connection, assignment, who, sent, now)
            # What an answer that is known would have changed: it looks like any other.
            impact = self._impact_of(written.events, written.is_gold)
        against = () if impact is None else impact.against
        status: Status = "late" if written.is_late else "recorded"
        return Outcome(tuple(written.events), status, against, impact)

    def _impact_of(self, events: Sequence[int], is_gold: bool) -> Impact | None:
        """What a decision changed, or would have changed if its answer were not known; None where
        the ledger cannot be read now.
        """
        # The answer is on the disk: an error from here on would make it look lost.
        with contextlib.suppress(LedgerError), self._reading() as connection:
            found = self._graph.catch_up(connection, events)
            if is_gold:
                return self._graph.imagined(connection, events)
            return together(found[event] for event in events if event in found)
        return None

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
        task = self._take_back(person, event)
        return None if task is None else self._without_odd_ones(task)

    def _take_back(self, person: Person, event: int | None) -> Task | None:
        """Take back a decision, and return its task."""
        assignment = self._assignment
        with self._writing() as connection:
            now = self._clock()
            who = people.admit(connection, person, now)
            chosen = submissions.decision_of(connection, self.name, who, event)
            if not chosen:
                return None
            rows = assignment.questions(connection, {row.question for row in chosen})
            submissions.take_back(connection, who, chosen, now)
            assignment.update(connection, submissions.reopened(rows, chosen), now)
            if chosen[0].person != who.id or not rows:
                return None
            task_id = task_of(rows[0])
            unskip(connection, task_id, who.id)
            lease = assignment.leases.give(connection, task_id, who.id, now, first=True)
            left = assignment.left(connection, who, lease, assignment.rows(connection, task_id))
            if left:
                return assignment.task(connection, who, lease, left, 0)
            assignment.leases.end(connection, task_id, who.id)
            return None

    def settle(self) -> int:
        """Settle questions that waited for people who have left, and return how many.

        `next_task` and `heartbeat` do the same. A server calls it where nobody might.
        """
        with self._writing() as connection:
            return self._assignment.settle(connection, self._clock())

    # Views.

    def progress(self, person: Person) -> Progress:
        """Return how far the run of the newest question is."""
        with self._reading() as connection:
            now = self._clock()
            here = people.present(connection, now)
            tally = self._assignment.tally
            tally.catch_up(connection)
            return views.progress(connection, tally, as_instance("person", person, Person), here)

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
            return views.images(connection, [as_number_of("image", image_id)])[0]

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
            rows = self._assignment.questions(connection, [as_number_of("question", question_id)])
            if not rows:
                raise LedgerError(f"{self.name} has no question {question_id}")
            group = images_of(rows[0].right_images if side else rows[0].left_images)
            erased = views.erased(connection, group)
            group = tuple(image for image in group if image not in erased)
            shown = group[page * THUMBNAILS : (page + 1) * THUMBNAILS]
            pages = -(-len(group) // THUMBNAILS)
            entries = views.images(connection, shown)
            return MemberPage(tuple(entries), page, pages, len(group))

    def effect(self, event: int) -> Impact:
        """Return what an answer in force changed, given the answers in force before it."""
        event = as_number_of("event", event)
        with self._reading() as connection:
            self._graph.catch_up(connection)
            chosen = (EVENTS.c.id == event) & (EVENTS.c.kind == "answer") & gold.in_force()
            if connection.execute(sa.select(EVENTS.c.id).where(chosen)).first() is None:
                raise LedgerError(f"{self.name} has no answer {event} in force")
            return self._graph.impact(event)

    def preview(self, left: int, right: int, verdict: Verdict | str) -> Impact:
        """Return what an answer about two images would change.

        Args:
            left: One image.
            right: The other image.
            verdict: The verdict.
        """
        left, right = as_number_of("image", left), as_number_of("image", right)
        with self._reading() as connection:
            self._graph.catch_up(connection)
            closure = self._graph.closure_of(left, right)
        return impact_of(closure, views.imagined(left, right, Verdict(verdict)))

    def prospects(self, question_id: int, *, exact: bool = False) -> dict[Verdict, Impact]:
        """Return what "same" and "different" as the answer to a question would change.

        Args:
            question_id: The question.
            exact: Whether a contradiction with earlier answers is told. It tells what they imply,
                which sways whoever answers. Otherwise the answers that decide about the pair are
                left out.
        """
        with self._reading() as connection:
            number = as_number_of("question", question_id)
            rows = self._assignment.questions(connection, [number])
            if not rows:
                raise LedgerError(f"{self.name} has no question {number}")
            self._graph.catch_up(connection)
        (row,) = rows
        closure_of = self._graph.without if exact else self._graph.undecided
        found = {}
        for verdict in (Verdict.SAME, Verdict.DIFFERENT):
            answer = views.imagined(row.left_id, row.right_id, verdict)
            answer = answer._replace(need=row.need, confirms=row.confirms)
            closure = closure_of(row.left_id, row.right_id, number)
            found[verdict] = impact_of(closure, answer)
        return found

    def proof(self, a: int, b: int) -> list[Step]:
        """Return the answers that prove what is known of two images, in the order of a path from a
        to b; empty where nothing is known.
        """
        a, b = as_number_of("image", a), as_number_of("image", b)
        with self._reading() as connection:
            self._graph.catch_up(connection)
            chain = self._graph.closure_of(a, b, by_place=True).chain(a, b)
            votes = {event: self._graph.voters(event) for event in chain}
            return views.steps(connection, votes)

    def is_asked(self, person: Person, a: int, b: int) -> bool:
        """Return whether a person has a question about two images before them.

        Args:
            person: The person.
            a: One image.
            b: The other image.
        """
        pair = {as_number_of("image", a), as_number_of("image", b)}
        with self._reading() as connection:
            held = self._assignment.held(connection, person, self._clock())
        return any({row.left_id, row.right_id} == pair for _, rows in held for row in rows)

    def image_at(self, path: str) -> ImageEntry:
        """Return the image of a path in the ledger.

        Args:
            path: Path relative to the folder of the set, with forward slashes.
        """
        if not isinstance(path, str):
            raise LedgerError(f"got path {shortened(path)}, expected text")
        with self._reading() as connection:
            return views.image_at(connection, path)

    def erase(self, image_id: int, person: Person, reason: str) -> int:
        """Show an image no more, and return the event that says so.

        Open questions about it are withdrawn; others are shown without it. Its number, its path,
        and the answers about it stay.

        Args:
            image_id: The image.
            person: An admin.
            reason: Why.
        """
        if not isinstance(reason, str):
            raise LedgerError(f"got reason {shortened(reason)}, expected text")
        with self._writing() as connection:
            now = self._clock()
            who = people.admit(connection, person, now)
            if who.role != "admin":
                raise LedgerError(f"{printable(who.name)} may not erase images; ask an admin")
            entry = views.images(connection, [as_number_of("image", image_id)])[0]
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
                "comment": reason,
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
            try:
                with self._ledger.store.writing() as connection:
                    yield connection
            except BaseException:
                # It may have counted events that were not written.
                self._assignment.tally = Tally()
                raise

    def _connect(self) -> None:
        """Open the ledger again, if the connection to its server was lost."""
        if self._closed:
            raise LedgerError(f"the service of {self.name} is closed")
        if self._url is not None and self._ledger.store.is_lost:
            self._ledger.close()
            self._ledger = Ledger.open(self._url, role="server")


def _checks_of(gold_share: float, checks: Checks | None) -> Checks:
    """The shares that a service was given."""
    if checks is not None:
        return as_instance("checks", checks, Checks).checked()
    share = float(as_number("gold_share", gold_share, 0, 1))
    return Checks(known=share, known_unsure=share, again=0.0, again_unsure=0.0)
