"""`fastreid-al annotate`: serve the page on which people answer questions in a browser."""

from __future__ import annotations

from collections.abc import Sequence

from .cli import as_options, parse_annotation, run_main


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve the annotation page until Ctrl-C."""
    options = parse_annotation(arguments)
    from .engine.console import Reporter
    from .runs.annotate import serve_annotation

    serve_annotation(options, Reporter(wording=as_options))


if __name__ == "__main__":
    run_main(main)
