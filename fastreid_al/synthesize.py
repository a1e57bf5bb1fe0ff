"""`python -m fastreid_al.synthesize`: write the synthetic set into a folder, in MSMT17's layout."""

from __future__ import annotations

from collections.abc import Sequence

from .cli import parse_synthesis, run_main


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, draw, print where the set lies."""
    out, config = parse_synthesis(arguments)
    from .engine.console import Reporter
    from .errors import DataError
    from .synthetic.dataset import write_synthetic

    reporter = Reporter()
    folder = out / "MSMT17_V1"
    images = config.train_images + config.query_images + config.gallery_images
    try:
        with reporter.progress("drawing", images) as update:
            write_synthetic(folder, config, on_progress=update)
    except (ValueError, OSError) as error:
        raise DataError(f"could not draw the set ({error})") from error
    reporter.line(f"{images:,} images in {folder}; train with --dataset msmt17 --data-root {out}")


if __name__ == "__main__":
    run_main(main)
