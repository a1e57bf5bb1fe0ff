"""The figure of a person: legs, trunk, arms and head, with clothes, bag and hat."""

from __future__ import annotations

from .body import Body, Pose
from .canvas import (
    BAG,
    EYES,
    HAIR,
    HAT,
    LOWER,
    SECOND,
    SHADOW,
    SHOES,
    SKIN,
    UPPER,
    Canvas,
    Pattern,
    Point,
)
from .clothes import add_handbag, add_hat, add_worn_bag, pattern_of
from .exact import cosine, sine
from .traits import CLOTH_COLOURS, HAIR_COLOURS, SKIN_COLOURS, Colour, Traits

#: Width of a person by build, and radius of the head by stature, in heights: tall people have
#: smaller heads for their height.
_WIDTH = {"slim": 0.84, "average": 1.0, "stout": 1.24}
_HEAD_RADIUS = {"short": 0.073, "average": 0.066, "tall": 0.06}

# Lengths in heights of the person.
_HIP_HEIGHT = 0.5
_THIGH = 0.235
_SHIN = 0.215
_SHOULDER_HEIGHT = 0.79
_UPPER_ARM = 0.15
_FOREARM = 0.14

_EYE_COLOUR: Colour = (40, 32, 34)
_SHADOW_COVERAGE = 28


def render_person(canvas: Canvas, traits: Traits, pose: Pose, offset: int = 0) -> None:
    """Render a person and their shadow.

    Args:
        canvas: Where to.
        traits: Who.
        pose: Where they stand and how.
        offset: Added to the materials, so that two people on a canvas have colours of their own.
    """
    body = Body(pose)
    width = _WIDTH[traits.build]
    pattern = pattern_of(traits, body.cos, body.sin)
    # Of parts that are equally near, the one added first is filled first: the order is part of the
    # pixels.
    _add_legs(body, traits, width)
    _add_trunk(body, width, pattern)
    _add_arms(body, traits, width, pattern)
    add_worn_bag(body, traits.bag, width)
    _add_head(body, traits)
    _fill_shadow(canvas, pose)
    body.fill(canvas, offset)
    _set_colours(canvas, traits, offset)


def _add_legs(body: Body, traits: Traits, width: float) -> None:
    for side in (-1, 1):
        _add_leg(body, traits, width, side)
    if traits.lower == "skirt":
        waist = body.half_width(0.08, 0.06) * width
        hem = body.half_width(0.128, 0.11) * width
        body.add((0, 0.56, 0), (0, 0.3, 0), (waist, hem), LOWER, -0.15, "flat")


def _add_leg(body: Body, traits: Traits, width: float, side: int) -> None:
    pose = body.pose
    swing = pose.stride * side * sine(pose.phase)
    bend = pose.stride * max(0.0, side * cosine(pose.phase)) + 0.05
    hip = (side * 0.046 * width, _HIP_HEIGHT, 0.0)
    knee = (side * 0.05 * width, _HIP_HEIGHT - _THIGH * cosine(swing), _THIGH * sine(swing))
    ankle = (
        side * 0.05 * width,
        knee[1] - _SHIN * cosine(swing - bend),
        knee[2] + _SHIN * sine(swing - bend),
    )
    heel = (ankle[0], ankle[1] - 0.012, ankle[2] - 0.01)
    toe = (side * 0.062 * width, ankle[1] - 0.02, ankle[2] + 0.06)
    material = LOWER if traits.lower == "trousers" else SKIN
    thickness = (1.0 if material == LOWER else 0.8) * width
    body.add(hip, knee, (0.058 * thickness, 0.045 * thickness), material, -0.25)
    body.add(knee, ankle, (0.044 * thickness, 0.03 * thickness), material, -0.255)
    body.add(heel, toe, (0.03, 0.022), SHOES, -0.252)
    if traits.lower == "shorts":
        waist = (hip[0], 0.52, 0.0)
        body.add(waist, knee, (0.062 * width, 0.064 * width), LOWER, -0.24, "flat")


def _add_trunk(body: Body, width: float, pattern: Pattern | None) -> None:
    waist = body.half_width(0.088, 0.068) * width
    chest = body.half_width(0.122, 0.075) * width
    body.add((0, 0.47, 0), (0, 0.845, 0), (waist, chest), UPPER, 0.0, "dome", pattern)


def _add_arms(body: Body, traits: Traits, width: float, pattern: Pattern | None) -> None:
    sleeve = SECOND if traits.pattern == "block" else UPPER
    sleeve_pattern = pattern if traits.pattern in ("hoops", "checks") else None
    for side in (-1, 1):
        # Arms swing against the legs.
        swing = -0.8 * body.pose.stride * side * sine(body.pose.phase)
        bend = swing + 0.3
        shoulder = (side * 0.1 * width, _SHOULDER_HEIGHT, 0.0)
        elbow = (
            side * (0.1 * width + 0.028),
            _SHOULDER_HEIGHT - _UPPER_ARM * cosine(swing),
            _UPPER_ARM * sine(swing),
        )
        hand = (
            side * (0.1 * width + 0.024),
            elbow[1] - _FOREARM * cosine(bend),
            elbow[2] + _FOREARM * sine(bend),
        )
        body.add(
            shoulder, elbow, (0.037 * width, 0.032 * width), sleeve, 0.02, pattern=sleeve_pattern
        )
        if traits.sleeves == "short":
            body.add(elbow, hand, (0.025 * width, 0.02 * width), SKIN, 0.025)
        else:
            body.add(elbow, hand, (0.031 * width, 0.026 * width), sleeve, 0.025)
        fingers = (hand[0], hand[1] - 0.02, hand[2])
        body.add(hand, fingers, (0.022, 0.02), SKIN, 0.022)
        if side == 1 and traits.bag == "handbag":
            add_handbag(body, hand)


def _add_head(body: Body, traits: Traits) -> None:
    radius = _HEAD_RADIUS[traits.stature]
    middle = 0.865 + 1.1 * radius

    def add(
        start: Point,
        stop: Point,
        radii: tuple[float, float],
        material: int,
        lift: float,
        ends: str = "round",
    ) -> None:
        body.add(
            (start[0] * radius, middle + start[1] * radius, start[2] * radius),
            (stop[0] * radius, middle + stop[1] * radius, stop[2] * radius),
            (radii[0] * radius, radii[1] * radius),
            material,
            lift,
            ends,
        )

    body.add((0, 0.82, 0), (0, 0.88, 0.01), (0.033, 0.031), SKIN, 0.001)  # neck
    add((0, -0.35, 0.1), (0, 0.25, 0), (0.78, 0.88), SKIN, 0.003)
    for side in (-1, 1):
        add((side * 0.34, 0.02, 0.85), (side * 0.34, -0.08, 0.85), (0.1, 0.1), EYES, 0.0)
    if traits.hair != "bald":
        add((0, 0.05, -0.3), (0, 0.28, -0.25), (0.88, 0.95), HAIR, 0.002)
    if traits.hair != "bald" and traits.hat == "none":
        add((-0.38, 0.72, 0.1), (0.38, 0.72, 0.1), (0.42, 0.42), HAIR, 0.04)
    if traits.hair == "long":
        add((0, 0, -0.45), (0, -2.7, -1.15), (0.95, 1.05), HAIR, 0.004)
    elif traits.hair == "ponytail":
        add((0, 0.3, -1.1), (0, -1.9, -1.5), (0.36, 0.2), HAIR, 0.02)
    elif traits.hair == "bun":
        add((0, 1.0, -0.75), (0, 1.05, -0.75), (0.45, 0.45), HAIR, 0.02)
    add_hat(add, traits.hat)


def _fill_shadow(canvas: Canvas, pose: Pose) -> None:
    row = pose.ground - 0.01 * pose.scale
    left = (pose.x - 0.1 * pose.scale, row, 0.025 * pose.scale)
    right = (pose.x + 0.1 * pose.scale, row, 0.02 * pose.scale)
    canvas.fill_tube(left, right, SHADOW, pose.light)


def _set_colours(canvas: Canvas, traits: Traits, offset: int) -> None:
    canvas.set_colour(SHADOW, (0, 0, 0), _SHADOW_COVERAGE)
    colours = {
        SKIN: SKIN_COLOURS[traits.skin],
        HAIR: HAIR_COLOURS[traits.hair_colour],
        UPPER: CLOTH_COLOURS[traits.upper_colour],
        SECOND: CLOTH_COLOURS[traits.second_colour],
        LOWER: CLOTH_COLOURS[traits.lower_colour],
        SHOES: CLOTH_COLOURS[traits.shoes],
        BAG: CLOTH_COLOURS[traits.bag_colour],
        HAT: CLOTH_COLOURS[traits.hat_colour],
        EYES: _EYE_COLOUR,
    }
    for material, rgb in colours.items():
        canvas.set_colour(material + offset, rgb)
