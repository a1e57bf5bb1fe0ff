"""Small stores and records for the tests of camera styles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastreid_al.data.pixels import PixelStore
from fastreid_al.data.records import Record


def stored(pixels: Tensor) -> PixelStore:
    return PixelStore(pixels, torch.arange(len(pixels)), [""] * len(pixels), [])


def records_of(cameras: Sequence[int]) -> list[Record]:
    return [Record(Path(f"{i:04d}.jpg"), 0, camera) for i, camera in enumerate(cameras)]


def smooth(n: int, height: int = 32, width: int = 16) -> Tensor:
    """Random images with most of their variance at low frequencies, as photographs have."""
    coarse = 40 + 160 * torch.rand(n, 3, 4, 2)
    fine = torch.nn.functional.interpolate(
        coarse, (height, width), mode="bilinear"
    ) + 12 * torch.randn(n, 3, height, width)
    return fine.clamp(0, 255).to(torch.uint8)
