"""Thresholds of unknown queries in galleries of any size, and exact intervals of error rates."""

from __future__ import annotations

import numpy as np
import pytest

from fastreid_al.retrieval.open_set import choose_threshold, measure_rate


def test_the_interval_is_that_of_clopper_and_pearson() -> None:
    # Limits of the exact interval for 1 of 20, from the quantiles of the beta distribution.
    found = measure_rate(1, 20)
    assert (found.low, found.high) == (
        pytest.approx(0.001265, abs=1e-6),
        pytest.approx(0.248733, abs=1e-6),
    )
    assert measure_rate(0, 10).low == 0 and measure_rate(10, 10).high == 1
    assert found.in_gallery(1) == pytest.approx((found.rate, found.low, found.high))


def best_of(random: np.random.Generator, queries: int, gallery: int) -> np.ndarray:
    """Best similarities of queries in a gallery, each image's similarity exponential."""
    # The greatest of n exponential variables, by its distribution function.
    return 0.3 - 0.05 * np.log(-np.expm1(np.log(random.random(queries)) / gallery))


@pytest.mark.parametrize("growth", [1, 10, 1000])
@pytest.mark.parametrize("rate", [0.2, 0.01])
def test_the_share_that_was_asked_exceeds_the_threshold_in_a_larger_gallery(
    growth: int, rate: float
) -> None:
    random = np.random.default_rng(0)
    threshold = choose_threshold(best_of(random, 2000, 500), rate, growth)
    larger = best_of(random, 200_000, 500 * growth)
    assert rate / 2 < (larger >= threshold).mean() < 2 * rate


def test_a_threshold_of_single_pairs_would_be_wrong() -> None:
    """One per cent of pairs exceed what nearly every best similarity exceeds."""
    random = np.random.default_rng(0)
    of_pairs = np.quantile(best_of(random, 10_000, 1), 0.99)
    assert (best_of(random, 1000, 500) >= of_pairs).mean() > 0.98


@pytest.mark.parametrize("count", [2, 3, 11, 30])
def test_few_queries_give_a_threshold_above_nearly_all(count: int) -> None:
    best = np.linspace(0.2, 0.5, count)
    assert choose_threshold(best, 0.01) >= best[-2]
    assert choose_threshold(np.full(count, 0.4), 0.01) == pytest.approx(0.4)
