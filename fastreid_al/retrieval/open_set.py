"""The similarity below which a query is unknown, and the error rates of that decision.

A query is unknown if no gallery image shows its identity. The best similarity of such a query is
the greatest of as many similarities as the gallery has images, so it grows with the gallery. The
threshold is therefore chosen on best similarities in whole galleries, not on single pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

#: Queries above the threshold from which it is the empirical quantile.
_ENOUGH = 10
#: Share of the queries, and their least number, that the tail is fitted to.
_TAIL, _LEAST_TAIL = 0.1, 10
CONFIDENCE = 0.95


class ErrorRate(NamedTuple):
    """An error rate that was measured, with its 95 % confidence interval (Clopper and Pearson).

    Args:
        errors: Number of errors.
        trials: Number of independent queries.
        low: Lower limit of the interval.
        high: Upper limit of the interval.
    """

    errors: int
    trials: int
    low: float
    high: float

    @property
    def rate(self) -> float:
        """Errors over trials."""
        return self.errors / self.trials

    def in_gallery(self, growth: float) -> tuple[float, float, float]:
        """Return rate and limits in a gallery that is larger by a factor.

        With p the rate in the gallery that was measured, 1 - (1 - p)^growth is the rate if the
        images that are added are as similar to a query as those of the gallery are to another one.
        Where some queries have more look-alikes than others it is an upper bound (Jensen).

        Args:
            growth: The factor, 1 or more.
        """
        rate, low, high = (_grown(x, growth) for x in (self.rate, self.low, self.high))
        return rate, low, high


def _grown(rate: float, growth: float) -> float:
    return 1.0 if rate >= 1 else -math.expm1(growth * math.log1p(-rate))


def measure_rate(errors: int, trials: int) -> ErrorRate:
    """Return an error rate with its exact 95 % confidence interval.

    Args:
        errors: Number of errors, at most `trials`.
        trials: Number of independent queries, 1 or more.
    """
    from scipy.stats import binomtest

    interval = binomtest(errors, trials).proportion_ci(CONFIDENCE, method="exact")
    return ErrorRate(errors, trials, float(interval.low), float(interval.high))


@dataclass(frozen=True)
class UnknownThreshold:
    """When a query is unknown, and how often that decision is wrong.

    Args:
        similarity: A query whose best similarity is below this is unknown.
        asked: The share of unknown queries that may exceed it.
        false_match: Of queries whose identity was left out of a gallery, those that exceed it.
        false_unknown: Of queries whose identity was in that gallery, those that do not; None where
            there was none.
        measured_in: Images of that gallery.
        growth: Images of the searched gallery over these, 1 or more.
    """

    similarity: float
    asked: float
    false_match: ErrorRate
    false_unknown: ErrorRate | None
    measured_in: int
    growth: float


def choose_threshold(best: npt.ArrayLike, rate: float, growth: float = 1.0) -> float:
    """Choose the similarity that a share of unknown queries exceeds.

    The empirical quantile where at least ten queries exceed it. Beyond that the tail above the
    greatest tenth of the values is taken to be exponential, which no distribution that ends at 1
    exceeds far out.

    Args:
        best: (q,) best similarities of queries whose identity is not in a gallery, q >= 2.
        rate: The share, in (0, 1), of queries that may exceed it in the searched gallery.
        growth: Images of the searched gallery over those of the other one, 1 or more.

    Returns:
        The similarity; it may exceed 1, and then every query is unknown.
    """
    values = np.sort(np.asarray(best, np.float64))[::-1]
    # The share in the smaller gallery, by `ErrorRate.in_gallery`.
    share = -math.expm1(math.log1p(-rate) / growth)
    exceeding = share * len(values)
    count = min(max(_LEAST_TAIL, round(_TAIL * len(values))), len(values) - 1)
    if exceeding >= min(_ENOUGH, count):
        last = min(max(int(exceeding), 1), len(values) - 1)
        return float(values[last - 1 : last + 1].mean())
    start = values[count]
    excess = float((values[:count] - start).mean())
    return float(start + excess * math.log(count / exceeding))
