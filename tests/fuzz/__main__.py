"""Run the fuzz suite by hand, or repeat one case: see `python -m tests.fuzz --help`."""

from __future__ import annotations

import argparse
import sys
import time

from .cases import Case, generated
from .runner import run

#: Findings that are printed of each kind, subject and message.
_SHOWN = 2


def main() -> None:
    """Print the table of the outcomes, and the findings with the lines that repeat them."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--runs", type=int, default=2000, help="cases")
    parser.add_argument("--seed", type=int, default=0, help="seed of the cases")
    parser.add_argument("--workers", type=int, default=1, help="processes at a time")
    parser.add_argument("--only", default="", help="a part of the name of a function or kind")
    parser.add_argument("--case", help="the line of a case to repeat")
    options = parser.parse_args()
    cases = [Case.of_line(options.case)] if options.case else generated(options.runs, options.seed)
    cases = [case for case in cases if options.only in case.subject]
    begin = time.monotonic()
    report = run(cases, options.workers, progress=len(cases) > 2000)
    seen: dict[tuple[str, ...], int] = {}
    for case, found in report.findings:
        key = (case.subject, found.kind, found.text[:60])
        seen[key] = seen.get(key, 0) + 1
        if seen[key] <= _SHOWN:
            print(f"{found.kind}: {case.line()}\n    {found.text}")
    print(f"\n{report.table()}\n\n{len(cases):,} cases in {time.monotonic() - begin:.0f} s")
    sys.exit(bool(report.findings))


if __name__ == "__main__":
    main()
