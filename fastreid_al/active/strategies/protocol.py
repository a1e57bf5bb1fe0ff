"""The interface of a question strategy, and the lookup of strategies by name."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ... import plugins
from ...answers.asker import Asker
from ...arguments import as_callable
from ...config import QuestionConfig


class Strategy(Protocol):
    """Ask the questions of one round.

    A strategy calls `asker.ask_pair(i, j)`, or `asker.ask(question)` for a question about two
    groups of images, as often as it likes. With `asker.offer_pair(i, j)` and `asker.offer(question,
    then)` several questions are open at a time, so that several people can answer. Nothing more is
    needed: by default, the labels of the round are the given labels, changed so that they agree
    with every answer. A strategy that splits and merges clusters itself sets `asker.current_labels`
    to a function that returns its labels.

    The asker raises `OutOfQuestions` when the budget is spent; a strategy lets it pass. A strategy
    asks the same questions when it is given the same features, labels and answers: only then can a
    round that was interrupted be resumed. Its random numbers come from a generator seeded with
    `asker.seed` and `asker.epoch`.

    Args:
        features: (n, D) float32, unit-norm; on any device.
        labels: (n,) int64 on the CPU, cluster of each image, -1 outside every cluster. They agree
            with every answer that was given before.
        asker: Asks the annotator, within the budget, and returns known answers without asking
            again.
        config: Constants of the strategies.
    """

    def __call__(
        self, features: Tensor, labels: Tensor, asker: Asker, config: QuestionConfig, /
    ) -> None:
        """Ask the questions of one round."""


def load_strategy(strategy: Strategy | str) -> Strategy:
    """Return a strategy that is given as a function or by name.

    Raises:
        SettingError: No strategy has this name.
        ValueError: Neither a function nor a name.
    """
    if isinstance(strategy, str):
        return plugins.load(plugins.STRATEGIES, strategy, "ask")
    return as_callable("strategy", strategy, "a function or the name of a strategy")
