"""`--profile`: a trace of some training steps, and a table of where the run's time went."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .console import RunFolder

#: Steps that are let pass, and that are traced, where the epoch has so many.
_WAIT, _TRACED = 2, 6
#: Rows of the table of operators.
_ROWS = 40


class Profile:
    """Traces steps of the first epoch that this process trains.

    Args:
        folder: Takes trace.json and profile.txt.
        wanted: Whether anything is traced.
        device: Where the work is done.
    """

    def __init__(self, folder: RunFolder, wanted: bool, device: torch.device) -> None:
        self._folder, self._wanted, self._device = folder, wanted and folder.writes, device
        self._profiler: torch.profiler.profile | None = None
        self._traced = False

    @contextmanager
    def steps(self, count: int) -> Iterator[Callable[[], None]]:
        """Trace some of `count` steps; gives what is called after each of them."""
        if not self._wanted or self._traced:
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
        """Write trace.json, and profile.txt: seconds of each phase by epoch, and the operators of the traced steps."""
        if not self._wanted:
            return
        operators = ""
        if self._profiler is not None:
            self._profiler.export_chrome_trace(str(self._folder.path / "trace.json"))
            by = "self_cuda_time_total" if self._device.type == "cuda" else "self_cpu_time_total"
            operators = self._profiler.key_averages().table(sort_by=by, row_limit=_ROWS)
        trained = [record for record in history if record.get("seconds")]
        names = list(dict.fromkeys(name for record in trained for name in record["seconds"]))
        width = max((len(name) for name in names), default=0) + 2
        about = "Seconds by epoch. Of labels: extraction, clustering, questions; of training: data, network, memory, optimizer."
        lines = [about, ""]
        lines.append(
            f"{'epoch':<{width}}"
            + "".join(f"{record['epoch']:>10}" for record in trained)
            + "     in all"
        )
        for name in names:
            values = [record["seconds"].get(name, 0.0) for record in trained]
            lines.append(
                f"{name:<{width}}"
                + "".join(f"{v:>10.3f}" for v in values)
                + f"{sum(values):>11.3f}"
            )
        self._folder.write_text("profile.txt", "\n".join([*lines, "", operators]) + "\n")
