"""Slow references of how answers are weighed, by trying every partition of up to 8 images.

Nothing here is imported from the library, and nothing is optimised: what is most likely and how
likely a pair is "same" are read off the list of all partitions. `reference_same` does not use
log-odds at all: it multiplies probabilities.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

Pair = tuple[int, int]

#: Sums of log-odds that differ by less are taken as equal.
TIE = 1e-9


class Observation(NamedTuple):
    """One answer that decides: what it says of a pair, and how often its annotator is wrong."""

    pair: Pair  # low, high
    same: bool
    rate: float


class Observed(NamedTuple):
    """One answer that decides, of an annotator whose rate of errors is not known."""

    pair: Pair  # low, high
    same: bool
    annotator: str


class Optimum(NamedTuple):
    """The greatest sum of weights inside groups, and what each partition that has it says."""

    support: float
    #: For each such partition the pairs that it puts in one group. Partitions that say the same of
    #: every pair with a weight count once.
    joined: set[frozenset[Pair]]

    @property
    def unique(self) -> bool:
        return len(self.joined) == 1


@cache
def every_partition(count: int) -> np.ndarray:
    """Return all partitions of `count` nodes; (Bell(count), count), each node's lowest companion.

    Node i either opens a group or enters one of those that the nodes before it have opened.
    """
    partitions: list[list[int]] = [[]]
    for i in range(count):
        partitions = [[*part, g] for part in partitions for g in [*sorted(set(part)), i]]
    return np.array(partitions, dtype=np.int64).reshape(len(partitions), count)


def _together(count: int, pairs: Sequence[Pair]) -> np.ndarray:
    """Whether each partition has each pair in one group; (Bell(count), pairs)."""
    partitions = every_partition(count)
    low, high = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return partitions[:, low] == partitions[:, high]


def reference_support(part: Sequence[int], weights: Mapping[Pair, float]) -> float:
    """Return the sum of the weights inside the groups of a partition."""
    return math.fsum(w for (i, j), w in weights.items() if part[i] == part[j])


def reference_optimum(count: int, weights: Mapping[Pair, float]) -> Optimum:
    """Return the greatest sum of weights inside groups over all partitions of `count` nodes."""
    pairs = list(weights)
    together = _together(count, pairs)
    sums = together @ np.array([weights[pair] for pair in pairs], dtype=np.float64)
    best = sums.max()
    joined = {
        frozenset(pair for pair, inside in zip(pairs, row, strict=True) if inside)
        for row in np.unique(together[sums > best - TIE], axis=0)
    }
    return Optimum(float(best), joined)


def reference_log_odds(
    observations: Sequence[Observation], prior: Callable[[int, int], float]
) -> dict[Pair, float]:
    """Return the log-odds of "same" of each pair that has an answer.

    They are those of the prior, limited to -5 to 5, and log((1 - e) / e) for each "same", less the
    same for each "different", with the rate of errors e limited to 0.0001 to 0.45.
    """
    terms = {o.pair: [min(max(prior(*o.pair), -5.0), 5.0)] for o in observations}
    for o in observations:
        e = min(max(o.rate, 0.0001), 0.45)
        terms[o.pair].append(math.log((1 - e) / e) * (1 if o.same else -1))
    return {pair: math.fsum(parts) for pair, parts in terms.items()}


def reference_rates(
    count: int, answers: Sequence[Observed], prior: Callable[[int, int], float]
) -> dict[str, float] | None:
    """Return each annotator's rate of errors, estimated from the answers that are contradicted.

    It is (wrong + 1) / (answers + 50), first with none wrong of none, then with those that the most
    likely partition contradicts, until nothing changes. The result is None where two partitions are
    equally likely on the way, or where the rates repeat without coming to rest.
    """
    asked = Counter(a.annotator for a in answers)
    rates = dict.fromkeys(asked, 1 / 50)
    for _ in range(100):
        observations = [Observation(a.pair, a.same, rates[a.annotator]) for a in answers]
        optimum = reference_optimum(count, reference_log_odds(observations, prior))
        if not optimum.unique:
            return None
        (joined,) = optimum.joined
        wrong = Counter(a.annotator for a in answers if a.same != (a.pair in joined))
        estimated = {name: (wrong[name] + 1) / (asked[name] + 50) for name in asked}
        if estimated == rates:
            return rates
        rates = estimated
    return None


def reference_same(
    count: int, observations: Sequence[Observation], prior: Callable[[int, int], float]
) -> dict[Pair, float]:
    """Return the posterior probability of "same" of each pair that has an answer (Bayes' rule).

    Before the answers a partition is as probable as the features' probabilities of what it says
    about the answered pairs, multiplied. An answer that the partition agrees with has the
    probability 1 - e, one that it contradicts e.
    """
    pairs = sorted({o.pair for o in observations})
    together = _together(count, pairs)
    probability = np.ones(len(together))
    for column, pair in enumerate(pairs):
        same_before = 1 / (1 + math.exp(-min(max(prior(*pair), -5.0), 5.0)))
        probability *= np.where(together[:, column], same_before, 1 - same_before)
        for o in observations:
            if o.pair == pair:
                e = min(max(o.rate, 0.0001), 0.45)
                probability *= np.where(together[:, column] == o.same, 1 - e, e)
        probability /= probability.max()  # Against underflow.
    shares = probability @ together / probability.sum()
    return {pair: float(share) for pair, share in zip(pairs, shares, strict=True)}


def same_by_weights(count: int, weights: Mapping[Pair, float]) -> dict[Pair, float]:
    """Return the probability of "same" of each pair where partitions weigh exp(their support)."""
    pairs = list(weights)
    together = _together(count, pairs)
    sums = together @ np.array([weights[pair] for pair in pairs], dtype=np.float64)
    likelihood = np.exp(sums - sums.max())
    shares = likelihood @ together / likelihood.sum()
    return {pair: float(share) for pair, share in zip(pairs, shares, strict=True)}
