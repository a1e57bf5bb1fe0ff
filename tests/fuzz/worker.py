"""A process that runs cases from standard input within limits of time and memory."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

#: Seconds of work on a case, however busy the machine is, and bytes that the process may take in
#: addition.
SECONDS = 20
MEMORY = 3 * 2**30


class TimeIsUp(BaseException):
    """The case took too long."""


def stop(*_: object) -> None:
    raise TimeIsUp


def main() -> None:
    """Run a case for each line; write a line before it and a line with its outcome."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    # What the library prints belongs nowhere.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    warnings.simplefilter("ignore")
    from .cases import Case, outcome
    from .outcomes import HANG, UNCLEAR, Outcome

    size = re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())
    limit = (int(size[1]) * 1024 if size else 0) + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, stop)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        os.environ["HOME"] = scratch
        for line in sys.stdin:
            out.write('"start"\n')
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                found = outcome(Case.of_line(line), Path(scratch))
            except TimeIsUp:
                found = Outcome(HANG, f"longer than {SECONDS} s")
            except BaseException:
                found = Outcome(UNCLEAR, traceback.format_exc()[-600:])
            signal.setitimer(signal.ITIMER_PROF, 0)
            out.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
