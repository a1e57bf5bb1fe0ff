"""The summary of a run: the scores of its networks, and what the questions cost."""

from __future__ import annotations

from typing import Any

from ..answers import Verdict
from ..engine.console import Reporter, percent
from ..engine.run_folder import RunFolder

#: Scores of a table, by their keys in metrics.jsonl.
SCORES = ("mAP", "mINP", "rank1", "rank5", "rank10")


def summarise(history: list[dict[str, Any]], folder: RunFolder, reporter: Reporter) -> None:
    """Print the scores of the untrained, last and best network, and the cost of the questions.

    Args:
        history: One record an epoch, as in metrics.jsonl.
        folder: The folder of the run.
        reporter: Prints the summary.
    """
    evaluated = [r for r in history if "mAP" in r]
    trained = [r for r in evaluated if r["epoch"] > 0]
    if trained:
        last = trained[-1]
        scored = [r for r in trained if r["mAP"] is not None]
        rows = [score_row("untrained", r) for r in evaluated if r["epoch"] == 0]
        rows.append(score_row(f"last, epoch {last['epoch']}", last))
        if scored:
            best = max(scored, key=lambda r: r["mAP"])
            rows.append(score_row(f"best, epoch {best['epoch']}", best))
        reporter.table("Test set, %", ["network", *SCORES], rows)
        if scored:
            reporter.line("best was chosen on the test set; the result to report is last")
        report_skipped(last, reporter)
    _report_cost(history, reporter)
    reporter.line(f"run folder: {folder.path}")


def score_row(name: str, scores: dict[str, Any]) -> list[str]:
    """Return a row of a table: a name, then the scores as per cent."""
    return [name, *(percent(scores[key]) for key in SCORES)]


def report_skipped(scores: dict[str, Any], reporter: Reporter) -> None:
    """Print how many queries were skipped because they have no match in the gallery."""
    if scores["skipped_queries"]:
        reporter.line(
            f"{scores['skipped_queries']} queries have no match in the gallery and were skipped"
        )


def _report_cost(history: list[dict[str, Any]], reporter: Reporter) -> None:
    """Print how many questions were asked, how they were answered, and how long that took."""
    asked = [r for r in history if "questions" in r]
    if not asked:
        return
    verdicts = []
    for verdict in Verdict:
        name = verdict.name.lower()
        count = sum(r[f"answered_{name}"] for r in asked)
        verdicts.append(f"{count} {name.replace('_', ' ')}")
    last = asked[-1]
    contradictions = sum(r["contradictions"] for r in asked)
    reporter.line(
        f"{last['questions_total']} questions ({', '.join(verdicts)}), "
        f"{100 * last['share_total']:.4f} % of all pairs, "
        f"{last['answering_seconds_total']:.0f} s of answering, {contradictions} contradictions"
    )
