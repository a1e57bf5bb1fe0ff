"""The layouts of the published sets, by which a folder is recognised as one of them."""

from __future__ import annotations

from pathlib import Path

from ..errors import DataError
from . import cuhk03, duke, market, mars, msmt17, vehicleid, veri
from .locate import SetLayout
from .reader import SetKeys

#: The likeliest set first, where several have one layout.
LAYOUTS: tuple[SetLayout, ...] = (
    market.LAYOUT,
    duke.LAYOUT,
    msmt17.LAYOUT,
    veri.LAYOUT,
    vehicleid.LAYOUT,
    mars.LAYOUT,
    cuhk03.LABELED,
    cuhk03.DETECTED,
)


def fitting_sets(root: Path) -> list[str]:
    """Names of the published sets whose layout a folder has, the likeliest first.

    Args:
        root: A data root, or a set's own folder.
    """
    inside = published_layouts(root)
    below = [
        layout.name
        for layout in LAYOUTS
        if any(layout.is_surely_in(root / location) for location in layout.locations)
    ]
    return list(dict.fromkeys([*below, *inside]))


def published_layouts(folder: Path) -> list[str]:
    """Names of the published sets whose own folder this is, by its layout, the likeliest first."""
    fitting = [layout for layout in LAYOUTS if layout.is_surely_in(folder)]
    # Several sets have one layout, and the folder often has the name of one of them.
    fitting.sort(key=lambda layout: not layout.has_name(folder))
    return [layout.name for layout in fitting]


def refuse_published_layout(root: Path, keys: SetKeys) -> None:
    """Refuse to read a published set as a folder, because that would train on its test images.

    Raises:
        DataError: The folder has the layout of a published set; the message names its reader.
    """
    inside = published_layouts(root)
    if inside:
        raise DataError(
            f"{root} has the layout of {' or '.join(inside)}, whose test images must not be "
            f"trained on; read it with `{keys.name}` {inside[0]}, or name the folder of its "
            f"training images with `{keys.root}`"
        )
