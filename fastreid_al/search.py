"""`fastreid-al search`: find the gallery images that are most similar to a query."""

from __future__ import annotations

from collections.abc import Sequence

from .cli import as_options, parse_search, run_main


def main(arguments: Sequence[str] | None = None) -> None:
    """Search."""
    options = parse_search(arguments)
    from .engine.console import Reporter
    from .runs.search import search_gallery

    search_gallery(options, Reporter(wording=as_options))


if __name__ == "__main__":
    run_main(main)
