"""Features of any number of images in bounded memory: decoded and extracted part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .. import __version__
from ..config import EngineConfig
from ..data.loader import BatchLoader, prefetch
from ..data.pixels import BadImage, PixelSettings, PixelStore, decode
from ..engine.extract import extract_features
from ..engine.network import Network
from ..errors import DivergedError
from .trained import Trained

#: Images of a part: 201 MB of pixels at 256 x 128. Two parts exist at a time.
PART = 2048


class FeaturePart(NamedTuple):
    """Features of the readable images of one part.

    Args:
        features: (m, D) float32, unit-norm, on the CPU.
        rows: (m,) their places in the list of paths, ascending.
        digests: Digests of the contents of their files, 32 hexadecimal digits each.
    """

    features: Tensor
    rows: list[int]
    digests: list[str]


def stream_features(
    trained: Trained,
    network: Network,
    paths: Sequence[Path],
    engine: EngineConfig,
    bad: list[BadImage],
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[FeaturePart]:
    """Yield the features of images, part by part; a part is decoded while the last is extracted.

    Args:
        trained: How features are computed.
        network: The network as the engine runs it (`Trained.on`).
        paths: The images.
        engine: How features are extracted.
        bad: Gets the images that cannot be read.
        on_progress: Called with (images done, images in all).

    Yields:
        Parts of up to `PART` images, 17 MB of features for D = 2,048. In all 420 MB for images of
        256 x 128, however many there are.

    Raises:
        DivergedError: Features are not finite.
    """
    settings = PixelSettings(trained.image.height, trained.image.width)
    parts = [range(at, min(at + PART, len(paths))) for at in range(0, len(paths), PART)]
    with ThreadPoolExecutor(1, "decoder") as pool:

        def start(part: range) -> Future[PixelStore]:
            return pool.submit(decode, paths[part.start : part.stop], settings)

        for part, decoding in prefetch(parts, start):
            store = decoding.result()
            bad += store.bad
            loader = BatchLoader(store, network.device, "host")

            def update(done: int, _: int, start: int = part.start) -> None:
                if on_progress is not None:
                    on_progress(start + done, len(paths))

            features = extract_features(network, loader, engine, update, trained.stage).cpu()
            if not bool(torch.isfinite(features).all()):
                raise DivergedError(
                    f"features of {trained.origin} are not finite: the network has diverged; name "
                    "an earlier checkpoint"
                )
            rows = [part.start + slot for slot in store.slots.tolist()]
            yield FeaturePart(features, rows, store.digests)


def describe_features(trained: Trained, network: Network, engine: EngineConfig) -> dict[str, str]:
    """Return the metadata of a file of features: the network, and how features are computed."""
    flip = engine.flip_features
    return {
        "model_digest": trained.digest(flip),
        "model": trained.model.name,
        "height": str(trained.image.height),
        "width": str(trained.image.width),
        "stage": trained.stage,
        "flip": str(flip).lower(),
        "precision": network.precision.features,
        "version": __version__,
    }
