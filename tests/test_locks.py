"""A lock has one holder, names it, and ends with its process."""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from fastreid_al.locks import FileLock


def hold(path: Path, pipe: Connection) -> None:
    FileLock(path)
    pipe.send("held")
    signal.pause()


def test_a_lock_names_its_holder_and_ends_with_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=hold, args=(tmp_path / "x.lock", theirs))
    process.start()
    assert ours.recv() == "held"
    with pytest.raises(BlockingIOError) as refused:
        FileLock(tmp_path / "x.lock")
    assert refused.value.strerror == str(process.pid)
    process.kill()
    process.join()
    lock = FileLock(tmp_path / "x.lock")
    assert (tmp_path / "x.lock").read_text() == f"{os.getpid()}\n"
    assert not lock.made and (tmp_path / "x.lock").stat().st_mode & 0o077 == 0
    lock.free()
    FileLock(tmp_path / "x.lock").free()


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.lock"
    first = FileLock(path)
    assert first.made
    opened = FileLock._open
    late: list[int] = []

    def open_then_remove(self: FileLock) -> int:
        handle = opened(self)
        if not late:
            late.append(handle)
            first.free(remove=True)
        return handle

    monkeypatch.setattr(FileLock, "_open", open_then_remove)
    second = FileLock(path)
    assert path.exists()
    with pytest.raises(BlockingIOError):
        FileLock(path)
    second.free()


@pytest.mark.parametrize("content", ["my notes", "12 monkeys", "1" * 100])
def test_a_file_of_something_else_is_not_taken_for_a_lock(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.lock").write_text(content)
    with pytest.raises(OSError, match="is not a lock file"):
        FileLock(tmp_path / "x.lock")
    assert (tmp_path / "x.lock").read_text() == content


def test_without_fcntl_a_second_file_carries_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastreid_al.locks.fcntl", None)
    path = tmp_path / "answers.sqlite.lock"
    first = FileLock(path)
    with pytest.raises(BlockingIOError) as caught:
        FileLock(path)
    assert caught.value.strerror == str(os.getpid())
    first.free()
    FileLock(path).free()
