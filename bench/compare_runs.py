"""Compare run folders: `python bench/compare_runs.py NAME=RUN[,RUN...] ... [--figure FILE.png]`.

Prints, for each name, mean and standard deviation over its runs (seeds) of mAP, rank-1, questions and their share of all pairs,
and draws mAP over the questions asked so far; runs with --evaluate-every 1 have a point an epoch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Read, print, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN[,RUN...]")
    parser.add_argument("--figure", type=Path, help="PNG of mAP over questions")
    options = parser.parse_args()
    named = {
        name: [history(Path(run)) for run in runs.split(",")]
        for name, _, runs in (r.partition("=") for r in options.runs)
    }
    print("| | mAP | rank-1 | questions | share of pairs |\n|---|---|---|---|---|")
    for name, runs in named.items():
        print(row(name, [run[-1] for run in runs]))
    if options.figure:
        draw(named, options.figure)


def history(run: Path) -> list[dict[str, Any]]:
    """The records of a run that evaluated its last epoch."""
    try:
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    except (OSError, ValueError) as error:
        sys.exit(f"{run} has no readable metrics.jsonl ({error}); give run folders as NAME=RUN,RUN")
    if not records or "mAP" not in records[-1]:
        sys.exit(f"{run} has not evaluated its last epoch; let it end")
    return records


def row(name: str, last: list[dict[str, Any]]) -> str:
    """One line of the table."""
    cells = [spread([100 * r[key] for r in last], "{:.1f}") for key in ("mAP", "rank1")]
    cells.append(spread([r.get("questions_total", 0) for r in last], "{:.0f}"))
    cells.append(spread([100 * r.get("share_total", 0) for r in last], "{:.3f}") + " %")
    return f"| {name} | " + " | ".join(cells) + " |"


def spread(values: list[float], form: str) -> str:
    """Mean, and the standard deviation where there are several values that differ."""
    mean = form.format(statistics.mean(values))
    return mean if len(set(values)) < 2 else f"{mean} ± {form.format(statistics.stdev(values))}"


def draw(named: dict[str, list[list[dict[str, Any]]]], path: Path) -> None:
    """MAP over questions: a thin line a run, all of one name in one colour."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, (name, runs) in enumerate(named.items()):
        for place, run in enumerate(runs):
            points = [
                (r.get("questions_total", 0), 100 * r["mAP"])
                for r in run
                if "mAP" in r and r["epoch"] > 0
            ]
            if "questions_total" not in run[-1]:
                axes.axhline(
                    points[-1][1], color=f"C{number}", linestyle=":", label=None if place else name
                )
                continue
            axes.plot(
                *zip(*points, strict=True),
                "o-",
                color=f"C{number}",
                markersize=3,
                label=None if place else name,
            )
    axes.set_xlabel("questions")
    axes.set_ylabel("mAP (%)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
