"""`fastreid-al export`: write the identities that a run found, or its network."""

from __future__ import annotations

from collections.abc import Sequence

from .cli import as_options, parse_export, run_main


def main(arguments: Sequence[str] | None = None) -> None:
    """Export."""
    options = parse_export(arguments)
    from .engine.console import Reporter
    from .runs.export import export_run

    export_run(options, Reporter(wording=as_options))


if __name__ == "__main__":
    run_main(main)
