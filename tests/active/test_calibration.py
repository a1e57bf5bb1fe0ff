"""The probability of an answer, where answers may be wrong."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from fastreid_al.active.calibration import Calibration

BIAS, WEIGHT = -1.0, 0.5


def answers(error: float, count: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Inputs, and answers that are wrong at a rate; one in eight is truly yes."""
    random = np.random.default_rng(0)
    x = random.normal(size=count)
    yes = random.random(count) < 1 / (1 + np.exp(3 - 2 * x))
    return x, yes ^ (random.random(count) < error)


def fitted(x: np.ndarray, said: np.ndarray, error: float) -> Calibration:
    calibration = Calibration(BIAS, [WEIGHT])
    calibration.scale(x[:, None])
    calibration.learn_all(x[:, None], np.where(said, 1 - error, error).tolist())
    for _ in range(20):
        calibration.fit()
    return calibration


@pytest.mark.parametrize("error", [0.0, 0.02, 0.2])
def test_the_fit_is_the_likeliest_of_answers_that_are_wrong_at_a_rate(error: float) -> None:
    x, said = answers(error)
    standardised = (x - x.mean()) / x.std()

    def loss(weights: np.ndarray) -> float:
        yes = 1 / (1 + np.exp(-weights[0] - weights[1] * standardised))
        says_yes = yes * (1 - error) + (1 - yes) * error
        prior = 0.5 * (weights[0] - BIAS) ** 2 + 2 * (weights[1] - WEIGHT) ** 2
        return float(prior - np.log(np.where(said, says_yes, 1 - says_yes)).sum())

    best = minimize(loss, [0.0, 1.0], tol=1e-10).x
    at = np.array([-2.0, 0.0, 2.0])
    got = fitted(x, said, error).log_odds((at * x.std() + x.mean())[:, None])
    assert got == pytest.approx(best[0] + best[1] * at, abs=0.02)


def test_wrong_answers_make_no_unlikely_merge_look_likely() -> None:
    x, said = answers(0.02)
    unlikely = x[x < 0]
    (is_same,) = {round(float(fitted(x, said, 0.02)(unlikely[:, None]).mean()), 2)}
    # Two in a hundred of these answers are yes by mistake, which is twice the truth.
    assert said[x < 0].mean() > 0.03
    truth = float((1 / (1 + np.exp(3 - 2 * unlikely))).mean())
    assert is_same == pytest.approx(truth, abs=0.01)


def test_answers_that_are_never_wrong_are_taken_as_they_are() -> None:
    x, said = answers(0.0, 50)
    one, other = Calibration(BIAS, [WEIGHT]), Calibration(BIAS, [WEIGHT])
    for calibration in (one, other):
        calibration.scale(x[:, None])
    one.learn_all(x[:, None], said.tolist())
    other.learn_all(x[:, None], said.astype(float).tolist())
    assert one.log_odds(x[:, None]).tolist() == other.log_odds(x[:, None]).tolist()
