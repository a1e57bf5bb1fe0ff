"""One round of questions, and the labels that its answers lead to."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ..answers.asker import Asker, OutOfQuestions, RoundAgain, Spent
from ..answers.posterior import Prior
from ..answers.question import Verdict
from ..arguments import as_features, as_instance, as_integer, as_labels
from ..config import QuestionConfig
from .calibration import Calibration
from .partition import apply_answers, check_images
from .strategies import Strategy, load_strategy

#: Prior of p(same) for two images that are asked about: log-odds at the mean similarity, and their
#: change over one standard deviation.
_SAME = (-1.0, [1.0])


class Refined(NamedTuple):
    """Labels after a round, and its cost.

    Args:
        labels: (n,) int64: clusters of two or more images, numbered by their lowest image; -1 for
            every other image.
        spent: Questions, seconds, pairs that earlier answers decided, contradictions.
    """

    labels: Tensor
    spent: Spent


def refine(
    features: Tensor,
    labels: Tensor,
    asker: Asker,
    strategy: Strategy | str = "ucal",
    config: QuestionConfig | None = None,
    epoch: int = 0,
) -> Refined:
    """Refine clusters with the answers of one round and with every earlier answer (UCAL, Sec. 3.2).

    Args:
        features: (n, D) unit-norm.
        labels: (n,) int64 cluster of each image, -1 outside every cluster.
        asker: Asks the annotator within its budget, and records the answers.
        strategy: Which pairs to ask about: a function, or a name. "ucal" is SNPS, then MPPS; "gain"
            asks about the same kinds of pairs by expected gain; "spal" about the farthest image
            inside and the nearest outside each image's cluster; "random" about random pairs.
        config: Constants of the strategy, and the most questions of one round; the paper's when not
            given.
        epoch: Recorded with the answers; with the asker's seed it seeds strategies that draw random
            numbers.

    Returns:
        The refined labels, and the cost of the round.

    Raises:
        ValueError: Wrong shape or dtype, a row that is not finite (on a CPU), or an answer about an
            image that is not among the n.
        SettingError: No strategy has this name.
        QuitAsking: The annotator leaves. Every answer is in the ledger, and the same round can be
            begun again.
    """
    features = as_features("features", features)
    labels = as_labels("labels", labels, len(features))
    as_instance("asker", asker, Asker)
    config = QuestionConfig() if config is None else as_instance("config", config, QuestionConfig)
    epoch = as_integer("epoch", epoch, 0)
    ask = load_strategy(strategy)
    while True:
        asker.begin(epoch, config.per_epoch)
        if asker.expected_error != 0:
            check_images(asker.closure, len(labels))
            asker.weigh(similarity_prior(features, asker))
        known = apply_answers(features, labels, asker.closure)
        asker.features = features
        asker.labels = known
        asker.current_labels = partial(_labels_after_answers, features, known, asker)
        try:
            ask(features, known, asker, config)
        except OutOfQuestions:
            pass
        except RoundAgain:
            continue
        refined = asker.current_labels()
        spent = asker.end()
        if asker.expected_error != 0:
            # The answers of this round may be doubted now, on which the strategy acted.
            asker.weigh(similarity_prior(features, asker))
            refined = labels
        # A strategy looks at the answers about the images that it shows; other images of the same
        # groups may have answers too.
        return Refined(apply_answers(features, refined, asker.closure), spent)


def similarity_prior(features: Tensor, asker: Asker) -> Prior:
    """Return what the similarity of two images says of them, learnt from the answers so far.

    The log-odds of "same" are linear in the cosine similarity of the two images (`Calibration`).

    Args:
        features: (n, D) unit-norm.
        asker: Has the answers so far.
    """
    features = features.float().cpu()

    def similarity(i: int, j: int) -> float:
        return float(features[i] @ features[j])

    answers = asker.deciding_answers()
    calibration = Calibration(*_SAME)
    if answers:
        similarities = np.array([[similarity(a.left, a.right)] for a in answers])
        calibration.scale(similarities)
        calibration.learn_all(similarities, [a.verdict is Verdict.SAME for a in answers])

    def log_odds(i: int, j: int) -> float:
        if not answers:
            return _SAME[0]
        return float(calibration.log_odds(np.array([[similarity(i, j)]]))[0])

    return log_odds


def _labels_after_answers(features: Tensor, labels: Tensor, asker: Asker) -> Tensor:
    """Return the labels (n,) of a strategy that only asks: the given ones, changed to agree with
    every answer.
    """
    return apply_answers(features, labels, asker.constraints())
