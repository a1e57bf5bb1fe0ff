"""The folder of a run: one trainer, private files, and nothing of the user's overwritten."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from fastreid_al.config import QuestionConfig, RunConfig
from fastreid_al.engine.run_folder import LOCK_FILE, RunFolder
from fastreid_al.errors import CheckpointError, UserError
from fastreid_al.locks import FileLock
from fastreid_al.runs import run_training
from fastreid_al.runs import train as train_module


def test_a_folder_that_cannot_be_written_is_refused_before_decoding(
    config: RunConfig, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(
        CheckpointError, match=r"cannot write into .*name another folder with `run_dir`"
    ):
        run_training(replace(config, run_dir=str(tmp_path / "file" / "run")))


def test_a_file_in_place_of_a_run_folder_is_called_a_file(
    config: RunConfig, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match=r"/file is a file; name a folder with `run_dir`$"):
        run_training(replace(config, run_dir=str(tmp_path / "file")))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@contextmanager
def locked_elsewhere(folder: Path) -> Iterator[int]:
    """Hold the lock of a folder in another process."""
    code = (
        "import sys; from pathlib import Path; from fastreid_al.locks import FileLock; "
        f"lock = FileLock(Path({str(folder / LOCK_FILE)!r})); print('held', flush=True); "
        "sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline()
    try:
        yield process.pid
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("asks", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_second_trainer_is_refused_in_one_line_and_writes_nothing(
    config: RunConfig, asks: bool
) -> None:
    if asks:
        config = replace(config, ask="gain", questions=QuestionConfig(start=0, per_epoch=3))
    folder = Path(str(config.run_dir))
    folder.mkdir()
    with locked_elsewhere(folder) as process:
        before = snapshot(folder)
        for resume in (False, True):
            with pytest.raises(CheckpointError) as refused:
                run_training(config, resume=resume)
            said = str(refused.value)
            assert f"{folder} is in use by process {process}; wait for it, or name" in said
        assert snapshot(folder) == before
    # The lock file of a process that was killed is no obstacle.
    assert run_training(replace(config, epochs=1), resume=True).history[-1]["epoch"] == 1


def test_the_lock_is_held_until_the_end_and_freed_after_it(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[str] = []

    def look(*_: object) -> None:
        with pytest.raises(BlockingIOError) as refused:
            FileLock(Path(str(config.run_dir)) / LOCK_FILE)
        held.append(refused.value.strerror)

    monkeypatch.setattr(train_module, "draw_curves", look)
    run_training(replace(config, epochs=1))
    assert held == [str(os.getpid())]
    FileLock(Path(str(config.run_dir)) / LOCK_FILE).free()


def test_a_run_that_is_refused_leaves_no_lock_behind(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="dataset"):
        run_training(replace(config, dataset="no such set", run_dir=str(tmp_path / "there")))
    assert os.listdir(tmp_path / "there") == []


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("best.pt", "curves.png", "run_name")),
    ],
)
def test_a_users_own_file_of_a_runs_name_is_not_overwritten(config: RunConfig, name: str) -> None:
    folder = Path(str(config.run_dir))
    folder.mkdir()
    (folder / name).write_text('{"mine": 1}')
    for resume in (False, True):
        with pytest.raises(CheckpointError, match=f"holds {name}, which a run would overwrite"):
            run_training(config, resume=resume)
    assert snapshot(folder) == {name: b'{"mine": 1}'}


def test_the_folder_of_an_earlier_version_is_known_by_its_versions(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "versions.json").write_text(json.dumps({"fastreid_al": "0.1"}))
    folder = RunFolder(tmp_path)
    folder.lock()
    folder.prepare()
    folder.unlock()
    assert sorted(os.listdir(tmp_path)) == ["config.json", "versions.json"]


def test_what_a_killed_run_was_writing_is_removed_and_nothing_else(tmp_path: Path) -> None:
    digits = "0123456789abcdef" * 2
    (tmp_path / f".fastreid_al-{digits}.tmp").touch()
    (tmp_path / f"pixels-{digits}").mkdir()
    (tmp_path / f"pixels-{digits}" / f"pixels-{digits}.u8").touch()
    foreign = [".fastreid_al-1.tmp", "last.pt.tmp", "x.tmp", f"pixels-{digits}.npy"]
    for name in foreign:
        (tmp_path / name).touch()
    folder = RunFolder(tmp_path)
    folder.prepare()
    folder.unlock()
    assert sorted(os.listdir(tmp_path)) == sorted([*foreign, LOCK_FILE])


def test_everything_in_a_run_folder_is_its_owners_only(config: RunConfig) -> None:
    before = os.umask(0o000)
    try:
        asks = replace(config, ask="gain", questions=QuestionConfig(start=0, per_epoch=3))
        folder = run_training(replace(asks, epochs=1)).folder
    finally:
        os.umask(before)
    found = {path.name: path.stat().st_mode & 0o777 for path in (folder, *folder.rglob("*"))}
    assert {"last.pt", "best.pt", "answers.sqlite", "config.json"} <= set(found)
    assert {name for name, mode in found.items() if mode & 0o077} == set()


def test_links_planted_in_a_run_folder_are_not_written_through(
    config: RunConfig, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    folder = Path(str(config.run_dir))
    folder.mkdir()
    (folder / LOCK_FILE).touch()
    for name in ("config.json", "versions.json", "metrics.jsonl", "best.pt", "run_name"):
        (folder / name).symlink_to(precious)
    run_training(replace(config, epochs=1))
    assert precious.read_text() == "precious"
    assert [path.name for path in folder.iterdir() if path.is_symlink()] == ["run_name"]
