"""Ledgers in files and in a PostgreSQL server."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastreid_al.answers.ledger import Ledger
from fastreid_al.answers.question import Verdict
from tests.support.ledgers import keys, put

SAME, DIFFERENT, UNSURE = Verdict.SAME, Verdict.DIFFERENT, Verdict.UNSURE
NOBODY = 65534
_FAST = ("-E", "UTF8", "--no-sync")


def server_programs() -> Path | None:
    """Folder of PostgreSQL's programs."""
    places = [Path(p) for p in os.environ.get("PATH", "").split(os.pathsep)]
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((p for p in places if (p / "initdb").is_file() and (p / "pg_ctl").is_file()), None)


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(tmp_path / "answers.sqlite")


@pytest.fixture
def filled(file: str) -> str:
    """0 = 1 = 2, which differs from 3; 4 and 5 unsure; an undone answer about 6 and 7."""
    with Ledger.open(file, keys()) as ledger:
        put(ledger, 0, 1)
        put(ledger, 1, 2, annotator="bert")
        put(ledger, 2, 3, DIFFERENT, reason="merge", epoch=4)
        put(ledger, 4, 5, UNSURE)
        ledger.undo(put(ledger, 6, 7), "anna")
    return file


class PostgreSQL:
    """A server of its own, which listens on a socket in its folder only.

    Args:
        programs: Folder of PostgreSQL's programs.
        folder: An empty folder.
    """

    def __init__(self, programs: Path, folder: Path) -> None:
        self.url = f"postgresql://anna@/postgres?host={folder}"
        self._programs = programs
        self._folder = folder
        self._demote: dict[str, int] = {}
        if os.getuid() == 0:
            # PostgreSQL refuses to run as root.
            os.chown(folder, NOBODY, NOBODY)
            self._demote = {"user": NOBODY, "group": NOBODY}
        self._data = str(folder / "data")
        self._call("initdb", "-D", self._data, "-U", "anna", "-A", "trust", *_FAST)

    def start(self) -> None:
        options = f"-k {self._folder} -c listen_addresses=''"
        words = ("-D", self._data, "-w", "-l", str(self._folder / "log"), "-o", options)
        self._call("pg_ctl", *words, "start")

    def stop(self) -> None:
        """Stop it as a crash does."""
        self._call("pg_ctl", "-D", self._data, "-m", "immediate", "stop")

    def _call(self, program: str, *words: str) -> None:
        done = subprocess.run(
            [str(self._programs / program), *words],
            cwd=self._folder,
            capture_output=True,
            text=True,
            timeout=120,
            **self._demote,
        )
        if done.returncode:
            output = (done.stderr or done.stdout).strip()[-300:]
            pytest.skip(f"PostgreSQL's {program} does not run here: {output}")


@contextlib.contextmanager
def running_postgres() -> Iterator[PostgreSQL]:
    """Start a server; without PostgreSQL the test is skipped."""
    pytest.importorskip(
        "psycopg",
        reason="the driver of PostgreSQL is not installed: pip install 'fastreid_al[postgres]'",
    )
    programs = server_programs()
    if programs is None:
        pytest.skip("PostgreSQL's server is not installed (no initdb and pg_ctl)")
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    try:
        made = PostgreSQL(programs, folder)
        made.start()
        try:
            yield made
        finally:
            made.stop()
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """URL of a database on a server of its own."""
    with running_postgres() as made:
        yield made.url


@pytest.fixture
def database(server: str) -> str:
    """URL of an empty database."""
    import psycopg

    name = f"d{time.monotonic_ns()}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return server.replace("/postgres?", f"/{name}?")
