"""The probability of an answer, learnt from the answers so far."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import expit

#: Least standard deviation, so that a few similar questions do not make the next one look certain.
_LEAST_SCALE = 0.01


class Calibration:
    """Probability of an answer: logistic regression on the answers so far, with a prior.

    Args:
        bias: Prior log-odds at the mean of the inputs.
        weights: (d,) prior change of the log-odds over one standard deviation of each of the d
            inputs.
    """

    def __init__(self, bias: float, weights: Sequence[float]) -> None:
        self._prior = np.array([bias, *weights])
        self._weights = self._prior.copy()
        self._precision = np.diag([1.0, *(4.0 for _ in weights)])
        self._mean = np.zeros(len(weights))
        self._scale = np.zeros(len(weights))
        self._inputs: list[np.ndarray] = []
        self._answers: list[bool] = []

    def scale(self, inputs: np.ndarray) -> None:
        """Take means and standard deviations from the first questions, (m, d); later calls do
        nothing.
        """
        if not self._scale.any() and len(inputs):
            least = _LEAST_SCALE if len(inputs) > 8 else 0.1
            self._mean = inputs.mean(0)
            self._scale = np.maximum(inputs.std(0), least)

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """Return the probability of each question, (m, d) -> (m,)."""
        return expit(self.log_odds(inputs))

    def log_odds(self, inputs: np.ndarray) -> np.ndarray:
        """Return the log-odds of each question, (m, d) -> (m,)."""
        return self._standardise(inputs) @ self._weights

    def learn(self, inputs: np.ndarray, yes: bool) -> None:
        """Take in one answer with inputs (d,), by Newton's method from the present weights."""
        self.learn_all(inputs[None], [yes])

    def learn_all(self, inputs: np.ndarray, yes: Sequence[bool]) -> None:
        """Take in several answers with inputs (m, d), by Newton's method."""
        self._inputs += list(self._standardise(inputs))
        self._answers += yes
        x = np.array(self._inputs)  # (a, 1 + d)
        y = np.array(self._answers)  # (a,)
        for _ in range(8):
            p = expit(x @ self._weights)  # (a,)
            gradient = x.T @ (y - p) - self._precision @ (self._weights - self._prior)
            hessian = (x * (p * (1 - p))[:, None]).T @ x + self._precision
            # Steps are limited: the first answers could otherwise make it overshoot.
            self._weights = self._weights + np.clip(np.linalg.solve(hessian, gradient), -1, 1)

    def _standardise(self, inputs: np.ndarray) -> np.ndarray:
        """Return a column of ones for the bias, and the standardised inputs, (m, 1 + d)."""
        ones = np.ones((len(inputs), 1))
        return np.concatenate([ones, (inputs - self._mean) / self._scale], 1)
