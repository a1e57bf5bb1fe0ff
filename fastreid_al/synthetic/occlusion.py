"""Things in front of a person: a passer-by, a post, a bush or a sign."""

from __future__ import annotations

from .body import Pose
from .canvas import BOARD, LEAF, PASSER_BY, POST, RIM, Canvas
from .exact import Stream
from .figure import render_person
from .scene import FLOOR_COLOURS
from .traits import CLOTH_COLOURS, Colour, random_traits

_LEAF_COLOURS: tuple[Colour, ...] = ((62, 104, 48), (94, 122, 60), (48, 82, 52))
_LEAVES = 14
_SIGN_POST: Colour = (120, 122, 126)
_SIGN_RIM: Colour = (232, 232, 228)


def render_occlusion(canvas: Canvas, seed: int, stream: Stream, pose: Pose) -> None:
    """Put a passer-by, a post, a bush or a sign in front of a part of the person.

    Args:
        canvas: The canvas with the person.
        seed: The set's seed.
        stream: Random numbers of the image.
        pose: The person's pose.
    """
    columns = canvas.label.shape[1]
    side = stream.pick((-1, 1))
    edge = columns * (0.5 + side * stream.between(0.3, 0.52))
    kind = stream.below(4)
    if kind == 0:
        _render_passer_by(canvas, seed, stream, pose, edge, side)
    elif kind == 1:
        _render_post(canvas, stream, pose, edge)
    elif kind == 2:
        _render_bush(canvas, stream, edge)
    else:
        _render_sign(canvas, stream, pose, edge)


def _render_passer_by(
    canvas: Canvas, seed: int, stream: Stream, pose: Pose, edge: float, side: int
) -> None:
    rows, columns = canvas.label.shape
    traits = random_traits(Stream(seed, "passer-by", stream.word()))
    ground = pose.ground + rows * stream.between(-0.02, 0.1)
    yaw = stream.between(-3.1, 3.1)
    phase = stream.between(0, 6.2)
    x = edge + side * columns * 0.12
    render_person(
        canvas, traits, pose._replace(x=x, ground=ground, yaw=yaw, phase=phase), PASSER_BY
    )


def _render_post(canvas: Canvas, stream: Stream, pose: Pose, edge: float) -> None:
    rows, columns = canvas.label.shape
    canvas.set_colour(POST, stream.pick(FLOOR_COLOURS))
    radius = columns * stream.between(0.04, 0.1)
    foot = rows * stream.between(0.8, 1.1)
    canvas.fill_tube((edge, -5.0, radius), (edge, foot, radius), POST, pose.light, "flat")


def _render_bush(canvas: Canvas, stream: Stream, edge: float) -> None:
    rows, columns = canvas.label.shape
    canvas.set_colour(LEAF, stream.pick(_LEAF_COLOURS))
    for _ in range(_LEAVES):
        x = edge + columns * stream.between(-0.3, 0.3)
        y = rows * stream.between(0.8, 1.02)
        size = columns * stream.between(0.05, 0.12)
        light = stream.between(-0.9, 0.9)
        canvas.fill_tube((x, y, size), (x, y + size, size), LEAF, light)


def _render_sign(canvas: Canvas, stream: Stream, pose: Pose, edge: float) -> None:
    rows, columns = canvas.label.shape
    canvas.set_colour(POST, _SIGN_POST)
    canvas.set_colour(BOARD, stream.pick(tuple(CLOTH_COLOURS.values())))
    canvas.set_colour(RIM, _SIGN_RIM)
    middle = rows * stream.between(0.3, 0.7)
    size = columns * stream.between(0.12, 0.2)
    post = size * 0.12
    canvas.fill_tube((edge, middle, post), (edge, rows + 9.0, post), POST, pose.light, "flat")
    canvas.fill_tube((edge, middle - size, size), (edge, middle + size, size), RIM, 0.0, "flat")
    inner = 0.85 * size
    canvas.fill_tube(
        (edge, middle - inner, inner), (edge, middle + inner, inner), BOARD, 0.0, "flat"
    )
