"""The probability of an answer, learnt from the answers so far."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: Least standard deviation, so that a few similar questions do not make the next one look certain.
_LEAST_SCALE = 0.01


def probability(log_odds: np.ndarray) -> np.ndarray:
    """Return the probability of log-odds, of any shape."""
    return 0.5 + 0.5 * np.tanh(0.5 * log_odds)


class Calibration:
    """Probability of an answer: logistic regression on the answers so far, with a prior.

    Args:
        bias: Prior log-odds at the mean of the inputs.
        weights: (d,) prior change of the log-odds over one standard deviation of each of the d
            inputs.
        limit: Standardised inputs are limited to plus and minus this.
    """

    def __init__(
        self,
        bias: float,
        weights: Sequence[float],
        limit: float = np.inf,
    ) -> None:
        self._prior = np.array([bias, *weights])
        self._weights = self._prior.copy()
        self._precision = np.diag([1.0, *(4.0 for _ in weights)])
        self._mean = np.zeros(len(weights))
        self._scale = np.zeros(len(weights))
        self._limit = limit
        self._inputs: list[np.ndarray] = []
        self._answers: list[float] = []
        self._counts: list[float] = []

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
        return probability(self.log_odds(inputs))

    def log_odds(self, inputs: np.ndarray) -> np.ndarray:
        """Return the log-odds of each question, (m, d) -> (m,)."""
        return self._with_bias(self.standardised(inputs)) @ self._weights

    def standardised(self, inputs: np.ndarray) -> np.ndarray:
        """Return the inputs (m, d) as the regression sees them."""
        return np.clip((inputs - self._mean) / self._scale, -self._limit, self._limit)

    def learn_all(self, inputs: np.ndarray, yes: Sequence[float]) -> None:
        """Take in several answers with inputs (m, d), by Newton's method.

        Args:
            inputs: (m, d).
            yes: (m,) see `remember`.
        """
        self.remember(self.standardised(inputs), yes)
        self.fit()

    def remember(self, inputs: np.ndarray, yes: Sequence[float], count: float = 1.0) -> None:
        """Take in answers, which the next `fit` learns from.

        Args:
            inputs: (m, d) as `standardised` returned them.
            yes: (m,) whether the answer is yes. An answer that may be wrong is the probability of
                yes where nothing but the answer is known: 1 minus the rate of errors, or the rate.
            count: How many answers each of them counts for.
        """
        self._inputs += list(self._with_bias(inputs))
        self._answers += [float(answer) for answer in yes]
        self._counts += [count] * len(inputs)

    def fit(self) -> None:
        """Learn from all answers, by Newton's method from the present weights.

        An answer that may be wrong counts as yes with the probability that it and its inputs give
        (expectation maximisation). Without the inputs, the errors of a rare answer would make it
        look twice as frequent as the errors alone do.
        """
        if not self._inputs:
            return
        x = np.array(self._inputs)  # (a, 1 + d)
        y = np.array(self._answers)  # (a,)
        counts = np.array(self._counts)  # (a,)
        uncertain = (y > 0) & (y < 1)  # (a,)
        evidence = np.log(y[uncertain] / (1 - y[uncertain]))
        for _ in range(8):
            log_odds = x @ self._weights  # (a,)
            p = probability(log_odds)  # (a,)
            y[uncertain] = probability(log_odds[uncertain] + evidence)
            gradient = x.T @ (counts * (y - p)) - self._precision @ (self._weights - self._prior)
            hessian = (x * (counts * p * (1 - p))[:, None]).T @ x + self._precision
            # Steps are limited: the first answers could otherwise make it overshoot.
            self._weights = self._weights + np.clip(np.linalg.solve(hessian, gradient), -1, 1)

    @staticmethod
    def _with_bias(inputs: np.ndarray) -> np.ndarray:
        """Return a column of ones for the bias, and the inputs, (m, 1 + d)."""
        return np.concatenate([np.ones((len(inputs), 1)), inputs], 1)
