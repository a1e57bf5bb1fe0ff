"""A camera is drawn for each image, as often as asked for; other images stay as they are."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from fastreid_al.data.camera_style import (
    CameraStyle,
    ColourStyle,
    FourierStyle,
)
from tests.support.styles import records_of, smooth, stored


class Marked(CameraStyle):
    """Fills an image with the place of its camera."""

    def _restyle(self, pixels: Tensor, rows: Tensor, own: Tensor, drawn: Tensor) -> Tensor:
        return drawn.view(-1, 1, 1, 1).expand(pixels.shape).to(torch.uint8)

    def describe(self) -> str:
        return "marked"


@pytest.mark.parametrize(
    ("probability", "own", "others"),
    [(None, 0.25, 0.25), (0.6, 0.4, 0.2), (0.0, 1.0, 0.0), (1.0, 0.0, 1 / 3)],
)
def test_cameras_are_drawn_with_the_probability_asked_for(
    probability: float | None, own: float, others: float
) -> None:
    style = Marked(records_of([2, 5, 11, 15, -1]), probability)
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(5).repeat_interleave(3000)
    drawn = style(torch.full((15_000, 1, 1, 1), 99, dtype=torch.uint8), rows, generator)[
        :, 0, 0, 0
    ].view(5, 3000)
    assert (drawn[4] == 99).all()
    for camera in range(4):
        counts = torch.bincount(drawn[camera], minlength=100)[[0, 1, 2, 3, 99]] / 3000
        expected = torch.full((5,), others)
        expected[camera], expected[4] = 0, own
        assert (counts - expected).abs().max() < 0.035


@pytest.mark.parametrize("probability", [None, 0.0, 0.5, 1.0])
def test_two_numbers_are_drawn_for_each_image_in_every_case(probability: float | None) -> None:
    generator, plain = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    Marked(records_of([1, 2, -1]), probability)(
        torch.zeros(3, 3, 2, 2, dtype=torch.uint8), torch.arange(3), generator
    )
    torch.rand(2, 3, generator=plain)
    assert torch.equal(generator.get_state(), plain.get_state())


def styles(
    pixels: Tensor, cameras: Sequence[int], probability: float | None = None
) -> list[CameraStyle]:
    records, store = records_of(cameras), stored(pixels)
    return [
        ColourStyle(records, store, probability),
        FourierStyle(records, store, 0.1, probability),
    ]


@pytest.mark.parametrize("kind", [0, 1])
def test_images_of_their_own_or_an_unknown_camera_stay_as_they_are(
    kind: int,
) -> None:
    cameras = [1, 2, 3, -1] * 12
    pixels = smooth(48)
    pixels[1::4] //= 2
    style = styles(pixels, cameras)[kind]
    rows = torch.randperm(48)
    drawn = style._draw(style.cameras[rows], torch.Generator().manual_seed(1))
    same = drawn == style.cameras[rows]
    got = style(pixels[rows], rows, torch.Generator().manual_seed(1))
    assert 12 < same.sum() < 40
    assert torch.equal(got[same], pixels[rows][same].float())
    assert all((got[i] != pixels[rows[i]]).any() for i in (~same).nonzero()[:, 0].tolist())
    assert (
        got.dtype == torch.float32
        and got.shape == pixels.shape
        and got.min() >= 0
        and got.max() <= 255
    )


@pytest.mark.parametrize("kind", [0, 1])
def test_the_state_of_the_generator_repeats_the_styles(kind: int) -> None:
    pixels = smooth(24)
    style, again = (styles(pixels, [1, 2, 3] * 8)[kind] for _ in range(2))
    generator, rows = torch.Generator().manual_seed(9), torch.arange(24)
    state = generator.get_state()
    first, second = style(pixels, rows, generator), style(pixels, rows, generator)
    generator.set_state(state)
    assert torch.equal(again(pixels, rows, generator), first)
    assert not torch.equal(first, second)
