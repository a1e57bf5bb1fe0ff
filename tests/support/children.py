"""Child processes that a test forks and kills."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable


def forked(work: Callable[[], object]) -> int:
    """Do something in a child process, which ends without the cleaning up of this one."""
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            work()
            status = 0
        os._exit(status)
    return child


def kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
