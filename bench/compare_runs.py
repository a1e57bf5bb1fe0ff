"""Compare run folders: `python bench/compare_runs.py NAME=RUN[,RUN...] ... [--figure FILE.png]`.

Prints, for each name, mean and standard deviation over its runs (seeds) of mAP, rank-1, questions
and their share of all pairs. With `--figure` it also plots mAP over the questions asked so far.
Runs with `--evaluate-every 1` have one point per epoch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from fastreid_al.files import write_figure

#: The records of one run, one per epoch.
History = list[dict[str, Any]]


def main() -> None:
    """Read the runs, print the table, and plot the figure if one is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN[,RUN...]")
    parser.add_argument("--figure", type=Path, help="PNG of mAP over questions")
    options = parser.parse_args()
    histories: dict[str, list[History]] = {}
    for word in options.runs:
        name, _, folders = word.partition("=")
        histories[name] = [read_history(Path(folder)) for folder in folders.split(",")]
    print("| | mAP | rank-1 | questions | share of pairs |\n|---|---|---|---|---|")
    for name, runs in histories.items():
        print(table_row(name, [run[-1] for run in runs]))
    if options.figure:
        plot(histories, options.figure)


def read_history(run: Path) -> History:
    """Read the records of a run whose last epoch was evaluated.

    Raises:
        SystemExit: The folder has no metrics, or its last epoch was not evaluated.
    """
    try:
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    except (OSError, ValueError) as error:
        sys.exit(f"{run} has no readable metrics.jsonl ({error}); give run folders as NAME=RUN,RUN")
    if not records or "mAP" not in records[-1]:
        sys.exit(f"{run} has not evaluated its last epoch; let it finish")
    return records


def table_row(name: str, last: History) -> str:
    """One row of the table, from the last record of each run."""
    cells = [
        mean_and_deviation([100 * record["mAP"] for record in last], "{:.1f}"),
        mean_and_deviation([100 * record["rank1"] for record in last], "{:.1f}"),
        mean_and_deviation([record.get("questions_total", 0) for record in last], "{:.0f}"),
        mean_and_deviation([100 * record.get("share_total", 0) for record in last], "{:.3f}")
        + " %",
    ]
    return f"| {name} | " + " | ".join(cells) + " |"


def mean_and_deviation(values: list[float], form: str) -> str:
    """The mean, and the standard deviation if there are several values that differ."""
    mean = form.format(statistics.mean(values))
    if len(set(values)) < 2:
        return mean
    return f"{mean} ± {form.format(statistics.stdev(values))}"


def plot(histories: dict[str, list[History]], path: Path) -> None:
    """Plot mAP over questions: one line per run, one colour per name.

    A run without questions is a dotted horizontal line at its last mAP.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, (name, runs) in enumerate(histories.items()):
        color = f"C{number}"
        for run_number, run in enumerate(runs):
            label = name if run_number == 0 else None
            evaluated = [record for record in run if "mAP" in record and record["epoch"] > 0]
            scores = [100 * record["mAP"] for record in evaluated]
            if "questions_total" not in run[-1]:
                axes.axhline(scores[-1], color=color, linestyle=":", label=label)
                continue
            questions = [record.get("questions_total", 0) for record in evaluated]
            axes.plot(questions, scores, "o-", color=color, markersize=3, label=label)
    axes.set_xlabel("questions")
    axes.set_ylabel("mAP (%)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    write_figure(path, figure, private=False)


if __name__ == "__main__":
    main()
