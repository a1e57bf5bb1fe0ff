"""Cameras of the synthetic set: what all images of one camera share."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .canvas import fade
from .exact import Array, Stream
from .scene import FLOORS, WALLS, render_scene

_LEVELS = 256


class Camera(NamedTuple):
    """What all images of one camera share.

    Args:
        scene: Its whole view, (1.3 H, 3 H, 3) uint8.
        curve: Its response to red, green and blue, (3, 256) uint8.
        grey: How far colours are moved towards their luminance, in 256ths.
        yaw: Heading under which it usually sees people, in radians.
        turn: How far they turn from that heading, in radians.
        lean: Sideways shift of the head, in heights.
        tilt: Angle by which it looks down, in radians.
        swell: Growth of what is nearer to its height.
        light: Side from which the light comes, from -1 to 1.
    """

    scene: Array
    curve: Array
    grey: int
    yaw: float
    turn: float
    lean: float
    tilt: float
    swell: float
    light: float


@lru_cache(maxsize=64)
def camera_of(seed: int, camera: int, height: int, cast: float) -> Camera:
    """Return a camera.

    Args:
        seed: The set's seed.
        camera: Number of the camera, from 1.
        height: Height of the images.
        cast: Strength of the camera's colour cast.
    """
    stream = Stream(seed, "camera", camera)
    wall = WALLS[(camera + seed) % len(WALLS)]
    floor = FLOORS[(2 * camera + camera // len(WALLS) + seed) % len(FLOORS)]
    # The order of the statements below is the order of the random numbers.
    grey = stream.below(64)
    scene = fade(render_scene(wall, floor, stream, height), grey)
    return Camera(
        scene=np.clip(scene, 0, 255).astype(np.uint8),
        curve=_response_curve(stream, cast),
        grey=grey,
        yaw=stream.pick((0.0, math.pi, math.pi / 2, -math.pi / 2, 0.7, math.pi - 0.7)),
        turn=stream.between(0.3, 0.9),
        lean=stream.between(-0.07, 0.07),
        tilt=stream.between(0.0, 0.4),
        swell=stream.between(-0.05, 0.3),
        light=stream.between(-0.8, 0.8),
    )


def heading_of(camera: Camera, track: Stream) -> float:
    """Choose the yaw of a tracklet: mostly the side of people that the camera usually sees."""
    if track.chance(0.7):
        return camera.yaw + track.between(-camera.turn, camera.turn)
    return track.between(-math.pi, math.pi)


def _response_curve(stream: Stream, cast: float) -> Array:
    """A camera's response, from its tint, contrast and gamma: (3, 256) uint8."""
    warm = cast * stream.between(-0.1, 0.1)
    green = cast * stream.between(-0.04, 0.04)
    gamma = stream.between(0.75, 1.05)
    contrast = stream.between(0.9, 1.1)
    black = stream.between(0.0, 0.06)
    curve = np.zeros((3, _LEVELS), np.uint8)
    for channel, gain in enumerate((1 + warm, 1 + green, 1 - warm)):
        for value in range(_LEVELS):
            level = black + (1 - black) * contrast * max(0.1, gain) * (value / 255) ** gamma
            curve[channel, value] = round(255 * min(1.0, level))
    return curve
