"""The ledger: every answer that a person gave, appended to a database and never changed."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import socket
import sqlite3
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, NamedTuple
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from ..errors import LedgerError
from .questions import Answer, Verdict

FORMAT = 1
#: How long a transaction waits for that of another process.
BUSY_SECONDS = 5.0
_CONNECT_SECONDS = 10
_PAGE = 1000
_ASK_CHECK = "python -m fastreid_al.ledger check says what is wrong"
_WORD = 0xFFFFFFFF
#: Who holds an advisory lock of 64 bits, which the server lists as two halves.
_HOLDER = """
    SELECT coalesce(nullif(a.application_name, ''), 'process ' || a.pid) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND l.classid::bigint = :high AND l.objid::bigint = :low
"""

_schema = sa.MetaData()
_meta = sa.Table(
    "meta", _schema, sa.Column("key", sa.Text, primary_key=True), sa.Column("value", sa.Text, nullable=False)
)
_images = sa.Table(
    "images",
    _schema,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
)
_events = sa.Table(
    "events",
    _schema,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("left_id", sa.ForeignKey("images.id")),
    sa.Column("right_id", sa.ForeignKey("images.id")),
    sa.Column("verdict", sa.Text),
    sa.Column("annotator", sa.Text, nullable=False),
    sa.Column("asked_at", sa.Double, nullable=False),
    sa.Column("answered_at", sa.Double, nullable=False),
    sa.Column("epoch", sa.Integer),
    sa.Column("reason", sa.Text),
    sa.Column("score", sa.Double),
    sa.Column("similarity", sa.Double),
    sa.Column("need", sa.Integer, nullable=False, server_default="1"),
    sa.Column("confirms", sa.ForeignKey("events.id")),
    sa.Column("undoes", sa.ForeignKey("events.id")),
    sa.Column("shown", sa.Text),
    sqlite_autoincrement=True,
)
_runs = sa.Table(
    "runs",
    _schema,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("first_event", sa.Integer, nullable=False),
    sa.Column("started_at", sa.Double, nullable=False),
)

_is_answer = _events.c.kind == "answer"
_is_undo = _events.c.kind == "undo"
_undone = sa.select(_events.c.undoes).where(_is_undo)
_in_force = _is_answer & _events.c.id.not_in(_undone)
_VERDICTS = {verdict.value: verdict for verdict in Verdict}
#: Columns of an event that are fields of `Event` by the same name.
_EVENT_COLUMNS = [name for name in (column.name for column in _events.c) if name not in ("left_id", "right_id")]


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

    def __init__(self, store: _Store, keys: ImageKeys | None) -> None:
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
        store = _Store(url, write)
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
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
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
    ) -> int:
        """Write one answer and give its event; once this returns, the answer is on the disk.

        Raises:
            IndexError: There is no such row.
            LedgerError: It could not be written; every answer before it is kept.
        """
        with self._store.writing() as connection:
            fresh = self._new_images(left, right)
            if fresh:
                connection.execute(_images.insert(), [i._asdict() for i in fresh.values()])
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
            kind = connection.execute(sa.select(_events.c.kind).where(_events.c.id == event)).scalar()
            if kind is None:
                raise LedgerError(f"{self.name} has no event {event}; its last is {_last_event(connection)}")
            if kind != "answer":
                raise LedgerError(f"event {event} of {self.name} is not an answer; only answers can be undone")
            by = connection.execute(sa.select(_events.c.id).where(_is_undo & (_events.c.undoes == event))).scalar()
            if by is not None:
                raise LedgerError(f"event {event} of {self.name} was already undone, by event {by}")
            values = {"kind": "undo", "annotator": annotator, "asked_at": at, "answered_at": at, "undoes": event}
            return _insert(connection, values)

    def answers(self, as_of: int | None = None, undone_until: int | None = None) -> list[Answer]:
        """Answers in force, in the order of their events.

        Args:
            as_of: Last event that counts; all when not given.
            undone_until: Last event whose undoing counts; `as_of` when not given.
        """
        found = _up_to(_is_answer, as_of)
        undone = _up_to(_is_undo, as_of if undone_until is None else undone_until)
        c = _events.c
        query = sa.select(
            c.id, c.left_id, c.right_id, c.verdict, c.need, c.confirms, c.answered_at - c.asked_at
        ).order_by(c.id)
        with self._store.reading() as connection:
            self._learn_images(connection)
            taken_back = set(connection.execute(sa.select(c.undoes).where(undone)).scalars())
            rows = self._rows
            try:
                return [
                    Answer(event, rows[left], rows[right], _VERDICTS[verdict], need, confirms, seconds)
                    for event, left, right, verdict, need, confirms, seconds in connection.execute(query.where(found))
                    if event not in taken_back
                ]
            except KeyError as error:
                raise LedgerError(
                    f"{self.name} holds an answer with an unknown image or verdict ({error}); {_ASK_CHECK}"
                ) from error

    def last_event(self) -> int:
        """Number of the newest event, 0 when there is none."""
        with self._store.reading() as connection:
            return _last_event(connection)

    def last_answer(self) -> int | None:
        """Event of the newest answer in force."""
        with self._store.reading() as connection:
            return connection.execute(sa.select(sa.func.max(_events.c.id)).where(_in_force)).scalar()

    def events(self) -> Iterator[Event]:
        """Every event in order. Events may be appended meanwhile."""
        with self._store.reading() as connection:
            undone_by = {
                undone: by
                for by, undone in connection.execute(sa.select(_events.c.id, _events.c.undoes).where(_is_undo))
            }
        left, right = _images.alias("l"), _images.alias("r")
        columns = {name: _events.c[name] for name in _EVENT_COLUMNS}
        query = (
            sa.select(*columns.values(), left.c.path, right.c.path, left.c.digest, right.c.digest)
            .outerjoin_from(_events, left, left.c.id == _events.c.left_id)
            .outerjoin(right, right.c.id == _events.c.right_id)
            .order_by(_events.c.id)
            .limit(_PAGE)
        )
        after = 0
        # By pages, so that no transaction stays open while the caller is busy with an event.
        while True:
            with self._store.reading() as connection:
                page = connection.execute(query.where(_events.c.id > after)).all()
            for *values, left_path, right_path, left_digest, right_digest in page:
                fields = dict(zip(columns, values, strict=True))
                after = fields["id"]
                fields["shown"] = tuple(json.loads(fields["shown"] or "[[], []]"))
                yield Event(
                    left=left_path,
                    right=right_path,
                    left_digest=left_digest,
                    right_digest=right_digest,
                    undone_by=undone_by.get(after),
                    **fields,
                )
            if len(page) < _PAGE:
                return

    def images(self) -> dict[int, str]:
        """Path of each image that was answered about, by its number in the ledger."""
        with self._store.reading() as connection:
            found = connection.execute(sa.select(_images.c.id, _images.c.path).order_by(_images.c.id)).all()
        return {line.id: line.path for line in found}

    def dataset(self) -> str:
        """Name of the image set that the answers are about; empty for a ledger of none."""
        with self._store.reading() as connection:
            return _read_meta(connection).get("dataset", "")

    def unusable(self) -> int:
        """Number of answers in force with an image that is not in the set."""
        return sum(a.left < 0 or a.right < 0 for a in self.answers())

    def start_of(self, run: str) -> int:
        """The last event at the time when a run first asked for this; remembered, so that it never changes.

        A run that was killed before its first checkpoint starts from there again.
        """
        query = sa.select(_runs.c.first_event).where(_runs.c.name == run)
        with self._store.reading() as connection:
            first, last = connection.execute(query).scalar(), _last_event(connection)
        if first is not None or not self._store.write:
            return last if first is None else first
        with self._store.writing() as connection:
            connection.execute(_runs.insert(), {"name": run, "first_event": last, "started_at": time.time()})
        return last

    def seconds(self, after: int = 0) -> float:
        """Time that the answers in force took, of those after an event."""
        total = sa.func.sum(_events.c.answered_at - _events.c.asked_at)
        with self._store.reading() as connection:
            return connection.execute(sa.select(total).where(_in_force & (_events.c.id > after))).scalar() or 0.0

    def integrity(self) -> list[str]:
        """What is wrong with the ledger, a line each; empty when nothing is. Reads all of it."""
        if damage := self._store.damage():
            return damage
        with self._store.reading() as connection:
            return [
                f"event {event} {what}"
                for what, wrong in _wrong_events().items()
                for event in connection.execute(sa.select(_events.c.id).where(wrong).order_by(_events.c.id)).scalars()
            ]

    def _new_images(self, *rows: int) -> dict[int, _Image]:
        """Images of the rows that the ledger does not hold yet."""
        fresh: dict[int, _Image] = {}
        for row in rows:
            if row not in self._ids and row not in fresh:
                if self._numbered and self._dataset:
                    raise LedgerError(f"{self.name} has no image {row}; open it with the images of {self._dataset}")
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
        for number, path, digest in connection.execute(sa.select(_images).where(_images.c.id > known)):
            self._know(number, number if self._numbered else self._rows_of.row(path, digest))

    def _check_images(self, keys: ImageKeys | None) -> None:
        """Refuse a ledger of other images than those of the keys."""
        with self._store.reading() as connection:
            self._dataset = _read_meta(connection).get("dataset", "")
            if keys is None and not self._store.write:
                # A check is to begin where the images cannot be read.
                return
            self._learn_images(connection)
            first = connection.execute(sa.select(_images.c.path).order_by(_images.c.id).limit(1)).scalar()
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
                connection.execute(_meta.update().where(_meta.c.key == "dataset"), {"value": keys.dataset})
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
            pairs = zip(reversed(self._keys.digests), range(len(self._keys.digests) - 1, -1, -1), strict=True)
            self._by_digest = {digest: row for digest, row in pairs if digest}
        return self._by_digest.get(digest, -1)

    def _digest(self, row: int) -> str:
        return self._keys.digests[row] if self._keys.digests else ""


class _Store:
    """The database of a ledger: one connection, one lock, short transactions, and errors of one line.

    Args:
        url: Path of an SQLite file, or a URL.
        write: Be its one writer.
    """

    def __init__(self, url: str, write: bool) -> None:
        self.write = write
        place = _place(url)
        self._path = place if isinstance(place, Path) else None
        self.name = str(place) if isinstance(place, Path) else place.render_as_string(hide_password=True)
        self._open = contextlib.ExitStack()
        try:
            if self._path is not None:
                self._take_file(self._path)
            with self._one_line():
                engine = _engine(place, write)
                self._sqlite = engine.dialect.name == "sqlite"
                self._connection = engine.connect()
                self._open.callback(self._hang_up)
                if not self._sqlite and write:
                    self._take_server()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection, then let go of the lock."""
        self._open.close()

    def prepare(self, dataset: str) -> None:
        """See that the database holds a ledger that this version reads; make one in an empty database."""
        ours = set(_schema.tables)
        with self.reading() as connection:
            if self._sqlite and self.write and connection.exec_driver_sql("PRAGMA quick_check(1)").scalar() != "ok":
                raise LedgerError(f"{self.name} is damaged; {_ASK_CHECK}; restore a copy")
            tables = set(sa.inspect(connection).get_table_names())
            meta = _read_meta(connection) if ours <= tables else {}
        version = meta.get("format", "")
        # A server's database may hold other things beside the ledger, a file may not.
        if not (tables if self._sqlite else tables & ours):
            self._create(dataset)
        elif not version.isdecimal():
            raise LedgerError(f"{self.name} is a database of something else than answers; name another ledger")
        elif int(version) > FORMAT:
            raise LedgerError(f"{self.name} was written by a newer fastreid_al (format {version}); update the package")
        if self._sqlite and self.write:
            with self._one_line():
                self._pragma("journal_mode=WAL")

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that reads."""
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that writes: on the disk when the block ends, undone when it raises."""
        if not self.write:
            raise LedgerError(f"{self.name} was opened for reading; open it with write=True to add to it")
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[Connection]:
        # In place of a lost connection a new one would be made, which does not hold the lock.
        if self._connection.invalidated or self._connection.closed:
            raise LedgerError(f"{self.name} is closed; go on with --resume")
        with self._one_line(), self._connection.begin():
            if self._sqlite:
                self._connection.exec_driver_sql(begin)
            yield self._connection

    def damage(self) -> list[str]:
        """What the database itself finds wrong with its file."""
        if not self._sqlite:
            return []
        try:
            with self.reading() as connection:
                found = connection.exec_driver_sql("PRAGMA integrity_check").scalars().all()
        except LedgerError as error:
            return [str(error)]
        return [line for text in found if text != "ok" for line in text.splitlines()]

    def _create(self, dataset: str) -> None:
        if not self.write:
            raise LedgerError(f"{self.name} is empty: it holds no ledger")
        with self.writing() as connection:
            _schema.create_all(connection)
            connection.execute(
                _meta.insert(), [{"key": "format", "value": str(FORMAT)}, {"key": "dataset", "value": dataset}]
            )

    def _take_file(self, path: Path) -> None:
        """See that a file can be used as asked, and lock it for writing."""
        if path.is_dir():
            raise LedgerError(f"{path} is a folder; name a file in it")
        if not self.write:
            if not path.exists():
                raise LedgerError(f"there is no ledger {path}, seen from {Path.cwd()}")
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # The lock is that of the file, by whatever name it is called.
            lock = _FileLock(Path(os.path.realpath(path)))
        except BlockingIOError as error:
            raise LedgerError(_in_use(self.name, f"process {error.strerror}")) from error
        except OSError as error:
            raise LedgerError(_not_writable(self.name, error.strerror)) from error
        self._open.callback(lock.free)
        if path.exists() and not os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
            raise LedgerError(_not_writable(self.name, "the file is read-only"))

    def _take_server(self) -> None:
        """Take the lock of the ledger in a server's database; the server frees it when this connection ends.

        It is taken on the connection that writes: who lost the lock cannot write either.
        """
        with self._connection.begin():
            who = f"fastreid_al process {os.getpid()} on {socket.gethostname()}"
            self._connection.execute(sa.select(sa.func.set_config("application_name", who, False)))
            place = self._connection.execute(sa.select(sa.func.current_database(), sa.func.current_schema())).one()
            digest = hashlib.blake2b("/".join(map(str, (*place, _events.name))).encode(), digest_size=8).digest()
            key = int.from_bytes(digest, "big", signed=True)
            if self._connection.execute(sa.select(sa.func.pg_try_advisory_lock(key))).scalar():
                return
            holder = self._connection.execute(
                sa.text(_HOLDER), {"high": key >> 32 & _WORD, "low": key & _WORD}
            ).scalar()
        raise LedgerError(_in_use(self.name, (holder or "another process").removeprefix("fastreid_al ")))

    def _hang_up(self) -> None:
        # A server that is gone already has let go as well.
        with contextlib.suppress(SQLAlchemyError):
            self._connection.close()

    def _pragma(self, setting: str) -> None:
        """Set what cannot be set within a transaction."""
        self._connection.exec_driver_sql(f"PRAGMA {setting}")
        self._connection.rollback()

    @contextlib.contextmanager
    def _one_line(self) -> Iterator[None]:
        """Turn what a database says into what a person can do about it."""
        try:
            yield
        except DBAPIError as error:
            raise LedgerError(self._explain(error)) from error
        except SQLAlchemyError as error:
            raise LedgerError(f"{self.name} cannot be used ({_first_line(error)})") from error

    def _explain(self, error: DBAPIError) -> str:
        text = _first_line(error.orig)
        said = text.lower()
        if not self._sqlite:
            lost = "the connection was lost" if error.connection_invalidated else "the server says"
            return (
                f"{self.name}: {lost} ({text}); every acknowledged answer is kept. Mend that, then go on with --resume"
            )
        if "not a database" in said:
            return f"{self.name} is not a ledger: it is no SQLite file; name another"
        if "malformed" in said or "corrupt" in said:
            return f"{self.name} is damaged ({text}); {_ASK_CHECK}; restore a copy"
        if "locked" in said:
            return (
                f"{self.name} is locked by a transaction of another process; close the program that has it open, "
                "then try again"
            )
        if "readonly" in said or "unable to open" in said:
            return _not_writable(self.name, text)
        return f"{self.name} cannot be used ({text}); every acknowledged answer is kept. Mend that, then go on with --resume"


class _FileLock:
    """An exclusive lock beside a file, freed by the system when the process ends, however it ends.

    Raises:
        BlockingIOError: Another process holds it; `strerror` is the number of that process.
        OSError: The lock cannot be made.
    """

    #: Those of this process: a forked child, such as a worker that loads images, would keep them after its parent's death.
    held: ClassVar[weakref.WeakSet[_FileLock]] = weakref.WeakSet()

    def __init__(self, path: Path) -> None:
        place = path.with_name(path.name + ".lock")
        self._handle: int | None = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(self._handle, 32).decode(errors="replace").strip()
            self.free()
            raise BlockingIOError(error.errno, holder or "unknown") from error
        except OSError:
            self.free()
            raise
        os.ftruncate(self._handle, 0)
        os.write(self._handle, f"{os.getpid()}\n".encode())
        self.held.add(self)

    def free(self) -> None:
        """Let go of the lock."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    @classmethod
    def free_all(cls) -> None:
        """Let go of the copies that a forked child has; the parent keeps its own."""
        for lock in list(cls.held):
            lock.free()


os.register_at_fork(after_in_child=_FileLock.free_all)


def _place(url: str) -> Path | URL:
    """A path for an SQLite file, a URL for everything else."""
    if "://" not in url:
        return Path(url)
    try:
        found = make_url(url)
    except ArgumentError as error:
        raise LedgerError(
            f"'{url}' is not a URL of a database; try postgresql://user@host/name, or a file's path"
        ) from error
    backend = found.get_backend_name()
    if backend == "sqlite":
        return found if found.database in (None, "", ":memory:") else Path(found.database)
    if backend not in ("postgresql", "postgres"):
        raise LedgerError(f"a ledger is an SQLite file or a PostgreSQL database, not {backend}; name another")
    # What "postgresql" alone stands for depends on the version of SQLAlchemy.
    return found if "+" in found.drivername else found.set(drivername="postgresql+psycopg")


def _engine(place: Path | URL, write: bool) -> Engine:
    """Connections are not pooled: a ledger holds one, and an SQLite database in memory lives as long as that."""
    if isinstance(place, Path) or place.get_backend_name() == "sqlite":
        file = None if isinstance(place, URL) else place
        return sa.create_engine("sqlite://", creator=lambda: _connect(file, write), poolclass=NullPool)
    if "connect_timeout" not in place.query and place.get_driver_name() in ("psycopg", "psycopg2"):
        place = place.update_query_dict({"connect_timeout": str(_CONNECT_SECONDS)})
    try:
        # A transaction sees one state of the ledger, as it does in SQLite.
        return sa.create_engine(place, poolclass=NullPool, isolation_level="REPEATABLE READ")
    except (ImportError, NoSuchModuleError) as error:
        raise LedgerError(
            f"the driver of PostgreSQL is missing ({_first_line(error)}); pip install 'fastreid_al[postgres]'"
        ) from error


def _connect(file: Path | None, write: bool) -> sqlite3.Connection:
    # The module begins no transactions of its own: which kind it is to be is said at each.
    connection = sqlite3.connect(_file_uri(file, write), uri=True, timeout=BUSY_SECONDS, isolation_level=None)
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute(f"PRAGMA query_only={'OFF' if write else 'ON'}")
    return connection


def _file_uri(file: Path | None, write: bool) -> str:
    if file is None:
        return "file::memory:"
    uri = f"file:{quote(os.path.abspath(file))}"
    if write:
        return f"{uri}?mode=rwc"
    # A reader makes two small files beside the ledger. Where it cannot, nobody can write the ledger either, unless they exist.
    beside = file.with_name(file.name + "-wal")
    frozen = not os.access(file.parent, os.W_OK, effective_ids=os.access in os.supports_effective_ids)
    return f"{uri}?immutable=1" if frozen and not beside.exists() else f"{uri}?mode=rw"


def _insert(connection: Connection, event: dict[str, Any]) -> int:
    key = connection.execute(_events.insert(), event).inserted_primary_key
    assert key is not None
    return key[0]


def _last_event(connection: Connection) -> int:
    return connection.execute(sa.select(sa.func.max(_events.c.id))).scalar() or 0


def _read_meta(connection: Connection) -> dict[str, str]:
    return {line.key: line.value for line in connection.execute(sa.select(_meta))}


def _up_to(condition: sa.ColumnElement[bool], event: int | None) -> sa.ColumnElement[bool]:
    return condition if event is None else condition & (_events.c.id <= event)


def _wrong_events() -> dict[str, sa.ColumnElement[bool]]:
    """What may be wrong with an event, and how to find it."""
    c = _events.c
    images = sa.select(_images.c.id)
    answers = sa.select(_events.alias("a").c.id).where(sa.literal_column("a.kind") == "answer")
    return {
        "is neither an answer nor an undo": c.kind.not_in(("answer", "undo")),
        "is about an image that is not in the ledger": _is_answer
        & sa.or_(*(side.is_(None) | side.not_in(images) for side in (c.left_id, c.right_id))),
        "has a verdict that is not known": _is_answer & (c.verdict.is_(None) | c.verdict.not_in(list(_VERDICTS))),
        "confirms an answer that is not in the ledger": c.confirms.is_not(None) & c.confirms.not_in(answers),
        "undoes an answer that is not in the ledger": _is_undo & (c.undoes.is_(None) | c.undoes.not_in(answers)),
    }


def _in_use(name: str, who: str) -> str:
    return f"{name} is in use by {who}; wait for it, or name another ledger with --questions.ledger"


def _not_writable(name: str, reason: str | None) -> str:
    return (
        f"{name} cannot be written ({reason}); make it and its folder writable, or name another with --questions.ledger"
    )


def _first_line(error: object) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
