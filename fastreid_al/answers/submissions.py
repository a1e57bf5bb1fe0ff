"""Checks what people send, and writes their decisions into the ledger."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ..errors import LedgerError, printable
from . import gold, views
from .assignment import Assignment, all_images, as_number_of, images_of, shortened, task_of
from .database import EVENTS, QUESTIONS
from .leases import Lease, unskip
from .ledger import MEMBER, insert_event
from .question import Verdict
from .tally import DECISIONS
from .tasks import TAGS, THUMBNAILS, Person, Submission

_LONGEST_TOKEN = 200
_LONGEST_COMMENT = 10_000
#: Seconds that a decision may take, or be idle.
_MOST_SECONDS = 1e6
_SOURCES = ("web", "terminal", "import")


class Written(NamedTuple):
    """A decision in the ledger.

    Args:
        events: Its events.
        is_late: Whether it came too late to settle anything.
        is_gold: Whether the answer is known, so that it changes nothing.
    """

    events: list[int]
    is_late: bool
    is_gold: bool


def check_submission(sent: Submission) -> None:
    """Refuse a submission whose fields no client of this package would send.

    Raises:
        LedgerError: A field has a wrong type or value.
    """
    as_number_of("task", sent.task_id)
    # A database that holds UTF-8 must be able to hold it.
    if not isinstance(sent.token, str) or not (sent.token.isascii() and sent.token.isprintable()):
        raise LedgerError(f"got token {shortened(sent.token)}, expected printable ASCII text")
    if not 0 < len(sent.token) <= _LONGEST_TOKEN:
        raise LedgerError(
            f"got a token of {len(sent.token)} characters, expected 1 to {_LONGEST_TOKEN}"
        )
    if sent.comment is not None and not isinstance(sent.comment, str):
        raise LedgerError(f"got comment {shortened(sent.comment)}, expected text")
    if sent.comment is not None and len(sent.comment) > _LONGEST_COMMENT:
        raise LedgerError(
            f"got a comment of {len(sent.comment):,} characters, expected at most "
            f"{_LONGEST_COMMENT:,}"
        )
    for name in ("active_seconds", "idle_seconds"):
        value = getattr(sent, name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or not 0 <= value <= _MOST_SECONDS:
            raise LedgerError(f"got {name} {shortened(value)}, expected 0 to {_MOST_SECONDS:.0e}")
    if sent.source not in _SOURCES:
        raise LedgerError(f"got source {shortened(sent.source)}, expected {', '.join(_SOURCES)}")
    if not isinstance(sent.verdicts, Mapping):
        raise LedgerError(f"got verdicts {shortened(sent.verdicts)}, expected them by question")
    for name in ("tags", "odd", "other_side", "shown"):
        value = getattr(sent, name)
        if not isinstance(value, list | tuple | set | frozenset | None):
            raise LedgerError(f"got {name} {shortened(value)}, expected a list")
    for tag in sent.tags:
        if tag not in TAGS:
            raise LedgerError(f"got tag {shortened(tag)}, expected {', '.join(TAGS)}")
    for image in (*sent.odd, *sent.other_side, *(sent.shown or ())):
        as_number_of("image", image)


def repeated(
    connection: Connection, assignment: Assignment, who: Person, sent: Submission
) -> list[int]:
    """Return the events of the decision that was sent with the same token before.

    Raises:
        LedgerError: The token was used for another decision.
    """
    c = EVENTS.c
    first = connection.execute(
        sa.select(c.person, c.gesture, c.question).where(c.token == sent.token)
    ).first()
    if first is None:
        return []
    rows = assignment.questions(connection, [first.question])
    if first.person != who.id or not rows or task_of(rows[0]) != sent.task_id:
        raise LedgerError("the token of this answer was used for another one; make a new token")
    wanted = (c.person == who.id) & (c.gesture == first.gesture) & c.kind.in_(DECISIONS)
    return list(connection.execute(sa.select(c.id).where(wanted).order_by(c.id)).scalars())


def record(
    connection: Connection, assignment: Assignment, who: Person, sent: Submission, now: float
) -> Written:
    """Write a decision, and settle what it settles.

    Raises:
        LedgerError: The task does not exist or was not given to the person, or the submission does
            not fit it.
    """
    rows = assignment.rows(connection, sent.task_id)
    lease = assignment.leases.find(connection, sent.task_id, who.id)
    if lease is None:
        raise LedgerError(not_given(sent.task_id, who))
    left = [row.id for row in assignment.left(connection, who, lease, rows)]
    verdicts = _verdicts(sent, rows, left)
    votes = assignment.votes(connection, list(verdicts))
    for number in verdicts:
        if number not in left and any(vote.person == who.id for vote in votes[number]):
            raise LedgerError(
                f"question {number} was answered by {printable(who.name)} before; take that back "
                "first"
            )
    judged = [row for row in rows if row.id in verdicts]
    kinds = {row.id: _kind(connection, assignment, who, row, lease) for row in judged}
    sent = _bounded(connection, who, sent, lease, now)
    events = _write(connection, who, sent, now, judged, verdicts, kinds)
    assignment.leases.end(connection, sent.task_id, who.id)
    unskip(connection, sent.task_id, who.id)
    waiting = [
        row for row in judged if row.status in ("open", "review") and kinds[row.id] == "answer"
    ]
    assignment.update(connection, waiting, now)
    is_gold = "gold" in kinds.values()
    return Written(events, not waiting and not is_gold, is_gold)


def _bounded(
    connection: Connection, who: Person, sent: Submission, lease: Lease, now: float
) -> Submission:
    """Limit the seconds of a decision by the clock of the server.

    A decision cannot take longer than the person had the task, without the time that other
    decisions of the person took meanwhile. So the active seconds of a person are never more than
    the time that passed. Tasks are given out ahead, and answers may wait in a browser until the
    server is back: the order in which they come says nothing.
    """
    c = EVENTS.c
    had = max(0.0, now - lease.since)
    began = sa.case((c.asked_at > lease.since, c.asked_at), else_=lease.since)
    meanwhile = (c.answered_at > lease.since) & (c.answered_at >= c.asked_at)
    own = (c.person == who.id) & c.kind.in_(DECISIONS)
    spent = sa.select(sa.func.sum(c.answered_at - began)).where(own & meanwhile)
    active = had - float(connection.execute(spent).scalar() or 0.0)
    active = min(sent.active_seconds, max(0.0, active))
    return replace(
        sent, active_seconds=active, idle_seconds=min(sent.idle_seconds, max(0.0, had - active))
    )


def _kind(
    connection: Connection, assignment: Assignment, who: Person, row: Any, lease: Lease
) -> str:
    """ "gold" for an answer to a question whose answer is known, else "answer"."""
    if row.gold is not None:
        return "gold"
    if row.status != "answered" or not assignment.was_settled(connection, row, lease):
        return "answer"
    c = EVENTS.c
    before = connection.execute(
        sa.select(c.kind)
        .where((c.question == row.id) & (c.person == who.id) & c.kind.in_(DECISIONS))
        .order_by(c.id.desc())
        .limit(1)
    ).scalar()
    # A person who took an answer back answers the question again.
    return "answer" if before == "answer" else "gold"


def _write(
    connection: Connection,
    who: Person,
    sent: Submission,
    now: float,
    rows: Sequence[Any],
    verdicts: Mapping[int, str],
    kinds: Mapping[int, str],
) -> list[int]:
    """Write the events of a decision: of each question its verdict, then its thumbnails."""
    erased = views.erased(connection, all_images(rows))
    members = _judged_members(sent, rows, erased)
    # The seconds of a sheet are divided among its questions; its thumbnails take none.
    each = sent.active_seconds / len(rows)
    gesture = uuid.uuid4().hex
    # A question whose answer is known may be of another run, or of none.
    run = views.current_run(connection) if "gold" in kinds.values() else ""
    first = {
        "token": sent.token,
        "idle": float(sent.idle_seconds),
        "comment": sent.comment or None,
        "tags": ",".join(dict.fromkeys(sent.tags)) or None,
    }
    events = []
    for row in rows:
        common = {
            "kind": kinds[row.id],
            "annotator": who.name,
            "answered_at": now,
            "epoch": row.epoch,
            "run": run if kinds[row.id] == "gold" else row.run,
            "question": row.id,
            "person": who.id,
            "gesture": gesture,
            "source": sent.source,
        }
        values = {
            "left_id": row.left_id,
            "right_id": row.right_id,
            "verdict": verdicts[row.id],
            "asked_at": now - each,
            "reason": row.reason,
            "score": row.score,
            "similarity": row.similarity,
            "need": row.need,
            "confirms": row.confirms,
            "shown": json.dumps(views.paths(connection, _shown(sent, row, erased))),
            **first,
        }
        first = {}
        events.append(insert_event(connection, common | values))
        for large, image, verdict in members[row.id]:
            member = {
                "left_id": large,
                "right_id": image,
                "verdict": verdict,
                "asked_at": now,
                "reason": MEMBER,
            }
            events.append(insert_event(connection, common | member))
    return events


def _verdicts(sent: Submission, rows: Sequence[Any], left: Sequence[int]) -> dict[int, str]:
    """The verdict of each question of a submission."""
    known = {row.id for row in rows}
    verdicts: dict[int, str] = {}
    for number, verdict in sent.verdicts.items():
        if type(number) is not int or number not in known:
            raise LedgerError(f"task {sent.task_id} has no question {shortened(number)}")
        try:
            verdicts[number] = Verdict(verdict).value
        except ValueError:
            raise LedgerError(
                f"got verdict {shortened(verdict)}, expected one of "
                f"{', '.join(v.value for v in Verdict)}"
            ) from None
    wanted = set(left) | set(verdicts)
    if len(verdicts) < len(wanted) or not verdicts:
        raise LedgerError(
            f"got verdicts for {len(verdicts)} of the {len(wanted)} questions of task "
            f"{sent.task_id}, expected one for each"
        )
    return verdicts


def _shown(sent: Submission, row: Any, erased: Collection[int]) -> tuple[list[int], list[int]]:
    """The images that were shown on each side: the large one, then the thumbnails."""
    sides = []
    for large, text in ((row.left_id, row.left_images), (row.right_id, row.right_images)):
        others = [i for i in dict.fromkeys(images_of(text)) if i != large and i not in erased]
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
    """The thumbnails that were judged, by question: large image, thumbnail, verdict.

    Those of the first image belong to the first question of a sheet. One that shows what the other
    side shows is judged twice: it differs from its own large image, and is the same as the other.
    """
    odd, moved = set(sent.odd), set(sent.other_side)
    if moved:
        _check_other_side(sent, rows)
    known: set[int] = set()
    found: dict[int, list[tuple[int, int, str]]] = {}
    for index, row in enumerate(rows):
        left, right = _shown(sent, row, erased)
        sides = [(row.right_id, row.left_id, row.right_images, right)]
        if index == 0:
            sides.insert(0, (row.left_id, row.right_id, row.left_images, left))
        found[row.id] = []
        for large, opposite, text, shown in sides:
            others = [i for i in dict.fromkeys(images_of(text)) if i != large]
            known.update(others)
            for image in others:
                if image in erased:
                    continue
                if image in moved and image != opposite:
                    found[row.id].append((large, image, Verdict.DIFFERENT.value))
                    found[row.id].append((opposite, image, Verdict.SAME.value))
                elif image in odd:
                    found[row.id].append((large, image, Verdict.DIFFERENT.value))
                elif sent.all_confirmed and image in shown:
                    found[row.id].append((large, image, Verdict.SAME.value))
    if not odd | moved <= known:
        raise LedgerError(
            f"image {min((odd | moved) - known)} is not a thumbnail of task {sent.task_id}, so "
            "that it cannot be marked as odd"
        )
    return found


def _check_other_side(sent: Submission, rows: Sequence[Any]) -> None:
    """Refuse images of the other side where there are not two sides that differ."""
    if rows[0].sheet is not None:
        raise LedgerError(
            f"task {sent.task_id} is a sheet, whose images have no other side; mark them as odd"
        )
    if any(Verdict(verdict) is Verdict.SAME for verdict in sent.verdicts.values()):
        raise LedgerError(
            "an image was marked as that of the other side, and both sides as the same; answer "
            "different, or take the mark back"
        )


def decision_of(connection: Connection, name: str, who: Person, event: int | None) -> list[Any]:
    """Return the events in force of a decision that a person wants to take back.

    Args:
        connection: A transaction.
        name: Name of the ledger, for messages.
        who: The person.
        event: An event of the decision; the person's last one in this run when not given.

    Raises:
        LedgerError: The event is no decision in force, or is somebody else's.
    """
    c = EVENTS.c
    columns = c.id, c.person, c.gesture, c.question, c.run, c.kind
    decisions = c.kind.in_(DECISIONS) & gold.in_force() & c.question.is_not(None)
    if event is None:
        run = views.current_run(connection)
        began = sa.select(sa.func.min(QUESTIONS.c.known_event)).where(QUESTIONS.c.run == run)
        # Since this run began, the person may have answered a question that another one left.
        here = (c.run == run) | (c.id > began.scalar_subquery())
        own = (c.person == who.id) & here
        wanted = sa.select(*columns).where(own & decisions).order_by(c.id.desc()).limit(1)
    else:
        wanted = sa.select(*columns).where((c.id == as_number_of("event", event)) & decisions)
    found = connection.execute(wanted).first()
    if found is None:
        if event is None:
            return []
        raise LedgerError(f"{name} has no answer {event} that could be taken back")
    if found.person != who.id and who.role != "admin":
        raise LedgerError(f"event {event} is not an answer of {printable(who.name)}; ask an admin")
    same = (c.gesture == found.gesture) & (c.person == found.person)
    if found.gesture is None:
        same = c.id == found.id
    return list(connection.execute(sa.select(*columns).where(same & decisions).order_by(c.id)))


def take_back(connection: Connection, who: Person, events: Sequence[Any], now: float) -> None:
    """Write the undo of each event of a decision."""
    for row in events:
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


def reopened(rows: Sequence[Any], events: Sequence[Any]) -> list[Any]:
    """Return the questions that may be open again because a decision was taken back.

    Args:
        rows: The questions.
        events: The decision. A vote that came after a question was settled, or an answer that was
            known before, did not settle it.
    """
    first: dict[int, int] = {}
    for event in events:
        if event.kind == "answer":
            first.setdefault(event.question, event.id)
    return [
        row
        for row in rows
        if row.id in first
        and row.status != "withdrawn"
        and (row.settled_event is None or row.settled_event >= first[row.id])
    ]


def not_given(task_id: int, who: Person) -> str:
    """Return what to say of a task that a person does not have."""
    return (
        f"task {task_id} is not with {printable(who.name)}: it was answered, skipped or given "
        "back, or was never given; ask for the next task"
    )
