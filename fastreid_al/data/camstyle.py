"""Training images in the styles of other cameras: a batch at a time, where the batch lies (CPU or GPU)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from .records import UNKNOWN, Record


class CameraStyle(ABC):
    """Draws a camera for each image of a batch and gives the image its style.

    Each camera of the set is as probable as the image's own; with a probability, one of the other cameras is drawn with that
    probability, each as often. An image drawn as its own camera stays as it is, bit for bit; so does one of unknown camera.

    Args:
        records: The n training images, in the order of the store's rows.
        probability: Probability of another camera, or None.
    """

    def __init__(self, records: Sequence[Record], probability: float | None) -> None:
        self.numbers = known_cameras(records)
        place = {camera: index for index, camera in enumerate(self.numbers)}
        self.cameras = torch.tensor([place.get(r.camera, UNKNOWN) for r in records])
        self.probability = probability
        #: Relative path -> digest of every file that the styles are made from beside the training images.
        self.digests: dict[str, str] = {}

    def __call__(self, pixels: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Draw styles.

        Args:
            pixels: (B, 3, H, W) uint8, on any device.
            rows: (B,) int64, the images' rows in the training store.
            generator: On the CPU; two numbers an image are drawn whatever comes of them.

        Returns:
            (B, 3, H, W) in [0, 255]: float32, unrounded, where a style was computed, uint8 otherwise.
        """
        own = self.cameras[rows.cpu()]
        drawn = self._draw(own, generator)
        changed = (drawn != own).nonzero()[:, 0]
        if not len(changed):
            return pixels
        where = changed.to(pixels.device)
        styled = self._restyle(pixels[where], rows.cpu()[changed], own[changed], drawn[changed])
        return pixels.to(styled.dtype).index_copy(0, where, styled)

    def _draw(self, own: Tensor, generator: torch.Generator) -> Tensor:
        """A camera for each image: (B,) int64 indices of `numbers`, the image's own where it keeps its look."""
        count = len(self.numbers)
        whether, which = torch.rand(2, len(own), generator=generator)
        if self.probability is None:
            drawn = (which * count).long()
        else:
            other = (which * (count - 1)).long()
            drawn = torch.where(whether < self.probability, other + (other >= own), own)
        return torch.where(own == UNKNOWN, own, drawn)

    @abstractmethod
    def _restyle(self, pixels: Tensor, rows: Tensor, own: Tensor, drawn: Tensor) -> Tensor:
        """Images (B, 3, H, W) uint8 from their own cameras to those drawn; the (B,) arguments are on the CPU."""

    @abstractmethod
    def describe(self) -> str:
        """One line for the log."""


def known_cameras(records: Sequence[Record]) -> list[int]:
    """The cameras of a set in ascending order."""
    return sorted({r.camera for r in records} - {UNKNOWN})
