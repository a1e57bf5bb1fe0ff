"""Files and servers that cannot be used are refused in one line; a ledger has one writer."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastreid_al.answers import database as store
from fastreid_al.answers.ledger import ImageKeys, Ledger
from fastreid_al.answers.question import Verdict
from fastreid_al.errors import LedgerError
from fastreid_al.ledger import main
from tests.support.children import forked, kill
from tests.support.ledgers import keys, put, refused

SAME, DIFFERENT, UNSURE = Verdict.SAME, Verdict.DIFFERENT, Verdict.UNSURE
NOBODY = 65534


@pytest.mark.parametrize("write", [True, False])
def test_a_file_that_is_no_database_is_refused_and_left_alone(file: str, write: bool) -> None:
    Path(file).write_text("not a database " * 100)
    assert "is not a ledger" in refused(file, write=write)
    assert Path(file).read_text().startswith("not a database")


@pytest.mark.parametrize("write", [True, False])
def test_a_database_of_something_else_is_refused_and_left_alone(file: str, write: bool) -> None:
    with contextlib.closing(sqlite3.connect(file)) as other:
        other.execute("CREATE TABLE meta (x)")
        other.commit()
    before = Path(file).read_bytes()
    assert "is a database that holds no answers" in refused(file, write=write)
    assert Path(file).read_bytes() == before


def test_damage_is_found_when_a_ledger_is_opened(file: str) -> None:
    with Ledger.open(file, keys(500)) as ledger:
        for i in range(300):
            put(ledger, i, i + 1, shown=(["x" * 100], ["y" * 100]))
    content = bytearray(Path(file).read_bytes())
    content[5 * 4096 : 20 * 4096] = b"\x5a" * (15 * 4096)
    Path(file).write_bytes(content)
    assert "is damaged" in refused(file)
    with Ledger.open(file, write=False) as ledger:
        assert ledger.integrity()
        with pytest.raises(LedgerError, match="is damaged"):
            list(ledger.events())


def test_a_ledger_cut_short_is_refused(filled: str) -> None:
    with open(filled, "r+b") as cut:
        cut.truncate(3 * 4096)
    assert "is damaged" in refused(filled)


def test_a_newer_format_is_refused(filled: str) -> None:
    with contextlib.closing(sqlite3.connect(filled)) as other:
        other.execute("UPDATE meta SET value = '3' WHERE key = 'format'")
        other.commit()
    assert "newer fastreid_al (format 3)" in refused(filled)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert "is a folder" in refused(str(tmp_path))
    assert "is a folder" in refused(str(tmp_path), write=False)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    assert "cannot be written" in refused(str(tmp_path / "x" / "answers.sqlite"))


@pytest.mark.parametrize(
    ("role", "end"),
    [
        ("trainer", "or name another with `questions.ledger`"),
        ("server", "or name another"),
        ("command", "or name another"),
    ],
)
def test_only_a_run_is_told_its_option(tmp_path: Path, role: store.Role, end: str) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(LedgerError) as caught:
        Ledger.open(str(tmp_path / "x" / "answers.sqlite"), role=role)
    assert str(caught.value).endswith(end)


def test_a_missing_file_is_not_made_by_reading(file: str) -> None:
    assert "there is no ledger" in refused(file, write=False)
    assert not Path(file).exists()


def test_an_empty_file_is_no_ledger_to_read_and_becomes_one_to_write(file: str) -> None:
    Path(file).touch()
    assert "holds no ledger" in refused(file, write=False)
    with Ledger.open(file, keys()) as ledger:
        assert put(ledger, 0, 1) == 1


def test_what_was_opened_for_reading_is_not_written(filled: str) -> None:
    with (
        Ledger.open(filled, write=False) as ledger,
        pytest.raises(LedgerError, match="opened for reading"),
    ):
        ledger.undo(1, "anna")


def test_a_closed_ledger_says_so(file: str) -> None:
    ledger = Ledger.open(file, keys())
    ledger.close()
    ledger.close()
    with pytest.raises(LedgerError, match="is closed"):
        put(ledger, 0, 1)


def test_a_ledger_of_another_image_set_is_refused_and_both_are_named(filled: str) -> None:
    line = refused(filled, images=keys(dataset="msmt17"))
    assert "market1501" in line
    assert "msmt17" in line


def test_a_ledger_of_other_images_is_refused_and_the_first_is_named(filled: str) -> None:
    others = ImageKeys("market1501", ["x.jpg", "y.jpg"], ["aa", "bb"])
    assert "the first is train/0.jpg" in refused(filled, images=others)


def test_a_transaction_of_another_process_is_waited_for_and_then_named(
    filled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "BUSY_SECONDS", 0.1)
    with (
        Ledger.open(filled, keys()) as ledger,
        contextlib.closing(sqlite3.connect(filled)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match="locked by a transaction of another process"):
            put(ledger, 0, 5)
        other.rollback()
        assert put(ledger, 0, 5) == 7


@contextlib.contextmanager
def read_only(*places: Path) -> Iterator[None]:
    """As somebody who may read and not write; root may always."""
    for place in places:
        place.chmod(0o555 if place.is_dir() else 0o444)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(NOBODY)
        yield
    finally:
        os.seteuid(user)
        for place in places:
            place.chmod(0o755 if place.is_dir() else 0o644)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can read."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_a_read_only_place_is_refused_for_writing_and_read(open_folder: Path) -> None:
    file = open_folder / "answers.sqlite"
    with Ledger.open(str(file), keys()) as ledger:
        put(ledger, 0, 1)
    with read_only(file, open_folder):
        assert "cannot be written" in refused(str(file))
        assert "cannot be written" in refused(str(open_folder / "other.sqlite"))
        with Ledger.open(str(file), write=False) as ledger:
            assert len(ledger.answers()) == 1


def test_a_read_only_file_is_refused_for_writing(open_folder: Path) -> None:
    file = open_folder / "answers.sqlite"
    Ledger.open(str(file), keys()).close()
    open_folder.chmod(0o777)
    (open_folder / "answers.sqlite.lock").unlink()
    with read_only(file):
        assert "the file is read-only" in refused(str(file))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://localhost/x", "got a database of mysql, expected an SQLite file"),
        ("://", "expected the path of a file or a URL"),
        ("postgresql+nodriver://localhost/x", "driver of PostgreSQL is missing"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused(url: str, message: str) -> None:
    assert message in refused(url)


def test_a_missing_driver_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert "pip install 'fastreid_al[postgres]'" in refused("postgresql://localhost/x")


def test_an_unreachable_server_is_named_without_its_password() -> None:
    pytest.importorskip("psycopg", reason="the driver of PostgreSQL is not installed")
    line = refused("postgresql://anna:secret@127.0.0.1:9/x")
    assert "anna:***@127.0.0.1:9/x" in line
    assert "secret" not in line


def hold(url: str) -> int:
    """A child that holds the ledger for writing."""
    ready, signal_ready = os.pipe()

    def work() -> None:
        with Ledger.open(url, keys()):
            os.write(signal_ready, b"x")
            time.sleep(60)

    child = forked(work)
    os.close(signal_ready)
    assert os.read(ready, 1) == b"x"
    os.close(ready)
    return child


def test_a_second_writer_is_refused_until_the_first_is_killed(filled: str) -> None:
    child = hold(filled)
    try:
        line = refused(filled, images=keys())
        assert line.startswith(
            f"{filled} is in use by process {child}; wait for it, or name another ledger"
        )
        with Ledger.open(filled, write=False) as reader:
            assert len(reader.answers()) == 4
    finally:
        kill(child)
    Ledger.open(filled, keys()).close()


def test_a_second_writer_in_the_same_process_is_refused(filled: str, tmp_path: Path) -> None:
    (tmp_path / "link.sqlite").symlink_to(filled)
    with Ledger.open(filled, keys()):
        assert f"in use by process {os.getpid()}" in refused(filled)
        assert "in use" in refused(str(tmp_path / "link.sqlite"))
    Ledger.open(filled, keys()).close()


def test_a_forked_worker_does_not_keep_the_ledger_of_its_parent(filled: str) -> None:
    ledger = Ledger.open(filled, keys())
    worker = forked(lambda: time.sleep(60))
    try:
        ledger.close()
        Ledger.open(filled, keys()).close()
    finally:
        kill(worker)


def test_a_refused_opening_lets_go_of_the_lock(filled: str) -> None:
    refused(filled, images=keys(dataset="msmt17"))
    Ledger.open(filled, keys()).close()


def test_a_reader_sees_answers_appended_after_it_opened(filled: str) -> None:
    with Ledger.open(filled, keys(), write=False) as reader, Ledger.open(filled, keys()) as ledger:
        put(ledger, 8, 9)
        assert [(a.left, a.right) for a in reader.answers()][-1] == (8, 9)


def append_until_killed(url: str, acknowledge: int, seed: int) -> None:
    draw = random.Random(seed)
    with Ledger.open(url, keys(1000)) as ledger:
        while True:
            event = put(ledger, *draw.sample(range(1000), 2), shown=(["a.jpg"], ["b.jpg"]))
            os.write(acknowledge, f"{event}\n".encode())
            if draw.random() < 0.2:
                os.write(acknowledge, f"{ledger.undo(event, 'anna')}\n".encode())


def run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    main(words)
    return capsys.readouterr().out


def test_postgres_keeps_answers_as_a_file_does(
    database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "holds no ledger" in refused(database, write=False)
    with Ledger.open(database, keys()) as ledger:
        first = put(ledger, 0, 1, score=0.5, shown=(["a"], ["b"]))
        put(ledger, 1, 2, confirms=first, need=2)
        put(ledger, 2, 3, DIFFERENT)
        ledger.undo(first, "anna")
    with Ledger.open(database, keys()) as ledger:
        assert [a[:4] for a in ledger.answers()] == [(2, 1, 2, SAME), (3, 2, 3, DIFFERENT)]
        assert [a.event for a in ledger.answers(as_of=1)] == [1]
        assert (ledger.last_event(), ledger.last_answer()) == (4, 3)
        assert (ledger.seconds(), ledger.integrity(), ledger.dataset()) == (3.0, [], "market1501")
        assert [e.kind for e in ledger.events()] == ["answer"] * 3 + ["undo"]
        with pytest.raises(LedgerError, match="already undone"):
            ledger.undo(first, "anna")
        with pytest.raises(LedgerError):
            put(ledger, 0, 1, confirms=77)
        put(ledger, 0, 1)
    assert "4 answered" not in run(capsys, "show", database)
    assert run(capsys, "check", database) == "clean\n"
    assert "train/2.jpg,train/3.jpg,different,3" in run(
        capsys, "export", database, "--what", "closure"
    )
    assert "msmt17" in refused(database, images=keys(dataset="msmt17"))


def test_postgres_has_one_writer_and_frees_it_when_that_is_killed(database: str) -> None:
    child = hold(database)
    try:
        assert f"is in use by process {child} on " in refused(database, images=keys())
        with Ledger.open(database, write=False) as reader:
            assert reader.answers() == []
    finally:
        kill(child)
    end = time.monotonic() + 20
    while True:
        try:
            Ledger.open(database, keys()).close()
            break
        except LedgerError:
            assert time.monotonic() < end
            time.sleep(0.05)


def test_postgres_acknowledged_answers_survive_a_kill(database: str) -> None:
    read, write = os.pipe()
    child = forked(lambda: append_until_killed(database, write, 0))
    os.close(write)
    with os.fdopen(read) as pipe:
        acknowledged = [int(pipe.readline()) for _ in range(20)]
        kill(child)
        acknowledged += [int(line) for line in pipe if line.endswith("\n")]
    with Ledger.open(database, write=False) as ledger:
        assert set(acknowledged) <= {e.id for e in ledger.events()}
        assert ledger.integrity() == []


def test_postgres_a_lost_connection_is_not_replaced_by_one_without_the_lock(database: str) -> None:
    import psycopg

    with Ledger.open(database, keys()) as ledger:
        put(ledger, 0, 1)
        with psycopg.connect(database, autocommit=True) as other:
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name LIKE 'fastreid_al%'"
            )
        with pytest.raises(LedgerError, match="the connection was lost"):
            put(ledger, 1, 2)
        with pytest.raises(LedgerError, match="is closed"):
            put(ledger, 1, 2)
    with Ledger.open(database, keys()) as ledger:
        assert len(ledger.answers()) == 1


def test_postgres_tables_of_something_else_are_left_alone(database: str) -> None:
    import psycopg

    with psycopg.connect(database, autocommit=True) as other:
        other.execute("CREATE TABLE events (x int)")
    assert "is a database that holds no answers" in refused(database)


def test_postgres_a_ledger_may_live_beside_other_tables(database: str) -> None:
    import psycopg

    with psycopg.connect(database, autocommit=True) as other:
        other.execute("CREATE TABLE shopping (x int)")
    with Ledger.open(database, keys()) as ledger:
        assert put(ledger, 0, 1) == 1


def test_postgres_a_database_that_does_not_exist_is_named(server: str) -> None:
    assert 'database "nowhere" does not exist' in refused(server.replace("/postgres?", "/nowhere?"))
