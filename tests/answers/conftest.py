"""Ledgers in files and in a PostgreSQL server."""

from __future__ import annotations

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


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """URL of a database on a server of its own, which listens on a socket in its folder only."""
    pytest.importorskip(
        "psycopg",
        reason="the driver of PostgreSQL is not installed: pip install 'fastreid_al[postgres]'",
    )
    programs = server_programs()
    if programs is None:
        pytest.skip("PostgreSQL's server is not installed (no initdb and pg_ctl)")
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    demote: dict[str, int] = {}
    if os.getuid() == 0:
        # PostgreSQL refuses to run as root.
        os.chown(folder, NOBODY, NOBODY)
        demote = {"user": NOBODY, "group": NOBODY}

    def call(program: str, *words: str) -> None:
        done = subprocess.run(
            [str(programs / program), *words],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=120,
            **demote,
        )
        if done.returncode:
            output = (done.stderr or done.stdout).strip()[-300:]
            pytest.skip(f"PostgreSQL's {program} does not run here: {output}")

    data = str(folder / "data")
    call("initdb", "-D", data, "-U", "anna", "-A", "trust", "-E", "UTF8", "--no-sync")
    call(
        "pg_ctl",
        "-D",
        data,
        "-w",
        "-l",
        str(folder / "log"),
        "-o",
        f"-k {folder} -c listen_addresses=''",
        "start",
    )
    try:
        yield f"postgresql://anna@/postgres?host={folder}"
    finally:
        call("pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder)


@pytest.fixture
def database(server: str) -> str:
    """URL of an empty database."""
    import psycopg

    name = f"d{time.monotonic_ns()}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return server.replace("/postgres?", f"/{name}?")
