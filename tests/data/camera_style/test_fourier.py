"""Low-frequency amplitudes take the ratio of two cameras' means."""

from __future__ import annotations

import pytest
import torch

from fastreid_al.data.camera_style import (
    FourierStyle,
)
from tests.support.styles import records_of, smooth, stored


@pytest.mark.parametrize(
    ("height", "width", "band"), [(32, 16, 0.1), (33, 15, 0.2), (16, 8, 0.01), (12, 10, 0.5)]
)
def test_amplitudes_in_the_band_take_the_ratio_and_phases_stay(
    height: int, width: int, band: float
) -> None:
    pixels = smooth(60, height, width)
    pixels[::2] = pixels[::2] // 2 + 60
    style = FourierStyle(records_of([1, 2] * 30), stored(pixels), band, 1.0)
    spectra = torch.fft.fft2(pixels.double())
    mean = torch.stack([spectra[start::2].abs().mean(0) for start in (0, 1)])
    rows, columns = (torch.fft.fftfreq(size, 1 / size).abs() for size in (height, width))
    box = (rows <= int(band * height))[:, None] & (columns <= int(band * width))
    source = pixels[:2]
    own, drawn = torch.tensor([0, 1]), torch.tensor([1, 0])
    ratio = torch.where(box, mean[drawn] / mean[own], 1.0)
    expected = torch.fft.ifft2(spectra[:2] * ratio).real
    got = style._restyle(source, own, own, drawn)
    assert torch.allclose(got.double(), expected.clamp(0, 255), atol=0.05)
    # Far enough from black and white nothing is clamped, so that the phases can be seen.
    inside = expected.amin((1, 2, 3)).ge(0) & expected.amax((1, 2, 3)).le(255)
    assert inside.any()
    kept = torch.fft.fft2(got.double())[inside] * spectra[:2][inside].conj()
    assert (kept.real > 0.99 * kept.abs())[:, :, box].all()


def test_brightness_follows_the_drawn_camera() -> None:
    pixels = smooth(80)
    pixels[::2] //= 3
    style = FourierStyle(records_of([1, 2] * 40), stored(pixels), 0.02, 1.0)
    got = style(pixels, torch.arange(80), torch.Generator())
    dark, bright = pixels[::2].float().mean(), pixels[1::2].float().mean()
    assert (got[::2].mean() - bright).abs() < 0.02 * bright
    assert (got[1::2].mean() - dark).abs() < 0.1 * dark  # some of it is clamped at black
