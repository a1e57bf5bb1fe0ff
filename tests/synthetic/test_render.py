"""Images of the synthetic set: fixed pixels that depend on their arguments alone."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from fastreid_al.config import SyntheticConfig
from fastreid_al.synthetic.camera import camera_of
from fastreid_al.synthetic.render import jpeg_quality, render_image
from fastreid_al.synthetic.traits import Split, traits_of

SMALL = SyntheticConfig(10, 120, 9, 30, 80, cameras=4, height=48)

#: SHA-256 of the raw pixels of (split, identity, camera, index) with the default configuration.
PINNED = {
    ("train", 0, 1, 0): "cc114c8309631b16bfa3b800e7c24257404ce54004fe30b16d0783135e1a6040",
    ("train", 33, 4, 7): "6d4491721ecbfdc7f9a02ec48d8d40a7c0916fcaedc772de4286197f3724cc73",
    ("test", 6, 6, 2): "67466bdab71654f9adebc50ce385a574c5cab05c557e4d5b0cfe919bef0b0813",
    ("test", 50, 3, 19): "d2b67cdab7734ed1d3e589518ee7b789a9dc547a33a8e9bc9571a0b0685adf46",
}


@pytest.mark.parametrize("key", PINNED, ids=str)
def test_pixels_are_the_pinned_ones(key: tuple[Split, int, int, int]) -> None:
    pixels = render_image(SyntheticConfig(), *key)
    assert pixels.dtype == np.uint8 and pixels.shape[0] == 128 and pixels.shape[2] == 3
    assert hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest() == PINNED[key]


def test_a_stronger_cast_moves_the_cameras_apart_and_nothing_else() -> None:
    def tint(cast: float, camera: int) -> np.ndarray:
        rendered = [
            render_image(replace(SMALL, cast=cast), "train", who, camera, 0) for who in range(6)
        ]
        assert all(0 < image.mean() < 250 for image in rendered)
        means = np.mean([image.mean((0, 1)) for image in rendered], axis=0)
        return means / means.sum()

    spread = [
        np.std([tint(cast, camera) for camera in range(1, 5)], axis=0).sum()
        for cast in (0.0, 1.0, 4.0)
    ]
    assert 2 * spread[0] < spread[1] and 2.5 * spread[1] < spread[2]
    assert (camera_of(0, 1, 48, 50.0).curve.max(1) > 10).all()
    plain, strong = (
        render_image(replace(SMALL, cast=cast), "train", 0, 1, 0) for cast in (1.0, 4.0)
    )
    assert plain.shape == strong.shape
    assert np.array_equal(camera_of(0, 1, 48, 1.0).scene, camera_of(0, 1, 48, 4.0).scene)


def test_an_image_does_not_depend_on_what_was_rendered_before() -> None:
    keys = [(identity, camera, 5) for identity in range(3) for camera in (1, 2)]
    forwards = [render_image(SMALL, "test", *key) for key in keys]
    camera_of.cache_clear()
    traits_of.cache_clear()
    backwards = [render_image(SMALL, "test", *key) for key in reversed(keys)][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(forwards, backwards, strict=True))


def test_another_seed_renders_other_people() -> None:
    other = replace(SMALL, seed=1)
    assert not np.array_equal(
        render_image(SMALL, "train", 0, 1, 0), render_image(other, "train", 0, 1, 0)
    )
    assert [traits_of(SMALL, "train", i) for i in range(5)] != [
        traits_of(other, "train", i) for i in range(5)
    ]


def test_jpeg_quality_varies_from_40_to_95() -> None:
    qualities = {jpeg_quality(SMALL, "train", identity, 1, 0) for identity in range(500)}
    assert min(qualities) >= 40 and max(qualities) <= 95 and len(qualities) > 40
