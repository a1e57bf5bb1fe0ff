"""`python -m fastreid_al.evaluate`: score a checkpoint or a bare weights file on an image set."""

from __future__ import annotations

from collections.abc import Sequence

from .cli import parse_evaluation, run_main


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, evaluate, print."""
    options = parse_evaluation(arguments)
    from .runs.evaluate import evaluate_file

    evaluate_file(options)


if __name__ == "__main__":
    run_main(main)
