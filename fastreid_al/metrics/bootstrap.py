"""How sure the difference of two means is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..arguments import as_integer, as_number

#: Values that are drawn at a time, 8 bytes each.
_PART = 2**22


class Interval(NamedTuple):
    """A mean and the interval that it lies in with a given probability."""

    mean: float
    low: float
    high: float


def paired_bootstrap(
    differences: np.ndarray, *, samples: int = 10_000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Return the mean of paired differences, and its percentile interval by the bootstrap.

    Items are drawn with replacement, each with both of its values, so that what makes an item
    difficult for both does not widen the interval (Efron and Tibshirani, 1993).

    Args:
        differences: (n,) float64, one difference an item; n is 1 or more.
        samples: Samples of n items that are drawn.
        level: Probability of the interval.
        seed: Seed of the draws; the same seed gives the same interval.

    Returns:
        The interval. Memory: 34 MB for the draws and 8 bytes a sample.

    Raises:
        ValueError: No item, values that are not finite, or an argument outside its range.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError(
            f"differences: got shape {values.shape}, expected (n,) finite values, n 1 or more"
        )
    samples = as_integer("samples", samples, 1)
    level = as_number("level", level, 0, 1)
    random = np.random.default_rng(as_integer("seed", seed, 0))
    means = np.empty(samples)
    step = max(1, _PART // len(values))
    for start in range(0, samples, step):
        count = min(step, samples - start)
        drawn = random.integers(len(values), size=(count, len(values)))
        means[start : start + count] = values[drawn].mean(1)
    tail = 50 * (1 - level)
    low, high = np.percentile(means, (tail, 100 - tail))
    return Interval(float(values.mean()), float(low), float(high))
