"""Identities of the synthetic set: what each person looks like."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from ..config import SyntheticConfig
from .exact import Stream

Split = Literal["train", "test"]
Colour = tuple[int, int, int]

#: One identity in so many is a copy of the one before it with one trait changed.
TWIN_PERIOD = 7

#: Sum of the differences in red, green and blue from which two cloth colours look different.
_CLEAR_DIFFERENCE = 190

CLOTH_COLOURS: dict[str, Colour] = {
    "black": (30, 30, 34),
    "charcoal": (78, 80, 86),
    "grey": (146, 148, 150),
    "white": (238, 238, 234),
    "navy": (30, 44, 98),
    "blue": (40, 98, 204),
    "sky": (136, 188, 230),
    "teal": (22, 142, 146),
    "green": (38, 134, 70),
    "olive": (108, 112, 56),
    "yellow": (238, 202, 48),
    "orange": (236, 124, 30),
    "red": (206, 34, 42),
    "maroon": (118, 26, 46),
    "pink": (240, 144, 176),
    "purple": (122, 64, 158),
    "beige": (216, 194, 152),
    "brown": (116, 76, 46),
}
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

_COMMON_LOWER_COLOURS = (
    "black",
    "black",
    "black",
    "navy",
    "navy",
    "blue",
    "charcoal",
    "grey",
    "beige",
)

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
    "lower_colour": (*_COMMON_LOWER_COLOURS, *CLOTH_COLOURS),
    "shoes": ("black", "black", "white", "white", "brown", "red", "grey", "yellow", "blue"),
    "bag": ("none", "none", "none", "backpack", "backpack", "shoulder", "handbag"),
    "bag_colour": ("black", "red", "blue", "brown", "yellow", "green", "pink", "grey"),
    "hat": ("none", "none", "none", "none", "none", "cap", "beanie"),
    "hat_colour": ("black", "red", "white", "navy", "yellow", "green", "pink"),
}

#: The traits of which a twin changes one: those that are visible from every side.
TWIN_TRAITS = ("upper_colour", "pattern", "sleeves", "lower", "lower_colour", "bag", "hat")


@dataclass(frozen=True)
class Traits:
    """The look of one identity; every field is a value of the same name in `CHOICES`.

    The colour of an absent thing (such as the bag's of a person without a bag) has a value too,
    which is not rendered.
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


def twin_of(identity: int) -> int | None:
    """Return the identity of the same split that this one copies but for one trait, if it does."""
    return identity - 1 if identity % TWIN_PERIOD == TWIN_PERIOD - 1 else None


@lru_cache(maxsize=8192)
def traits_of(config: SyntheticConfig, split: Split, identity: int) -> Traits:
    """Return the look of an identity.

    Args:
        config: The set; only its seed matters.
        split: "train" or "test".
        identity: Number of the person, from 0 in each split.
    """
    stream = Stream(config.seed, split, identity, "traits")
    original = twin_of(identity)
    if original is None:
        return random_traits(stream)
    traits = traits_of(config, split, original)
    changed = stream.pick(TWIN_TRAITS)
    old = getattr(traits, changed)
    if changed == "upper_colour":
        value = stream.pick(_different_colours(old, traits.second_colour))
    elif changed == "lower_colour":
        value = stream.pick(_different_colours(old))
    else:
        value = stream.pick([choice for choice in CHOICES[changed] if choice != old])
    return replace(traits, **{changed: value})


def random_traits(stream: Stream) -> Traits:
    """Choose every trait at random."""
    # The order of the fields is the order of the random numbers: it decides what people look like.
    traits = Traits(**{name: stream.pick(choices) for name, choices in CHOICES.items()})
    return replace(traits, second_colour=stream.pick(_different_colours(traits.upper_colour)))


@lru_cache(maxsize=512)
def _different_colours(*names: str) -> list[str]:
    """The cloth colours that look different, at a glance, from all those named."""
    different = []
    for candidate in CLOTH_COLOURS:
        if all(_distance(candidate, name) >= _CLEAR_DIFFERENCE for name in names):
            different.append(candidate)
    return different


def _distance(a: str, b: str) -> int:
    """Sum of the differences in red, green and blue between two cloth colours."""
    pairs = zip(CLOTH_COLOURS[a], CLOTH_COLOURS[b], strict=True)
    return sum(abs(x - y) for x, y in pairs)
