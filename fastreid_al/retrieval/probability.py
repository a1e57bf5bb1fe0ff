"""The probability that a query and a gallery image show the same identity, by similarity."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

#: Least number of pairs, and of pairs of each kind, that a curve is fitted to.
LEAST_PAIRS, LEAST_OF_KIND = 20, 5
_STEPS = 50
#: Bins of the calibration error.
_BINS = 10


@dataclass(frozen=True)
class MatchProbability:
    """Logistic regression on the similarity, and the gallery that its pairs are from.

    By Bayes, the odds of a pair at one similarity are the number of a query's matches over the
    number of other gallery images, times a ratio that depends on the network only. So odds that
    were fitted in one gallery hold in another after a change of these two numbers.

    Args:
        bias: Log-odds at similarity 0.
        slope: Change of the log-odds over a similarity of 1, 0 or more.
        matches: Matches of a query in the gallery that the pairs are from, on average.
        others: Images of other identities in that gallery.
    """

    bias: float
    slope: float
    matches: float
    others: float

    def __call__(self, similarity: npt.ArrayLike, matches: float, others: float) -> Array:
        """Return the probability of pairs in a gallery.

        Args:
            similarity: Cosine similarities, of any shape.
            matches: Matches that a query has in the gallery, on average.
            others: Images of other identities in the gallery.

        Returns:
            float64 of the shape of `similarity`.
        """
        from scipy.special import expit

        change = math.log(matches / self.matches) - math.log(max(others, 1.0) / self.others)
        probability: Array = expit(
            self.bias + change + self.slope * np.asarray(similarity, np.float64)
        )
        return probability


def fit_probability(
    similarity: npt.ArrayLike, same: npt.ArrayLike, matches: float, others: float
) -> MatchProbability | None:
    """Fit the probability of a match to pairs that a search has returned.

    Logistic regression with the targets of Platt (1999), by which pairs that a similarity separates
    give a finite slope.

    Args:
        similarity: (m,) cosine similarities of the pairs.
        same: (m,) whether both show the same identity.
        matches: Matches of a query in the gallery that the pairs are from, on average.
        others: Images of other identities in that gallery.

    Returns:
        The probability; None where there are fewer than 20 pairs, or fewer than 5 of one kind.
    """
    x = np.asarray(similarity, np.float64)
    y = np.asarray(same, bool)
    positive, negative = int(y.sum()), int((~y).sum())
    if len(y) < LEAST_PAIRS or min(positive, negative) < LEAST_OF_KIND:
        return None
    target = np.where(y, (positive + 1) / (positive + 2), 1 / (negative + 2))
    mean, scale = float(x.mean()), max(float(x.std()), 1e-6)
    bias, slope = _regression((x - mean) / scale, target)
    if slope < 0:
        bias, slope = math.log(positive / negative), 0.0
    slope /= scale
    return MatchProbability(bias - slope * mean, slope, matches, others)


def _regression(x: Array, target: Array) -> tuple[float, float]:
    """Bias and slope of a logistic regression, by Newton's method with steps that are halved."""
    inputs = np.stack([np.ones_like(x), x], 1)  # (m, 2)
    weights = np.zeros(2)
    loss = _loss(inputs @ weights, target)
    for _ in range(_STEPS):
        p = 0.5 + 0.5 * np.tanh(0.5 * (inputs @ weights))
        hessian = (inputs * (p * (1 - p))[:, None]).T @ inputs + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, inputs.T @ (target - p))
        while (new_loss := _loss(inputs @ (weights + step), target)) > loss:
            step /= 2
            if np.abs(step).max() < 1e-9:
                return float(weights[0]), float(weights[1])
        weights, loss = weights + step, new_loss
        if np.abs(step).max() < 1e-9:
            break
    return float(weights[0]), float(weights[1])


def _loss(log_odds: Array, target: Array) -> float:
    """Cross-entropy."""
    return float((np.logaddexp(0, log_odds) - target * log_odds).sum())


def calibration_error(probability: npt.ArrayLike, same: npt.ArrayLike) -> float:
    """Return the expected calibration error over ten bins of equally many pairs.

    Args:
        probability: (m,) stated probabilities, m >= 1.
        same: (m,) whether the pairs are matches.

    Returns:
        Mean over pairs of the difference between the mean probability and the share of matches in
        the pair's bin, in [0, 1].
    """
    p, y = np.asarray(probability, np.float64), np.asarray(same, np.float64)
    bins = np.array_split(np.argsort(p, kind="stable"), min(_BINS, len(p)))
    return float(sum(abs(p[b].sum() - y[b].sum()) for b in bins) / len(p))
