"""Measures how long the phases of an epoch take, without waiting for the device."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

#: Pairs of events that are kept. When they are full the first half is read, which does not wait:
#: by then the device has long passed these events.
_KEPT = 512


class Clock:
    """Seconds by phase: on a GPU its own time, between events that are read later; else wall time.

    Args:
        device: Where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add the time of the block to a phase, which has this name in traces, too.

        Phases do not overlap.
        """
        with torch.profiler.record_function(phase):
            if not self._cuda:
                start = time.perf_counter()
                try:
                    yield
                finally:
                    self.add(phase, time.perf_counter() - start)
                return
            begin = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            begin.record()
            try:
                yield
            finally:
                end.record()
                self._events.append((phase, begin, end))
                if len(self._events) == _KEPT:
                    self._read_events(_KEPT // 2)

    def add(self, phase: str, seconds: float) -> None:
        """Add seconds that were measured elsewhere to a phase."""
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds

    def read(self) -> dict[str, float]:
        """Return the seconds of each phase since the last call. Waits for the device."""
        self._read_events(len(self._events))
        seconds = self._seconds
        self._seconds = {}
        return seconds

    def _read_events(self, count: int) -> None:
        for phase, begin, end in self._events[:count]:
            end.synchronize()
            self.add(phase, begin.elapsed_time(end) / 1000)
        del self._events[:count]
