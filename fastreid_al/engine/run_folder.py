"""The folder of a run, and the files in it."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..config import RunConfig
from ..errors import CheckpointError, UserError
from ..files import write_atomically, write_json
from .versions import versions


class RunFolder:
    """The folder of a run: config.json, versions.json, metrics.jsonl, last.pt, best.pt, curves.png.

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
        self.config = path / "config.json"
        self.versions = path / "versions.json"
        self.metrics = path / "metrics.jsonl"
        self.figure = path / "curves.png"
        self.last = path / "last.pt"
        self.best = path / "best.pt"

    def prepare(self) -> None:
        """Make the folder and check that it can be written, before expensive work starts.

        Raises:
            CheckpointError: The folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise CheckpointError(
                f"cannot write into {self.path} ({error.strerror}); "
                "name another folder with `run_dir`"
            ) from error

    def describe(self, config: RunConfig) -> None:
        """Write the resolved configuration, and the versions of the software."""
        if not self.writes:
            return
        write_json(self.config, dataclasses.asdict(config))
        write_json(self.versions, versions())

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
        lines = "".join(json.dumps(record) + "\n" for record in history)
        write_atomically(self.metrics, lambda file: file.write(lines.encode()))

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
            with open(self.metrics, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise CheckpointError(
                f"could not write {self.metrics} ({error.strerror}); the last checkpoint is "
                "intact. Fix this, then continue with `resume`"
            ) from error

    def write_text(self, name: str, text: str) -> None:
        """Write a text file into the folder."""
        if self.writes:
            write_atomically(self.path / name, lambda file: file.write(text.encode()))


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
    return SummaryWriter(str(path), purge_step=epoch)


def _scalars(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of a record; those of a nested group are named `group/name`."""
    for key, value in record.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and key != "epoch":
            yield prefix + key, float(value)
