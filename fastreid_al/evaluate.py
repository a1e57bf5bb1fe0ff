"""`fastreid-al evaluate`: score a checkpoint or a bare weights file on an image set."""

from __future__ import annotations

from collections.abc import Sequence

from .cli import as_options, parse_evaluation, run_main


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate, and print the scores."""
    options = parse_evaluation(arguments)
    from .engine.console import Reporter
    from .runs.evaluate import evaluate_file

    evaluate_file(options, Reporter(wording=as_options))


if __name__ == "__main__":
    run_main(main)
