"""Random numbers and sines that are the same on every machine."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
T = TypeVar("T")

_MASK64 = (1 << 64) - 1
#: SplitMix64's increment and multipliers (Steele, Lea and Flood, OOPSLA 2014).
_INCREMENT = 0x9E3779B97F4A7C15
_FIRST_MULTIPLIER = 0xBF58476D1CE4E5B9
_SECOND_MULTIPLIER = 0x94D049BB133111EB

#: Sines and cosines are rounded to multiples of 1 / 4096, far coarser than libraries differ.
_SINE_STEPS = 4096


class Stream:
    """A stream of random numbers: SplitMix64 on Python integers, started from a hash of the key.

    Args:
        key: What the stream is for, such as a seed, an identity and a word; different keys start
            independent streams.
    """

    def __init__(self, *key: object) -> None:
        digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
        self.state = int.from_bytes(digest, "little")

    def word(self) -> int:
        """Return the next 64 bits."""
        self.state = (self.state + _INCREMENT) & _MASK64
        z = self.state
        z = ((z ^ (z >> 30)) * _FIRST_MULTIPLIER) & _MASK64
        z = ((z ^ (z >> 27)) * _SECOND_MULTIPLIER) & _MASK64
        return z ^ (z >> 31)

    def below(self, bound: int) -> int:
        """Return an integer in [0, bound)."""
        return (self.word() * bound) >> 64

    def between(self, low: float, high: float) -> float:
        """Return a number in [low, high)."""
        return low + (high - low) * ((self.word() >> 11) / (1 << 53))

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return self.between(0, 1) < probability

    def pick(self, options: Sequence[T]) -> T:
        """Return one of the options."""
        return options[self.below(len(options))]

    def sample(self, options: Iterable[T], count: int) -> list[T]:
        """Return `count` of the options, each at most once."""
        left = list(options)
        return [left.pop(self.below(len(left))) for _ in range(count)]

    def octets(self, *shape: int) -> Array:
        """Return independent uint8 values of a shape, from SplitMix64 on an array of counters."""
        size = math.prod(shape)
        counters = np.arange(1, size // 8 + 2, dtype=np.uint64)
        z = counters * np.uint64(_INCREMENT) + np.uint64(self.word())
        z = (z ^ (z >> np.uint64(30))) * np.uint64(_FIRST_MULTIPLIER)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(_SECOND_MULTIPLIER)
        z ^= z >> np.uint64(31)
        return z.astype("<u8", copy=False).view(np.uint8)[:size].reshape(shape)


def sine(angle: float) -> float:
    """Return the sine of an angle in radians, rounded."""
    return round(math.sin(angle) * _SINE_STEPS) / _SINE_STEPS


def cosine(angle: float) -> float:
    """Return the cosine of an angle in radians, rounded."""
    return round(math.cos(angle) * _SINE_STEPS) / _SINE_STEPS
