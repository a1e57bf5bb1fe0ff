"""A posed skeleton in three dimensions, whose parts are filled on a canvas."""

from __future__ import annotations

import math
from typing import NamedTuple

from .canvas import Canvas, Pattern, Point
from .exact import cosine, sine


class Pose(NamedTuple):
    """Where a person stands on the canvas, and how.

    Args:
        x: Column of the middle, in pixels of the canvas.
        ground: Row of the ground, in pixels of the canvas.
        scale: Height of the person, in pixels of the canvas.
        yaw: Heading in radians; 0 faces the camera.
        phase: Phase of the walk in radians.
        stride: Greatest angle of a leg in radians.
        lean: Sideways shift of the head, in heights.
        tilt: Angle in radians by which the camera looks down.
        swell: Growth of what is nearer to the camera's height.
        light: Side from which the light comes, from -1 to 1.
    """

    x: float
    ground: float
    scale: float
    yaw: float
    phase: float
    stride: float
    lean: float
    tilt: float
    swell: float
    light: float


class _Part(NamedTuple):
    """A tube on the canvas and how near to the camera it is."""

    nearness: float
    start: Point
    stop: Point
    material: int
    ends: str
    pattern: Pattern | None


class Body:
    """Collects the parts of a posed person and fills them from the farthest to the nearest.

    Coordinates of the body are (right, up, forward); 1 is the person's height.
    """

    def __init__(self, pose: Pose) -> None:
        self.pose = pose
        self.cos = cosine(pose.yaw)
        self.sin = sine(pose.yaw)
        self._down = sine(pose.tilt)
        self._upright = cosine(pose.tilt)
        self._parts: list[_Part] = []

    def half_width(self, wide: float, deep: float) -> float:
        """Half the visible width of an elliptic trunk under the yaw."""
        return math.sqrt((wide * self.cos) ** 2 + (deep * self.sin) ** 2)

    def add(
        self,
        start: Point,
        stop: Point,
        radii: tuple[float, float],
        material: int,
        lift: float = 0.0,
        ends: str = "round",
        pattern: Pattern | None = None,
    ) -> None:
        """Add a tapered tube.

        Args:
            start: One end, in coordinates of the body.
            stop: The other end.
            radii: Radius at either end.
            material: Its material.
            lift: Added to its nearness, so that a garment covers what it is worn over.
            ends: As for `Canvas.fill_tube`.
            pattern: As for `Canvas.fill_tube`.
        """
        start_point, start_nearness = self._project(start, radii[0])
        stop_point, stop_nearness = self._project(stop, radii[1])
        nearness = (start_nearness + stop_nearness) / 2 + lift
        self._parts.append(_Part(nearness, start_point, stop_point, material, ends, pattern))

    def fill(self, canvas: Canvas, offset: int) -> None:
        """Fill all parts on a canvas; `offset` is added to their materials."""
        for part in sorted(self._parts, key=lambda part: part.nearness):
            material = part.material + offset
            canvas.fill_tube(
                part.start, part.stop, material, self.pose.light, part.ends, part.pattern
            )

    def _project(self, at: Point, radius: float) -> tuple[Point, float]:
        """Project a point of the body to (x, y, radius) on the canvas, and its nearness."""
        pose = self.pose
        right = at[0] * self.cos + at[2] * self.sin
        nearness = at[2] * self.cos - at[0] * self.sin
        zoom = pose.scale * (1 + pose.swell * (at[1] - 0.5))
        x = pose.x + zoom * right + pose.scale * pose.lean * at[1]
        y = pose.ground - pose.scale * (at[1] * self._upright - nearness * self._down)
        return (x, y, zoom * radius), nearness
