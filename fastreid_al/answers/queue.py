"""The questions of a run that people answer when they like: published, answered and withdrawn."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from .database import EVENTS, IMAGES, LEASES, MARKS, META, QUESTIONS, stored_name
from .gold import in_force
from .ledger import Ledger
from .question import Answer, Question
from .tally import DECISIONS

#: Key of the table `meta` under which the trainer tells people how far the round is.
PROGRESS = "progress"
_OPEN = "open"
#: A question whose answer is known measures people, and was not published by a trainer.
_IS_OURS = QUESTIONS.c.gold.is_(None)


class Entry(NamedTuple):
    """A question that is published.

    Args:
        question: The question; its images are the two that are shown.
        need: Answers that must agree before a "same" counts.
        confirms: Event of the first answer of the merge that it confirms.
        votes: People who must agree.
    """

    question: Question
    need: int = 1
    confirms: int | None = None
    votes: int = 1


class Begun(NamedTuple):
    """How a round began.

    Args:
        window: Questions that are open at a time.
        first_event: Last event before the round.
        last_event: Last event that its labels were made from, if it had ended before it was begun
            again.
        unanswered: Number of the question that it waited for in vain when it ended.
        is_changed: Whether it had ended, and an answer that it used was taken back since.
    """

    window: int
    first_event: int
    last_event: int | None = None
    unanswered: int | None = None
    is_changed: bool = False


class QuestionQueue:
    """The questions of a run in its ledger, as the trainer sees them.

    People answer through `answers.service.AnswerService`, in any order. A round that is begun again
    finds the questions that it published before, with their answers.

    Args:
        ledger: The ledger, opened for writing as its trainer.
        run: Name of the run.

    All questions of a round are kept by pair, about 150 bytes each. A row of the database takes 8
    bytes for each image of the two groups, and about 200 more.
    """

    def __init__(self, ledger: Ledger, run: str) -> None:
        self._ledger = ledger
        self._store = ledger.store
        self._run = run
        self._epoch = 0
        #: Questions of the round by pair of rows, and those that were not asked for again yet.
        self._numbers: dict[tuple[int, int], int] = {}
        self._unclaimed: dict[tuple[int, int], int] = {}
        #: Questions of earlier rounds that were open when the round began, and were not asked for
        #: again: number, need, and the merge that they confirm.
        self._earlier: dict[tuple[int, int], tuple[int, int, int | None]] = {}
        #: Newest undo that was seen.
        self._last_undo = 0
        #: Whether the round had ended, and asks the same questions again.
        self._repeats = False
        #: Seconds of people, and the event up to which they were added up.
        self._seconds = 0.0
        self._added_up = 0

    def begin(self, epoch: int, window: int, position: int = 0, *, repeats: bool = True) -> Begun:
        """Begin a round, or begin it again.

        Args:
            epoch: Epoch of the run.
            window: Questions that are open at a time. A round that is begun again keeps its own.
            position: Last event that the labels of the round before were made from. A round that
                began before this event is another one, and is not begun again.
            repeats: Whether a round that had ended asks the same questions again, also those that
                were withdrawn at its end.
        """
        self._epoch = epoch
        mark = self._mark()
        columns = MARKS.c.window, MARKS.c.first_event, MARKS.c.event
        with self._store.writing() as connection:
            before = connection.execute(sa.select(*columns).where(mark)).first()
            is_another = before is not None and before.first_event < position
            if before is None or is_another:
                last = connection.execute(sa.select(sa.func.max(EVENTS.c.id))).scalar() or 0
                begun = Begun(window, last)
                connection.execute(MARKS.delete().where(mark))
                self._set_unanswered(connection, None)
                values = {"run": self._run, "epoch": epoch, "began_at": time.time()}
                values |= {"window": window, "first_event": last}
                connection.execute(MARKS.insert(), values)
            else:
                begun = self._begin_again(connection, Begun(*before), repeats)
            self._repeats = repeats and begun.last_event is not None
            rows = self._published(connection, begun.first_event)
            self._last_undo = _last_undo(connection)
        row_of = self._ledger.row_of
        self._numbers, self._earlier, self._unclaimed = {}, {}, {}
        for row in rows:
            pair = _pair(row_of(row.left_id), row_of(row.right_id))
            if row.epoch != epoch:
                self._earlier[pair] = row.id, row.need, row.confirms
                continue
            self._numbers[pair] = row.id
            # Questions from before the round began anew have answers that it began with.
            if row.known_event >= begun.first_event and not is_another:
                self._unclaimed[pair] = row.id
        return begun

    def _mark(self) -> sa.ColumnElement[bool]:
        """The condition for the mark of the round."""
        return (MARKS.c.run == self._run) & (MARKS.c.epoch == self._epoch)

    def _begin_again(self, connection: Connection, begun: Begun, repeats: bool) -> Begun:
        """Begin a round that began before."""
        if begun.last_event is None:
            return begun
        if repeats and _undone_since(connection, begun.last_event):
            connection.execute(MARKS.update().where(self._mark()), {"event": None})
            self._set_unanswered(connection, None)
            return begun._replace(last_event=None, is_changed=True)
        found = sa.select(META.c.value).where(META.c.key == self._unanswered_key())
        number = connection.execute(found).scalar()
        return begun._replace(unanswered=None if number is None else int(number))

    def _unanswered_key(self) -> str:
        """Key of the table `meta` for the question that the round waited for in vain."""
        return f"unanswered/{self._epoch}/{stored_name(self._run)}"

    def _set_unanswered(self, connection: Connection, number: int | None) -> None:
        key = self._unanswered_key()
        connection.execute(META.delete().where(META.c.key == key))
        if number is not None:
            connection.execute(META.insert(), {"key": key, "value": str(number)})

    def _published(self, connection: Connection, first_event: int) -> list[Any]:
        """The questions that the round may find again, those that are withdrawn first."""
        c = QUESTIONS.c
        is_withdrawn = c.status == "withdrawn"
        own = (c.epoch == self._epoch) & ~is_withdrawn
        # A question of an earlier round stays open while a person has it before them.
        late = (c.epoch < self._epoch) & ((c.status == _OPEN) | (c.settled_event > first_event))
        wanted = own | late
        if self._repeats:
            wanted |= is_withdrawn & (c.epoch <= self._epoch)
        asked = c.id, c.left_id, c.right_id, c.epoch, c.need, c.confirms, c.known_event
        query = sa.select(*asked).where((c.run == self._run) & _IS_OURS & wanted)
        ordered = query.order_by(sa.case((is_withdrawn, 0), else_=1), c.id)
        return list(connection.execute(ordered))

    def end(self, event: int, unanswered: int | None = None) -> None:
        """End the round.

        Args:
            event: Last event that its labels were made from.
            unanswered: Number of the question that it waited for in vain.
        """
        with self._store.writing() as connection:
            values = {"event": event, "ended_at": time.time()}
            connection.execute(MARKS.update().where(self._mark()), values)
            self._set_unanswered(connection, unanswered)

    def begin_anew(self) -> None:
        """Let the round begin with all answers that there are, when it is begun again.

        Its questions that nobody has before them are withdrawn.
        """
        self.withdraw(only_waiting=True)
        with self._store.writing() as connection:
            last = connection.execute(sa.select(sa.func.max(EVENTS.c.id))).scalar() or 0
            values = {"first_event": last, "event": None, "ended_at": None}
            connection.execute(MARKS.update().where(self._mark()), values)
            self._set_unanswered(connection, None)

    def knows(self, i: int, j: int) -> bool:
        """Return whether the round has a question about two images: one that it published, or one
        of an earlier round that a person had before them when it began.
        """
        return _pair(i, j) in self._numbers or _pair(i, j) in self._earlier

    def numbers(self) -> set[int]:
        """Return the questions that the round published."""
        return set(self._numbers.values())

    def is_ahead(self) -> bool:
        """Return whether there are answers to questions that the round published before it was
        begun again, and did not ask for since.
        """
        if not self._unclaimed:
            return False
        chosen = QUESTIONS.c.id.in_(self._unclaimed.values())
        wanted = sa.select(QUESTIONS.c.id).where(chosen & (QUESTIONS.c.status == "answered"))
        with self._store.reading() as connection:
            return connection.execute(wanted.limit(1)).first() is not None

    def count_earlier(self) -> int:
        """Return how many questions of earlier rounds people had before them when the round began.

        Those that this round asks for are not counted.
        """
        return len(self._earlier)

    def open_numbers(self) -> set[int]:
        """Return the questions of the run that wait for an answer."""
        wanted = (QUESTIONS.c.run == self._run) & (QUESTIONS.c.status == _OPEN) & _IS_OURS
        with self._store.reading() as connection:
            return set(connection.execute(sa.select(QUESTIONS.c.id).where(wanted)).scalars())

    def forget(self) -> None:
        """Treat no question as left over."""
        self._unclaimed.clear()

    def publish(self, entries: Sequence[Entry]) -> list[int]:
        """Publish questions that are shown together, and return their numbers.

        A question that this round published before is not published again, nor is one of an earlier
        round that a person has before them, on a sheet or alone. One about an image that was erased
        is withdrawn at once.

        Args:
            entries: One question, or the questions of a sheet: they have one first image.
        """
        pairs = [_pair(*entry.question.images) for entry in entries]
        for entry, pair in zip(entries, pairs, strict=True):
            if pair in self._earlier and pair not in self._numbers:
                number, *asked = self._earlier.pop(pair)
                self._numbers[pair] = number
                if asked != [entry.need, entry.confirms] and not self._repeats:
                    self._ask_otherwise(number, entry)
        fresh = [
            entry for entry, pair in zip(entries, pairs, strict=True) if pair not in self._numbers
        ]
        if fresh:
            self._insert(fresh, len(entries) > 1)
        for pair in pairs:
            self._unclaimed.pop(pair, None)
        return [self._numbers[pair] for pair in pairs]

    def _ask_otherwise(self, number: int, entry: Entry) -> None:
        """Let a question of an earlier round, which a person has before them, count as it is asked
        now. One that a person answered already stays as it was asked.
        """
        answered = sa.exists().where((EVENTS.c.question == number) & (EVENTS.c.kind == "answer"))
        chosen = (QUESTIONS.c.id == number) & (QUESTIONS.c.status == _OPEN) & ~answered
        values = {
            "need": entry.need,
            "confirms": entry.confirms,
            "reason": _reason(entry),
        }
        with self._store.writing() as connection:
            connection.execute(QUESTIONS.update().where(chosen), values)

    def _insert(self, entries: Sequence[Entry], is_sheet: bool) -> None:
        rows = {row for e in entries for group in e.question.groups for row in group.tolist()}
        rows |= {row for entry in entries for row in entry.question.images}
        with (
            self._store.writing() as connection,
            self._ledger.numbering(connection, *sorted(rows)) as ids,
        ):
            known = connection.execute(sa.select(sa.func.max(EVENTS.c.id))).scalar() or 0
            gone = sa.select(IMAGES.c.id).where(IMAGES.c.erased_at.is_not(None))
            erased = set(connection.execute(gone).scalars())
            sheet = None
            for entry in entries:
                question = entry.question
                left, right = (
                    json.dumps([ids[row] for row in group.tolist()]) for group in question.groups
                )
                shown = {ids[row] for row in question.images}
                values = {
                    "run": self._run,
                    "epoch": self._epoch,
                    "sheet": sheet,
                    "left_id": ids[question.images[0]],
                    "right_id": ids[question.images[1]],
                    "left_images": left,
                    "right_images": right,
                    "reason": _reason(entry),
                    "score": question.score,
                    "similarity": question.similarity,
                    "probability": question.probability,
                    "need": entry.need,
                    "confirms": entry.confirms,
                    "votes": entry.votes,
                    "known_event": known,
                    # Nobody can be asked about an image that was erased.
                    "status": "withdrawn" if shown & erased else "open",
                    "made_at": time.time(),
                }
                key = connection.execute(QUESTIONS.insert(), values).inserted_primary_key
                assert key is not None
                if is_sheet and sheet is None:
                    sheet = key[0]
                    connection.execute(
                        QUESTIONS.update().where(QUESTIONS.c.id == sheet), {"sheet": sheet}
                    )
                self._numbers[_pair(*question.images)] = key[0]

    def answers(self, numbers: Sequence[int]) -> list[list[Answer]] | None:
        """Return the answers to each of some questions; None while one of them is open.

        A question that was withdrawn, or that waits for a reviewer, has no answers.
        """
        wanted = sa.select(QUESTIONS.c.id, QUESTIONS.c.status, QUESTIONS.c.settled_event)
        with self._store.reading() as connection:
            found = connection.execute(wanted.where(QUESTIONS.c.id.in_(numbers))).all()
        if any(row.status == _OPEN for row in found):
            return None
        settled = {row.id: row.settled_event for row in found if row.status == "answered"}
        return [
            self._ledger.answers_to(number, settled[number]) if number in settled else []
            for number in numbers
        ]

    def answers_by(self, numbers: Sequence[int], event: int) -> list[list[Answer]]:
        """Return the answers to each of some questions that were settled by an event."""
        wanted = sa.select(QUESTIONS.c.id, QUESTIONS.c.settled_event)
        by_then = QUESTIONS.c.id.in_(numbers) & (QUESTIONS.c.settled_event <= event)
        with self._store.reading() as connection:
            rows = connection.execute(wanted.where(by_then)).all()
        settled = {row.id: row.settled_event for row in rows}
        return [
            self._ledger.answers_to(number, settled[number]) if number in settled else []
            for number in numbers
        ]

    def seconds(self, until: int) -> float:
        """Return the active seconds that people spent on the run.

        Every answer counts: also one that came late, that was taken back, or whose question has a
        known answer.

        Args:
            until: Last event that counts.
        """
        if until < self._added_up:
            self._seconds, self._added_up = 0.0, 0
        took = EVENTS.c.answered_at - EVENTS.c.asked_at
        total = sa.func.sum(sa.case((took > 0, took), else_=0.0))
        new = (EVENTS.c.id > self._added_up) & (EVENTS.c.id <= until)
        wanted = new & (EVENTS.c.run == self._run) & EVENTS.c.kind.in_(DECISIONS)
        with self._store.reading() as connection:
            self._seconds += float(connection.execute(sa.select(total).where(wanted)).scalar() or 0)
        self._added_up = until
        return self._seconds

    def undone(self) -> bool:
        """Return whether an answer was taken back since the last call, or since the round began."""
        with self._store.reading() as connection:
            last = _last_undo(connection)
        is_new = last > self._last_undo
        self._last_undo = max(last, self._last_undo)
        return is_new

    def withdraw(
        self, keep: Collection[int] = (), *, only_waiting: bool = False, later: bool = True
    ) -> None:
        """Withdraw the open questions of the run.

        Args:
            keep: Numbers of questions that stay open.
            only_waiting: Whether a question stays open that a person has before them, or that was
                answered and waits for a further person.
            later: Whether those of later rounds are withdrawn too. There are some where the round
                is repeated from an older checkpoint.
        """
        now = time.time()
        wanted = (QUESTIONS.c.run == self._run) & (QUESTIONS.c.status == _OPEN) & _IS_OURS
        if not later:
            wanted &= QUESTIONS.c.epoch <= self._epoch
        if only_waiting:
            held = sa.select(LEASES.c.question).where(
                (LEASES.c.since <= now) & (LEASES.c.until > now)
            )
            # A sheet is held by its first question.
            wanted &= QUESTIONS.c.id.not_in(held)
            wanted &= sa.func.coalesce(QUESTIONS.c.sheet, 0).not_in(held)
            answered = (EVENTS.c.question == QUESTIONS.c.id) & (EVENTS.c.kind == "answer")
            wanted &= ~sa.exists().where(answered & in_force()).correlate(QUESTIONS)
        with self._store.writing() as connection:
            found = connection.execute(sa.select(QUESTIONS.c.id).where(wanted)).scalars().all()
            withdrawn = [number for number in found if number not in keep]
            if withdrawn:
                connection.execute(
                    QUESTIONS.update().where(QUESTIONS.c.id.in_(withdrawn)), {"status": "withdrawn"}
                )
        gone = set(withdrawn)
        for numbers in (self._numbers, self._unclaimed):
            for pair in [pair for pair, number in numbers.items() if number in gone]:
                del numbers[pair]
        for pair in [pair for pair, asked in self._earlier.items() if asked[0] in gone]:
            del self._earlier[pair]

    def tell(self, progress: Mapping[str, Any]) -> None:
        """Tell people how far the round is: numbers and texts by name."""
        text = json.dumps({"run": self._run, "epoch": self._epoch, **progress})
        with self._store.writing() as connection:
            changed = connection.execute(
                META.update().where(META.c.key == PROGRESS), {"value": text}
            )
            if not changed.rowcount:
                connection.execute(META.insert(), {"key": PROGRESS, "value": text})


class Mark(NamedTuple):
    """A round of questions that people answered when they liked.

    Args:
        run: Name of the run.
        epoch: Its epoch, from 1.
        window: Questions that were open at a time.
        first_event: Last event before the round.
        event: Last event that the labels of the epoch were made from; None in a round that has not
            ended.
    """

    run: str
    epoch: int
    window: int
    first_event: int
    event: int | None


def marks_of(ledger: Ledger) -> list[Mark]:
    """Return the rounds of a ledger, by run and epoch.

    In a round that did not wait (`wait` none), the labels of an epoch are the clusters of that
    epoch after `active.partition.apply_answers` with the answers up to its event.
    """
    if ledger.store.format == 1:
        return []
    columns = [MARKS.c[name] for name in Mark._fields]
    with ledger.store.reading() as connection:
        rows = connection.execute(sa.select(*columns).order_by(MARKS.c.run, MARKS.c.epoch)).all()
    return [Mark(*row) for row in rows]


def _undone_since(connection: Connection, event: int) -> bool:
    """Whether an event up to a given one was taken back after that one."""
    late = (EVENTS.c.kind == "undo") & (EVENTS.c.id > event) & (EVENTS.c.undoes <= event)
    return connection.execute(sa.select(EVENTS.c.id).where(late).limit(1)).first() is not None


def _reason(entry: Entry) -> str:
    return entry.question.reason if entry.confirms is None else "confirm"


def _last_undo(connection: Connection) -> int:
    wanted = sa.select(sa.func.max(EVENTS.c.id)).where(EVENTS.c.kind == "undo")
    return connection.execute(wanted).scalar() or 0


def _pair(i: int, j: int) -> tuple[int, int]:
    return (i, j) if i < j else (j, i)
