"""The folder of a run, and the files in it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..config import RunConfig
from ..data.pixels import EXCHANGE
from ..errors import CheckpointError, UserError
from ..files import (
    TEMPORARY,
    append_text,
    list_folder,
    made_private,
    make_folder,
    nameless_file,
    remove_files,
    remove_folder,
    write_file,
    write_json,
)
from ..locks import FileLock
from .precision import Precision
from .versions import versions

#: Held by the trainer of a run while it runs.
LOCK_FILE = "run.lock"
#: Files of a run that others use as well, such as a user's own config.json.
_COMMON_NAMES = (
    *("config.json", "versions.json", "metrics.jsonl", "best.pt", "curves.png", "question.png"),
    *("run_name", "trace.json", "profile.txt", "labels.csv", "labels.json"),
)
#: Folders that a killed run was writing into, and the files in them.
_UNFINISHED = re.compile(rf"({re.escape(EXCHANGE)}|\.fastreid_al-)[0-9a-f]{{32}}")
_UNFINISHED_FILES = re.compile(
    rf"pixels-[0-9a-f]{{32}}\.u8|index-[0-9a-f]{{32}}\.npy|list-[0-9a-f]{{32}}\.lock"
    rf"|trace\.json|{TEMPORARY.pattern}"
)


class RunFolder:
    """The folder of a run: config.json, metrics.jsonl, last.pt, best.pt, labels.csv and others.

    Its files can be read by their owner only. One trainer at a time writes into it.

    Args:
        path: The folder.
        writes: Whether this process writes into it; of the processes of a run only the first does.
        tensorboard: Whether the metrics are also written for TensorBoard.
    """

    def __init__(self, path: Path, writes: bool = True, tensorboard: bool = False) -> None:
        self.path = path
        self.writes = writes
        self._tensorboard = tensorboard
        self._board: Any = None
        self._lock: FileLock | None = None
        self._prepared = False
        self.config = path / "config.json"
        self.versions = path / "versions.json"
        self.metrics = path / "metrics.jsonl"
        self.figure = path / "curves.png"
        self.last = path / "last.pt"
        self.best = path / "best.pt"

    def lock(self) -> None:
        """Take the lock of the folder, if it exists and this process writes into it.

        Raises:
            CheckpointError: Another process holds the lock, or it cannot be made.
        """
        if not self.writes or self._lock is not None or not os.path.isdir(self.path):
            return
        try:
            self._lock = FileLock(self.path / LOCK_FILE)
        except BlockingIOError as error:
            raise CheckpointError(
                f"{self.path} is in use by process {error.strerror}; wait for it, "
                "or name another folder with `run_dir`"
            ) from error
        except OSError as error:
            raise self._not_writable(error) from error

    def unlock(self) -> None:
        """Release the lock; its file stays only where nothing else shows that a run was here."""
        if self._lock is not None:
            unused = self._lock.made and not self._prepared
            self._lock.free(remove=unused or self._is_of_run())
            self._lock = None

    def prepare(self) -> None:
        """Make and lock the folder and check that it can be written, before expensive work starts.

        Files that a killed run was writing are removed.

        Raises:
            CheckpointError: The folder cannot be written, another process writes into it, or it
                holds files of a run's names that are not of a run.
        """
        try:
            make_folder(self.path)
            self.lock()
            with nameless_file(self.path):
                pass
        except OSError as error:
            raise self._not_writable(error) from error
        if self.writes:
            self._refuse_foreign()
            self._prepared = True
            remove_files(self.path, TEMPORARY)
            for folder in list_folder(self.path, _UNFINISHED):
                remove_folder(folder, _UNFINISHED, _UNFINISHED_FILES)

    def _not_writable(self, error: OSError) -> CheckpointError:
        if os.path.isfile(self.path):
            return CheckpointError(f"{self.path} is a file; name a folder with `run_dir`")
        return CheckpointError(
            f"cannot write into {self.path} ({error.strerror}); name another folder with `run_dir`"
        )

    def _refuse_foreign(self) -> None:
        """Refuse a folder without a run whose files have names that a run would overwrite."""
        if (self._lock is not None and not self._lock.made) or self._is_of_run():
            return
        foreign = [name for name in _COMMON_NAMES if os.path.exists(self.path / name)]
        if foreign:
            raise CheckpointError(
                f"{self.path} holds {', '.join(foreign)}, which a run would overwrite, "
                "and no run; name another folder with `run_dir`"
            )

    def _is_of_run(self) -> bool:
        """Whether a run has written a checkpoint or its versions into the folder."""
        if os.path.exists(self.last) or os.path.exists(self.path / "last.json"):
            return True
        with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
            return "fastreid_al" in json.loads(self.versions.read_text())
        return False

    def describe(self, config: RunConfig, precision: Precision) -> None:
        """Write the resolved configuration, and the versions of the software with the precision.

        Args:
            config: The configuration.
            precision: In which precision the run computes.
        """
        if not self.writes:
            return
        write_json(self.config, dataclasses.asdict(config))
        write_json(self.versions, {**versions(), "precision": precision.describe()})

    def rewrite_metrics(self, history: list[dict[str, Any]]) -> None:
        """Write metrics.jsonl from a checkpoint's history: a killed run may have left half a line.

        Args:
            history: One record an epoch.

        Raises:
            UserError: TensorBoard was asked for and is not installed.
        """
        if not self.writes:
            return
        if self._tensorboard:
            self._board = open_board(self.path / "tensorboard", len(history))
        write_file(self.metrics, "".join(json.dumps(record) + "\n" for record in history))

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Append the record of an epoch to metrics.jsonl, and to TensorBoard's file.

        Raises:
            CheckpointError: metrics.jsonl cannot be written.
        """
        if not self.writes:
            return
        if self._board is not None:
            for name, value in _scalars(record):
                self._board.add_scalar(name, value, record["epoch"])
            self._board.flush()
        try:
            append_text(self.metrics, json.dumps(record) + "\n")
        except OSError as error:
            raise CheckpointError(
                f"could not write {self.metrics} ({error.strerror}); the last checkpoint is "
                "intact. Fix this, then continue with `resume`"
            ) from error

    def write_file(self, name: str, text: str) -> None:
        """Write a text into a file of the folder."""
        if self.writes:
            write_file(self.path / name, text)


def open_board(path: Path, epoch: int) -> Any:
    """Open a TensorBoard writer that continues at an epoch.

    Raises:
        UserError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            "`tensorboard` needs TensorBoard: pip install 'fastreid_al[tensorboard]'"
        ) from error
    make_folder(path)
    with made_private():
        return SummaryWriter(str(path), purge_step=epoch)


def _scalars(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of a record; those of a nested group are named `group/name`."""
    for key, value in record.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and key != "epoch":
            yield prefix + key, float(value)
