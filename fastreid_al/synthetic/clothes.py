"""Patterns of the upper garment, bags and hats."""

from __future__ import annotations

from typing import Protocol

from .body import Body
from .canvas import BAG, HAT, Pattern, Point
from .traits import Traits

#: How much of the front must face the camera before a print on the chest is seen.
_VISIBLE_CHEST = 0.25


class AddToHead(Protocol):
    """Adds a part of the head to the figure."""

    def __call__(
        self,
        start: Point,
        stop: Point,
        radii: tuple[float, float],
        material: int,
        lift: float,
        ends: str = "round",
    ) -> None:
        """Add a part; coordinates and radii are in head radii from the centre of the head."""


def pattern_of(traits: Traits, facing: float, turn: float) -> Pattern | None:
    """Where the upper garment shows its second colour.

    Args:
        traits: The person.
        facing: Cosine of the yaw: 1 where the front faces the camera.
        turn: Sine of the yaw.

    Returns:
        A function of (along, across) of the trunk; None where the garment has one colour.
    """
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
    return _chest_print(traits.chest, facing, turn)


def _chest_print(chest: str, facing: float, turn: float) -> Pattern | None:
    if chest == "none" or facing < _VISIBLE_CHEST:
        return None
    middle = -0.6 * turn
    half_width = 0.2 + 0.35 * facing
    if chest == "disc":
        return lambda along, across: (
            ((across - middle) / half_width) ** 2 + ((along - 0.62) * 4.6) ** 2 < 1.0
        )
    if chest == "square":
        return lambda along, across: (
            (abs(across - middle) < half_width) & (abs(along - 0.62) < 0.16)
        )
    return lambda along, across: abs(along - 0.6) < 0.1


def add_handbag(body: Body, hand: Point) -> None:
    """Hang a handbag from a hand."""
    top = (hand[0], hand[1] - 0.045, hand[2])
    bottom = (hand[0], hand[1] - 0.15, hand[2])
    radii = (body.half_width(0.04, 0.06), body.half_width(0.05, 0.085))
    body.add(top, bottom, radii, BAG, 0.03, "flat")


def add_worn_bag(body: Body, bag: str, width: float) -> None:
    """Add a backpack or a shoulder bag; other bags add nothing here.

    Args:
        body: The person.
        bag: Kind of bag.
        width: Width of the person relative to the average build.
    """
    if bag == "backpack":
        _add_backpack(body, width)
    elif bag == "shoulder":
        _add_shoulder_bag(body, width)


def _add_backpack(body: Body, width: float) -> None:
    half = body.half_width(0.09, 0.062)
    body.add((0, 0.55, -0.115), (0, 0.83, -0.115), (half, half), BAG, 0.015, "dome")
    for side in (-1, 1):
        top = (side * 0.062 * width, 0.82, 0.06)
        bottom = (side * 0.075 * width, 0.6, 0.06)
        body.add(top, bottom, (0.017, 0.017), BAG, 0.0)


def _add_shoulder_bag(body: Body, width: float) -> None:
    for forward in (-0.06, 0.06):
        shoulder = (-0.075 * width, 0.815, forward)
        hip = (0.1 * width, 0.53, forward)
        body.add(shoulder, hip, (0.013, 0.013), BAG, 0.005)
    half = body.half_width(0.045, 0.085)
    body.add((0.13 * width, 0.53, 0), (0.13 * width, 0.4, 0), (half, half), BAG, 0.04, "flat")


def add_hat(add: AddToHead, hat: str) -> None:
    """Add a cap or a beanie; "none" adds nothing."""
    if hat == "cap":
        add((0, 0.3, 0), (0, 1.25, -0.1), (1.0, 0.95), HAT, 0.05, "dome")
        add((-0.5, 0.32, 1.1), (0.5, 0.32, 1.1), (0.17, 0.17), HAT, 0.06)
        add((0, 0.36, 0.6), (0, 0.3, 1.55), (0.16, 0.12), HAT, 0.06)
    elif hat == "beanie":
        add((0, 0.1, -0.05), (0, 1.35, -0.15), (1.04, 1.0), HAT, 0.05, "dome")
        add((0, 1.4, -0.15), (0, 1.45, -0.15), (0.3, 0.3), HAT, 0.06)
