"""`fastreid-al train`: train a re-identification model on unlabelled images."""

from __future__ import annotations

from collections.abc import Sequence

from .cli import as_options, parse_training, run_main


def main(arguments: Sequence[str] | None = None) -> None:
    """Train; exits with 128 + its number after a signal, with 0 after the annotator has quit."""
    config, options = parse_training(arguments)
    from .engine.console import Reporter
    from .engine.stop_signal import Interrupted
    from .runs import dry_run, run_training

    reporter = Reporter(wording=as_options)
    if options.dry_run:
        dry_run(config, reporter)
        return
    try:
        run_training(config, resume=options.resume, reporter=reporter)
    except Interrupted as stop:
        raise SystemExit(128 + stop.signum if stop.signum else 0) from None


if __name__ == "__main__":
    run_main(main)
