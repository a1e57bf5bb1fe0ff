"""The ledger: every answer that was given, appended to a database and never changed."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ..errors import LedgerError
from . import history
from .database import (
    ADDS_IMAGES,
    ASK_CHECK,
    EVENTS,
    IMAGES,
    META,
    QUESTIONS,
    Role,
    Store,
    read_meta,
)
from .question import Answer, Verdict

_PAGE = 1000

_is_answer = EVENTS.c.kind == "answer"
_is_undo = EVENTS.c.kind == "undo"
_undone = sa.select(EVENTS.c.undoes).where(_is_undo)
_in_force = _is_answer & EVENTS.c.id.not_in(_undone)
#: Past every number that a run writes.
_LARGEST = 1e300
#: Larger than every number of an event.
_NO_EVENT = 2**63
_NUMBERS = (
    *("left_id", "right_id", "asked_at", "answered_at", "epoch", "score", "similarity", "need"),
    *("confirms", "undoes", "question", "person", "idle"),
)
_TEXTS = (
    *("kind", "verdict", "annotator", "reason", "shown", "run"),
    *("gesture", "token", "comment", "tags", "source"),
)
#: Reason of an answer about another image of a group than the question was about.
MEMBER = "member"
#: Kinds of events.
_KINDS = ("answer", "undo", "gold", "erase")
_VERDICTS = {verdict.value: verdict for verdict in Verdict}
#: Columns of an event that are fields of `Event` by the same name.
_EVENT_COLUMNS = [
    column for column in EVENTS.c if column.name not in ("left_id", "right_id", "token")
]
#: Columns that a ledger of format 1 lacks.
_LATER = ("question", "person", "gesture", "token", "idle", "comment", "tags", "source")


class Origin(NamedTuple):
    """How an answer came into the ledger.

    Args:
        source: "web", "terminal" or "import"; None where the trainer itself asked.
        question: Number of the question in the queue.
        person: Number of the person.
        gesture: Name of the decision that the answer is part of.
        token: Name that whoever answers gave the answer: it is written once.
        idle: Seconds in which nobody was at the page.
        comment: A remark of the person.
        tags: What is wrong with the images, separated by commas.
    """

    source: str | None = None
    question: int | None = None
    person: int | None = None
    gesture: str | None = None
    token: str | None = None
    idle: float | None = None
    comment: str | None = None
    tags: str | None = None


class ImageKeys(NamedTuple):
    """Identifies the training images of a run by path and content instead of by order.

    Args:
        dataset: Name of the image set.
        names: Path of each image relative to the set's folder, with forward slashes.
        digests: Digest of each image's content in hexadecimal; empty when unknown.
    """

    dataset: str
    names: Sequence[str]
    digests: Sequence[str]


@dataclass(frozen=True)
class Event:
    """A line of the ledger as it was written; an undo has neither images nor verdict.

    The last seven fields are None in a ledger that an earlier version wrote.

    Args:
        id: Its number; a later event has a higher number.
        kind: "answer", "undo", "gold" (an answer to a question whose answer is known) or "erase".
        left: Path of one image when it was first asked about.
        right: Path of the other image.
        left_digest: Digest of the content of `left`, empty when unknown.
        right_digest: Digest of the content of `right`.
        verdict: The verdict.
        annotator: Name of the annotator.
        asked_at: When the question was shown, in unix seconds.
        answered_at: When it was answered.
        epoch: Epoch of the run that asked.
        reason: Kind of the question: "split", "merge", "confirm".
        score: Its expected gain.
        similarity: The cosine similarity that led to it.
        need: Answers that must agree before a "same" counts.
        confirms: Event of the first answer of the merge that it confirms.
        undoes: Event that it undoes.
        undone_by: Event that undid it.
        run: Name of the run that asked.
        shown: Paths of the images shown on each side.
        question: Number of the question in the queue.
        person: Number of the person.
        gesture: Name of the decision that it is part of.
        idle: Seconds in which nobody was at the page.
        comment: A remark of the person.
        tags: What is wrong with the images, separated by commas.
        source: "web", "terminal" or "import"; None where the trainer itself asked.
    """

    id: int
    kind: str
    left: str | None
    right: str | None
    left_digest: str | None
    right_digest: str | None
    verdict: str | None
    annotator: str
    asked_at: float
    answered_at: float
    epoch: int | None
    reason: str | None
    score: float | None
    similarity: float | None
    need: int
    confirms: int | None
    undoes: int | None
    undone_by: int | None
    run: str | None
    shown: tuple[list[str], list[str]]
    question: int | None = None
    person: int | None = None
    gesture: str | None = None
    idle: float | None = None
    comment: str | None = None
    tags: str | None = None
    source: str | None = None


class Ledger:
    """An append-only log of answers with one trainer, one annotation server and any number of
    readers.

    An answer is about two images, each known by its path and the digest of its content. With the
    keys of a training set, `left` and `right` are rows of that set. An image is found by its path
    if the content agrees, else by its content (it was renamed); otherwise its row is -1 (it was
    removed, or its content changed). Without keys, `left` and `right` are the numbers that the
    ledger gives to images.

    An open ledger holds one connection and belongs to one thread. Its keys take about 60 bytes an
    image in memory, twice that if images were renamed: 2 to 4 MB at n = 32,621, 59 to 122 MB at
    1e6. The file takes about 110 bytes an answer, including its images but not the paths that were
    shown: 7 MB at 65,000 answers.
    """

    def __init__(self, store: Store, keys: ImageKeys | None) -> None:
        self.name = store.name
        self._store = store
        self._numbered = keys is None
        self._rows_of = _Rows(keys)
        #: Image of the ledger -> row, and back.
        self._rows: dict[int, int] = {}
        self._ids: dict[int, int] = {}
        self._last_image = -1
        self._dataset = ""

    @classmethod
    def open(
        cls,
        url: str,
        keys: ImageKeys | None = None,
        *,
        write: bool = True,
        role: Role = "trainer",
    ) -> Ledger:
        """Open a ledger; if it does not exist and is opened for writing, create it.

        Args:
            url: Path of an SQLite file, or a URL: "postgresql://...", or "sqlite://" for one in
                memory.
            keys: The training images that answers refer to.
            write: Whether to open it for writing.
            role: Who writes: the "trainer", which adds images and questions; an "import", which
                adds images and answers; the annotation "server"; or a "command", which adds events.
                There is one trainer or import and one server at a time, until it is closed or the
                process ends.

        Raises:
            LedgerError: It cannot be opened, has another writer with this role, is not a ledger, or
                holds another image set.
        """
        store = Store(url, write, role)
        try:
            ledger = cls(store, keys)
            store.prepare("" if keys is None else keys.dataset)
            ledger._check_images(keys)
        except BaseException:
            store.close()
            raise
        return ledger

    def close(self) -> None:
        """Close the ledger; another process may then write it."""
        self._store.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def append(
        self,
        left: int,
        right: int,
        verdict: Verdict,
        *,
        annotator: str,
        asked_at: float,
        answered_at: float,
        epoch: int | None,
        reason: str,
        score: float | None = None,
        similarity: float | None = None,
        need: int = 1,
        confirms: int | None = None,
        shown: tuple[Sequence[str], Sequence[str]] = ((), ()),
        run: str = "",
        origin: Origin | None = None,
    ) -> int:
        """Write one answer and return its event. When this returns, the answer is on the disk.

        Args:
            left: Row of one image.
            right: Row of the other image.
            verdict: The verdict.
            annotator: Name of the annotator.
            asked_at: When the question was shown, in unix seconds.
            answered_at: When it was answered, in unix seconds.
            epoch: Epoch of the run that asked.
            reason: Kind of the question: "split", "merge", "confirm".
            score: Its expected gain.
            similarity: The cosine similarity that led to it.
            need: Answers that must agree before a "same" counts.
            confirms: Event of the first answer of the merge that it confirms.
            shown: Paths of the images shown on each side.
            run: Name of the run that asked.
            origin: How the answer came; None where the trainer itself asked.

        Raises:
            IndexError: A row does not exist.
            LedgerError: The answer could not be written; every answer before it is kept.
        """
        with self._store.writing() as connection, self.numbering(connection, left, right) as ids:
            values = {
                "kind": "answer",
                "left_id": ids[left],
                "right_id": ids[right],
                "verdict": Verdict(verdict).value,
                "annotator": annotator,
                "asked_at": asked_at,
                "answered_at": answered_at,
                "epoch": epoch,
                "reason": reason,
                "score": score,
                "similarity": similarity,
                "need": need,
                "confirms": confirms,
                "shown": json.dumps([list(side) for side in shown]),
                "run": run,
                **({} if origin is None else origin._asdict()),
            }
            return insert_event(connection, values)

    @contextlib.contextmanager
    def numbering(self, connection: Connection, *rows: int) -> Iterator[dict[int, int]]:
        """Yield the number of each image in the ledger, by row; images that it lacks are added.

        Args:
            connection: A transaction that writes, in which this block lies.
            rows: Rows of the images.

        Raises:
            IndexError: A row does not exist.
            LedgerError: An image is new, and the ledger's role does not add images.
        """
        if self._store.role not in ADDS_IMAGES:
            self._learn_images(connection)
        fresh = self._new_images(*rows)
        if fresh:
            if self._store.role not in ADDS_IMAGES:
                raise LedgerError(
                    f"{self.name}: only a trainer or an import adds images to a ledger"
                )
            connection.execute(IMAGES.insert(), [i._asdict() for i in fresh.values()])
        yield {row: fresh[row].id if row in fresh else self._ids[row] for row in rows}
        for row, image in fresh.items():
            self._know(image.id, row)

    @property
    def store(self) -> Store:
        """The database."""
        return self._store

    def row_of(self, image: int) -> int:
        """Return the row of an image of the ledger, -1 where it is not in the set."""
        if image not in self._rows:
            with self._store.reading() as connection:
                self._learn_images(connection)
        return self._rows[image]

    def undo(self, event: int, annotator: str, at: float | None = None) -> int:
        """Undo an answer, and return the event that does so.

        A question of the queue that has no other answer is open again.

        Raises:
            LedgerError: The event does not exist, is not an answer, or was undone before.
        """
        at = time.time() if at is None else at
        with self._store.writing() as connection:
            kind = None
            if 0 < event < _NO_EVENT:
                chosen = sa.select(EVENTS.c.kind).where(EVENTS.c.id == event)
                kind = connection.execute(chosen).scalar()
            if kind is None:
                raise LedgerError(
                    f"{self.name} has no event {event}; its last is {_last_event(connection)}"
                )
            if kind != "answer":
                raise LedgerError(
                    f"event {event} of {self.name} is not an answer; only answers can be undone"
                )
            by = connection.execute(
                sa.select(EVENTS.c.id).where(_is_undo & (EVENTS.c.undoes == event))
            ).scalar()
            if by is not None:
                raise LedgerError(f"event {event} of {self.name} was already undone, by event {by}")
            values = {
                "kind": "undo",
                "annotator": annotator,
                "asked_at": at,
                "answered_at": at,
                "undoes": event,
            }
            number = insert_event(connection, values)
            answered = sa.select(EVENTS.c.question).where(EVENTS.c.id == event)
            question = connection.execute(answered).scalar()
            if question is not None:
                others = sa.select(EVENTS.c.id).where(_in_force & (EVENTS.c.question == question))
                if connection.execute(others.limit(1)).first() is None:
                    is_settled = (QUESTIONS.c.id == question) & (QUESTIONS.c.status == "answered")
                    again = {"status": "open", "settled_event": None}
                    connection.execute(QUESTIONS.update().where(is_settled), again)
            return number

    def answers(self, as_of: int | None = None) -> list[Answer]:
        """Return the answers that are not undone, in the order of `Answer.place`.

        Several people's answers to one question are one answer, see `combined`. A question that
        fewer people answered than must agree has none. One that a further person checks counts in
        the meantime.

        Args:
            as_of: Last event that counts, answer or undo; all when not given.
        """
        with self._store.reading() as connection:
            self._learn_images(connection)
            undone = _up_to(_is_undo, as_of)
            undone_events = set(
                connection.execute(sa.select(EVENTS.c.undoes).where(undone)).scalars()
            )
            found = _up_to(_is_answer, as_of)
            rows = [
                row
                for row in connection.execute(self._answer_query().where(found))
                if row.id not in undone_events
            ]
            undecided = _undecided(rows, as_of)
            rows = [row for row in rows if row.reason == MEMBER or row.question not in undecided]
            try:
                answers = [self._answer(row) for row in rows]
            except (KeyError, TypeError) as error:
                raise LedgerError(
                    f"{self.name} holds an answer with an unknown image or verdict ({error}); "
                    f"{ASK_CHECK}"
                ) from error
            return self._with_heads(connection, combined(answers, _settling(rows)), as_of)

    def answers_to(self, question: int, until: int) -> list[Answer]:
        """Return the answers to a question of the queue that are in force.

        Args:
            question: Its number.
            until: Last event that counts.
        """
        wanted = _in_force & (EVENTS.c.question == question) & (EVENTS.c.id <= until)
        with self._store.reading() as connection:
            self._learn_images(connection)
            rows = connection.execute(self._answer_query().where(wanted)).all()
            answers = [self._answer(row) for row in rows]
            return self._with_heads(connection, combined(answers, _settling(rows)))

    def _with_heads(
        self, connection: Connection, answers: list[Answer], as_of: int | None = None
    ) -> list[Answer]:
        """Return answers, whose merges begin with answers that are in force.

        Where the first answer of a merge was undone and its pair was answered again in the run, the
        new answer takes its place: what confirmed the merge goes on to do so.
        """
        known = {answer.event for answer in answers}
        heads: dict[int, int] = {}
        for head in {answer.confirms for answer in answers} - known - {None}:
            heads[head] = self._head(connection, head, as_of)  # type: ignore[index, arg-type]
        return [
            answer
            if answer.confirms is None or answer.confirms in known
            else answer._replace(confirms=heads[answer.confirms])
            for answer in answers
        ]

    def _head(self, connection: Connection, event: int, as_of: int | None) -> int:
        """Return the event that stands for the first answer of a merge."""
        first, c = EVENTS.alias(), EVENTS.c
        undone = sa.select(c.undoes).where(_up_to(_is_undo, as_of))
        same = (c.left_id == first.c.left_id) & (c.right_id == first.c.right_id)
        swapped = (c.left_id == first.c.right_id) & (c.right_id == first.c.left_id)
        # Events of old versions may have no run.
        same_run = sa.func.coalesce(c.run, "") == sa.func.coalesce(first.c.run, "")
        main = c.reason.is_(None) | (c.reason != MEMBER)
        query = (
            sa.select(c.id, c.confirms)
            .join(first, (same | swapped) & same_run)
            .where((first.c.id == event) & main & c.id.not_in(undone))
            .where(_up_to(_is_answer, as_of))
            .order_by(sa.case((c.id == event, 0), else_=1), c.id)
            .limit(1)
        )
        found = connection.execute(query).first()
        if found is None or found.id == event:
            return event
        return found.id if found.confirms is None else found.confirms

    def _answer_query(self) -> sa.Select[Any]:
        """The columns that an answer is made from."""
        c = EVENTS.c
        columns = [c.id, c.left_id, c.right_id, c.verdict, c.need, c.confirms, c.run, c.reason]
        seconds = (c.answered_at - c.asked_at).label("seconds")
        if self._store.format == 1:
            names = ("gesture", "question", "known_event", "status", "votes", "settled_event")
            none = [sa.null().label(name) for name in names]
            return sa.select(*columns, seconds, *none).order_by(c.id)
        joined = EVENTS.outerjoin(QUESTIONS, QUESTIONS.c.id == c.question)
        q = QUESTIONS.c
        queue = [c.gesture, c.question, q.known_event, q.status, q.votes, q.settled_event]
        return sa.select(*columns, seconds, *queue).select_from(joined).order_by(c.id)

    def _answer(self, row: Any) -> Answer:
        """Return the answer that a row of the database holds, about rows of the training set."""
        images = self._rows[row.left_id], self._rows[row.right_id]
        if not isinstance(row.need, int) or not isinstance(row.confirms, int | None):
            raise TypeError(f"event {row.id}")
        # Seconds are negative where an earlier version measured them by a clock that was set back.
        seconds = max(0.0, float(row.seconds)) if _is_finite(row.seconds) else 0.0
        order = None if row.known_event is None else (row.known_event, row.question)
        verdict = _VERDICTS[row.verdict]
        return Answer(
            row.id,
            *images,
            verdict,
            row.need,
            row.confirms,
            seconds,
            row.run or "",
            order,
            row.gesture,
            row.reason == MEMBER,
        )

    def last_event(self) -> int:
        """Return the number of the newest event, 0 when there is none."""
        with self._store.reading() as connection:
            return _last_event(connection)

    def last_answer(self, run: str | None = None) -> int | None:
        """Return the event of the newest answer that is not undone, or None without one.

        Args:
            run: Name of a run, whose answers count only; every run when not given.
        """
        wanted = _in_force if run is None else _in_force & (EVENTS.c.run == run)
        with self._store.reading() as connection:
            return connection.execute(sa.select(sa.func.max(EVENTS.c.id)).where(wanted)).scalar()

    def events(self) -> Iterator[Event]:
        """Yield every event in order. Events may be appended meanwhile."""
        with self._store.reading() as connection:
            undone_by = {
                undone: by
                for by, undone in connection.execute(
                    sa.select(EVENTS.c.id, EVENTS.c.undoes).where(_is_undo)
                )
            }
        left, right = IMAGES.alias("l"), IMAGES.alias("r")
        paths = left.c.path.label("left"), right.c.path.label("right")
        digests = left.c.digest.label("left_digest"), right.c.digest.label("right_digest")
        query = (
            sa.select(*self._known(_EVENT_COLUMNS), *paths, *digests)
            .outerjoin_from(EVENTS, left, left.c.id == EVENTS.c.left_id)
            .outerjoin(right, right.c.id == EVENTS.c.right_id)
            .order_by(EVENTS.c.id)
            .limit(_PAGE)
        )
        names = query.selected_columns.keys()
        after = 0
        # By pages, so that no transaction stays open while the caller uses an event.
        while True:
            with self._store.reading() as connection:
                page = connection.execute(query.where(EVENTS.c.id > after)).all()
            for values in page:
                fields = dict(zip(names, values, strict=True))
                after = fields["id"]
                shown = _parse_shown(fields.pop("shown"))
                yield Event(
                    undone_by=undone_by.get(after), shown=shown or ([], []), **_sound(fields)
                )
            if len(page) < _PAGE:
                return

    def _known(self, columns: Sequence[sa.Column[Any]]) -> list[sa.ColumnElement[Any]]:
        """The columns, with NULL for those that a ledger of format 1 lacks."""
        return [
            sa.null().label(column.name)
            if self._store.format == 1 and column.name in _LATER
            else column
            for column in columns
        ]

    def images(self) -> dict[int, str]:
        """Return the path of each image that was asked about, by its number in the ledger."""
        with self._store.reading() as connection:
            found = connection.execute(
                sa.select(IMAGES.c.id, IMAGES.c.path).order_by(IMAGES.c.id)
            ).all()
        return {line.id: line.path for line in found}

    def dataset(self) -> str:
        """Return the name of the image set; empty for a ledger without one."""
        with self._store.reading() as connection:
            return read_meta(connection).get("dataset", "")

    def unusable(self) -> int:
        """Return how many answers are about an image that is not in the set."""
        return sum(a.left < 0 or a.right < 0 for a in self.answers())

    def seconds(self) -> float:
        """Return the seconds that all answers took, without undone ones."""
        seconds = EVENTS.c.answered_at - EVENTS.c.asked_at
        total = sa.func.sum(sa.case(((seconds > 0) & (seconds < _LARGEST), seconds), else_=0.0))
        with self._store.reading() as connection:
            return connection.execute(sa.select(total).where(_in_force)).scalar() or 0.0

    def integrity(self) -> list[str]:
        """Return what is wrong with the ledger, one line each; empty if nothing is.

        Reads all of it.
        """
        damage = self._store.damage()
        if damage:
            return damage
        with self._store.reading() as connection:
            found = [
                f"event {event} {what}"
                for what, wrong in _wrong_events().items()
                for event in connection.execute(
                    sa.select(EVENTS.c.id).where(wrong).order_by(EVENTS.c.id)
                ).scalars()
            ]
            missing = history.unprotected(connection) if self._store.format > 1 else []
            if missing:
                found.append(history.missing_line(missing))
            if self._store.is_sqlite:
                found += _wrong_types(connection, self._store.format)
            shown = connection.execute(sa.select(EVENTS.c.id, EVENTS.c.shown).order_by(EVENTS.c.id))
            found += [
                f"event {event} has a damaged list of the images that were shown"
                for event, text in shown
                if _parse_shown(text) is None
            ]
        return found

    def _new_images(self, *rows: int) -> dict[int, _Image]:
        """Return the images of the rows that the ledger does not hold yet."""
        fresh: dict[int, _Image] = {}
        for row in rows:
            if row not in self._ids and row not in fresh:
                if self._numbered and self._dataset:
                    raise LedgerError(
                        f"{self.name} has no image {row}; "
                        f"open it with the images of {self._dataset}"
                    )
                # Only the writer numbers images.
                number = row if self._numbered else self._last_image + 1 + len(fresh)
                fresh[row] = _Image(number, *self._rows_of.key(row))
        return fresh

    def _know(self, image: int, row: int) -> None:
        self._rows[image] = row
        if row >= 0:
            self._ids.setdefault(row, image)
        self._last_image = max(self._last_image, image)

    def _learn_images(self, connection: Connection) -> None:
        """Read the images that were added to the ledger since the last call."""
        # A ledger without an image set may hold image numbers in any order.
        known = -1 if self._numbered else self._last_image
        for number, path, digest in connection.execute(
            sa.select(IMAGES.c.id, IMAGES.c.path, IMAGES.c.digest).where(IMAGES.c.id > known)
        ):
            self._know(number, number if self._numbered else self._rows_of.row(path, digest))

    def _check_images(self, keys: ImageKeys | None) -> None:
        """Refuse a ledger of other images than those of the keys."""
        with self._store.reading() as connection:
            self._dataset = read_meta(connection).get("dataset", "")
            if keys is None and not self._store.write:
                # The command `check` must work where the images cannot be read.
                return
            self._learn_images(connection)
            first = connection.execute(
                sa.select(IMAGES.c.path).order_by(IMAGES.c.id).limit(1)
            ).scalar()
        if keys is None:
            return
        if self._dataset not in ("", keys.dataset):
            raise LedgerError(
                f"{self.name} holds answers about {self._dataset}, "
                f"and this run is on {keys.dataset}; name another ledger with `questions.ledger`"
            )
        if self._rows and not self._ids:
            raise LedgerError(
                f"{self.name} holds answers about other images: not one of them is in this "
                f"{keys.dataset}, the first is {first}; restore the images, "
                "or name another ledger with `questions.ledger`"
            )
        if not self._dataset and self._store.write:
            with self._store.writing() as connection:
                connection.execute(
                    META.update().where(META.c.key == "dataset"), {"value": keys.dataset}
                )
            self._dataset = keys.dataset


def combined(answers: Sequence[Answer], settling: Mapping[int, int] | None = None) -> list[Answer]:
    """Return answers in the order of `Answer.place`; those of several people to a question are one.

    The verdict of most people counts. Among verdicts that equally many gave, it is that of the
    answer which settled the question, unless a later answer disputes it; then it is "unsure". The
    event is that of the first answer, and the seconds are added up.

    Args:
        answers: The answers.
        settling: Event that settled a question, by its number.
    """
    of_question: dict[Any, list[Answer]] = {}
    for answer in answers:
        pair = min(answer.left, answer.right), max(answer.left, answer.right)
        # The question of an answer, and the pair: a person may also judge other images of it.
        key = answer.event if answer.order is None else (*answer.order, *pair)
        of_question.setdefault(key, []).append(answer)
    found = []
    for votes in of_question.values():
        first = min(votes, key=lambda vote: vote.event)
        if len(votes) > 1:
            (verdict, most), *others = Counter(v.verdict for v in votes).most_common()
            if others and others[0][1] == most:
                last = max(votes, key=lambda vote: vote.event)
                settled = (settling or {}).get(first.order[1]) if first.order else None
                is_disputed = settled is None or last.event > settled or last.is_member
                verdict = Verdict.UNSURE if is_disputed else last.verdict
            seconds = math.fsum(vote.seconds for vote in votes)
            first = first._replace(verdict=verdict, seconds=seconds)
        found.append(first)
    return sorted(found, key=lambda answer: answer.place)


def _settling(rows: Sequence[Any]) -> dict[int, int]:
    """The event that settled each question of some answers."""
    return {row.question: row.settled_event for row in rows if row.settled_event is not None}


def _undecided(rows: Sequence[Any], as_of: int | None) -> set[int]:
    """The questions of some answers that still needed a person at an event, by their numbers."""
    votes = Counter(row.question for row in rows if row.reason != MEMBER)
    found = set()
    for row in rows:
        if row.status is not None and votes[row.question] < row.votes:
            # One that nobody else could decide is settled by fewer.
            settled = row.settled_event
            if settled is None or (as_of is not None and settled > as_of):
                found.add(row.question)
    return found


class _Image(NamedTuple):
    """A row of the table of images."""

    id: int
    path: str
    digest: str


class _Rows:
    """Finds the images of a ledger in a training set, also images that were renamed."""

    def __init__(self, keys: ImageKeys | None) -> None:
        self._keys = keys or ImageKeys("", (), ())
        self.numbered = keys is None
        self._by_name = {name: row for row, name in enumerate(self._keys.names)}
        self._by_digest: dict[str, int] | None = None

    def key(self, row: int) -> tuple[str, str]:
        """Return path and digest of a row; without a training set, the path is the row's number."""
        if row < 0 or (row >= len(self._keys.names) and not self.numbered):
            raise IndexError(f"there is no image {row}")
        return (str(row), "") if self.numbered else (self._keys.names[row], self._digest(row))

    def row(self, path: str, digest: str) -> int:
        """Return the row of an image, or -1.

        It is found by its path if the content agrees or is unknown, else by its content.
        """
        row = self._by_name.get(path)
        if row is not None and (not digest or self._digest(row) in ("", digest)):
            return row
        if self._by_digest is None:
            self._by_digest = {}
            for number, known in enumerate(self._keys.digests):
                # The first of several images with the same content.
                if known:
                    self._by_digest.setdefault(known, number)
        return self._by_digest.get(digest, -1)

    def _digest(self, row: int) -> str:
        return self._keys.digests[row] if self._keys.digests else ""


def insert_event(connection: Connection, event: dict[str, Any]) -> int:
    """Write an event, given by column, and return its number."""
    key = connection.execute(EVENTS.insert(), event).inserted_primary_key
    assert key is not None
    return key[0]


def _last_event(connection: Connection) -> int:
    return connection.execute(sa.select(sa.func.max(EVENTS.c.id))).scalar() or 0


def _up_to(condition: sa.ColumnElement[bool], event: int | None) -> sa.ColumnElement[bool]:
    if event is None or event >= _NO_EVENT:
        return condition
    return condition & (EVENTS.c.id <= max(event, -1))


def _parse_shown(text: object) -> tuple[list[str], list[str]] | None:
    """Return the paths that were shown on each side; None where the column is damaged."""
    if text is None:
        return [], []
    try:
        sides = json.loads(text)  # type: ignore[arg-type]
    except (TypeError, ValueError, RecursionError):
        return None
    if not isinstance(sides, list) or len(sides) != 2:
        return None
    if not all(isinstance(side, list) and all(isinstance(p, str) for p in side) for side in sides):
        return None
    return sides[0], sides[1]


def _sound(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the columns of an event, with what is damaged replaced: 0 for a time, else None."""
    sound = dict(fields)
    for name, value in fields.items():
        if name in _NUMBERS and not (value is None or _is_finite(value)):
            sound[name] = 0.0 if name in ("asked_at", "answered_at") else None
        elif name in _TEXTS and isinstance(value, bytes):
            sound[name] = value.decode(errors="surrogateescape")
    return sound


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _wrong_types(connection: Connection, version: int) -> list[str]:
    """Return the columns of another type than the schema says, which SQLite does not enforce."""
    found = []
    for name in (*_NUMBERS, *_TEXTS):
        if version == 1 and name in _LATER:
            continue
        kinds = ("integer", "real", "null") if name in _NUMBERS else ("text", "null")
        column = EVENTS.c[name]
        large = sa.func.abs(column) > _LARGEST if name in _NUMBERS else sa.false()
        damaged = sa.or_(sa.func.typeof(column).not_in(kinds), large)
        wrong = sa.select(EVENTS.c.id).where(damaged)
        for event in connection.execute(wrong.order_by(EVENTS.c.id)).scalars():
            found.append(f"event {event} has a damaged value of {name}")
    for column in (IMAGES.c.path, IMAGES.c.digest):
        wrong = sa.select(IMAGES.c.id).where(sa.func.typeof(column) != "text")
        for image in connection.execute(wrong.order_by(IMAGES.c.id)).scalars():
            found.append(f"image {image} has a damaged {column.name}")
    return found


def _wrong_events() -> dict[str, sa.ColumnElement[bool]]:
    """Return what may be wrong with an event, and the condition that finds such events."""
    c = EVENTS.c
    images = sa.select(IMAGES.c.id)
    answers = sa.select(EVENTS.alias("a").c.id).where(sa.literal_column("a.kind") == "answer")
    undoable = sa.select(EVENTS.alias("a").c.id).where(
        sa.literal_column("a.kind").in_(("answer", "gold"))
    )
    return {
        "is neither an answer nor an undo": c.kind.not_in(_KINDS),
        "is about an image that is not in the ledger": _is_answer
        & sa.or_(*(side.is_(None) | side.not_in(images) for side in (c.left_id, c.right_id))),
        "has an unknown verdict": _is_answer
        & (c.verdict.is_(None) | c.verdict.not_in(list(_VERDICTS))),
        "confirms an answer that is not in the ledger": c.confirms.is_not(None)
        & c.confirms.not_in(answers),
        "undoes an answer that is not in the ledger": _is_undo
        & (c.undoes.is_(None) | c.undoes.not_in(undoable)),
    }
