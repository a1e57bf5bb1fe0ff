"""`fastreid-al synthesize`: write the synthetic set into a folder, in MSMT17's layout."""

from __future__ import annotations

from collections.abc import Sequence

from .cli import as_options, parse_synthesis, run_main


def main(arguments: Sequence[str] | None = None) -> None:
    """Render the set, and print where it is."""
    out, config = parse_synthesis(arguments)
    from .engine.console import Reporter
    from .errors import DataError
    from .synthetic.dataset import write_synthetic

    reporter = Reporter(wording=as_options)
    folder = out / "MSMT17_V1"
    images = config.train_images + config.query_images + config.gallery_images
    try:
        with reporter.progress("rendering", images) as update:
            write_synthetic(folder, config, on_progress=update)
    except (ValueError, OSError) as error:
        raise DataError(f"could not write the set ({error})") from error
    reporter.line(f"{images:,} images in {folder}; train with `dataset` msmt17 `data_root` {out}")


if __name__ == "__main__":
    run_main(main)
