"""`fastreid-al report`: write a page that shows a run, or compares two."""

from __future__ import annotations

from collections.abc import Sequence

from .cli import as_options, parse_report, run_main


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the report."""
    options = parse_report(arguments)
    from .engine.console import Reporter
    from .runs.report import write_report

    write_report(options, Reporter(wording=as_options))


if __name__ == "__main__":
    run_main(main)
