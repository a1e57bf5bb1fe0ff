"""Processes of `bench/gpu_check.py`: each has a limit in seconds and leaves nothing behind.

A Python program is forked from this process, which has imported PyTorch and has not used the
device, so that it need not import PyTorch again: that takes longer than many parts. Where a forked
process cannot use the device, programs are started as commands.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple, NoReturn, Protocol

ROOT = Path(__file__).resolve().parent.parent
#: Imported before the first fork, where they are installed. None of them uses the device.
SHARED = ("numpy", "torch", "torch._dynamo", "triton", "pytest")
#: Characters of the end of the output that are kept.
TAIL = 20_000
#: Seconds between two looks at a process.
PAUSE = 0.1
_PR_SET_PDEATHSIG = 1


class Program(NamedTuple):
    """A Python program.

    Args:
        name: A module such as "pytest", or the path of a script, relative to the root.
        arguments: Its arguments.
    """

    name: str
    arguments: tuple[str, ...] = ()

    @property
    def is_script(self) -> bool:
        """Whether it is a script."""
        return self.name.endswith(".py")

    @property
    def command(self) -> list[str]:
        """The command that starts it in a new process."""
        how = [str(ROOT / self.name)] if self.is_script else ["-m", self.name]
        return [sys.executable, *how, *self.arguments]


class Ran(NamedTuple):
    """How a process ended.

    Args:
        exit: Its exit status, negative for a signal; None if it was stopped at its limit.
        seconds: How long it ran.
        output: Everything that it printed.
    """

    exit: int | None
    seconds: float
    output: str

    @property
    def tail(self) -> str:
        """The end of the output."""
        end = self.output[-TAIL:]
        return end if self.exit is not None else f"{end}\nstopped after {self.seconds:.0f} s"

    def then(self, other: Ran) -> Ran:
        """Both one after the other; the exit status is the other's, or this one's if it failed."""
        status = None if other.exit is None else self.exit or other.exit
        return Ran(status, round(self.seconds + other.seconds, 1), self.output + other.output)


class Child(Protocol):
    """A process that was started, with its process group.

    Args:
        pid: Its number.
        log: What it prints.
    """

    pid: int
    log: IO[str]

    def poll(self) -> int | None:
        """Its exit status, or None while it runs."""


class Forked:
    """A copy of this process that runs a program.

    Args:
        program: The program.
        settings: Environment variables that are set for it.
    """

    def __init__(self, program: Program, settings: Mapping[str, str]) -> None:
        self._status: int | None = None
        self.log = _new_log()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _run_here(program, self.log, settings)

    def poll(self) -> int | None:
        """Its exit status, or None while it runs."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status


class Started:
    """A command in a process group of its own.

    Args:
        command: The command.
        settings: Environment variables that are set for it.
    """

    def __init__(self, command: list[str], settings: Mapping[str, str]) -> None:
        self.log = _new_log()
        # The project need not be installed.
        paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
        environment = {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **environment, **settings},
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            preexec_fn=_leave,
        )
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Its exit status, or None while it runs."""
        return self._process.poll()


def _new_log() -> IO[str]:
    """A file without a name for what a process prints."""
    return tempfile.TemporaryFile("w+", errors="replace")


def _run_here(program: Program, log: IO[str], settings: Mapping[str, str]) -> NoReturn:
    """Run a program in this process, which a fork has made, and end."""
    status: object = 1
    try:
        _leave()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for target in (1, 2):
            os.dup2(log.fileno(), target)
        sys.stdout, sys.stderr = (os.fdopen(target, "w", buffering=1) for target in (1, 2))
        os.chdir(ROOT)
        os.environ.update(settings)
        sys.argv = [program.name, *program.arguments]
        if program.is_script:
            runpy.run_path(str(ROOT / program.name), run_name="__main__")
        else:
            runpy.run_module(program.name, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code
        if isinstance(status, str):
            print(status, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(int(status or 0) if isinstance(status, int | None) else 1)


def _leave() -> None:
    """Make this process the first of a group, and end it when its parent is killed."""
    os.setpgrp()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def share_imports() -> None:
    """Import what most programs need, once."""
    for name in SHARED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def start(what: Program | list[str], settings: Mapping[str, str], *, forks: bool) -> Child:
    """Start a program or a command.

    Args:
        what: A Python program, or a command with its arguments.
        settings: Environment variables that are set for it.
        forks: Whether a Python program is forked from this process.
    """
    if isinstance(what, Program) and forks:
        return Forked(what, settings)
    return Started(what.command if isinstance(what, Program) else what, settings)


def wait(child: Child, limit: float, look: Callable[[], None] = lambda: None) -> Ran:
    """Wait until a process ends, at most for some seconds; then its whole group is killed.

    Args:
        child: The process.
        limit: Seconds from now.
        look: Called again and again while it runs.
    """
    begin = time.monotonic()
    status = None
    with ended_with_its_group(child):
        while (status := child.poll()) is None and time.monotonic() - begin < limit:
            look()
            time.sleep(PAUSE)
    seconds = round(time.monotonic() - begin, 1)
    with child.log as log:
        log.seek(0)
        return Ran(status, seconds, log.read())


@contextlib.contextmanager
def ended_with_its_group(child: Child) -> Iterator[None]:
    """Kill a process and what it has started when the block ends, however it ends."""
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        while child.poll() is None:
            # It may not have a group of its own yet.
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)
            time.sleep(PAUSE / 10)
