"""Backgrounds: the wall and the ground that a camera sees."""

from __future__ import annotations

import numpy as np

from .exact import Array, Stream
from .traits import CLOTH_COLOURS, Colour

_WALL_COLOURS: tuple[Colour, ...] = (
    (168, 92, 72),
    (196, 176, 146),
    (132, 140, 150),
    (206, 202, 190),
    (110, 128, 112),
    (150, 116, 84),
)
FLOOR_COLOURS: tuple[Colour, ...] = (
    (112, 114, 118),
    (176, 172, 164),
    (150, 132, 116),
    (92, 96, 104),
    (196, 186, 166),
)
_MORTAR: Colour = (200, 194, 184)
_DARK_GLASS: Colour = (64, 84, 104)
_BRIGHT_GLASS: Colour = (188, 206, 212)
_DARK_LEAVES: Colour = (34, 62, 30)
_BRIGHT_LEAVES: Colour = (138, 172, 84)
_TRUNK: Colour = (84, 64, 48)
_BRIGHT_SKY: Colour = (206, 218, 232)
_DARK_SKY: Colour = (160, 176, 190)
_DARK_GRASS: Colour = (58, 92, 38)
_BRIGHT_GRASS: Colour = (150, 172, 88)
_WHITE_PAINT: Colour = (228, 228, 222)
_YELLOW_PAINT: Colour = (232, 222, 170)

WALLS = ("brick", "shops", "trees", "panels", "fence")
FLOORS = ("road", "tiles", "grass", "slabs", "zebra")

#: Edge of the table of random tones, and number of colours of shops and doors.
_TONES = 64
_PAINTS = 16


def render_scene(wall: str, floor: str, stream: Stream, height: int) -> Array:
    """Render a camera's whole view, of which each image shows a crop.

    Args:
        wall: One of `WALLS`.
        floor: One of `FLOORS`.
        stream: Random numbers.
        height: Height H of an image.

    Returns:
        (1.3 H, 3 H, 3) int64.
    """
    rows = height * 13 // 10
    width = height * 3
    unit = max(2, height // 16)
    horizon = int(rows * stream.between(0.25, 0.6))
    upright = _render_wall(wall, stream, horizon, width, unit)
    ground = _render_floor(floor, stream, rows - horizon, width, unit)
    # Muted, so that people stand out as they do for a camera that is exposed for them.
    return np.concatenate([upright, ground]) * 9 // 16 + 60


def crop_scene(scene: Array, height: int, width: int, track: Stream, stream: Stream) -> Array:
    """Cut out the part of a scene behind one image.

    Args:
        scene: The camera's view.
        height: Height of the image.
        width: Width of the image.
        track: Random numbers of the tracklet, whose images show nearly the same place.
        stream: Random numbers of the image.
    """
    rows = scene.shape[0] - height
    columns = scene.shape[1] - width
    top = rows * stream.between(0, 1) + height * stream.between(-0.04, 0.04)
    left = columns * track.between(0, 1) + width * stream.between(-1.0, 1.0)
    y = min(rows, max(0, int(top)))
    x = min(columns, max(0, int(left)))
    return scene[y : y + height, x : x + width]


def _render_wall(kind: str, stream: Stream, height: int, width: int, unit: int) -> Array:
    """Render the upright part of a scene; `unit` is a sixteenth of the image's height."""
    base = stream.pick(_WALL_COLOURS)
    dark: Colour = (base[0] // 2, base[1] // 2, base[2] // 2)
    tones = stream.octets(_TONES, _TONES).astype(np.int64)
    if kind == "brick":
        return _bricks(base, dark, tones, height, width, unit)
    if kind == "shops":
        return _shops(dark, tones, stream, height, width, unit)
    if kind == "trees":
        return _trees(stream, height, width, unit)
    if kind == "panels":
        return _panels(base, dark, stream, height, width, unit)
    return _fence(dark, stream, height, width, unit)


def _bricks(base: Colour, dark: Colour, tones: Array, height: int, width: int, unit: int) -> Array:
    y, x = _coordinates(height, width)
    brick_height = max(3, unit * 2 // 3)
    brick_width = max(6, unit * 3 // 2)
    joint = max(1, unit // 7)
    row = y // brick_height
    shifted = x + row % 2 * (brick_width // 2)
    mortar = (y % brick_height < joint) | (shifted % brick_width < joint)
    tone = tones[row % _TONES, shifted // brick_width % _TONES]
    bricks = _mix(dark, base, 90 + tone * 5 // 8)
    return np.where(mortar[..., None], _MORTAR, bricks)


def _shops(dark: Colour, tones: Array, stream: Stream, height: int, width: int, unit: int) -> Array:
    y, x = _coordinates(height, width)
    bay = unit * stream.pick((7, 9, 11))
    frame = (x % bay < max(2, unit // 2)) | (y > height - unit)
    sign = (y < height * 2 // 5) & (y > height // 6)
    paints = _paints(stream)
    tone = tones[y // unit % _TONES, (x + y // 3) // (unit * 2) % _TONES]
    glass = _mix(_DARK_GLASS, _BRIGHT_GLASS, (tone + x % bay * 160 // bay) // 2)
    shop = np.where(frame[..., None], dark, glass)
    return np.where(sign[..., None], paints[x // bay % _PAINTS][None], shop)


def _trees(stream: Stream, height: int, width: int, unit: int) -> Array:
    y, x = _coordinates(height, width)
    fine = _relief(stream, height, width, max(2, unit // 2))
    coarse = _relief(stream, height, width, unit * 2)
    leaves = _mix(_DARK_LEAVES, _BRIGHT_LEAVES, (fine + coarse) // 2)
    trunk = (x % (unit * 7) < unit) & (y > height // 3)
    return np.where(trunk[..., None], _TRUNK, leaves)


def _panels(
    base: Colour, dark: Colour, stream: Stream, height: int, width: int, unit: int
) -> Array:
    y, x = _coordinates(height, width)
    plain = _mix(dark, base, 200 + _relief(stream, height, width, unit) // 5)
    bay = unit * stream.pick((8, 10, 13))
    paints = _paints(stream)
    door = (x % bay > bay // 3) & (x % bay < bay * 4 // 5) & (y > height // 5)
    seam = x % bay < max(1, unit // 4)
    painted = (paints[x // bay % _PAINTS][None] + base) // 2
    doors = np.where(door[..., None], painted, plain)
    return np.where(seam[..., None], dark, doors)


def _fence(dark: Colour, stream: Stream, height: int, width: int, unit: int) -> Array:
    y, x = _coordinates(height, width)
    posts = x % (unit * 2) < max(1, unit // 2)
    rails = y % max(4, height // 3) < max(1, unit // 3)
    sky = _mix(_BRIGHT_SKY, _DARK_SKY, _relief(stream, height, width, unit * 3))
    return np.where((posts | rails)[..., None], dark, sky)


def _render_floor(kind: str, stream: Stream, height: int, width: int, unit: int) -> Array:
    """Render the ground of a scene in perspective, from the foot of the wall down."""
    base = stream.pick(FLOOR_COLOURS)
    dark: Colour = (base[0] * 3 // 5, base[1] * 3 // 5, base[2] * 3 // 5)
    fine = _relief(stream, height, width, max(1, unit // 4))
    coarse = _relief(stream, height, width, unit * 3)
    grit = fine // 2 + coarse // 2
    y = np.arange(height)[:, None] + 0.5
    x = np.arange(width) + 0.5
    # Position on the ground, in perspective: `away` from the camera and to the `side` of it.
    depth = 6.0 * unit / (y + 2.5 * unit)
    away = depth * 12.0
    side = (x - width / 2) * depth / unit
    plain = _mix(dark, base, 120 + grit // 2)
    if kind == "grass":
        return _mix(_DARK_GRASS, _BRIGHT_GRASS, grit)
    if kind == "tiles":
        odd = ((away * 0.5) % 2.0 < 1.0) ^ ((side * 0.5) % 2.0 < 1.0)
        return np.where(odd[..., None], plain, plain * 3 // 4)
    if kind == "slabs":
        seam = ((away * 0.4) % 1.0 < 0.08) | ((side * 0.3) % 1.0 < 0.06)
        return np.where(seam[..., None], dark, plain)
    if kind == "zebra":
        stripe = ((side * 0.35) % 1.0 < 0.5) & (y > height * 0.15)
        return np.where(stripe[..., None], _WHITE_PAINT, plain)
    line = ((side + away * 0.8) % 9.0 < 0.9) | ((away > 9.0) & (away < 10.0))
    return np.where(line[..., None], _YELLOW_PAINT, plain)


def _coordinates(height: int, width: int) -> tuple[Array, Array]:
    """Rows (height, 1) and columns (width,)."""
    return np.arange(height)[:, None], np.arange(width)


def _paints(stream: Stream) -> Array:
    """Random colours: (16, 3) int64."""
    choices = tuple(CLOTH_COLOURS.values())
    return np.array([stream.pick(choices) for _ in range(_PAINTS)])


def _relief(stream: Stream, height: int, width: int, cell: int) -> Array:
    """Smooth random relief, interpolated bilinearly between random values `cell` pixels apart.

    Returns:
        (height, width) int64 of 0 to 255.
    """
    coarse = stream.octets(height // cell + 3, width // cell + 3).astype(np.int64)
    y, x = _coordinates(height, width)
    row = y // cell
    down = y % cell
    column = x // cell
    right = x % cell
    above = coarse[row, column] * (cell - right) + coarse[row, column + 1] * right
    below = coarse[row + 1, column] * (cell - right) + coarse[row + 1, column + 1] * right
    relief: Array = (above * (cell - down) + below * down) // (cell * cell)
    return relief


def _mix(first: Colour, second: Colour, weight: Array) -> Array:
    """Colours between the first (weight 0) and the second (weight 255): (H, W, 3) int64."""
    start = np.array(first)
    stop = np.array(second)
    colours: Array = start + (stop - start) * weight[..., None] // 255
    return colours
