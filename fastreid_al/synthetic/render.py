"""Pedestrians, cameras and scenes, drawn: one image as a function of (seed, split, identity, camera, index).

An identity is a `Traits` record (hair, skin, build, clothes, bag, hat); one identity in seven is a copy of another with
one trait changed. A camera owns a scene, a colour response, a viewpoint and a preferred side of people. The images of
one identity under one camera form a tracklet: they share the heading and the place, and differ in walking phase, box,
light, occlusion, blur, noise and JPEG quality.

An image is built in three steps. The person is a posed skeleton in three dimensions, projected and filled back to front
with tapered tubes on a canvas of twice the size, which holds one byte for each pixel: the material and its shade. The
canvas becomes colours with coverage, averaged 2 x 2 over a crop of the camera's scene. Then light, colour response,
blur and noise are applied.

The pixels are the same on every machine: random numbers come from SplitMix64, arrays see only integers and exactly
rounded operations (+ - * / and comparisons), and sines and gamma curves are rounded before use.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from ..config import SyntheticConfig

Split = Literal["train", "test"]
Array = npt.NDArray[Any]
Point = tuple[float, float, float]
Cloth = Callable[[Array, Array], Array]
Colour = tuple[int, int, int]
T = TypeVar("T")

#: Raised whenever the same configuration would draw other pixels than before; part of the cached folder's name.
DRAWING_VERSION = 1

#: Every seventh identity is a copy of the one before it with one trait changed.
TWIN_PERIOD = 7

_MASK64 = (1 << 64) - 1

CLOTH_COLOURS: dict[str, Colour] = {
    "black": (30, 30, 34), "charcoal": (78, 80, 86), "grey": (146, 148, 150), "white": (238, 238, 234),
    "navy": (30, 44, 98), "blue": (40, 98, 204), "sky": (136, 188, 230), "teal": (22, 142, 146),
    "green": (38, 134, 70), "olive": (108, 112, 56), "yellow": (238, 202, 48), "orange": (236, 124, 30),
    "red": (206, 34, 42), "maroon": (118, 26, 46), "pink": (240, 144, 176), "purple": (122, 64, 158),
    "beige": (216, 194, 152), "brown": (116, 76, 46),
}  # fmt: skip
HAIR_COLOURS: dict[str, Colour] = {
    "black": (28, 24, 24),
    "brown": (86, 54, 34),
    "blond": (222, 184, 106),
    "ginger": (176, 82, 32),
    "grey": (176, 176, 176),
}
SKIN_COLOURS: dict[str, Colour] = {
    "light": (238, 196, 168),
    "tan": (222, 172, 130),
    "olive": (192, 144, 104),
    "brown": (142, 94, 64),
    "dark": (86, 56, 42),
}

#: The values of each trait; a value listed twice is twice as frequent.
CHOICES: dict[str, tuple[str, ...]] = {
    "hair": ("short", "short", "short", "long", "long", "ponytail", "bun", "bald"),
    "hair_colour": ("black", "black", "brown", "brown", "blond", "ginger", "grey"),
    "skin": tuple(SKIN_COLOURS),
    "stature": ("short", "average", "tall"),
    "build": ("slim", "average", "average", "stout"),
    "upper_colour": ("black", "black", "charcoal", "white", *CLOTH_COLOURS),
    "second_colour": tuple(CLOTH_COLOURS),
    "pattern": ("plain", "plain", "plain", "hoops", "stripes", "checks", "block", "dots"),
    "chest": ("none", "none", "none", "disc", "square", "band"),
    "sleeves": ("long", "long", "short"),
    "lower": ("trousers", "trousers", "trousers", "trousers", "shorts", "skirt"),
    "lower_colour": (
        "black",
        "black",
        "black",
        "navy",
        "navy",
        "blue",
        "charcoal",
        "grey",
        "beige",
        *CLOTH_COLOURS,
    ),
    "shoes": ("black", "black", "white", "white", "brown", "red", "grey", "yellow", "blue"),
    "bag": ("none", "none", "none", "backpack", "backpack", "shoulder", "handbag"),
    "bag_colour": ("black", "red", "blue", "brown", "yellow", "green", "pink", "grey"),
    "hat": ("none", "none", "none", "none", "none", "cap", "beanie"),
    "hat_colour": ("black", "red", "white", "navy", "yellow", "green", "pink"),
}

#: The traits of which a twin changes one: those seen from every side.
TWIN_TRAITS = ("upper_colour", "pattern", "sleeves", "lower", "lower_colour", "bag", "hat")


@dataclass(frozen=True)
class Traits:
    """What makes one identity look as it does; every field is a value of the same name in `CHOICES`.

    Colours of absent things (the bag's colour of a person without a bag) have a value that is not drawn.
    """

    hair: str
    hair_colour: str
    skin: str
    stature: str
    build: str
    upper_colour: str
    second_colour: str
    pattern: str
    chest: str
    sleeves: str
    lower: str
    lower_colour: str
    shoes: str
    bag: str
    bag_colour: str
    hat: str
    hat_colour: str


class Stream:
    """SplitMix64 on Python integers, started from a hash of the key."""

    def __init__(self, *key: object) -> None:
        digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
        self.state = int.from_bytes(digest, "little")

    def word(self) -> int:
        """The next 64 bits."""
        self.state = (self.state + 0x9E3779B97F4A7C15) & _MASK64
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
        return z ^ (z >> 31)

    def below(self, bound: int) -> int:
        """An integer in [0, bound)."""
        return (self.word() * bound) >> 64

    def between(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * ((self.word() >> 11) / (1 << 53))

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.between(0, 1) < probability

    def pick(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[self.below(len(options))]

    def sample(self, options: Iterable[T], count: int) -> list[T]:
        """Some of the options, each once."""
        left = list(options)
        return [left.pop(self.below(len(left))) for _ in range(count)]

    def octets(self, *shape: int) -> Array:
        """Independent uint8 values of the shape, from SplitMix64 on an array of counters."""
        size = math.prod(shape)
        z = np.arange(1, size // 8 + 2, dtype=np.uint64) * np.uint64(
            0x9E3779B97F4A7C15
        ) + np.uint64(self.word())
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
        return z.astype("<u8", copy=False).view(np.uint8)[:size].reshape(shape)


def _sin(angle: float) -> float:
    return round(math.sin(angle) * 4096) / 4096


def _cos(angle: float) -> float:
    return round(math.cos(angle) * 4096) / 4096


def twin_of(identity: int) -> int | None:
    """The identity of the same split that this one copies but for one trait, or None where it copies nobody."""
    return identity - 1 if identity % TWIN_PERIOD == TWIN_PERIOD - 1 else None


@lru_cache(maxsize=8192)
def traits_of(config: SyntheticConfig, split: Split, identity: int) -> Traits:
    """The look of one identity; a pure function of the configuration's seed, the split and the identity."""
    stream = Stream(config.seed, split, identity, "traits")
    original = twin_of(identity)
    if original is None:
        return _new_traits(stream)
    traits = traits_of(config, split, original)
    name = stream.pick(TWIN_TRAITS)
    old = getattr(traits, name)
    if name == "upper_colour":
        value = stream.pick(_unlike(old, traits.second_colour))
    elif name == "lower_colour":
        value = stream.pick(_unlike(old))
    else:
        value = stream.pick([choice for choice in CHOICES[name] if choice != old])
    return replace(traits, **{name: value})


def _new_traits(stream: Stream) -> Traits:
    traits = Traits(**{name: stream.pick(choices) for name, choices in CHOICES.items()})
    return replace(traits, second_colour=stream.pick(_unlike(traits.upper_colour)))


@lru_cache(maxsize=512)
def _unlike(*names: str) -> list[str]:
    """The cloth colours that a person tells apart from all those named at a glance."""

    def far(a: str, b: str) -> bool:
        return (
            sum(abs(x - y) for x, y in zip(CLOTH_COLOURS[a], CLOTH_COLOURS[b], strict=True)) >= 190
        )

    return [name for name in CLOTH_COLOURS if all(far(name, other) for other in names)]


#: Materials of a person, in the order of the palette; those of a passer-by in the same image follow `_BANK` later.
_SKIN, _HAIR, _UPPER, _SECOND, _LOWER, _SHOES, _BAG, _HAT, _DARK = range(1, 10)
_BANK = 10
_SHADOW, _POST, _LEAF, _BOARD, _RIM = range(21, 26)


class _Canvas:
    """Labels at twice the size of the image: 5 bits of material (0 is the scene behind) and 3 bits of shade."""

    def __init__(self, height: int, width: int) -> None:
        self.label = np.zeros((2 * height, 2 * width), np.uint8)
        self.x = np.arange(2 * width) + 0.5
        self.y = np.arange(2 * height)[:, None] + 0.5
        self.words = np.zeros((32, 8, 4), np.uint16)

    def colour(self, material: int, rgb: Colour, alpha: int = 64) -> None:
        for shade in range(8):
            self.words[material, shade] = [c * alpha * (112 - 8 * shade) // 112 for c in rgb] + [
                alpha
            ]

    def tube(
        self,
        a: Point,
        b: Point,
        material: int,
        light: float,
        ends: str = "round",
        cloth: Cloth | None = None,
    ) -> None:
        """Fill the tapered tube between two (x, y, radius).

        `ends` are "round", "flat" or "dome" (flat at a, narrowing to b); `cloth` tells where the second colour shows.
        """
        (ax, ay, ar), (bx, by, br) = a, b
        x0, x1 = max(0, int(min(ax - ar, bx - br))), int(max(ax + ar, bx + br)) + 2
        y0, y1 = max(0, int(min(ay - ar, by - br))), int(max(ay + ar, by + br)) + 2
        if x1 <= x0 or y1 <= y0:
            return
        x, y = self.x[x0:x1] - ax, self.y[y0:y1] - ay
        dx, dy = bx - ax, by - ay
        square = dx * dx + dy * dy + 1e-6
        length = math.sqrt(square)
        along = x * (dx / square) + y * (dy / square)
        clipped = np.clip(along, 0.0, 1.0)
        radius = clipped * (br - ar) + ar
        across = (x * (dy / length) - y * (dx / length)) / radius
        if ends == "round":
            beyond = (along - clipped) * length / radius
            inside = across * across + beyond * beyond <= 1.0
        elif ends == "flat":
            inside = (across * across <= 1.0) & (along == clipped)
        else:
            slope = np.maximum(along - 0.8, 0.0) * 4.2
            inside = (across * across + slope * slope <= 1.0) & (along == clipped)
        lit = across - light
        label = np.minimum(lit * lit * 2.6, 7.0).astype(np.uint8) + np.uint8(8 * material)
        if cloth is not None:
            label += cloth(clipped, across).astype(np.uint8) * np.uint8(8 * (_SECOND - _UPPER))
        np.copyto(self.label[y0:y1, x0:x1], label, where=inside)

    def fade(self, grey: int) -> None:
        """Move every colour towards its luminance, as `_fade`."""
        self.words[..., :3] = _fade(self.words[..., :3], grey)

    def over(self, scene: Array) -> Array:
        """The canvas averaged 2 x 2 over the scene: (H, W, 3) uint8."""
        # Four 16-bit lanes (red, green, blue, coverage) travel in one 64-bit word, so that one addition adds all four.
        words = self.words.astype("<u2").reshape(256, 4).view("<u8")[:, 0].take(self.label)
        rows = words[0::2] + words[1::2]
        lanes = (
            (rows[:, 0::2] + rows[:, 1::2])
            .astype("<u8", copy=False)
            .view("<u2")
            .reshape(*scene.shape[:2], 4)
        )
        behind = (256 - lanes[..., 3:]) * scene
        image: Array = ((lanes[..., :3] + behind) >> 8).astype(np.uint8)
        return image


class _Pose(NamedTuple):
    """Where a person stands on the canvas (pixels of the canvas), and how."""

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


class _Body:
    """Collects the parts of one posed person and fills them from the farthest to the nearest."""

    def __init__(self, pose: _Pose) -> None:
        self.pose = pose
        self.cos, self.sin = _cos(pose.yaw), _sin(pose.yaw)
        self.drop, self.rise = _sin(pose.tilt), _cos(pose.tilt)
        self.parts: list[tuple[float, Point, Point, int, str, Cloth | None]] = []

    def half(self, wide: float, deep: float) -> float:
        """Half the visible width of an elliptic trunk seen under the yaw."""
        return math.sqrt((wide * self.cos) ** 2 + (deep * self.sin) ** 2)

    def place(self, at: Point, radius: float) -> tuple[Point, float]:
        """Body coordinates (right, up, forward; 1 is the person's height) to (x, y, radius) and nearness."""
        pose = self.pose
        right = at[0] * self.cos + at[2] * self.sin
        near = at[2] * self.cos - at[0] * self.sin
        zoom = pose.scale * (1 + pose.swell * (at[1] - 0.5))
        x = pose.x + zoom * right + pose.scale * pose.lean * at[1]
        y = pose.ground - pose.scale * (at[1] * self.rise - near * self.drop)
        return (x, y, zoom * radius), near

    def add(
        self,
        a: Point,
        b: Point,
        radii: tuple[float, float],
        material: int,
        lift: float = 0.0,
        ends: str = "round",
        cloth: Cloth | None = None,
    ) -> None:
        (start, near), (stop, far) = self.place(a, radii[0]), self.place(b, radii[1])
        self.parts.append(((near + far) / 2 + lift, start, stop, material, ends, cloth))

    def fill(self, canvas: _Canvas, bank: int) -> None:
        for _, a, b, material, ends, cloth in sorted(self.parts, key=lambda part: part[0]):
            canvas.tube(a, b, material + bank, self.pose.light, ends, cloth)


def _cloth(traits: Traits, facing: float, turn: float) -> Cloth | None:
    """Where the upper garment shows its second colour, over (along, across) of the trunk; None for nowhere."""
    pattern = traits.pattern
    if pattern == "hoops":
        return lambda along, across: (along * 3.2) % 1.0 < 0.5
    if pattern == "stripes":
        return lambda along, across: (across * 1.75 + turn) % 1.0 < 0.5
    if pattern == "checks":
        return lambda along, across: (
            ((along * 3.0) % 1.0 < 0.5) ^ ((across * 1.25 + turn) % 1.0 < 0.5)
        )
    if pattern == "block":
        return lambda along, across: along < 0.5
    if pattern == "dots":
        return lambda along, across: (
            ((along * 4.5) % 1.0 - 0.5) ** 2 + ((across * 1.9 + turn) % 1.0 - 0.5) ** 2 < 0.1
        )
    if traits.chest == "none" or facing < 0.25:
        return None
    across0, wide = -0.6 * turn, 0.2 + 0.35 * facing
    if traits.chest == "disc":
        return lambda along, across: (
            ((across - across0) / wide) ** 2 + ((along - 0.62) * 4.6) ** 2 < 1.0
        )
    if traits.chest == "square":
        return lambda along, across: (abs(across - across0) < wide) & (abs(along - 0.62) < 0.16)
    return lambda along, across: abs(along - 0.6) < 0.1


def _legs(body: _Body, traits: Traits, w: float) -> None:
    pose = body.pose
    cover = _LOWER if traits.lower == "trousers" else _SKIN
    for side in (-1, 1):
        swing = pose.stride * side * _sin(pose.phase)
        bend = pose.stride * max(0.0, side * _cos(pose.phase)) + 0.05
        hip = (side * 0.046 * w, 0.5, 0.0)
        knee = (side * 0.05 * w, 0.5 - 0.235 * _cos(swing), 0.235 * _sin(swing))
        ankle = (
            side * 0.05 * w,
            knee[1] - 0.215 * _cos(swing - bend),
            knee[2] + 0.215 * _sin(swing - bend),
        )
        toe = (side * 0.062 * w, ankle[1] - 0.02, ankle[2] + 0.06)
        thick = (1.0 if cover == _LOWER else 0.8) * w
        body.add(hip, knee, (0.058 * thick, 0.045 * thick), cover, -0.25)
        body.add(knee, ankle, (0.044 * thick, 0.03 * thick), cover, -0.255)
        body.add((ankle[0], ankle[1] - 0.012, ankle[2] - 0.01), toe, (0.03, 0.022), _SHOES, -0.252)
        if traits.lower == "shorts":
            body.add((hip[0], 0.52, 0.0), knee, (0.062 * w, 0.064 * w), _LOWER, -0.24, "flat")
    if traits.lower == "skirt":
        waist, hem = body.half(0.08, 0.06) * w, body.half(0.128, 0.11) * w
        body.add((0, 0.56, 0), (0, 0.3, 0), (waist, hem), _LOWER, -0.15, "flat")


def _arms(body: _Body, traits: Traits, w: float, cloth: Cloth | None) -> None:
    pose = body.pose
    sleeve = _SECOND if traits.pattern == "block" else _UPPER
    pattern = cloth if traits.pattern in ("hoops", "checks") else None
    for side in (-1, 1):
        swing = -0.8 * pose.stride * side * _sin(pose.phase)
        shoulder = (side * 0.1 * w, 0.79, 0.0)
        elbow = (side * (0.1 * w + 0.028), 0.79 - 0.15 * _cos(swing), 0.15 * _sin(swing))
        bend = swing + 0.3
        hand = (
            side * (0.1 * w + 0.024),
            elbow[1] - 0.14 * _cos(bend),
            elbow[2] + 0.14 * _sin(bend),
        )
        bare = traits.sleeves == "short"
        body.add(shoulder, elbow, (0.037 * w, 0.032 * w), sleeve, 0.02, cloth=pattern)
        lower = (_SKIN, 0.025, 0.02) if bare else (sleeve, 0.031, 0.026)
        body.add(elbow, hand, (lower[1] * w, lower[2] * w), lower[0], 0.025)
        body.add(hand, (hand[0], hand[1] - 0.02, hand[2]), (0.022, 0.02), _SKIN, 0.022)
        if side == 1 and traits.bag == "handbag":
            upper, low = (hand[0], hand[1] - 0.045, hand[2]), (hand[0], hand[1] - 0.15, hand[2])
            body.add(
                upper, low, (body.half(0.04, 0.06), body.half(0.05, 0.085)), _BAG, 0.03, "flat"
            )


def _bag(body: _Body, traits: Traits, w: float) -> None:
    if traits.bag == "backpack":
        width = body.half(0.09, 0.062)
        body.add((0, 0.55, -0.115), (0, 0.83, -0.115), (width, width), _BAG, 0.015, "dome")
        for side in (-1, 1):
            body.add(
                (side * 0.062 * w, 0.82, 0.06),
                (side * 0.075 * w, 0.6, 0.06),
                (0.017, 0.017),
                _BAG,
                0.0,
            )
    elif traits.bag == "shoulder":
        for front in (-0.06, 0.06):
            body.add(
                (-0.075 * w, 0.815, front), (0.1 * w, 0.53, front), (0.013, 0.013), _BAG, 0.005
            )
        width = body.half(0.045, 0.085)
        body.add((0.13 * w, 0.53, 0), (0.13 * w, 0.4, 0), (width, width), _BAG, 0.04, "flat")


def _head(body: _Body, traits: Traits) -> None:
    h = {"short": 0.073, "average": 0.066, "tall": 0.06}[traits.stature]
    top = 0.865 + 1.1 * h

    def add(
        a: Point,
        b: Point,
        radii: tuple[float, float],
        material: int,
        lift: float,
        ends: str = "round",
    ) -> None:
        """Add a part given in head radii from the middle of the head."""
        start, stop = ((right * h, top + up * h, ahead * h) for right, up, ahead in (a, b))
        body.add(start, stop, (radii[0] * h, radii[1] * h), material, lift, ends)

    body.add((0, 0.82, 0), (0, 0.88, 0.01), (0.033, 0.031), _SKIN, 0.001)
    add((0, -0.35, 0.1), (0, 0.25, 0), (0.78, 0.88), _SKIN, 0.003)
    for side in (-1, 1):
        add((side * 0.34, 0.02, 0.85), (side * 0.34, -0.08, 0.85), (0.1, 0.1), _DARK, 0.0)
    if traits.hair != "bald":
        add((0, 0.05, -0.3), (0, 0.28, -0.25), (0.88, 0.95), _HAIR, 0.002)
    if traits.hair != "bald" and traits.hat == "none":
        add((-0.38, 0.72, 0.1), (0.38, 0.72, 0.1), (0.42, 0.42), _HAIR, 0.04)
    if traits.hair == "long":
        add((0, 0, -0.45), (0, -2.7, -1.15), (0.95, 1.05), _HAIR, 0.004)
    elif traits.hair == "ponytail":
        add((0, 0.3, -1.1), (0, -1.9, -1.5), (0.36, 0.2), _HAIR, 0.02)
    elif traits.hair == "bun":
        add((0, 1.0, -0.75), (0, 1.05, -0.75), (0.45, 0.45), _HAIR, 0.02)
    if traits.hat == "cap":
        add((0, 0.3, 0), (0, 1.25, -0.1), (1.0, 0.95), _HAT, 0.05, "dome")
        add((-0.5, 0.32, 1.1), (0.5, 0.32, 1.1), (0.17, 0.17), _HAT, 0.06)
        add((0, 0.36, 0.6), (0, 0.3, 1.55), (0.16, 0.12), _HAT, 0.06)
    elif traits.hat == "beanie":
        add((0, 0.1, -0.05), (0, 1.35, -0.15), (1.04, 1.0), _HAT, 0.05, "dome")
        add((0, 1.4, -0.15), (0, 1.45, -0.15), (0.3, 0.3), _HAT, 0.06)


def _draw_person(canvas: _Canvas, traits: Traits, pose: _Pose, bank: int = 0) -> None:
    body = _Body(pose)
    w = {"slim": 0.84, "average": 1.0, "stout": 1.24}[traits.build]
    cloth = _cloth(traits, body.cos, body.sin)
    _legs(body, traits, w)
    waist, chest = body.half(0.088, 0.068) * w, body.half(0.122, 0.075) * w
    body.add((0, 0.47, 0), (0, 0.845, 0), (waist, chest), _UPPER, 0.0, "dome", cloth)
    _arms(body, traits, w, cloth)
    _bag(body, traits, w)
    _head(body, traits)
    left, right, floor = (
        pose.x - 0.1 * pose.scale,
        pose.x + 0.1 * pose.scale,
        pose.ground - 0.01 * pose.scale,
    )
    canvas.tube(
        (left, floor, 0.025 * pose.scale), (right, floor, 0.02 * pose.scale), _SHADOW, pose.light
    )
    body.fill(canvas, bank)
    materials = (
        SKIN_COLOURS[traits.skin], HAIR_COLOURS[traits.hair_colour], CLOTH_COLOURS[traits.upper_colour],
        CLOTH_COLOURS[traits.second_colour], CLOTH_COLOURS[traits.lower_colour], CLOTH_COLOURS[traits.shoes],
        CLOTH_COLOURS[traits.bag_colour], CLOTH_COLOURS[traits.hat_colour], (40, 32, 34),
    )  # fmt: skip
    canvas.colour(_SHADOW, (0, 0, 0), 28)
    for material, rgb in enumerate(materials, start=1):
        canvas.colour(material + bank, rgb)


def _grain(stream: Stream, height: int, width: int, cell: int) -> Array:
    """Smooth random relief: (height, width) int64 of 0 to 255, with features of about `cell` pixels."""
    coarse = stream.octets(height // cell + 3, width // cell + 3).astype(np.int64)
    y, x = np.arange(height)[:, None], np.arange(width)
    (i, v), (j, u) = (y // cell, y % cell), (x // cell, x % cell)
    top = coarse[i, j] * (cell - u) + coarse[i, j + 1] * u
    low = coarse[i + 1, j] * (cell - u) + coarse[i + 1, j + 1] * u
    relief: Array = (top * (cell - v) + low * v) // (cell * cell)
    return relief


def _mix(a: Colour, b: Colour, weight: Array) -> Array:
    """Colours between a (weight 0) and b (weight 255): (H, W, 3) int64."""
    start, stop = np.array(a), np.array(b)
    colours: Array = start + (stop - start) * weight[..., None] // 255
    return colours


_WALL_COLOURS: tuple[Colour, ...] = (
    (168, 92, 72), (196, 176, 146), (132, 140, 150), (206, 202, 190), (110, 128, 112), (150, 116, 84),
)  # fmt: skip
_FLOOR_COLOURS: tuple[Colour, ...] = (
    (112, 114, 118),
    (176, 172, 164),
    (150, 132, 116),
    (92, 96, 104),
    (196, 186, 166),
)


def _wall(kind: str, stream: Stream, height: int, width: int, unit: int) -> Array:
    """The upright part of a scene; `unit` is a sixteenth of the crop's height."""
    y, x = np.arange(height)[:, None], np.arange(width)
    base = stream.pick(_WALL_COLOURS)
    dark: Colour = (base[0] // 2, base[1] // 2, base[2] // 2)
    tone = stream.octets(64, 64).astype(np.int64)
    if kind == "brick":
        high, wide = max(3, unit * 2 // 3), max(6, unit * 3 // 2)
        row = y // high
        shifted = x + row % 2 * (wide // 2)
        mortar = (y % high < max(1, unit // 7)) | (shifted % wide < max(1, unit // 7))
        bricks = _mix(dark, base, 90 + tone[row % 64, shifted // wide % 64] * 5 // 8)
        return np.where(mortar[..., None], (200, 194, 184), bricks)
    if kind == "shops":
        bay = unit * stream.pick((7, 9, 11))
        frame = (x % bay < max(2, unit // 2)) | (y > height - unit)
        sign = (y < height * 2 // 5) & (y > height // 6)
        colours = np.array([stream.pick(tuple(CLOTH_COLOURS.values())) for _ in range(16)])
        shine = tone[y // unit % 64, (x + y // 3) // (unit * 2) % 64] + x % bay * 160 // bay
        glass = _mix((64, 84, 104), (188, 206, 212), shine // 2)
        shop = np.where(frame[..., None], dark, glass)
        return np.where(sign[..., None], colours[x // bay % 16][None], shop)
    if kind == "trees":
        crowns = _grain(stream, height, width, max(2, unit // 2)) + _grain(
            stream, height, width, unit * 2
        )
        leaves = _mix((34, 62, 30), (138, 172, 84), crowns // 2)
        trunk = (x % (unit * 7) < unit) & (y > height // 3)
        return np.where(trunk[..., None], (84, 64, 48), leaves)
    if kind == "panels":
        plain = _mix(dark, base, 200 + _grain(stream, height, width, unit) // 5)
        bay = unit * stream.pick((8, 10, 13))
        colours = np.array([stream.pick(tuple(CLOTH_COLOURS.values())) for _ in range(16)])
        inset = (x % bay > bay // 3) & (x % bay < bay * 4 // 5) & (y > height // 5)
        seam = x % bay < max(1, unit // 4)
        doors = np.where(inset[..., None], (colours[x // bay % 16][None] + base) // 2, plain)
        return np.where(seam[..., None], dark, doors)
    bars = (x % (unit * 2) < max(1, unit // 2)) | (y % max(4, height // 3) < max(1, unit // 3))
    sky = _mix((206, 218, 232), (160, 176, 190), _grain(stream, height, width, unit * 3))
    return np.where(bars[..., None], dark, sky)


def _floor(kind: str, stream: Stream, height: int, width: int, unit: int) -> Array:
    """The ground of a scene in perspective, from the foot of the wall down."""
    base = stream.pick(_FLOOR_COLOURS)
    grit = (
        _grain(stream, height, width, max(1, unit // 4)) // 2
        + _grain(stream, height, width, unit * 3) // 2
    )
    dark: Colour = (base[0] * 3 // 5, base[1] * 3 // 5, base[2] * 3 // 5)
    y, x = np.arange(height)[:, None] + 0.5, np.arange(width) + 0.5
    depth = 6.0 * unit / (y + 2.5 * unit)
    away, side = depth * 12.0, (x - width / 2) * depth / unit
    plain = _mix(dark, base, 120 + grit // 2)
    if kind == "grass":
        return _mix((58, 92, 38), (150, 172, 88), grit)
    if kind == "tiles":
        odd = ((away * 0.5) % 2.0 < 1.0) ^ ((side * 0.5) % 2.0 < 1.0)
        return np.where(odd[..., None], plain, plain * 3 // 4)
    if kind == "slabs":
        seam = ((away * 0.4) % 1.0 < 0.08) | ((side * 0.3) % 1.0 < 0.06)
        return np.where(seam[..., None], dark, plain)
    if kind == "zebra":
        bars = (side * 0.35) % 1.0 < 0.5
        return np.where((bars & (y > height * 0.15))[..., None], (228, 228, 222), plain)
    line = ((side + away * 0.8) % 9.0 < 0.9) | ((away > 9.0) & (away < 10.0))
    return np.where(line[..., None], (232, 222, 170), plain)


WALLS = ("brick", "shops", "trees", "panels", "fence")
FLOORS = ("road", "tiles", "grass", "slabs", "zebra")


class _Camera(NamedTuple):
    """What all images of one camera share."""

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
def _camera(seed: int, camera: int, height: int, cast: float) -> _Camera:
    stream = Stream(seed, "camera", camera)
    wall = WALLS[(camera + seed) % len(WALLS)]
    floor = FLOORS[(2 * camera + camera // len(WALLS) + seed) % len(FLOORS)]
    grey = stream.below(64)
    return _Camera(
        scene=np.clip(_fade(_scene(wall, floor, stream, height), grey), 0, 255).astype(np.uint8),
        curve=_curve(stream, cast),
        grey=grey,
        yaw=stream.pick((0.0, math.pi, math.pi / 2, -math.pi / 2, 0.7, math.pi - 0.7)),
        turn=stream.between(0.3, 0.9),
        lean=stream.between(-0.07, 0.07),
        tilt=stream.between(0.0, 0.4),
        swell=stream.between(-0.05, 0.3),
        light=stream.between(-0.8, 0.8),
    )


def _curve(stream: Stream, cast: float) -> Array:
    """A camera's response: (3, 256) uint8, from its tint, contrast and gamma."""
    warm, green = cast * stream.between(-0.1, 0.1), cast * stream.between(-0.04, 0.04)
    gains = (max(0.1, gain) for gain in (1 + warm, 1 + green, 1 - warm))
    gamma, contrast, black = (
        stream.between(0.75, 1.05),
        stream.between(0.9, 1.1),
        stream.between(0.0, 0.06),
    )
    curve = np.zeros((3, 256), np.uint8)
    for channel, gain in enumerate(gains):
        for value in range(256):
            level = black + (1 - black) * contrast * gain * (value / 255) ** gamma
            curve[channel, value] = round(255 * min(1.0, level))
    return curve


def _fade(colours: Array, grey: int) -> Array:
    """Colours (any unsigned type, the channel last) moved towards their luminance by grey / 256."""
    wide = colours.astype(np.int64)
    luminance = (wide[..., :1] * 77 + wide[..., 1:2] * 150 + wide[..., 2:3] * 29) >> 8
    return wide + ((luminance - wide) * grey >> 8)


def _scene(wall: str, floor: str, stream: Stream, height: int) -> Array:
    """A camera's whole view, of which each image shows a crop: (1.3 H, 3 H, 3) int64."""
    rows, width, unit = height * 13 // 10, height * 3, max(2, height // 16)
    horizon = int(rows * stream.between(0.25, 0.6))
    upright, ground = (
        _wall(wall, stream, horizon, width, unit),
        _floor(floor, stream, rows - horizon, width, unit),
    )
    # Muted, so that people stand out as they do for a camera that is exposed for them.
    return np.concatenate([upright, ground]) * 9 // 16 + 60


def _heading(view: _Camera, track: Stream) -> float:
    """The yaw of a tracklet: mostly the side of people that the camera usually sees."""
    return (
        view.yaw + track.between(-view.turn, view.turn)
        if track.chance(0.7)
        else track.between(-math.pi, math.pi)
    )


def _occlude(canvas: _Canvas, config: SyntheticConfig, stream: Stream, pose: _Pose) -> None:
    """Put a passer-by, a post, a bush or a sign in front of a part of the person."""
    rows, columns = canvas.label.shape
    side = stream.pick((-1, 1))
    edge = columns * (0.5 + side * stream.between(0.3, 0.52))
    kind = stream.below(4)
    if kind == 0:
        other = _new_traits(Stream(config.seed, "passer-by", stream.word()))
        ground = pose.ground + rows * stream.between(-0.02, 0.1)
        yaw, phase = stream.between(-3.1, 3.1), stream.between(0, 6.2)
        near = pose._replace(x=edge + side * columns * 0.12, ground=ground, yaw=yaw, phase=phase)
        _draw_person(canvas, other, near, _BANK)
    elif kind == 1:
        canvas.colour(_POST, stream.pick(_FLOOR_COLOURS))
        thick = columns * stream.between(0.04, 0.1)
        canvas.tube(
            (edge, -5.0, thick),
            (edge, rows * stream.between(0.8, 1.1), thick),
            _POST,
            pose.light,
            "flat",
        )
    elif kind == 2:
        canvas.colour(_LEAF, stream.pick(((62, 104, 48), (94, 122, 60), (48, 82, 52))))
        for _ in range(14):
            x, y = edge + columns * stream.between(-0.3, 0.3), rows * stream.between(0.8, 1.02)
            size = columns * stream.between(0.05, 0.12)
            canvas.tube((x, y, size), (x, y + size, size), _LEAF, stream.between(-0.9, 0.9))
    else:
        canvas.colour(_POST, (120, 122, 126))
        canvas.colour(_BOARD, stream.pick(tuple(CLOTH_COLOURS.values())))
        canvas.colour(_RIM, (232, 232, 228))
        top, size = rows * stream.between(0.3, 0.7), columns * stream.between(0.12, 0.2)
        canvas.tube(
            (edge, top, size * 0.12), (edge, rows + 9.0, size * 0.12), _POST, pose.light, "flat"
        )
        canvas.tube((edge, top - size, size), (edge, top + size, size), _RIM, 0.0, "flat")
        canvas.tube(
            (edge, top - 0.85 * size, 0.85 * size),
            (edge, top + 0.85 * size, 0.85 * size),
            _BOARD,
            0.0,
            "flat",
        )


def _crop(scene: Array, height: int, width: int, track: Stream, stream: Stream) -> Array:
    """The part of the scene behind one box: one place for a tracklet, moving a little from image to image."""
    rows, columns = scene.shape[0] - height, scene.shape[1] - width
    top = rows * stream.between(0, 1) + height * stream.between(-0.04, 0.04)
    left = columns * track.between(0, 1) + width * stream.between(-1.0, 1.0)
    y, x = min(rows, max(0, int(top))), min(columns, max(0, int(left)))
    return scene[y : y + height, x : x + width]


def _lighten(image: Array, light: float, stream: Stream) -> Array:
    """Exposure, a falling-off of light over the box and sometimes the edge of a cast shadow: uint8 to uint8."""
    height, width = image.shape[:2]
    exposure = stream.between(0.85, 1.15)
    across, down = stream.between(-0.14, 0.14) + 0.1 * light, stream.between(-0.14, 0.14)
    x, y = np.arange(width) / width - 0.5, np.arange(height)[:, None] / height - 0.5
    level = x * (across * exposure * 128) + (y * (down * exposure * 128) + exposure * 128)
    if stream.chance(0.15):
        slope, edge, shade = (
            stream.between(-1.5, 1.5),
            stream.between(-0.4, 0.4),
            stream.between(0.5, 0.75),
        )
        level = np.where(x * slope + y > edge, level * shade, level)
    lit: Array = np.minimum((image * level.astype(np.uint16)[..., None]) >> 7, 255).astype(np.uint8)
    return lit


def _blur(image: Array, times: int, axes: Sequence[int]) -> Array:
    """Repeated 1-2-1 smoothing along the axes, the border repeated: uint8 to uint8."""
    wide = image.astype(np.uint16)
    for axis in axes:
        for _ in range(times):
            lines = np.moveaxis(wide, axis, 0)
            padded = np.concatenate([lines[:1], lines, lines[-1:]])
            wide = np.moveaxis((padded[:-2] + 2 * padded[1:-1] + padded[2:] + 2) >> 2, 0, axis)
    return wide.astype(np.uint8)


def _noise(image: Array, strength: int, stream: Stream) -> Array:
    """Sensor noise, nearly normal, of standard deviation 0.144 * strength grey levels: uint8 to uint8."""
    octets = stream.octets(4, *image.shape)
    total = octets[0].astype(np.int16) + octets[1] + octets[2] + octets[3] - 510
    noisy: Array = np.clip(image + ((total * np.int16(strength)) >> 10), 0, 255).astype(np.uint8)
    return noisy


def draw_image(
    config: SyntheticConfig, split: Split, identity: int, camera: int, index: int
) -> Array:
    """Draw one image, as it is before JPEG.

    Args:
        config: The set; of it only the seed, the height and the cast matter here.
        split: "train", or "test" for query and gallery.
        identity: Person, from 0 in each split.
        camera: Camera, from 1.
        index: Number of the image among those of the identity.

    Returns:
        RGB, (config.height, width, 3) uint8, the width 40 to 52 % of the height. The same arguments give the same
        pixels in any order, in any process and on any machine.
    """
    track = Stream(config.seed, split, identity, camera, "track")
    stream = Stream(config.seed, split, identity, camera, index, "image")
    view = _camera(config.seed, camera, config.height, config.cast)
    height = config.height
    width = int(height * stream.between(0.4, 0.52))
    head, foot = stream.between(-0.03, 0.1), stream.between(0.91, 1.03)
    canvas = _Canvas(height, width)
    pose = _Pose(
        x=width * (1 + stream.between(-0.1, 0.1)),
        ground=2 * height * foot,
        scale=2 * height * (foot - head) / (1.04 * _cos(view.tilt)),
        yaw=_heading(view, track) + stream.between(-0.4, 0.4),
        phase=stream.between(0, 2 * math.pi),
        stride=stream.pick((0.08, 0.3, 0.4, 0.5)),
        lean=view.lean + stream.between(-0.02, 0.02),
        tilt=view.tilt,
        swell=view.swell,
        light=view.light,
    )
    _draw_person(canvas, traits_of(config, split, identity), pose)
    if stream.chance(0.18):
        _occlude(canvas, config, stream, pose)
    canvas.fade(view.grey)
    image = canvas.over(_crop(view.scene, height, width, track, stream))
    image = _lighten(image, view.light, stream)
    image = np.stack([view.curve[channel][image[..., channel]] for channel in range(3)], axis=-1)
    times = stream.pick((0, 0, 0, 1, 2)) * max(1, height // 128)
    image = _blur(image, times, stream.pick(((0, 1), (0, 1), (1,))))
    return _noise(image, stream.pick((6, 14, 22, 34)), stream)


def jpeg_quality(
    config: SyntheticConfig, split: Split, identity: int, camera: int, index: int
) -> int:
    """The JPEG quality, 40 to 95, with which `write_synthetic` stores the image of these arguments."""
    return 40 + Stream(config.seed, split, identity, camera, index, "jpeg").below(56)
