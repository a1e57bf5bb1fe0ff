"""Faults of the machine while a run trains: one line says what happened, and nothing is lost.

Each fault of the table strikes a run of one epoch, as the command line starts it. The run ends with
a status and a line, or goes on with a warning; afterwards it is resumed and completes.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fastreid_al import files, locks
from fastreid_al.answers import Ledger, at_once
from fastreid_al.cli import run_main
from fastreid_al.config import QuestionConfig, RunConfig
from fastreid_al.engine.checkpoint import load_checkpoint
from fastreid_al.engine.curves import draw_curves
from fastreid_al.files import NewFile
from fastreid_al.locks import FileLock
from fastreid_al.runs import run_training, train
from tests.support.tiny import elsewhere, same_weights, tiny_config, weights

#: The lock of the other trainer.
HELD: list[FileLock] = []
#: Strikes: patches a part of the system under the folder of a run.
Strike = Callable[[pytest.MonkeyPatch, Path], None]


@dataclass(frozen=True)
class Fault:
    """A fault, and what is right.

    Args:
        strike: Makes it.
        status: Exit status: 0 where the run goes on, else 2.
        said: What is printed, in one line.
    """

    strike: Strike
    status: int
    said: str


def full_disk(name: str, after: int = 0) -> Strike:
    """No space for a file of a name, after a number of bytes."""

    def strike(patch: pytest.MonkeyPatch, folder: Path) -> None:
        target: list[NewFile] = []
        written = [0]
        make, write = files.replacing, NewFile.write

        @contextmanager
        def replacing(path: Path, **options: Any) -> Iterator[NewFile]:
            with make(path, **options) as file:
                if path.name == name:
                    target.append(file)
                yield file

        def limited(self: NewFile, content: Any) -> int:
            written[0] += len(content) if self in target else 0
            if self in target and written[0] > after:
                self.failed = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                raise self.failed
            return write(self, content)

        patch.setattr(files, "replacing", replacing)
        patch.setattr(NewFile, "write", limited)
        patch.setattr(train, "draw_curves", draw_curves)

    return strike


def refused(number: int, creating: bool = True) -> Strike:
    """The system refuses to open files of the run folder for writing."""

    def strike(patch: pytest.MonkeyPatch, folder: Path) -> None:
        original = os.open

        def guarded(path: Any, flags: int, *args: Any, **options: Any) -> int:
            writes = flags & (os.O_CREAT if creating else os.O_APPEND)
            if writes and os.fspath(path).startswith(str(folder)):
                raise OSError(number, os.strerror(number))
            return original(path, flags, *args, **options)

        patch.setattr(os, "open", guarded)

    return strike


def clock_set_back(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """The clock of the machine goes back by a day at every look."""
    times = iter(range(2 * 10**9, 0, -86_400))
    patch.setattr(at_once.time, "time", lambda: float(next(times)))


def other_trainer(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Another trainer has the folder; an open file of this process stands for it."""
    folder.mkdir()
    HELD.append(FileLock(folder / "run.lock"))


def no_locks(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """A file system without locks."""

    def unsupported(*_: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    patch.setattr(locks.fcntl, "flock", unsupported)


def no_disk_for_answers(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """The database of the ledger finds the disk full at the second answer."""
    append = Ledger.append
    calls = [0]

    def full(self: Ledger, *args: Any, **options: Any) -> int:
        calls[0] += 1
        if calls[0] == 2:
            with self._store._one_line():
                raise _as_sqlalchemy(sqlite3.OperationalError("database or disk is full"))
        return append(self, *args, **options)

    patch.setattr(Ledger, "append", full)


def _as_sqlalchemy(error: sqlite3.Error) -> Exception:
    from sqlalchemy.exc import OperationalError

    return OperationalError("INSERT", {}, error)


FULL = "No space left on device"
FAULTS = {
    "full disk: config.json": Fault(full_disk("config.json"), 2, FULL),
    "full disk: versions.json": Fault(full_disk("versions.json"), 2, FULL),
    "full disk: metrics.jsonl": Fault(full_disk("metrics.jsonl", -1), 2, FULL),
    "full disk: run_name": Fault(full_disk("run_name"), 2, FULL),
    "full disk: last.pt": Fault(full_disk("last.pt"), 2, FULL),
    "full disk: last.pt, later": Fault(full_disk("last.pt", 100_000), 2, FULL),
    "full disk: best.pt": Fault(full_disk("best.pt", 100_000), 2, FULL),
    "full disk: curves.png": Fault(full_disk("curves.png"), 0, "curves could not be made"),
    "full disk: the ledger": Fault(no_disk_for_answers, 2, "database or disk is full"),
    "a read-only file system": Fault(refused(errno.EROFS), 2, "Read-only file system"),
    "no permission": Fault(refused(errno.EACCES), 2, "Permission denied"),
    "no file handles": Fault(refused(errno.EMFILE), 2, "Too many open files"),
    "a quota": Fault(refused(errno.EDQUOT), 2, "quota exceeded"),
    "no permission to append": Fault(refused(errno.EACCES, False), 2, "Permission denied"),
    "a clock set back": Fault(clock_set_back, 0, "0 s of answering"),
    "no locks": Fault(no_locks, 0, "run folder"),
    "two trainers": Fault(other_trainer, 2, "is in use by process"),
}
#: The faults of the plain tests.
FEW = ("full disk: last.pt, later", "full disk: the ledger", "a clock set back", "two trainers")


def asking(run_dir: Path) -> RunConfig:
    """A run of one epoch that asks five questions."""
    questions = QuestionConfig(start=0, per_epoch=5)
    return replace(tiny_config(run_dir), epochs=1, ask="gain", questions=questions)


@pytest.mark.parametrize(
    "name", [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in FAULTS]
)
def test_a_fault_is_one_line_and_the_run_completes_after_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    fault = FAULTS[name]
    config = asking(tmp_path / "run")
    status = 0
    with monkeypatch.context() as patch:
        fault.strike(patch, tmp_path / "run")
        try:
            run_main(lambda: run_training(config) and None)
        except SystemExit as ended:
            status = int(str(ended.code))
    said = capfd.readouterr()
    lines = said.err.strip().splitlines() if status else said.out.splitlines()
    assert status == fault.status and "Traceback" not in said.err
    assert any(fault.said in line for line in lines) and (not status or len(lines) == 1)
    for lock in HELD:
        lock.free()
    history = run_training(config, resume=True).history
    assert history[-1]["epoch"] == 1
    left = [path.name for path in (tmp_path / "run").iterdir()]
    assert [name for name in left if files.TEMPORARY.fullmatch(name)] == []
    with Ledger.open(str(tmp_path / "run" / "answers.sqlite"), write=False) as ledger:
        answers = ledger.answers()
        assert len(answers) == history[-1]["questions_total"] and ledger.integrity() == []
        assert all(0 <= answer.seconds < 60 for answer in answers)


def train_and_die(config: RunConfig, at: int, threads: int) -> None:
    """Train in a child process, and be killed when a file is brought to the disk."""
    torch.set_num_threads(threads)
    sync = NewFile.sync
    done = [0]

    def counting(self: NewFile) -> None:
        done[0] += 1
        if done[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(self)

    NewFile.sync = counting  # type: ignore[method-assign]
    run_training(config, resume=True)


@pytest.mark.slow
def test_a_run_killed_at_any_write_resumes_to_the_same_weights(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fastreid_al.runs", "tests.support.tiny"])
    threads = torch.get_num_threads()
    whole = asking(tmp_path / "whole")
    run_training(whole)
    expected = weights(str(whole.run_dir))
    at = 0
    while True:
        at += 1
        config = elsewhere(whole, f"killed{at}")
        process = context.Process(target=train_and_die, args=(config, at, threads))
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        run_training(config, resume=True)
        assert same_weights(weights(str(config.run_dir)), expected), f"write {at}"
        left = os.listdir(str(config.run_dir))
        assert [name for name in left if files.TEMPORARY.fullmatch(name)] == []
        assert load_checkpoint(Path(str(config.run_dir)) / "best.pt")["epoch"] == 1
    assert at > 6
