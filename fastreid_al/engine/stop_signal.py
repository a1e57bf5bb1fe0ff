"""Stops a run on SIGINT or SIGTERM at a point from which it can be resumed."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

Progress = Callable[[int, int], None]


class Interrupted(Exception):  # noqa: N818
    """A signal asked the run to stop, or the annotator left; the run has saved its state.

    Args:
        signum: The signal; 0 when the annotator left.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class StopSignal:
    """Remembers the first SIGINT or SIGTERM of a run, and raises `Interrupted` where it is checked.

    Args:
        ends_phases: Whether `check_phase` raises, which ends an extraction or an evaluation at
            once. They take minutes and lose nothing. With several processes it must be False: a
            process that leaves a phase would leave the others waiting in a collective.
    """

    def __init__(self, ends_phases: bool = True) -> None:
        self.ends_phases = ends_phases
        #: The signal that came; 0 while none has.
        self.signum = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Remember signals inside the block instead of ending the process.

        A second Ctrl-C ends the process at once. The handlers from before are restored at the end.
        """
        handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            for signum in handlers:
                signal.signal(signum, self._remember)
            yield
        finally:
            for signum, handler in handlers.items():
                signal.signal(signum, handler)

    def check(self) -> None:
        """Raise `Interrupted` when a signal came."""
        if self.signum:
            raise Interrupted(self.signum)

    def check_phase(self) -> None:
        """Raise `Interrupted` when a signal came and phases may be ended. Called in long phases."""
        if self.ends_phases:
            self.check()

    def checked(self, on_progress: Progress) -> Progress:
        """Return a progress callback that calls `on_progress`, then `check_phase`."""

        def update(done: int, total: int) -> None:
            on_progress(done, total)
            self.check_phase()

        return update

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        signal.signal(signal.SIGINT, signal.SIG_DFL)
