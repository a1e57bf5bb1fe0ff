"""`fastreid-al simulate`: what each strategy's questions are worth, on fixed features."""

from __future__ import annotations

from collections.abc import Sequence

from .cli import as_options, parse_simulation, run_main


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate, and write the curves."""
    config = parse_simulation(arguments)
    from .engine.console import Reporter
    from .runs import run_simulation

    run_simulation(config, Reporter(wording=as_options))


if __name__ == "__main__":
    run_main(main)
