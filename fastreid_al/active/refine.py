"""One round of questions: split, merge, and the labels that the answers leave."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from ..answers.asker import Asker, OutOfQuestions, RoundAgain, Spent
from ..answers.question import Verdict
from ..config import QuestionConfig
from .partition import apply_answers
from .strategies import Strategy, load_strategy


class Refined(NamedTuple):
    """Labels after a round, and what it cost.

    Args:
        labels: (n,) int64: clusters of two images and more numbered by their lowest image, -1 for every other image.
        spent: Questions, seconds, pairs that the memory answered, contradictions.
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
    """Refine clusters with the answers of one round (UCAL, Sec. 3.2), and with every answer before it.

    Args:
        features: (n, D) unit rows.
        labels: (n,) int64 cluster of each image, -1 outside every cluster.
        asker: Asks, within its budget, and remembers.
        strategy: "ucal" is SNPS, then MPPS; "gain" asks about the same kinds of pairs by expected gain; "spal" about the
            farthest image inside and the nearest outside each image's cluster; "random" about random pairs.
        config: Its constants, and the questions of one round; the paper's when not given.
        epoch: Recorded with the answers; with the asker's seed it seeds "random".

    Returns:
        The refined labels and what the round cost.

    Raises:
        QuitAsking: The annotator leaves; every answer is in the ledger, and the same round can be begun again.
    """
    config = config or QuestionConfig()
    ask = load_strategy(strategy)
    while True:
        asker.begin(epoch, config.per_epoch)
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
        # A rule looks at the images that it shows; others of the same groups may have answers too.
        return Refined(apply_answers(features, refined, asker.closure), spent)


def _labels_after_answers(features: Tensor, labels: Tensor, asker: Asker) -> Tensor:
    """Return the labels (n,) of a strategy that only asks: the given ones, made to agree with every answer."""
    return apply_answers(features, labels, asker.constraints())


class Questions:
    """The questions of a run: from one epoch on, one round in each, on one ledger.

    Args:
        asker: Asks and remembers.
        strategy: Which questions; see `refine`.
        config: When, how many, and the constants of the rules.
    """

    def __init__(self, asker: Asker, strategy: Strategy | str, config: QuestionConfig) -> None:
        self.asker, self.strategy, self.config = asker, strategy, config

    def refine(
        self, epoch: int, features: Tensor, labels: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """The labels of an epoch after its round of questions, and what the round cost, for the log.

        Before the first round the labels are returned as they are. `share` is Eq. 7: pairs that were answered over all pairs.
        """
        if epoch < self.config.start:
            return labels, {}
        refined, spent = refine(features, labels, self.asker, self.strategy, self.config, epoch + 1)
        pairs = len(labels) * (len(labels) - 1) / 2
        return refined, {
            "questions": spent.questions,
            "questions_total": self.asker.asked,
            "share": spent.questions / pairs,
            "share_total": self.asker.asked / pairs,
            "answering_seconds": spent.seconds,
            "answering_seconds_total": self.asker.seconds,
            "remembered": spent.remembered,
            "contradictions": spent.contradictions,
            **{
                f"answered_{verdict.name.lower()}": spent.verdicts[verdict.value]
                for verdict in Verdict
            },
        }

    def state_dict(self) -> dict[str, Any]:
        """The position in the ledger, and what was spent."""
        return self.asker.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.asker.load_state_dict(state)
