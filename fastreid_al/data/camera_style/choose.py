"""Choose the camera styles of a run by the setting `camstyle`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ...config import ImageConfig, StyleConfig, StyleName
from ...distributed.world import SINGLE_PROCESS, World
from ..pixels import PixelStore
from ..records import STYLE_COPIES, ImageSet, Record
from .colour import ColourStyle
from .files import FileStyle
from .fourier import FourierStyle
from .style import CameraStyle, Progress, known_cameras


def camera_style(
    kind: StyleName,
    images: ImageSet,
    records: Sequence[Record],
    store: PixelStore,
    config: StyleConfig,
    image: ImageConfig,
    store_dir: Path,
    warn: Callable[[str], None],
    on_progress: Progress | None = None,
    world: World = SINGLE_PROCESS,
) -> CameraStyle | None:
    """Make the camera styles of a run.

    Args:
        kind: none, colour, fourier or files.
        images: The set, for its root.
        records: The n training images, in the order of the store's rows.
        store: Their pixels.
        config: Probability and band.
        image: Size of the images and budget of the copies' store.
        store_dir: Folder of a memory-mapped store.
        warn: Called with one line for a problem that does not stop the run.
        on_progress: Called with (images done, images in all) while images are read.
        world: Processes that train with the same images.

    Returns:
        The styles; None where none are asked for, the set has fewer than two cameras, or the copies
        are missing.

    Raises:
        DataError: Copies cannot be used, as `FileStyle` says.
    """
    if kind == "none":
        return None
    missing = reason_without_styles(kind, images, records)
    if missing:
        warn(missing)
        return None
    if kind == "colour":
        return ColourStyle(records, store, config.probability, on_progress=on_progress)
    if kind == "fourier":
        return FourierStyle(records, store, config.band, config.probability, on_progress)
    return FileStyle(
        images, records, image, store_dir, warn, config.probability, on_progress, world
    )


def reason_without_styles(
    kind: StyleName, images: ImageSet, records: Sequence[Record]
) -> str | None:
    """Explain in one line why a set has no styles of a kind.

    Args:
        kind: colour, fourier or files.
        images: The set, for its root.
        records: The training images.

    Returns:
        The line; None where the set has such styles.
    """
    cameras = known_cameras(records)
    if len(cameras) < 2:
        return (
            f"`camstyle` {kind} has no effect: the training images are known to be of "
            f"{len(cameras)} camera(s); put the camera, such as _c3, into the names of a folder's "
            "images, or choose `camstyle` none"
        )
    if kind == "files" and not (images.root / STYLE_COPIES).is_dir():
        return (
            f"`camstyle` files: {images.root / STYLE_COPIES} does not exist; training goes on "
            "without camera styles. Unpack CamStyle's copies there, or choose `camstyle` colour"
        )
    return None
