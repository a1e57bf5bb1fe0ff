"""`fastreid-al extract`: write the features of images into a file."""

from __future__ import annotations

from collections.abc import Sequence

from .cli import as_options, parse_extraction, run_main


def main(arguments: Sequence[str] | None = None) -> None:
    """Extract."""
    options = parse_extraction(arguments)
    from .engine.console import Reporter
    from .runs.extract import extract_images

    extract_images(options, Reporter(wording=as_options))


if __name__ == "__main__":
    run_main(main)
