"""The ledger keeps every answer that it acknowledged, and says in one line why it cannot be used."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import random
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fastreid_al.answers import database as store
from fastreid_al.answers.closure import Closure
from fastreid_al.answers.ledger import ImageKeys, Ledger
from fastreid_al.answers.question import Verdict
from fastreid_al.cli import run_main
from fastreid_al.errors import LedgerError
from fastreid_al.ledger import main

SAME, DIFFERENT, UNSURE = Verdict.SAME, Verdict.DIFFERENT, Verdict.UNSURE
NOBODY = 65534


def keys(n: int = 10, dataset: str = "market1501") -> ImageKeys:
    return ImageKeys(dataset, [f"train/{i}.jpg" for i in range(n)], [f"{i:032x}" for i in range(n)])


def put(ledger: Ledger, left: int, right: int, verdict: Verdict = SAME, **more: object) -> int:
    values = {
        "annotator": "anna",
        "asked_at": 100.0,
        "answered_at": 101.5,
        "epoch": 3,
        "reason": "split",
        **more,
    }
    return ledger.append(left, right, verdict, **values)  # type: ignore[arg-type]


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


@pytest.mark.parametrize("place", ["memory", "file", "url"])
def test_an_answer_comes_back_as_it_was_given(place: str, file: str) -> None:
    url = {"memory": "sqlite://", "file": file, "url": f"sqlite:///{file}"}[place]
    with Ledger.open(url, keys()) as ledger:
        first = put(
            ledger, 3, 7, score=0.25, similarity=0.5, need=2, shown=(["a.jpg", "b.jpg"], ["c.jpg"])
        )
        second = put(ledger, 7, 1, DIFFERENT, confirms=first, reason="confirm", epoch=None)
        assert (first, second, ledger.last_answer(), ledger.last_event()) == (1, 2, 2, 2)
        assert ledger.answers() == [
            (1, 3, 7, SAME, 2, None, 1.5, ""),
            (2, 7, 1, DIFFERENT, 1, 1, 1.5, ""),
        ]
        one, two = ledger.events()
        assert (one.left, one.right, one.right_digest) == (
            "train/3.jpg",
            "train/7.jpg",
            f"{7:032x}",
        )
        assert (one.score, one.similarity, one.shown) == (
            0.25,
            0.5,
            (["a.jpg", "b.jpg"], ["c.jpg"]),
        )
        assert (two.kind, two.verdict, two.confirms, two.epoch, two.shown) == (
            "answer",
            "different",
            1,
            None,
            ([], []),
        )
        assert ledger.integrity() == []


def test_answers_survive_closing_and_rows_follow_the_images_and_not_their_order(file: str) -> None:
    with Ledger.open(file, keys()) as ledger:
        put(ledger, 2, 9)
    turned = ImageKeys("market1501", *(list(reversed(column)) for column in keys()[1:]))
    with Ledger.open(file, turned) as ledger:
        put(ledger, 7, 0, DIFFERENT)
        assert [(a.left, a.right) for a in ledger.answers()] == [(7, 0), (7, 0)]
        assert ledger.images() == {0: "train/2.jpg", 1: "train/9.jpg"}


def test_without_keys_answers_are_about_the_numbers_given() -> None:
    with Ledger.open("sqlite://") as ledger:
        put(ledger, 900, 0)
        put(ledger, 5, 900)
        assert [(a.left, a.right) for a in ledger.answers()] == [(900, 0), (5, 900)]
        assert ledger.integrity() == []


def test_without_keys_a_ledger_of_an_image_set_takes_its_own_images_only(filled: str) -> None:
    with Ledger.open(filled) as ledger:
        assert [(a.left, a.right) for a in ledger.answers()] == [(0, 1), (1, 2), (2, 3), (4, 5)]
        put(ledger, 0, 3)
        with pytest.raises(
            LedgerError, match="has no image 99; open it with the images of market1501"
        ):
            put(ledger, 0, 99)


@pytest.mark.parametrize("row", [-1, 10])
def test_a_row_that_does_not_exist_is_refused_and_leaves_nothing_behind(row: int) -> None:
    with Ledger.open("sqlite://", keys()) as ledger:
        with pytest.raises(IndexError):
            put(ledger, 0, row)
        assert (ledger.last_event(), ledger.images()) == (0, {})
        put(ledger, 0, 1)
        assert len(ledger.answers()) == 1


def test_an_answer_that_confirms_nothing_is_refused_and_its_images_are_not_remembered() -> None:
    with Ledger.open("sqlite://", keys()) as ledger:
        with pytest.raises(LedgerError):
            put(ledger, 0, 1, confirms=77)
        put(ledger, 0, 1)
        assert ledger.integrity() == []


def test_an_empty_ledger_says_so(file: str) -> None:
    with Ledger.open(file, keys()) as ledger:
        assert (ledger.answers(), ledger.last_event(), ledger.last_answer(), ledger.seconds()) == (
            [],
            0,
            None,
            0.0,
        )
        assert (list(ledger.events()), ledger.unusable(), ledger.integrity()) == ([], 0, [])


def test_an_undone_answer_counts_no_more_and_stays_in_the_ledger() -> None:
    with Ledger.open("sqlite://", keys()) as ledger:
        first, second = put(ledger, 0, 1), put(ledger, 1, 2)
        by = ledger.undo(second, "bert", at=200.0)
        assert [a.event for a in ledger.answers()] == [first]
        assert (ledger.last_answer(), ledger.last_event(), ledger.seconds()) == (first, by, 1.5)
        _, undone, undo = ledger.events()
        assert (undone.undone_by, undo.kind, undo.undoes, undo.annotator, undo.answered_at) == (
            (by, "undo", second, "bert", 200.0)
        )


@pytest.mark.parametrize(
    ("event", "message"),
    [(9, "has no event 9; its last is 3"), (3, "not an answer"), (1, "already undone, by event 3")],
)
def test_what_cannot_be_undone_is_refused(event: int, message: str) -> None:
    with Ledger.open("sqlite://", keys()) as ledger:
        put(ledger, 0, 1)
        put(ledger, 1, 2)
        ledger.undo(1, "anna")
        with pytest.raises(LedgerError, match=message):
            ledger.undo(event, "anna")
        assert ledger.last_event() == 3


def test_as_of_gives_the_answers_of_then() -> None:
    with Ledger.open("sqlite://", keys()) as ledger:
        put(ledger, 0, 1)
        put(ledger, 1, 2)
        ledger.undo(1, "anna")
        put(ledger, 2, 3)
        found = {n: [a.event for a in ledger.answers(as_of=n)] for n in (0, 1, 2, 3, 4)}
        assert found == {0: [], 1: [1], 2: [1, 2], 3: [2], 4: [2, 4]}
        assert ledger.seconds() == 3.0


def test_answers_say_which_run_gave_them(file: str) -> None:
    with Ledger.open(file, keys()) as ledger:
        put(ledger, 0, 1, run="a")
        put(ledger, 1, 2, run="b")
        put(ledger, 2, 3)
        assert [a.run for a in ledger.answers()] == ["a", "b", ""]
        assert (ledger.last_answer(), ledger.last_answer("a"), ledger.last_answer("c")) == (
            3,
            1,
            None,
        )
        ledger.undo(1, "anna")
        assert ledger.last_answer("a") is None


def test_a_renamed_image_is_found_by_its_content_and_stays_the_same_image(file: str) -> None:
    with Ledger.open(file, keys()) as ledger:
        put(ledger, 0, 1)
    renamed = keys()._replace(names=["new/0.jpg", *keys().names[1:]])
    with Ledger.open(file, renamed) as ledger:
        put(ledger, 0, 2, DIFFERENT)
        assert [(a.left, a.right) for a in ledger.answers()] == [(0, 1), (0, 2)]
        assert ledger.unusable() == 0
        assert len(ledger.images()) == 3


def test_a_removed_image_makes_its_answers_unusable_and_they_are_kept(file: str) -> None:
    with Ledger.open(file, keys()) as ledger:
        put(ledger, 0, 9)
        put(ledger, 1, 2)
    with Ledger.open(file, keys(9)) as ledger:
        assert [(a.left, a.right) for a in ledger.answers()] == [(0, -1), (1, 2)]
        assert ledger.unusable() == 1
    with Ledger.open(file, keys()) as ledger:
        assert ledger.unusable() == 0


def test_an_image_whose_content_changed_is_another_image(file: str) -> None:
    with Ledger.open(file, keys()) as ledger:
        put(ledger, 0, 1)
    changed = keys()._replace(digests=["f" * 32, *keys().digests[1:]])
    with Ledger.open(file, changed) as ledger:
        assert [(a.left, a.right) for a in ledger.answers()] == [(-1, 1)]
        put(ledger, 0, 1, DIFFERENT)
        assert [(a.left, a.right) for a in ledger.answers()] == [(-1, 1), (0, 1)]


@pytest.mark.parametrize("known", ["ledger", "set", "neither"])
def test_where_a_digest_is_unknown_the_path_decides(file: str, known: str) -> None:
    bare = keys()._replace(digests=())
    with Ledger.open(file, keys() if known == "ledger" else bare) as ledger:
        put(ledger, 4, 5)
    with Ledger.open(file, keys() if known == "set" else bare) as ledger:
        assert [(a.left, a.right) for a in ledger.answers()] == [(4, 5)]


def test_two_images_of_the_same_content_are_told_apart_by_their_paths(file: str) -> None:
    twins = ImageKeys("m", ["a.jpg", "b.jpg", "c.jpg"], ["1", "1", "2"])
    with Ledger.open(file, twins) as ledger:
        put(ledger, 1, 2)
        put(ledger, 0, 2, DIFFERENT)
        assert [(a.left, a.right) for a in ledger.answers()] == [(1, 2), (0, 2)]


def refused(url: str, *, images: ImageKeys | None = None, write: bool = True) -> str:
    with pytest.raises(LedgerError) as caught:
        Ledger.open(url, images, write=write).close()
    line = str(caught.value)
    assert "\n" not in line
    return line


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
    assert "something else than answers" in refused(file, write=write)
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
        other.execute("UPDATE meta SET value = '2' WHERE key = 'format'")
        other.commit()
    assert "newer fastreid_al (format 2)" in refused(filled)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert "is a folder" in refused(str(tmp_path))
    assert "is a folder" in refused(str(tmp_path), write=False)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    assert "cannot be written" in refused(str(tmp_path / "x" / "answers.sqlite"))


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
        ("mysql://localhost/x", "SQLite file or a PostgreSQL database, not mysql"),
        ("://", "not a URL of a database"),
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


def forked(work: Callable[[], object]) -> int:
    """Do something in a child process, which ends without the cleaning up of this one."""
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            work()
            status = 0
        os._exit(status)
    return child


def kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


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


def test_every_acknowledged_answer_survives_kills(file: str) -> None:
    draw, acknowledged = random.Random(0), 0
    for seed in range(50):
        read, write = os.pipe()
        child = forked(lambda w=write, s=seed: append_until_killed(file, w, s))  # type: ignore[misc]
        os.close(write)
        with os.fdopen(read) as pipe:
            for _ in range(draw.randrange(15)):
                assert select.select([pipe], [], [], 20)[0]
                acknowledged = int(pipe.readline())
            time.sleep(draw.random() * 0.01)
            kill(child)
            acknowledged = max([acknowledged, *(int(line) for line in pipe if line.endswith("\n"))])
        if not Path(file).exists():
            continue
        with Ledger.open(file, keys(1000)) as ledger:
            events = [e.id for e in ledger.events()]
            # An answer that was written and not yet acknowledged may be there as well.
            assert events == list(range(1, len(events) + 1))
            assert acknowledged <= len(events) <= acknowledged + 1
            acknowledged = len(events)
            assert ledger.integrity() == []
    assert acknowledged > 200


def test_65_000_answers_are_read_and_replayed(tmp_path: Path) -> None:
    draw, names = random.Random(1), [f"{i}.jpg" for i in range(20_000)]
    file = str(tmp_path / "answers.sqlite")
    images = ImageKeys("m", names, ())
    Ledger.open(file, images).close()
    pairs = [sorted(draw.sample(range(20_000), 2)) for _ in range(65_000)]
    with contextlib.closing(sqlite3.connect(file)) as raw, raw:
        raw.executemany("INSERT INTO images VALUES (?, ?, '')", enumerate(names))
        raw.executemany(
            "INSERT INTO events (kind, left_id, right_id, verdict, annotator, asked_at, answered_at) "
            "VALUES ('answer', ?, ?, 'different', 'a', 0, 1)",
            pairs,
        )
    with Ledger.open(file, images) as ledger:
        answers = ledger.answers()
        assert len(answers) == 65_000
        assert ledger.seconds() == 65_000
        closure = Closure.replay(answers)
    distinct = {tuple(p) for p in pairs}
    assert sum(len(closure.cannot_links(root)) for root in closure.components()) == 2 * len(
        distinct
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            "UPDATE events SET verdict = 'perhaps' WHERE id = 2",
            "event 2 has a verdict that is not known",
        ),
        (
            "UPDATE events SET verdict = NULL WHERE id = 2",
            "event 2 has a verdict that is not known",
        ),
        (
            "UPDATE events SET left_id = 99 WHERE id = 3",
            "event 3 is about an image that is not in the ledger",
        ),
        (
            "UPDATE events SET confirms = 99 WHERE id = 1",
            "event 1 confirms an answer that is not in the ledger",
        ),
        (
            "UPDATE events SET confirms = 6 WHERE id = 1",
            "event 1 confirms an answer that is not in the ledger",
        ),
        (
            "UPDATE events SET undoes = 99 WHERE id = 6",
            "event 6 undoes an answer that is not in the ledger",
        ),
        ("UPDATE events SET kind = 'x' WHERE id = 4", "event 4 is neither an answer nor an undo"),
    ],
)
def test_integrity_names_the_event_that_is_wrong(
    filled: str, damage: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.closing(sqlite3.connect(filled)) as other:
        other.execute(damage)
        other.commit()
    with Ledger.open(filled, write=False) as ledger:
        assert ledger.integrity() == [message]
    with pytest.raises(SystemExit) as exit_:
        main(["check", filled])
    assert exit_.value.code == 1
    assert capsys.readouterr().out == message + "\n"


def test_answers_that_cannot_be_understood_are_refused(filled: str) -> None:
    with contextlib.closing(sqlite3.connect(filled)) as other:
        other.execute("UPDATE events SET verdict = 'perhaps' WHERE id = 2")
        other.commit()
    with (
        Ledger.open(filled, write=False) as ledger,
        pytest.raises(LedgerError, match=r"unknown image or verdict \('perhaps'\)"),
    ):
        ledger.answers()


def run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    main(words)
    return capsys.readouterr().out


def test_show_counts_and_names_contradictions(
    filled: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Ledger.open(filled, keys()) as ledger:
        put(ledger, 0, 3, need=1)
        put(ledger, 8, 9, need=2)
    lines = dict(
        line.split(maxsplit=1)
        for line in run(capsys, "show", filled).splitlines()
        if line[0] != " "
    )
    assert lines["data"] == "set        market1501"
    assert lines["questions"] == "6 answered, last event 8"
    assert lines["undone"] == "1"
    assert lines["verdicts"] == "same 4, different 1, unsure 1"
    assert lines["annotators"] == "anna 5, bert 1"
    assert lines["reasons"] == "split 5, merge 1"
    assert lines["epochs"] == "3: 5, 4: 1"
    assert lines["pending"].startswith("1 ")
    assert lines["components"] == "1 of two images and more, the largest of 3"
    assert lines["cannot-links"] == "1 between components"
    assert lines["time"] == "9.0 s of answering"
    assert lines["contradictions"] == "1"
    text = run(capsys, "show", filled)
    assert "event 7 (train/0.jpg, train/3.jpg: same), against 1 2 3; set aside: 7" in text


def test_show_of_an_empty_ledger(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    Ledger.open(file, keys()).close()
    assert "0 answered, last event 0" in run(capsys, "show", file)


def test_export_of_answers_holds_every_event(
    filled: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = list(csv.DictReader(io.StringIO(run(capsys, "export", filled))))
    assert [row["id"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert [row["undone"] for row in rows] == ["False"] * 4 + ["True", "False"]
    assert (rows[2]["left"], rows[2]["verdict"], rows[5]["undoes"]) == (
        "train/2.jpg",
        "different",
        "5",
    )
    lines = [
        json.loads(line) for line in run(capsys, "export", filled, "--format", "jsonl").splitlines()
    ]
    assert [line["undone_by"] for line in lines] == [None] * 4 + [6, None]
    assert lines[0]["shown"] == [[], []]
    as_of = run(capsys, "export", filled, "--as-of", "5", "--format=jsonl").splitlines()
    assert [json.loads(line)["undone"] for line in as_of] == [False] * 5


def test_export_of_the_closure_gives_each_pair_with_the_chain_that_proves_it(
    filled: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "closure.csv"
    assert run(capsys, "export", filled, "--what", "closure", "--out", str(out)) == ""
    rows = {
        tuple(Path(row[side]).stem for side in ("left", "right")): (row["verdict"], row["chain"])
        for row in csv.DictReader(out.open())
    }
    assert rows == {
        ("0", "1"): ("same", "1"),
        ("0", "2"): ("same", "1 2"),
        ("1", "2"): ("same", "2"),
        ("0", "3"): ("different", "1 2 3"),
        ("1", "3"): ("different", "2 3"),
        ("2", "3"): ("different", "3"),
    }
    early = run(
        capsys, "export", filled, "--what", "closure", "--as-of=1", "--format", "jsonl"
    ).splitlines()
    assert [json.loads(line)["chain"] for line in early] == [[1]]


def test_export_of_one_pair(filled: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", filled, "--what", "closure", "--format", "jsonl", "--pair", "train/3.jpg"]
    row = json.loads(run(capsys, *words, "train/0.jpg"))
    assert row == {
        "left": "train/3.jpg",
        "right": "train/0.jpg",
        "verdict": "different",
        "chain": [3, 2, 1],
    }
    assert run(capsys, *words, "train/4.jpg") == ""
    with pytest.raises(LedgerError, match=r"no answer is about 3\.jpg"):
        main([*words[:-1], "3.jpg", "train/0.jpg"])


def test_export_does_not_write_over_the_ledger(filled: str) -> None:
    with pytest.raises(LedgerError, match="is the ledger itself"):
        main(["export", filled, "--out", filled])
    with pytest.raises(LedgerError, match="could not write"):
        main(["export", filled, "--out", str(Path(filled).parent / "missing" / "x.csv")])


def test_undo_says_what_it_undid(filled: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = run(capsys, "undo", filled, "--event", "3")
    assert said == "event 7 undoes event 3 (train/2.jpg, train/3.jpg: different)\n"
    assert "cannot-links    0" in run(capsys, "show", filled)


def test_undo_of_a_ledger_that_does_not_exist_makes_none(file: str) -> None:
    with pytest.raises(LedgerError, match="there is no ledger"):
        main(["undo", file, "--event", "3"])
    assert not Path(file).exists()


def test_check_of_a_whole_ledger_is_clean(filled: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "check", filled) == "clean\n"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["show"],
        ["shwo", "x"],
        ["undo", "x"],
        ["undo", "x", "--event", "y"],
        ["export", "x", "--wat"],
        ["show", "x"],
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_2(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run_main(lambda: main(words))
    assert exit_.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_closed_pipe_is_no_traceback(file: str) -> None:
    with Ledger.open(file, keys(3000)) as ledger:
        ledger._store._connection.exec_driver_sql("PRAGMA synchronous=OFF")
        ledger._store._connection.rollback()
        for i in range(1, 2000):
            put(ledger, 0, i)
    command = f"{sys.executable} -m fastreid_al.ledger export {file} --what closure | head -n 2"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[0] == "left,right,verdict,chain"
    assert done.stderr == ""


def server_programs() -> Path | None:
    """Folder of PostgreSQL's programs."""
    places = [Path(p) for p in os.environ.get("PATH", "").split(os.pathsep)]
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((p for p in places if (p / "initdb").is_file() and (p / "pg_ctl").is_file()), None)


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
            pytest.skip(
                f"PostgreSQL's {program} does not run here: {(done.stderr or done.stdout).strip()[-300:]}"
            )

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
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'fastreid_al%'"
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
    assert "something else than answers" in refused(database)


def test_postgres_a_ledger_may_live_beside_other_tables(database: str) -> None:
    import psycopg

    with psycopg.connect(database, autocommit=True) as other:
        other.execute("CREATE TABLE shopping (x int)")
    with Ledger.open(database, keys()) as ledger:
        assert put(ledger, 0, 1) == 1


def test_postgres_a_database_that_does_not_exist_is_named(server: str) -> None:
    assert 'database "nowhere" does not exist' in refused(server.replace("/postgres?", "/nowhere?"))
