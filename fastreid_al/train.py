"""`python -m fastreid_al.train`: train a re-identification model on unlabelled images."""

from __future__ import annotations

from collections.abc import Sequence

from .cli import parse_training, run_main


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, train; exits with 128 + the signal's number when a signal stopped the run, with 0 when the annotator left."""
    config, options = parse_training(arguments)
    from .engine.stop_signal import Interrupted
    from .runs import dry_run, run_training

    if options.dry_run:
        dry_run(config)
        return
    try:
        run_training(config, resume=options.resume)
    except Interrupted as stop:
        raise SystemExit(128 + stop.signum if stop.signum else 0) from None


if __name__ == "__main__":
    run_main(main)
