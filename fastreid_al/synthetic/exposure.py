"""What light, lens and sensor do to an image: exposure, shadow, blur and noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .exact import Array, Stream

#: Probability that the edge of a cast shadow crosses the image.
_SHADOW_PROBABILITY = 0.15


def expose(image: Array, light: float, stream: Stream) -> Array:
    """Apply exposure, a fall-off of light over the image and sometimes a cast shadow.

    Args:
        image: (H, W, 3) uint8.
        light: Side from which the light comes, from -1 to 1.
        stream: Random numbers.

    Returns:
        (H, W, 3) uint8.
    """
    height, width = image.shape[:2]
    exposure = stream.between(0.85, 1.15)
    across = stream.between(-0.14, 0.14) + 0.1 * light
    down = stream.between(-0.14, 0.14)
    x = np.arange(width) / width - 0.5
    y = np.arange(height)[:, None] / height - 0.5
    # 128 stands for the image's own brightness.
    level = x * (across * exposure * 128) + (y * (down * exposure * 128) + exposure * 128)
    if stream.chance(_SHADOW_PROBABILITY):
        slope = stream.between(-1.5, 1.5)
        edge = stream.between(-0.4, 0.4)
        shade = stream.between(0.5, 0.75)
        level = np.where(x * slope + y > edge, level * shade, level)
    bright = (image * level.astype(np.uint16)[..., None]) >> 7
    exposed: Array = np.minimum(bright, 255).astype(np.uint8)
    return exposed


def blur(image: Array, times: int, axes: Sequence[int]) -> Array:
    """Smooth an image repeatedly by 1-2-1 along axes, the border repeated.

    Args:
        image: uint8.
        times: How often along each axis.
        axes: The axes; only one for motion blur.

    Returns:
        uint8 of the same shape.
    """
    wide = image.astype(np.uint16)
    for axis in axes:
        for _ in range(times):
            lines = np.moveaxis(wide, axis, 0)
            padded = np.concatenate([lines[:1], lines, lines[-1:]])
            smooth = (padded[:-2] + 2 * padded[1:-1] + padded[2:] + 2) >> 2
            wide = np.moveaxis(smooth, 0, axis)
    return wide.astype(np.uint8)


def add_noise(image: Array, strength: int, stream: Stream) -> Array:
    """Add sensor noise, nearly normal, of standard deviation 0.144 * strength grey levels.

    Args:
        image: uint8.
        strength: See above.
        stream: Random numbers.

    Returns:
        uint8 of the same shape.
    """
    octets = stream.octets(4, *image.shape)
    # The sum of four uniform values is nearly normal; 510 is its mean.
    total = octets[0].astype(np.int16) + octets[1] + octets[2] + octets[3] - 510
    noisy: Array = np.clip(image + ((total * np.int16(strength)) >> 10), 0, 255).astype(np.uint8)
    return noisy
