"""`fastreid-al annotate`: serve the page on which people answer questions in a browser."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .cli import as_options, as_options_of_run, parse_annotation, run_main
from .errors import UserError


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve the annotation page until Ctrl-C."""
    _serve(arguments, as_options)


def main_of_run() -> None:
    """Serve the page of a run that opened it: its lines name the options of the run."""

    def serve() -> None:
        try:
            _serve(None, as_options_of_run)
        except UserError as error:
            raise UserError(as_options_of_run(str(error))) from error

    run_main(serve)


def _serve(arguments: Sequence[str] | None, wording: Callable[[str], str]) -> None:
    options = parse_annotation(arguments)
    from .engine.console import Reporter
    from .runs.annotate import serve_annotation

    serve_annotation(options, Reporter(wording=wording))


if __name__ == "__main__":
    run_main(main)
