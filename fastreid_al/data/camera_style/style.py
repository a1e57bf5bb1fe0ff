"""The base of all camera styles: a random camera for each image, and samples of a camera."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..loader import to_device_async
from ..pixels import PixelStore
from ..records import UNKNOWN, Record

#: Images of a camera from which its statistics are taken.
SAMPLE = 400
#: Images that are read at a time for the statistics.
_BLOCK = 64

Progress = Callable[[int, int], None]


class Styles(NamedTuple):
    """The styles drawn for a batch of n images, on the CPU.

    Args:
        rows: (n,) int64, rows of the images in the store.
        own: (n,) int64, indices of the images' own cameras.
        drawn: (n,) int64, indices of the cameras drawn.
    """

    rows: Tensor
    own: Tensor
    drawn: Tensor

    def part(self, rows: slice) -> Styles:
        """Return the styles of a part of the batch."""
        return Styles(self.rows[rows], self.own[rows], self.drawn[rows])


class CameraStyle(ABC):
    """Draws a camera for each image of a batch and renders the image in that camera's style.

    Without a probability every camera of the set is as probable as the image's own; with a
    probability, one of the other cameras is drawn with that probability, each equally often. An
    image for which its own camera is drawn stays as it is, bit for bit; so does one of unknown
    camera.

    Args:
        records: The n training images, in the order of the store's rows.
        probability: Probability of another camera, or None.
    """

    def __init__(self, records: Sequence[Record], probability: float | None) -> None:
        #: Numbers of the known cameras, ascending; everything below is by index into this list.
        self.numbers = known_cameras(records)
        index = {camera: i for i, camera in enumerate(self.numbers)}
        #: (n,) int64, index of each image's camera, -1 where unknown.
        self.cameras = torch.tensor([index.get(r.camera, UNKNOWN) for r in records])
        self.probability = probability
        #: Name -> digest of everything but the training images from which the styles are made.
        self.digests: dict[str, str] = {}

    def __call__(self, pixels: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Draw styles and apply them.

        Args:
            pixels: (B, 3, H, W) uint8, on any device.
            rows: (B,) int64, the images' rows in the training store.
            generator: On the CPU; two numbers are drawn for each image, whether it changes or not.

        Returns:
            (B, 3, H, W) in [0, 255]: float32, unrounded, where a style was computed, uint8
            otherwise.
        """
        return self.apply(pixels, self.draw(rows, generator))

    def draw(self, rows: Tensor, generator: torch.Generator) -> Styles:
        """Draw a camera for each image.

        Args:
            rows: (n,) int64, the images' rows in the training store. On a GPU the host waits for
                them.
            generator: On the CPU.
        """
        rows = rows.cpu()
        own = self.cameras[rows]
        return Styles(rows, own, self._draw(own, generator))

    def apply(self, pixels: Tensor, styles: Styles) -> Tensor:
        """Apply the styles that were drawn.

        Args:
            pixels: (B, 3, H, W) uint8, on any device.
            styles: Of B images.

        Returns:
            (B, 3, H, W), as a call returns.
        """
        changed = (styles.drawn != styles.own).nonzero()[:, 0]
        if not len(changed):
            return pixels
        where = to_device_async(changed, pixels.device)
        rows, own, drawn = (x[changed] for x in styles)
        styled = self._restyle(pixels[where], rows, own, drawn)
        return pixels.to(styled.dtype).index_copy(0, where, styled)

    def _draw(self, own: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a camera for each image: (B,) int64, the image's own where it stays as it is."""
        count = len(self.numbers)
        whether, which = torch.rand(2, len(own), generator=generator)
        if self.probability is None:
            drawn = (which * count).long()
        else:
            other = (which * (count - 1)).long()
            # Skip the image's own camera.
            other = other + (other >= own)
            drawn = torch.where(whether < self.probability, other, own)
        return torch.where(own == UNKNOWN, own, drawn)

    @abstractmethod
    def _restyle(self, pixels: Tensor, rows: Tensor, own: Tensor, drawn: Tensor) -> Tensor:
        """Change images from their own cameras' style to that of the cameras drawn.

        Args:
            pixels: (B, 3, H, W) uint8.
            rows: (B,) int64 on the CPU, rows of the store.
            own: (B,) int64 on the CPU, the images' cameras.
            drawn: (B,) int64 on the CPU, the cameras drawn.
        """

    @abstractmethod
    def describe(self) -> str:
        """Describe the styles in one line for the log."""


def known_cameras(records: Sequence[Record]) -> list[int]:
    """Return the cameras of a set in ascending order, without the unknown one."""
    return sorted({r.camera for r in records} - {UNKNOWN})


def samples_by_camera(
    cameras: Tensor, count: int, store: PixelStore, on_progress: Progress | None
) -> Iterator[tuple[int, Tensor]]:
    """Read up to SAMPLE images of each camera, evenly spaced in the store.

    Args:
        cameras: (n,) int64, index of each image's camera.
        count: Number of cameras.
        store: The n images.
        on_progress: Called with (images read, images in all).

    Yields:
        Index of a camera and a block of its images, (b, 3, H, W) uint8.
    """
    rows_of_camera = []
    for camera in range(count):
        rows = (cameras == camera).nonzero()[:, 0]
        sample = min(SAMPLE, len(rows))
        rows_of_camera.append(rows[torch.arange(sample) * len(rows) // sample])
    total = sum(len(rows) for rows in rows_of_camera)
    done = 0
    for camera, rows in enumerate(rows_of_camera):
        for block in rows.split(_BLOCK):
            yield camera, store.read(block)
            done += len(block)
            if on_progress is not None:
                on_progress(done, total)
