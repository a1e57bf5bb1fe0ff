"""Colours are moved to another camera's distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fastreid_al.config import SyntheticConfig
from fastreid_al.data.camera_style import (
    ColourStyle,
)
from fastreid_al.data.camera_style import style as style_module
from fastreid_al.data.camera_style.colour import lab_to_rgb, rgb_to_lab
from fastreid_al.synthetic.camera import camera_of
from fastreid_al.synthetic.render import render_image
from tests.support.styles import records_of, smooth, stored

SPACES = pytest.mark.parametrize("space", ["lab", "rgb"])


def lab(images: Tensor) -> Tensor:
    """sRGB (B, 3, H, W) in [0, 255] to CIELAB under D65, float64."""
    to_xyz = torch.tensor(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ],
        dtype=torch.float64,
    )
    rgb = images.double().movedim(1, -1) / 255
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ to_xyz.T / to_xyz.sum(1)
    x, y, z = torch.where(
        xyz > (6 / 29) ** 3, xyz ** (1 / 3), xyz * (29 / 6) ** 2 / 3 + 4 / 29
    ).unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def colour_distance(a: Tensor, b: Tensor) -> float:
    return float((lab(a) - lab(b)).norm(dim=1).mean())


def test_colours_go_to_cielab_and_back() -> None:
    known = torch.tensor(
        [[255.0, 255, 255], [0, 0, 0], [255, 0, 0], [0, 255, 0], [119, 119, 119]]
    ).T[None]
    expected = torch.tensor(
        [[100.0, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [87.74, -86.18, 83.18], [50.03, 0, 0]]
    )
    assert torch.allclose(rgb_to_lab(known)[0].T, expected, atol=0.02)
    images = torch.randint(256, (4, 3, 40, 10), dtype=torch.uint8)
    got = rgb_to_lab(images.flatten(2).double())
    assert torch.allclose(got.view(images.shape), lab(images).double(), atol=2e-3)
    assert torch.allclose(lab_to_rgb(got), images.flatten(2).double(), atol=1e-3)


@SPACES
def test_colours_of_a_planted_cast_are_recovered(space: str) -> None:
    """Cameras that see the same kind of people, each through a colour matrix of its own."""
    mixes = torch.eye(3) + torch.tensor([0.0, 0.12, 0.2])[:, None, None] * (
        2 * torch.rand(3, 3, 3) - 1
    )
    shifts = torch.tensor([[0.0, 0, 0], [25, -5, -20], [-20, 10, 15]])

    def seen(images: Tensor, camera: int) -> Tensor:
        cast = torch.einsum("ij,bjhw->bihw", mixes[camera], 0.6 * images.float() + 40)
        return (cast + shifts[camera].view(3, 1, 1)).round().clamp(0, 255).to(torch.uint8)

    train = torch.cat([seen(smooth(100), camera) for camera in range(3)])
    style = ColourStyle(records_of([1] * 100 + [4] * 100 + [7] * 100), stored(train), 1.0, space)
    people = smooth(20)
    for a, b in ((0, 1), (1, 2), (2, 0), (2, 1)):
        source, wanted = seen(people, a), seen(people, b)
        own, drawn = torch.full((20,), a), torch.full((20,), b)
        got = style._restyle(source, own, own, drawn)
        assert colour_distance(got, wanted) < 0.2 * colour_distance(source, wanted)
        back = style._restyle(got, own, drawn, own)
        assert colour_distance(back, source) < 0.1 * colour_distance(got, source)


@SPACES
def test_colours_of_rendered_cameras_come_closer(space: str) -> None:
    config = SyntheticConfig(height=64, cast=3.0)

    def seen(who: int, camera: int, like: int) -> Tensor:
        image = render_image(config, "train", who, camera, 0)
        response, other = (camera_of(0, c, 64, 3.0).curve for c in (camera, like))
        for channel in range(3) if like != camera else ():
            inverse = np.abs(response[channel].astype(int)[None] - np.arange(256)[:, None]).argmin(
                1
            )
            image[..., channel] = other[channel][inverse[image[..., channel]]]
        return torch.from_numpy(np.array(Image.fromarray(image).resize((24, 64)))).movedim(-1, 0)

    cameras = (1, 2, 3)
    train = torch.stack(
        [seen(who, camera, camera) for camera in cameras for who in range(camera, 60, 4)]
    )
    style = ColourStyle(
        records_of([camera for camera in cameras for _ in range(camera, 60, 4)]),
        stored(train),
        space=space,
    )
    before, after = [], []
    for a, b in ((1, 2), (2, 3), (3, 1)):
        source, wanted = (
            torch.stack([seen(who, a, like) for who in range(60, 66)]) for like in (a, b)
        )
        own, drawn = torch.full((6,), a - 1), torch.full((6,), b - 1)
        before.append(colour_distance(source, wanted))
        after.append(colour_distance(style._restyle(source, own, own, drawn), wanted))
    assert np.mean(after) < 0.4 * np.mean(before)


@SPACES
def test_cameras_of_a_single_colour_have_a_finite_map(space: str) -> None:
    pixels = (
        torch.tensor([10, 10, 200, 200], dtype=torch.uint8)
        .view(4, 1, 1, 1)
        .expand(4, 3, 8, 4)
        .contiguous()
    )
    style = ColourStyle(records_of([1, 1, 2, 2]), stored(pixels), 1.0, space)
    got = style(pixels, torch.arange(4), torch.Generator())
    assert torch.allclose(got, pixels.flip(0).float(), atol=1e-2)


def test_statistics_are_those_of_the_sample_of_each_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style_module, "SAMPLE", 5)
    pixels, seen = smooth(30), []
    records = records_of([1, 2, 2] * 10)
    style = ColourStyle(
        records,
        stored(pixels),
        space="rgb",
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert style.read == 10 and seen[-1] == (10, 10)
    first, second = pixels[[0, 6, 12, 18, 24]], pixels[[1, 7, 13, 19, 25]]
    expected = torch.stack([x[:, :, ::2, ::2].double().mean((0, 2, 3)) for x in (first, second)])
    assert torch.allclose(style.means.double(), expected, atol=1e-4)
    assert "2 cameras, from 10 images" in style.describe()
