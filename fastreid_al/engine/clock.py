"""Where the time of an epoch goes, without waiting for the device."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

#: Pairs of events after which their times are taken: by then the device is long past the first of them.
_KEPT = 512


class Clock:
    """Seconds by phase. On a GPU of the device's time, between events that are read later; else of the processor's.

    Args:
        device: Where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count what happens inside as a phase; phases do not overlap. It has its name in traces, too."""
        with torch.profiler.record_function(phase):
            if not self._cuda:
                start = time.perf_counter()
                try:
                    yield
                finally:
                    self.add(phase, time.perf_counter() - start)
                return
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            try:
                yield
            finally:
                end.record()
                self._events.append((phase, begin, end))
                if len(self._events) == _KEPT:
                    self._take(_KEPT // 2)

    def add(self, phase: str, seconds: float) -> None:
        """Count seconds that were measured elsewhere."""
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds

    def read(self) -> dict[str, float]:
        """Seconds of each phase since the last reading, which waits for the device."""
        self._take(len(self._events))
        seconds, self._seconds = self._seconds, {}
        return seconds

    def _take(self, count: int) -> None:
        for phase, begin, end in self._events[:count]:
            end.synchronize()
            self.add(phase, begin.elapsed_time(end) / 1000)
        del self._events[:count]
