"""The probability of a match is calibrated, monotone, and follows the size of the gallery."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from fastreid_al.retrieval.probability import calibration_error, fit_probability


def drawn(seed: int, count: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Similarities, and matches by a logistic probability of known bias and slope."""
    random = np.random.default_rng(seed)
    similarity = random.uniform(0, 1, count)
    return similarity, random.random(count) < expit(-6 + 10 * similarity)


def test_the_curve_that_the_pairs_were_drawn_from_is_found() -> None:
    fitted = fit_probability(*drawn(0), 5.0, 100.0)
    assert fitted is not None
    assert fitted.bias == pytest.approx(-6, abs=0.3)
    assert fitted.slope == pytest.approx(10, abs=0.5)
    similarity, same = drawn(1)
    assert calibration_error(fitted(similarity, 5.0, 100.0), same) < 0.02


def test_ten_times_as_many_other_images_divide_the_odds_by_ten() -> None:
    fitted = fit_probability(*drawn(0), 5.0, 100.0)
    assert fitted is not None
    small, large = fitted([0.2, 0.6], 5.0, 100.0), fitted([0.2, 0.6], 5.0, 1000.0)
    assert np.allclose(small / (1 - small), 10 * large / (1 - large))
    fewer = fitted([0.2, 0.6], 2.5, 100.0)
    assert np.allclose(small / (1 - small), 2 * fewer / (1 - fewer))


def test_pairs_that_a_similarity_separates_give_a_finite_curve() -> None:
    similarity = np.linspace(0, 1, 100)
    fitted = fit_probability(similarity, similarity > 0.5, 1.0, 10.0)
    assert fitted is not None and np.isfinite([fitted.bias, fitted.slope]).all()
    found = fitted(similarity, 1.0, 10.0)
    assert (np.diff(found) >= 0).all() and found[0] < 0.1 and found[-1] > 0.9


def test_a_similarity_that_says_the_opposite_says_nothing() -> None:
    similarity, same = drawn(0)
    fitted = fit_probability(-similarity, same, 1.0, 10.0)
    assert fitted is not None and fitted.slope == 0
    assert fitted(0.0, 1.0, 10.0) == pytest.approx(same.mean(), abs=1e-6)


@pytest.mark.parametrize(("pairs", "matches"), [(0, 0), (19, 9), (100, 4), (100, 96)])
def test_too_few_pairs_give_no_curve(pairs: int, matches: int) -> None:
    similarity = np.linspace(0, 1, pairs)
    assert fit_probability(similarity, np.arange(pairs) < matches, 1.0, 10.0) is None


def test_the_calibration_error_is_the_difference_inside_bins() -> None:
    assert calibration_error([0.25] * 4, [1, 0, 0, 0]) == pytest.approx(0.75 / 4 + 0.25 * 3 / 4)
    assert calibration_error(np.full(1000, 0.3), np.arange(1000) % 10 < 3) == pytest.approx(0)
