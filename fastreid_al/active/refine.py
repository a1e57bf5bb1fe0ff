"""One round of questions, and the labels that its answers lead to."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from torch import Tensor

from ..answers.asker import Asker
from ..answers.rounds import OutOfQuestions, RoundAgain, Spent
from ..arguments import as_features, as_instance, as_integer, as_labels
from ..config import QuestionConfig
from .group_graph import graph_of_images
from .partition import Follow, apply_answers, check_images
from .prior import similarity_prior
from .strategies import Strategy, load_strategy


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
    follow = follow_of(config)
    while True:
        asker.begin(epoch, config.per_epoch)
        if asker.expected_error != 0:
            check_images(asker.closure, len(labels))
            asker.weigh(similarity_prior(features, asker))
        known = apply_answers(features, labels, asker.closure, follow=follow)
        asker.features = features
        asker.labels = known
        asker.current_labels = partial(_labels_after_answers, features, known, asker, follow)
        try:
            ask(features, known, asker, config)
            asker.settle()
        except OutOfQuestions:
            pass
        except RoundAgain:
            continue
        refined = asker.current_labels()
        spent = asker.end()
        if asker.expected_error != 0:
            # The strategy acted on answers of this round that may be doubted now.
            asker.weigh(similarity_prior(features, asker))
            graph = graph_of_images(features)
            refined = apply_answers(features, refined, asker.likely(), graph, follow=follow)
        # A strategy looks at the answers about the images that it shows; other images of the same
        # groups may have answers too.
        refined = apply_answers(features, refined, asker.closure, follow=follow)
        return Refined(refined, spent)


def _labels_after_answers(features: Tensor, labels: Tensor, asker: Asker, follow: Follow) -> Tensor:
    """Return the labels (n,) of a strategy that only asks: the given ones, changed to agree with
    every answer.
    """
    return apply_answers(features, labels, asker.constraints(), follow=follow)


def follow_of(config: QuestionConfig) -> Follow:
    """Return which clusters follow answered images, as `apply_answers` takes it."""
    return "all" if config.must_links == "clusters" else "compact"
