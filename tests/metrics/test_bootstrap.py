"""The interval of a mean of paired differences."""

from __future__ import annotations

import numpy as np
import pytest

from fastreid_al.metrics import bootstrap
from fastreid_al.metrics.bootstrap import paired_bootstrap


def test_the_interval_is_that_of_the_normal_approximation_for_many_items() -> None:
    values = np.random.default_rng(3).normal(0.2, 1.0, 4000)
    found = paired_bootstrap(values, samples=2000)
    error = 1.96 * values.std() / np.sqrt(len(values))
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - error, abs=0.1 * error)
    assert found.high == pytest.approx(values.mean() + error, abs=0.1 * error)


def test_equal_differences_have_no_spread_and_draws_are_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert paired_bootstrap(np.full(7, 0.25), samples=50) == (0.25, 0.25, 0.25)
    values = np.arange(30.0)
    expected = paired_bootstrap(values, samples=100)
    assert paired_bootstrap(values, samples=100) == expected
    assert paired_bootstrap(values, samples=100, seed=1) != expected
    # Also where the draws do not fit at once.
    monkeypatch.setattr(bootstrap, "_PART", 70)
    assert paired_bootstrap(values, samples=100) == expected


@pytest.mark.parametrize("values", [np.empty(0), np.array([1.0, np.nan]), np.zeros((2, 2))])
def test_differences_without_a_mean_are_refused(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected \\(n,\\) finite values, n 1 or more"):
        paired_bootstrap(values)
