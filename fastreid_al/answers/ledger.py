"""The ledger: every answer that a person gave, appended to a database and never changed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ..errors import LedgerError
from .database import ASK_CHECK, EVENTS, IMAGES, META, Store, read_meta
from .question import Answer, Verdict

_PAGE = 1000

_is_answer = EVENTS.c.kind == "answer"
_is_undo = EVENTS.c.kind == "undo"
_undone = sa.select(EVENTS.c.undoes).where(_is_undo)
_in_force = _is_answer & EVENTS.c.id.not_in(_undone)
_VERDICTS = {verdict.value: verdict for verdict in Verdict}
#: Columns of an event that are fields of `Event` by the same name.
_EVENT_COLUMNS = [column for column in EVENTS.c if column.name not in ("left_id", "right_id")]


class ImageKeys(NamedTuple):
    """The training set of a run, by what its images are rather than by their order.

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

    Args:
        id: Its number; a later event has a higher number.
        kind: "answer" or "undo".
        left: Path of one image, as it was when the image was first answered about.
        right: Path of the other image.
        left_digest: Digest of the content of `left`, empty when unknown.
        right_digest: Digest of the content of `right`.
        verdict: What was said.
        annotator: Who said it.
        asked_at: When the question was shown, in unix seconds.
        answered_at: When it was answered.
        epoch: Epoch of the run that asked.
        reason: What the question was for.
        score: Its expected gain.
        similarity: The cosine similarity that made it.
        need: Answers that must agree before a "same" counts.
        confirms: Event that it confirms.
        undoes: Event that it takes back.
        undone_by: Event that took it back.
        run: Name of the run that asked.
        shown: Paths of the images shown on each side.
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


class Ledger:
    """An append-only log of answers with one writer; readers may come and go beside it.

    An answer is about two images, each known by its path and the digest of its content. With the keys of a training set,
    `left` and `right` are rows of that set: an image is found by its path when the content agrees, else by its content (it was
    renamed), else it is -1 (it was removed, or its content changed). Without keys they are the ledger's own image numbers.

    An open ledger holds one connection and belongs to one thread. Its keys take some 60 bytes an image in memory, twice that
    when images were renamed: 2 to 4 MB at n = 32,621, 59 to 122 MB at 1e6. The file takes some 110 bytes an answer, its images
    included, without what was shown: 7 MB at 65,000 answers.
    """

    def __init__(self, store: Store, keys: ImageKeys | None) -> None:
        self.name, self._store = store.name, store
        self._numbered = keys is None
        self._rows_of = _Rows(keys)
        #: Image of the ledger -> row, and back.
        self._rows: dict[int, int] = {}
        self._ids: dict[int, int] = {}
        self._last_image = -1
        self._dataset = ""

    @classmethod
    def open(cls, url: str, keys: ImageKeys | None = None, *, write: bool = True) -> Ledger:
        """Open a ledger, and make it when there is none and it is to be written.

        Args:
            url: Path of an SQLite file, or a URL: "postgresql://...", or "sqlite://" for one in memory.
            keys: The training set that answers refer to.
            write: Be its one writer, until it is closed or the process ends in whatever way.

        Raises:
            LedgerError: It cannot be opened, has another writer, is not a ledger, or is that of another image set.
        """
        store = Store(url, write)
        try:
            ledger = cls(store, keys)
            store.prepare("" if keys is None else keys.dataset)
            ledger._check_images(keys)
        except BaseException:
            store.close()
            raise
        return ledger

    def close(self) -> None:
        """Let go of the ledger; another process may write it."""
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
    ) -> int:
        """Write one answer and give its event; once this returns, the answer is on the disk.

        Raises:
            IndexError: There is no such row.
            LedgerError: It could not be written; every answer before it is kept.
        """
        with self._store.writing() as connection:
            fresh = self._new_images(left, right)
            if fresh:
                connection.execute(IMAGES.insert(), [i._asdict() for i in fresh.values()])
            values = {
                "kind": "answer",
                "left_id": fresh[left].id if left in fresh else self._ids[left],
                "right_id": fresh[right].id if right in fresh else self._ids[right],
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
            }
            event = _insert(connection, values)
        for row, image in fresh.items():
            self._know(image.id, row)
        return event

    def undo(self, event: int, annotator: str, at: float | None = None) -> int:
        """Take an answer back and give the event that does so.

        Raises:
            LedgerError: There is no such event, it is not an answer, or it was taken back before.
        """
        at = time.time() if at is None else at
        with self._store.writing() as connection:
            kind = connection.execute(sa.select(EVENTS.c.kind).where(EVENTS.c.id == event)).scalar()
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
            return _insert(connection, values)

    def answers(self, as_of: int | None = None) -> list[Answer]:
        """Answers in force, in the order of their events.

        Args:
            as_of: Last event that counts, answer or undo; all when not given.
        """
        found = _up_to(_is_answer, as_of)
        undone = _up_to(_is_undo, as_of)
        c = EVENTS.c
        query = sa.select(
            c.id,
            c.left_id,
            c.right_id,
            c.verdict,
            c.need,
            c.confirms,
            c.answered_at - c.asked_at,
            c.run,
        ).order_by(c.id)
        with self._store.reading() as connection:
            self._learn_images(connection)
            taken_back = set(connection.execute(sa.select(c.undoes).where(undone)).scalars())
            rows = self._rows
            try:
                return [
                    Answer(
                        event,
                        rows[left],
                        rows[right],
                        _VERDICTS[verdict],
                        need,
                        confirms,
                        seconds,
                        run or "",
                    )
                    for event, left, right, verdict, need, confirms, seconds, run in connection.execute(
                        query.where(found)
                    )
                    if event not in taken_back
                ]
            except KeyError as error:
                raise LedgerError(
                    f"{self.name} holds an answer with an unknown image or verdict ({error}); {ASK_CHECK}"
                ) from error

    def last_event(self) -> int:
        """Number of the newest event, 0 when there is none."""
        with self._store.reading() as connection:
            return _last_event(connection)

    def last_answer(self, run: str | None = None) -> int | None:
        """Event of the newest answer in force, of one run where it is named; None when there is none."""
        wanted = _in_force if run is None else _in_force & (EVENTS.c.run == run)
        with self._store.reading() as connection:
            return connection.execute(sa.select(sa.func.max(EVENTS.c.id)).where(wanted)).scalar()

    def events(self) -> Iterator[Event]:
        """Every event in order. Events may be appended meanwhile."""
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
            sa.select(*_EVENT_COLUMNS, *paths, *digests)
            .outerjoin_from(EVENTS, left, left.c.id == EVENTS.c.left_id)
            .outerjoin(right, right.c.id == EVENTS.c.right_id)
            .order_by(EVENTS.c.id)
            .limit(_PAGE)
        )
        names, after = query.selected_columns.keys(), 0
        # By pages, so that no transaction stays open while the caller is busy with an event.
        while True:
            with self._store.reading() as connection:
                page = connection.execute(query.where(EVENTS.c.id > after)).all()
            for values in page:
                fields = dict(zip(names, values, strict=True))
                after = fields["id"]
                fields["shown"] = tuple(json.loads(fields["shown"] or "[[], []]"))
                yield Event(undone_by=undone_by.get(after), **fields)
            if len(page) < _PAGE:
                return

    def images(self) -> dict[int, str]:
        """Path of each image that was answered about, by its number in the ledger."""
        with self._store.reading() as connection:
            found = connection.execute(
                sa.select(IMAGES.c.id, IMAGES.c.path).order_by(IMAGES.c.id)
            ).all()
        return {line.id: line.path for line in found}

    def dataset(self) -> str:
        """Name of the image set that the answers are about; empty for a ledger of none."""
        with self._store.reading() as connection:
            return read_meta(connection).get("dataset", "")

    def unusable(self) -> int:
        """Number of answers in force with an image that is not in the set."""
        return sum(a.left < 0 or a.right < 0 for a in self.answers())

    def seconds(self) -> float:
        """Time that the answers in force took."""
        total = sa.func.sum(EVENTS.c.answered_at - EVENTS.c.asked_at)
        with self._store.reading() as connection:
            return connection.execute(sa.select(total).where(_in_force)).scalar() or 0.0

    def integrity(self) -> list[str]:
        """What is wrong with the ledger, a line each; empty when nothing is. Reads all of it."""
        if damage := self._store.damage():
            return damage
        with self._store.reading() as connection:
            return [
                f"event {event} {what}"
                for what, wrong in _wrong_events().items()
                for event in connection.execute(
                    sa.select(EVENTS.c.id).where(wrong).order_by(EVENTS.c.id)
                ).scalars()
            ]

    def _new_images(self, *rows: int) -> dict[int, _Image]:
        """Images of the rows that the ledger does not hold yet."""
        fresh: dict[int, _Image] = {}
        for row in rows:
            if row not in self._ids and row not in fresh:
                if self._numbered and self._dataset:
                    raise LedgerError(
                        f"{self.name} has no image {row}; open it with the images of {self._dataset}"
                    )
                # The writer is the only one to number images.
                number = row if self._numbered else self._last_image + 1 + len(fresh)
                fresh[row] = _Image(number, *self._rows_of.key(row))
        return fresh

    def _know(self, image: int, row: int) -> None:
        self._rows[image] = row
        if row >= 0:
            self._ids.setdefault(row, image)
        self._last_image = max(self._last_image, image)

    def _learn_images(self, connection: Connection) -> None:
        """Take in the images that the ledger holds by now."""
        # A ledger of no image set numbers images as they come, and not in order.
        known = -1 if self._numbered else self._last_image
        for number, path, digest in connection.execute(
            sa.select(IMAGES).where(IMAGES.c.id > known)
        ):
            self._know(number, number if self._numbered else self._rows_of.row(path, digest))

    def _check_images(self, keys: ImageKeys | None) -> None:
        """Refuse a ledger of other images than those of the keys."""
        with self._store.reading() as connection:
            self._dataset = read_meta(connection).get("dataset", "")
            if keys is None and not self._store.write:
                # A check is to begin where the images cannot be read.
                return
            self._learn_images(connection)
            first = connection.execute(
                sa.select(IMAGES.c.path).order_by(IMAGES.c.id).limit(1)
            ).scalar()
        if keys is None:
            return
        if self._dataset not in ("", keys.dataset):
            raise LedgerError(
                f"{self.name} holds answers about {self._dataset}, and this run is on {keys.dataset}; "
                "name another ledger with --questions.ledger"
            )
        if self._rows and not self._ids:
            raise LedgerError(
                f"{self.name} holds answers about other images: not one of them is in this {keys.dataset}, "
                f"the first is {first}; restore the images, or name another ledger with --questions.ledger"
            )
        if not self._dataset and self._store.write:
            with self._store.writing() as connection:
                connection.execute(
                    META.update().where(META.c.key == "dataset"), {"value": keys.dataset}
                )
            self._dataset = keys.dataset


class _Image(NamedTuple):
    """A line of the table of images."""

    id: int
    path: str
    digest: str


class _Rows:
    """Finds the images of a ledger in a training set, whatever was renamed since."""

    def __init__(self, keys: ImageKeys | None) -> None:
        self._keys = keys or ImageKeys("", (), ())
        self.numbered = keys is None
        self._by_name = {name: row for row, name in enumerate(self._keys.names)}
        self._by_digest: dict[str, int] | None = None

    def key(self, row: int) -> tuple[str, str]:
        """Path and digest of a row; its number is the path where there is no training set."""
        if row < 0 or (row >= len(self._keys.names) and not self.numbered):
            raise IndexError(f"there is no image {row}")
        return (str(row), "") if self.numbered else (self._keys.names[row], self._digest(row))

    def row(self, path: str, digest: str) -> int:
        """Row of an image: by its path, when the content agrees or is not known, else by its content, else -1."""
        row = self._by_name.get(path)
        if row is not None and (not digest or self._digest(row) in ("", digest)):
            return row
        if self._by_digest is None:
            pairs = zip(
                reversed(self._keys.digests),
                range(len(self._keys.digests) - 1, -1, -1),
                strict=True,
            )
            self._by_digest = {digest: row for digest, row in pairs if digest}
        return self._by_digest.get(digest, -1)

    def _digest(self, row: int) -> str:
        return self._keys.digests[row] if self._keys.digests else ""


def _insert(connection: Connection, event: dict[str, Any]) -> int:
    key = connection.execute(EVENTS.insert(), event).inserted_primary_key
    assert key is not None
    return key[0]


def _last_event(connection: Connection) -> int:
    return connection.execute(sa.select(sa.func.max(EVENTS.c.id))).scalar() or 0


def _up_to(condition: sa.ColumnElement[bool], event: int | None) -> sa.ColumnElement[bool]:
    return condition if event is None else condition & (EVENTS.c.id <= event)


def _wrong_events() -> dict[str, sa.ColumnElement[bool]]:
    """What may be wrong with an event, and how to find it."""
    c = EVENTS.c
    images = sa.select(IMAGES.c.id)
    answers = sa.select(EVENTS.alias("a").c.id).where(sa.literal_column("a.kind") == "answer")
    return {
        "is neither an answer nor an undo": c.kind.not_in(("answer", "undo")),
        "is about an image that is not in the ledger": _is_answer
        & sa.or_(*(side.is_(None) | side.not_in(images) for side in (c.left_id, c.right_id))),
        "has a verdict that is not known": _is_answer
        & (c.verdict.is_(None) | c.verdict.not_in(list(_VERDICTS))),
        "confirms an answer that is not in the ledger": c.confirms.is_not(None)
        & c.confirms.not_in(answers),
        "undoes an answer that is not in the ledger": _is_undo
        & (c.undoes.is_(None) | c.undoes.not_in(answers)),
    }
