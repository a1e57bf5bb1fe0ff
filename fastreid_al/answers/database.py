"""The database of a ledger: its tables, one connection, one writer of each kind, and errors of one
line.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    NoSuchModuleError,
    ProgrammingError,
    SQLAlchemyError,
)
from sqlalchemy.pool import NullPool

from ..errors import LedgerError, parse_printable, printable
from ..files import create_file, make_folder
from ..locks import FileLock
from . import history

#: 2 added questions, people, leases, skips and marks, and columns of images and events.
FORMAT = 2
#: Who writes: the trainer, which adds images and questions; an import, which adds images and
#: answers; the annotation server; or a command, which adds events. There is one trainer or import
#: and one server at a time.
Role = Literal["trainer", "import", "server", "command"]
#: Who adds images. There is one of them at a time.
ADDS_IMAGES = ("trainer", "import")
#: How long a transaction waits for a transaction of another process.
BUSY_SECONDS = 5.0
#: What to do about a damaged ledger.
ASK_CHECK = "fastreid-al ledger check prints what is wrong"
#: The option of a run that names its ledger, in a message; commands take the ledger as argument.
_OPTION_OF_RUN = " with `questions.ledger`"
_CONNECT_SECONDS = 10
#: What to do when the database fails during a run.
_KEPT = "every acknowledged answer is kept. Fix this, then resume the run with `resume`"
#: The same for a command.
_AGAIN = "fix this, then try again"
_WORD = 0xFFFFFFFF
#: Finds the process that holds an advisory lock of 64 bits, which the server lists as two halves.
_HOLDER = """
    SELECT coalesce(nullif(a.application_name, ''), 'process ' || a.pid)
    FROM pg_locks l JOIN pg_stat_activity a USING (pid)
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
      AND l.classid::bigint = :high AND l.objid::bigint = :low
"""

#: Stands before names that a database cannot hold as they are; no relative path begins with it.
_ESCAPED = "//"


class Name(sa.TypeDecorator[str]):
    """Text of any bytes, such as the path of an image.

    A database holds UTF-8 without the character 0. Other names are stored as `//` and their
    printable form (`fastreid_al.errors.printable`), and are read back as they were.
    """

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        """Return what is stored."""
        return None if value is None else stored_name(value)

    def process_result_value(self, value: object, dialect: sa.Dialect) -> str | None:
        """Return the name that was stored."""
        if isinstance(value, bytes):  # a damaged column
            return value.decode(errors="surrogateescape")
        if value is None:
            return None
        text = str(value)
        return parse_printable(text[len(_ESCAPED) :]) if text.startswith(_ESCAPED) else text


def stored_name(name: str) -> str:
    """Return a name as the database holds it; one of UTF-8 stays as it is."""
    fits = "\0" not in name and not name.startswith(_ESCAPED)
    try:
        name.encode()
    except UnicodeEncodeError:
        fits = False
    return name if fits else _ESCAPED + printable(name)


_SCHEMA = sa.MetaData()
META = sa.Table(
    "meta",
    _SCHEMA,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", Name, nullable=False),
)
IMAGES = sa.Table(
    "images",
    _SCHEMA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("path", Name, nullable=False),
    sa.Column("digest", Name, nullable=False),
    # When the image was erased on request: it is not shown any more.
    sa.Column("erased_at", sa.Double),
)
PEOPLE = sa.Table(
    "people",
    _SCHEMA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", Name, nullable=False, unique=True),
    # "annotate", "review" or "admin".
    sa.Column("role", sa.Text, nullable=False),
    # SHA-256 of the person's token in hexadecimal; NULL for a person at a terminal.
    sa.Column("secret", sa.Text),
    sa.Column("made_at", sa.Double, nullable=False),
    sa.Column("seen_at", sa.Double),
    sa.Column("disabled_at", sa.Double),
    sqlite_autoincrement=True,
)
QUESTIONS = sa.Table(
    "questions",
    _SCHEMA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("run", Name, nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False),
    # The first question of its sheet, which all questions of a sheet name, the first one too; NULL
    # for a question of its own.
    sa.Column("sheet", sa.Integer),
    sa.Column("left_id", sa.ForeignKey("images.id"), nullable=False),
    sa.Column("right_id", sa.ForeignKey("images.id"), nullable=False),
    # Images of each group, most central first, as a JSON list of numbers of `images`.
    sa.Column("left_images", sa.Text, nullable=False),
    sa.Column("right_images", sa.Text, nullable=False),
    sa.Column("reason", Name, nullable=False),
    sa.Column("score", sa.Double),
    sa.Column("similarity", sa.Double),
    sa.Column("probability", sa.Double),
    # Pairs of a merge that must agree before a "same" counts, and the first answer of the merge.
    sa.Column("need", sa.Integer, nullable=False, server_default="1"),
    sa.Column("confirms", sa.Integer),
    # People who must agree.
    sa.Column("votes", sa.Integer, nullable=False, server_default="1"),
    # The verdict of a question whose answer is known, which measures people.
    sa.Column("gold", sa.Text),
    # Last event when it was published: answers are applied in the order of (known_event, id).
    sa.Column("known_event", sa.Integer, nullable=False),
    # "open", "answered", "withdrawn" or "review".
    sa.Column("status", sa.Text, nullable=False),
    # Event that made it "answered".
    sa.Column("settled_event", sa.Integer),
    sa.Column("made_at", sa.Double, nullable=False),
    sa.Index("questions_status", "status"),
    sqlite_autoincrement=True,
)
LEASES = sa.Table(
    "leases",
    _SCHEMA,
    sa.Column("question", sa.ForeignKey("questions.id"), primary_key=True),
    sa.Column("person", sa.ForeignKey("people.id"), primary_key=True),
    sa.Column("since", sa.Double, nullable=False),
    sa.Column("until", sa.Double, nullable=False),
)
SKIPS = sa.Table(
    "skips",
    _SCHEMA,
    sa.Column("question", sa.ForeignKey("questions.id"), primary_key=True),
    sa.Column("person", sa.ForeignKey("people.id"), primary_key=True),
    sa.Column("at", sa.Double, nullable=False),
)
MARKS = sa.Table(
    "marks",
    _SCHEMA,
    sa.Column("run", Name, primary_key=True),
    sa.Column("epoch", sa.Integer, primary_key=True),
    # Questions that were open at a time, and the last event when the round began.
    sa.Column("window", sa.Integer, nullable=False),
    sa.Column("first_event", sa.Integer, nullable=False),
    sa.Column("began_at", sa.Double, nullable=False),
    # Last event that the labels of the epoch were made from; NULL until the round has ended.
    sa.Column("event", sa.Integer),
    sa.Column("ended_at", sa.Double),
)
EVENTS = sa.Table(
    "events",
    _SCHEMA,
    sa.Column("id", sa.Integer, primary_key=True),
    # "answer", "undo", "gold" (an answer to a question whose answer is known) or "erase".
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("left_id", sa.ForeignKey("images.id")),
    sa.Column("right_id", sa.ForeignKey("images.id")),
    sa.Column("verdict", sa.Text),
    sa.Column("annotator", Name, nullable=False),
    sa.Column("asked_at", sa.Double, nullable=False),
    sa.Column("answered_at", sa.Double, nullable=False),
    sa.Column("epoch", sa.Integer),
    sa.Column("reason", Name),
    sa.Column("score", sa.Double),
    sa.Column("similarity", sa.Double),
    sa.Column("need", sa.Integer, nullable=False, server_default="1"),
    sa.Column("confirms", sa.ForeignKey("events.id")),
    sa.Column("undoes", sa.ForeignKey("events.id")),
    sa.Column("shown", sa.Text),
    sa.Column("run", Name),
    # Format 2.
    sa.Column("question", sa.Integer),
    sa.Column("person", sa.Integer),
    # Names a decision of a person: its events have it in common, and are taken back together.
    sa.Column("gesture", sa.Text),
    # Made by who answers, once for each decision: an answer that is sent twice is written once.
    sa.Column("token", sa.Text),
    # Seconds between `asked_at` and `answered_at` in which nobody was at the page.
    sa.Column("idle", sa.Double),
    sa.Column("comment", Name),
    # What is wrong with the images, separated by commas: "bad crop", "mixed", "no object".
    sa.Column("tags", sa.Text),
    # "web", "terminal" or "import"; NULL where the trainer itself asked.
    sa.Column("source", sa.Text),
    sa.Index("events_question", "question"),
    sa.Index("events_person", "person"),
    sa.Index("events_token", "token"),
    sa.Index("events_undoes", "undoes"),
    sqlite_autoincrement=True,
)
#: Tables of format 1, and columns that format 2 added to them.
_FIRST_TABLES = {META.name, IMAGES.name, EVENTS.name}
_ADDED = {
    IMAGES: ("erased_at",),
    EVENTS: ("question", "person", "gesture", "token", "idle", "comment", "tags", "source"),
}


class Store:
    """The database of a ledger: one connection, one lock, short transactions, and errors of one
    line.

    Args:
        url: Path of an SQLite file, or a URL.
        write: Whether to open it for writing.
        role: Who writes. The trainer and an import share a lock, the server has its own, a command
            holds none.

    Raises:
        LedgerError: It cannot be opened, or has another writer with this role.
    """

    def __init__(self, url: str, write: bool, role: Role = "trainer") -> None:
        #: Path or URL as it was given, with its password: `name` is what may be shown.
        self.url = url
        self.write = write
        self.role = role
        #: Format of the database, once `prepare` was called.
        self.format = FORMAT
        location = _parse(url)
        if isinstance(location, Path):
            self.name = str(location)
        else:
            self.name = location.render_as_string(hide_password=True)
        self._open = contextlib.ExitStack()
        try:
            if isinstance(location, Path):
                self._lock_file(location)
            with self._one_line():
                engine = _engine(location, write)
                self._sqlite = engine.dialect.name == "sqlite"
                self._connection = engine.connect()
                self._open.callback(self._disconnect)
                if not self._sqlite and write:
                    self._name_connection()
                    if role != "command":
                        self._lock_server()
        except BaseException:
            self.close()
            raise

    @property
    def is_sqlite(self) -> bool:
        """Whether it is a file of SQLite, or in memory."""
        return self._sqlite

    @property
    def is_lost(self) -> bool:
        """Whether the connection has ended, so that the ledger must be opened again."""
        return bool(self._connection.invalidated or self._connection.closed)

    def close(self) -> None:
        """Close the connection, then release the lock."""
        self._open.close()

    def prepare(self, dataset: str) -> None:
        """Check that this version can read the ledger, and create it in an empty database."""
        with self.reading() as connection:
            if (
                self._sqlite
                and self.write
                and connection.exec_driver_sql("PRAGMA quick_check(1)").scalar() != "ok"
            ):
                raise LedgerError(f"{self.name} is damaged; {ASK_CHECK}; restore a copy")
            tables = set(sa.inspect(connection).get_table_names())
            meta = read_meta(connection) if tables >= _FIRST_TABLES else {}
        version = meta.get("format", "")
        # A server's database may hold other tables as well, a file may not.
        if not (tables if self._sqlite else tables & _FIRST_TABLES):
            self._create(dataset)
        elif not version.isdecimal():
            raise LedgerError(
                f"{self.name} is a database that holds no answers; name another ledger"
            )
        elif int(version) > FORMAT:
            raise LedgerError(
                f"{self.name} was written by a newer fastreid_al (format {version}); "
                "update the package"
            )
        else:
            self.format = int(version)
            if self.write and self.format < FORMAT:
                self._upgrade()
            elif self.write:
                self._protect()
        if self._sqlite and self.write:
            # This cannot be set within a transaction.
            with self._one_line():
                self._connection.exec_driver_sql("PRAGMA journal_mode=WAL")
                self._connection.rollback()

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open a transaction that reads."""
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """Open a transaction that writes: saved when the block ends, undone when it raises."""
        if not self.write:
            raise LedgerError(
                f"{self.name} was opened for reading; open it with write=True to add to it"
            )
        with self._transaction("BEGIN IMMEDIATE") as connection:
            if not self._sqlite:
                # Writers wait for each other, as in SQLite: events become visible in the order of
                # their numbers. The transaction sees what was there when it got the lock.
                connection.exec_driver_sql(f"LOCK TABLE {META.name} IN EXCLUSIVE MODE")
            yield connection

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[Connection]:
        # SQLAlchemy would replace a lost connection by a new one, which does not hold the lock.
        if self._connection.invalidated or self._connection.closed:
            raise LedgerError(f"{self.name} is closed; resume the run with `resume`")
        with self._one_line(), self._connection.begin():
            if self._sqlite:
                self._connection.exec_driver_sql(begin)
            yield self._connection

    def damage(self) -> list[str]:
        """Return what the database finds wrong with its file; empty for a server."""
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
        with self._transaction("BEGIN IMMEDIATE") as connection:
            _SCHEMA.create_all(connection)
            connection.execute(
                META.insert(),
                [{"key": "format", "value": str(FORMAT)}, {"key": "dataset", "value": dataset}],
            )
            history.protect(connection)

    def _protect(self) -> None:
        """Add the triggers of history to a ledger that was made without them."""
        with self.reading() as connection:
            if not history.unprotected(connection):
                return
        try:
            with self.writing() as connection:
                history.protect(connection)
        except LedgerError as error:
            # On a server, only the owner of a table may add triggers; `ledger check` says that they
            # are missing.
            if self._sqlite or not isinstance(error.__cause__, ProgrammingError):
                raise

    def _upgrade(self) -> None:
        """Bring a database of format 1 to format 2: it gets columns and tables."""
        with self.writing() as connection:
            # Another process may have done it since.
            if int(read_meta(connection)["format"]) < FORMAT:
                for table, names in _ADDED.items():
                    for name in names:
                        kind = table.c[name].type.compile(connection.dialect)
                        connection.exec_driver_sql(
                            f"ALTER TABLE {table.name} ADD COLUMN {name} {kind}"
                        )
                _SCHEMA.create_all(connection)
                for index in EVENTS.indexes:
                    index.create(connection)
                connection.execute(
                    META.update().where(META.c.key == "format"), {"value": str(FORMAT)}
                )
            history.protect(connection)
        self.format = FORMAT

    def _lock_file(self, path: Path) -> None:
        """Check that a file can be used, and lock it if it is to be written."""
        if os.path.isdir(path):
            raise LedgerError(
                f"{path} is a folder; name a file in it, such as {path / 'answers.sqlite'} of a run"
            )
        if not self.write:
            if not os.path.exists(path):
                raise LedgerError(f"there is no ledger {path} (working directory: {Path.cwd()})")
            return
        try:
            make_folder(path.parent)
            # The same file must have the same lock under every name, such as a link.
            real = Path(os.path.realpath(path))
            if self.role != "command":
                suffix = ".lock" if self.role in ADDS_IMAGES else ".server.lock"
                self._open.callback(FileLock(real.with_name(real.name + suffix)).free)
        except BlockingIOError as error:
            raise LedgerError(self._in_use(f"process {error.strerror}")) from error
        except OSError as error:
            raise LedgerError(self._not_writable(error.strerror)) from error
        if not os.path.exists(path):
            self._create_file(path)
        elif not _writable(path):
            raise LedgerError(self._not_writable("the file is read-only"))

    def _create_file(self, path: Path) -> None:
        """Create an empty file that only its owner may read; SQLite gives its log the same mode."""
        try:
            create_file(path).close()
        except OSError as error:
            reason = "it is a link to nothing" if path.is_symlink() else error.strerror
            raise LedgerError(self._not_writable(reason)) from error

    def _name_connection(self) -> None:
        """Name the process to a database server."""
        who = f"fastreid_al process {os.getpid()} on {socket.gethostname()}"
        with self._connection.begin():
            self._connection.execute(sa.select(sa.func.set_config("application_name", who, False)))

    def _lock_server(self) -> None:
        """Take the lock of the ledger in a server's database.

        The server releases it when the connection ends. It is taken on the connection that writes,
        so a process that lost the lock cannot write either.
        """
        with self._connection.begin():
            database = self._connection.execute(
                sa.select(sa.func.current_database(), sa.func.current_schema())
            ).one()
            # The trainer's lock is also that of versions which know no roles.
            names = (*database, EVENTS.name, *(() if self.role in ADDS_IMAGES else (self.role,)))
            digest = hashlib.blake2b("/".join(map(str, names)).encode(), digest_size=8).digest()
            key = int.from_bytes(digest, "big", signed=True)
            if self._connection.execute(sa.select(sa.func.pg_try_advisory_lock(key))).scalar():
                return
            holder = self._connection.execute(
                sa.text(_HOLDER), {"high": key >> 32 & _WORD, "low": key & _WORD}
            ).scalar()
        raise LedgerError(self._in_use((holder or "another process").removeprefix("fastreid_al ")))

    def _disconnect(self) -> None:
        # A server that has stopped has released the lock as well.
        with contextlib.suppress(SQLAlchemyError):
            self._connection.close()

    @contextlib.contextmanager
    def _one_line(self) -> Iterator[None]:
        """Turn an error of the database into one line that says what to do."""
        try:
            yield
        except DBAPIError as error:
            raise LedgerError(self._explain(error)) from error
        except SQLAlchemyError as error:
            raise LedgerError(f"{self.name} cannot be used ({_first_line(error)})") from error

    def _option(self) -> str:
        return _OPTION_OF_RUN if self.role == "trainer" else ""

    def _in_use(self, who: str) -> str:
        return (
            f"{self.name} is in use by {who}; wait for it, or name another ledger{self._option()}"
        )

    def _not_writable(self, reason: str | None) -> str:
        return (
            f"{self.name} cannot be written ({reason}); make it and its folder writable, "
            f"or name another{self._option()}"
        )

    def _kept(self) -> str:
        return _KEPT if self.write and self.role in ("trainer", "server") else _AGAIN

    def _explain(self, error: DBAPIError) -> str:
        text = _first_line(error.orig)
        said = text.lower()
        if history.APPEND_ONLY in said:
            return f"{self.name}: {text}"
        if not self._sqlite:
            lost = "the connection was lost" if error.connection_invalidated else "the server says"
            return f"{self.name}: {lost} ({text}); {self._kept()}"
        if "not a database" in said:
            return f"{self.name} is not a ledger: it is not an SQLite file; name another"
        if "malformed" in said or "corrupt" in said:
            return f"{self.name} is damaged ({text}); {ASK_CHECK}; restore a copy"
        if "locked" in said:
            return (
                f"{self.name} is locked by a transaction of another process; "
                "close the program that has it open, then try again"
            )
        if "readonly" in said or "unable to open" in said:
            return self._not_writable(text)
        return f"{self.name} cannot be used ({text}); {self._kept()}"


def read_meta(connection: Connection) -> dict[str, str]:
    """Return the format of a ledger, and the name of its image set."""
    return {line.key: line.value for line in connection.execute(sa.select(META))}


def _parse(url: str) -> Path | URL:
    """Return the path of an SQLite file, or the URL of another database."""
    if "://" not in url:
        return Path(url)
    try:
        found = make_url(url)
    except ArgumentError as error:
        raise LedgerError(
            f"got {url!r}, expected the path of a file or a URL such as postgresql://user@host/name"
        ) from error
    backend = found.get_backend_name()
    if backend == "sqlite":
        return found if found.database in (None, "", ":memory:") else Path(found.database)
    if backend not in ("postgresql", "postgres"):
        raise LedgerError(
            f"got a database of {backend}, expected an SQLite file or a PostgreSQL database"
        )
    # The driver that "postgresql" stands for depends on the version of SQLAlchemy.
    return found if "+" in found.drivername else found.set(drivername="postgresql+psycopg")


def _engine(location: Path | URL, write: bool) -> Engine:
    """Return an engine without a pool of connections.

    A ledger holds one connection, and an SQLite database in memory lives as long as its connection.
    """
    if isinstance(location, Path) or location.get_backend_name() == "sqlite":
        file = None if isinstance(location, URL) else location
        return sa.create_engine(
            "sqlite://", creator=lambda: _connect(file, write), poolclass=NullPool
        )
    if "connect_timeout" not in location.query and location.get_driver_name() in (
        "psycopg",
        "psycopg2",
    ):
        location = location.update_query_dict({"connect_timeout": str(_CONNECT_SECONDS)})
    try:
        # A transaction sees one state of the ledger, as it does in SQLite.
        return sa.create_engine(location, poolclass=NullPool, isolation_level="REPEATABLE READ")
    except (ImportError, NoSuchModuleError) as error:
        raise LedgerError(
            f"the driver of PostgreSQL is missing ({_first_line(error)}); "
            "pip install 'fastreid_al[postgres]'"
        ) from error


def _connect(file: Path | None, write: bool) -> sqlite3.Connection:
    # `isolation_level=None`: the module begins no transactions; `Store` begins each with its kind.
    # The threads of a server use one connection, one after the other.
    connection = sqlite3.connect(
        _file_uri(file, write),
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    # A damaged text must not hide the rest of its row.
    connection.text_factory = lambda text: text.decode(errors="surrogateescape")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute(f"PRAGMA query_only={'OFF' if write else 'ON'}")
    return connection


def _file_uri(file: Path | None, write: bool) -> str:
    if file is None:
        return "file::memory:"
    uri = f"file:{quote(os.fsencode(os.path.abspath(file)))}"
    if write:
        return f"{uri}?mode=rwc"
    # A reader makes two small files next to the ledger. If it cannot, no process can write the
    # ledger either, unless they exist already, and the ledger may be read as immutable.
    log = file.with_name(file.name + "-wal")
    return f"{uri}?mode=rw" if _writable(file.parent) or log.exists() else f"{uri}?immutable=1"


def _writable(path: Path) -> bool:
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def _first_line(error: object) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
