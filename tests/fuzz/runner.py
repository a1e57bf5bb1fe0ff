"""Runs cases in workers, and adds their outcomes up."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .cases import Case
from .outcomes import GOOD, HANG, MEMORY, SIGNAL, UNCLEAR, WRONG, Outcome
from .worker import SECONDS

ROOT = Path(__file__).parents[2]
#: Seconds after which a worker that waits for ever, or does not stop itself, is killed.
_PATIENCE = 6 * SECONDS


class Finding(NamedTuple):
    """A case that is neither right nor clearly refused."""

    case: Case
    outcome: Outcome


class Report(NamedTuple):
    """Outcomes of all cases by area and kind, and the findings."""

    counts: Counter[tuple[str, str]]
    findings: list[Finding]

    def table(self) -> str:
        """The table of the outcomes."""
        columns = (SIGNAL, HANG, MEMORY, UNCLEAR, WRONG)
        head = "| area | tried | refused | crashes | hangs | memory | unclear | wrong |"
        lines = [head, "|---|---|---|---|---|---|---|---|"]
        areas = sorted({area for area, _ in self.counts})
        for area in [*areas, "all"]:
            of_area = Counter[str]()
            for (name, kind), number in self.counts.items():
                if area in (name, "all"):
                    of_area[kind] += number
            numbers = [of_area.total(), of_area["refused"], *(of_area[kind] for kind in columns)]
            lines.append(f"| {area} | " + " | ".join(f"{n:,}" for n in numbers) + " |")
        return "\n".join(lines)


class Worker:
    """A process that runs one case after the other; a new one takes over when it dies."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""

    def run(self, case: Case) -> Outcome:
        """The outcome of a case."""
        process = self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(case.line().encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            return self._ended()
        for _ in ("start", "outcome"):
            line = self._line(_PATIENCE)
            if line is None:
                return self._ended()
            found = json.loads(line)
            if found != "start":
                return Outcome(*found)
        return self._ended()

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            self._buffer = b""

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            environment = os.environ | {
                "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}",
                "OMP_NUM_THREADS": "1",
                "PYTHONFAULTHANDLER": "",
            }
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.fuzz.worker"],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        return self._process

    def _line(self, seconds: float) -> bytes | None:
        """The next line, or None if the process is at its end or silent for too long."""
        assert self._process is not None and self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(seconds):
                    return None
                part = os.read(self._process.stdout.fileno(), 2**16)
                if not part:
                    return None
                self._buffer += part
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line

    def _ended(self) -> Outcome:
        """What a worker that does not answer came to."""
        assert self._process is not None
        try:
            status = self._process.wait(2)
        except subprocess.TimeoutExpired:
            self.close()
            return Outcome(HANG, f"silent for {_PATIENCE} s")
        self.close()
        if status in (-9, 137):
            return Outcome(MEMORY, "killed")
        return Outcome(SIGNAL, f"exit status {status}")


def run(cases: Sequence[Case], workers: int = 1, progress: bool = False) -> Report:
    """Run cases.

    Args:
        cases: The cases.
        workers: Processes at a time.
        progress: Print the number of cases now and then.
    """
    outcomes: list[Outcome | None] = [None] * len(cases)
    waiting = iter(range(len(cases)))
    lock = threading.Lock()

    def work() -> None:
        worker = Worker()
        while True:
            with lock:
                index = next(waiting, None)
            if index is None:
                break
            outcomes[index] = worker.run(cases[index])
            if progress and index % 1000 == 999:
                print(f"{index + 1:,} cases", file=sys.stderr, flush=True)
        worker.close()

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report = Report(Counter(), [])
    for case, found in zip(cases, outcomes, strict=True):
        assert found is not None
        report.counts[case.area, found.kind] += 1
        if found.kind not in GOOD:
            report.findings.append(Finding(case, found))
    return report
