"""`python -m fastreid_al.simulate`: how much each strategy's questions are worth, on fixed features and without training."""

from __future__ import annotations

from collections.abc import Sequence

from .cli import parse_simulation, run_main


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, simulate."""
    config = parse_simulation(arguments)
    from .runs import run_simulation

    run_simulation(config)


if __name__ == "__main__":
    run_main(main)
