"""Augmentation and camera styles on a GPU equal those on the CPU, from the same draws."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastreid_al.config import ImageConfig, recipe
from fastreid_al.data.augment import Augment
from fastreid_al.data.camera_style import CameraStyle, ColourStyle, FourierStyle
from fastreid_al.data.pixels import PixelStore
from fastreid_al.data.records import Record

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("kind", ["none", "colour", "fourier"])
def test_a_batch_with_styles_is_augmented_as_on_the_cpu(kind: str) -> None:
    pixels = torch.nn.functional.interpolate(
        255 * torch.rand(60, 3, 16, 8), (128, 64), mode="bilinear"
    ).to(torch.uint8)
    records = [Record(Path(f"{i}.jpg"), 0, i % 3) for i in range(60)]
    store = PixelStore(pixels, torch.arange(60), [""] * 60, [])
    style: CameraStyle | None = None
    if kind != "none":
        style = (
            ColourStyle(records, store) if kind == "colour" else FourierStyle(records, store, 0.05)
        )
    rows = torch.randperm(60)[:32]
    got = []
    for device in ("cpu", "cuda"):
        augment = Augment(recipe("market1501", method="nnct").image, 3, style)
        got.append(augment(store.read(rows).to(device), rows).cpu())
    assert torch.allclose(got[0], got[1], atol=2e-3)


def test_augmentation_equals_that_of_the_cpu() -> None:
    config = ImageConfig(height=64, width=32, pad=4, jitter=0.2)
    here, there = Augment(config, seed=3), Augment(config, seed=3)
    for _ in range(4):
        pixels = torch.randint(256, (16, 3, 64, 32), dtype=torch.uint8)
        expected, got = here(pixels), there(pixels.to("cuda"))
        assert got.device.type == "cuda"
        torch.testing.assert_close(got.cpu(), expected, rtol=0, atol=1e-4)
    assert torch.equal(here.generator.get_state(), there.generator.get_state())
