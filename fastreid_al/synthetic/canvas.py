"""The canvas on which people are rendered: filled tubes of a material, lit from one side."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .exact import Array
from .traits import Colour

#: A point (x, y) and the tube's radius there; or a point (right, up, forward) of a body.
Point = tuple[float, float, float]
#: Maps (along, across) of a tube to whether the second colour shows there.
Pattern = Callable[[Array, Array], Array]

# Materials of a person, in the order of the palette. A passer-by in the same image has materials of
# their own, whose numbers are `PASSER_BY` higher.
SKIN = 1
HAIR = 2
UPPER = 3
SECOND = 4
LOWER = 5
SHOES = 6
BAG = 7
HAT = 8
EYES = 9
PASSER_BY = 10
# Materials of other things.
SHADOW = 21
POST = 22
LEAF = 23
BOARD = 24
RIM = 25

#: The canvas has this many pixels along an edge for each pixel of the image.
OVERSAMPLING = 2
_MATERIALS = 32
_SHADES = 8
#: Coverage of an opaque pixel of the canvas; the four of an image's pixel add up to 256.
_OPAQUE = 64
#: Of 112 parts of brightness, each shade takes 8 away.
_FULL_BRIGHTNESS = 112
_SHADE_STEP = 8
#: How fast the shade darkens with the distance from the lit side.
_SHADING = 2.6
#: Where along a dome-ended tube the narrowing begins, and how steep it is.
_DOME_START = 0.8
_DOME_SLOPE = 4.2


class Canvas:
    """Labels at twice the size of the image, and the colours that they stand for.

    A label has 5 bits of material (0 is the scene behind) and 3 bits of shade.

    Args:
        height: Height of the image.
        width: Width of the image.
    """

    def __init__(self, height: int, width: int) -> None:
        rows = OVERSAMPLING * height
        columns = OVERSAMPLING * width
        self.label = np.zeros((rows, columns), np.uint8)
        self.x = np.arange(columns) + 0.5
        self.y = np.arange(rows)[:, None] + 0.5
        #: (material, shade, channel): red, green, blue times coverage, and coverage.
        self.palette = np.zeros((_MATERIALS, _SHADES, 4), np.uint16)

    def set_colour(self, material: int, rgb: Colour, coverage: int = _OPAQUE) -> None:
        """Set the colour of a material.

        Args:
            material: Its number.
            rgb: Colour where it is brightest.
            coverage: 64 where it is opaque, less where the scene shines through.
        """
        for shade in range(_SHADES):
            brightness = _FULL_BRIGHTNESS - _SHADE_STEP * shade
            for channel, value in enumerate(rgb):
                self.palette[material, shade, channel] = (
                    value * coverage * brightness // _FULL_BRIGHTNESS
                )
            self.palette[material, shade, 3] = coverage

    def fill_tube(
        self,
        start: Point,
        stop: Point,
        material: int,
        light: float,
        ends: str = "round",
        pattern: Pattern | None = None,
    ) -> None:
        """Fill a tapered tube.

        Args:
            start: (x, y, radius) of one end.
            stop: (x, y, radius) of the other end.
            material: Its material.
            light: Where across the tube it is brightest, from -1 to 1.
            ends: "round", "flat" or "dome" (flat at the start, narrowing to the stop).
            pattern: Where the upper garment's second colour shows.
        """
        start_x, start_y, start_radius = start
        stop_x, stop_y, stop_radius = stop
        left = max(0, int(min(start_x - start_radius, stop_x - stop_radius)))
        right = int(max(start_x + start_radius, stop_x + stop_radius)) + 2
        top = max(0, int(min(start_y - start_radius, stop_y - stop_radius)))
        bottom = int(max(start_y + start_radius, stop_y + stop_radius)) + 2
        if right <= left or bottom <= top:
            return
        x = self.x[left:right] - start_x
        y = self.y[top:bottom] - start_y
        dx = stop_x - start_x
        dy = stop_y - start_y
        square = dx * dx + dy * dy + 1e-6
        length = math.sqrt(square)
        along = x * (dx / square) + y * (dy / square)  # 0 at the start, 1 at the stop
        clipped = np.clip(along, 0.0, 1.0)
        radius = clipped * (stop_radius - start_radius) + start_radius
        across = (x * (dy / length) - y * (dx / length)) / radius  # -1 to 1 inside
        if ends == "round":
            beyond = (along - clipped) * length / radius
            inside = across * across + beyond * beyond <= 1.0
        elif ends == "flat":
            inside = (across * across <= 1.0) & (along == clipped)
        else:
            slope = np.maximum(along - _DOME_START, 0.0) * _DOME_SLOPE
            inside = (across * across + slope * slope <= 1.0) & (along == clipped)
        distance = across - light
        shade = np.minimum(distance * distance * _SHADING, _SHADES - 1.0).astype(np.uint8)
        label = shade + np.uint8(_SHADES * material)
        if pattern is not None:
            second = pattern(clipped, across).astype(np.uint8)
            label += second * np.uint8(_SHADES * (SECOND - UPPER))
        np.copyto(self.label[top:bottom, left:right], label, where=inside)

    def fade(self, grey: int) -> None:
        """Move every colour towards its luminance by grey / 256."""
        self.palette[..., :3] = fade(self.palette[..., :3], grey)

    def over(self, scene: Array) -> Array:
        """Average the canvas 2 x 2 and lay it over a scene: (H, W, 3) uint8 to the same."""
        # Four 16-bit lanes (red, green, blue, coverage) travel in one 64-bit word, so that one
        # addition adds all four.
        words = self.palette.astype("<u2").reshape(_MATERIALS * _SHADES, 4).view("<u8")[:, 0]
        pixels = words.take(self.label)
        rows = pixels[0::2] + pixels[1::2]
        sums = (rows[:, 0::2] + rows[:, 1::2]).astype("<u8", copy=False)
        lanes = sums.view("<u2").reshape(*scene.shape[:2], 4)
        behind = (256 - lanes[..., 3:]) * scene
        image: Array = ((lanes[..., :3] + behind) >> 8).astype(np.uint8)
        return image


def fade(colours: Array, grey: int) -> Array:
    """Move colours towards their luminance by grey / 256.

    Args:
        colours: Any unsigned type, the channel last.
        grey: 0 keeps the colours, 256 makes them grey.

    Returns:
        int64 of the same shape.
    """
    wide = colours.astype(np.int64)
    luminance = (wide[..., :1] * 77 + wide[..., 1:2] * 150 + wide[..., 2:3] * 29) >> 8
    return wide + ((luminance - wide) * grey >> 8)
