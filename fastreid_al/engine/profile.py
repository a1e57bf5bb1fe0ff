"""The profile of a run: a trace of some training steps, and a table of the seconds by phase."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..files import write_by_path
from .run_folder import RunFolder

#: Steps before the traced ones, where the epoch is long enough.
_WAIT = 2
#: Steps that are traced, where the epoch is long enough.
_TRACED = 6
#: Rows of the table of operators.
_ROWS = 40
_ABOUT = (
    "Seconds by epoch. Of labels: extraction, clustering, questions; "
    "of training: data, network, memory, optimizer."
)


class Profile:
    """Traces steps of the first epoch that this process trains.

    Args:
        folder: The folder of the run, which gets trace.json and profile.txt.
        enabled: Whether anything is traced; only the process that writes into the folder traces.
        device: Where the work is done.
    """

    def __init__(self, folder: RunFolder, enabled: bool, device: torch.device) -> None:
        self._folder = folder
        self._enabled = enabled and folder.writes
        self._device = device
        self._profiler: torch.profiler.profile | None = None
        self._traced = False

    @contextmanager
    def steps(self, count: int) -> Iterator[Callable[[], None]]:
        """Trace a few steps of the block.

        Args:
            count: Steps of the block.

        Yields:
            A function to call after each step.
        """
        if not self._enabled or self._traced:
            yield lambda: None
            return
        self._traced = True
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if self._device.type == "cuda":
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        warm = min(1, count - 1)
        traced = min(_TRACED, count - warm)
        wait = min(_WAIT, count - warm - traced)
        schedule = torch.profiler.schedule(wait=wait, warmup=warm, active=traced, repeat=1)
        with torch.profiler.profile(activities=kinds, schedule=schedule) as profiler:
            yield profiler.step
        self._profiler = profiler

    def write(self, history: list[dict[str, Any]]) -> None:
        """Write trace.json, and profile.txt: seconds of each phase by epoch, and operators by time.

        Args:
            history: One record an epoch, with its seconds.
        """
        if not self._enabled:
            return
        operators = ""
        if self._profiler is not None:
            write_by_path(self._folder.path / "trace.json", self._profiler.export_chrome_trace)
            by = "self_cuda_time_total" if self._device.type == "cuda" else "self_cpu_time_total"
            operators = self._profiler.key_averages().table(sort_by=by, row_limit=_ROWS)
        lines = [_ABOUT, "", *_seconds_table(history), "", operators]
        self._folder.write_file("profile.txt", "\n".join(lines) + "\n")


def _seconds_table(history: list[dict[str, Any]]) -> list[str]:
    """Return the lines of a table with a row for each phase and a column for each epoch."""
    trained = [record for record in history if record.get("seconds")]
    phases: dict[str, None] = {}
    for record in trained:
        phases |= dict.fromkeys(record["seconds"])
    width = max((len(phase) for phase in phases), default=0) + 2
    epochs = "".join(f"{record['epoch']:>10}" for record in trained)
    lines = [f"{'epoch':<{width}}{epochs}     in all"]
    for phase in phases:
        seconds = [record["seconds"].get(phase, 0.0) for record in trained]
        cells = "".join(f"{value:>10.3f}" for value in seconds)
        lines.append(f"{phase:<{width}}{cells}{sum(seconds):>11.3f}")
    return lines
