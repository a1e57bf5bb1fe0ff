"""What answers of annotators who err are worth: log-odds, and the answers that are believed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from ..arguments import as_number
from .correlation import correlation_clusters
from .question import Answer, Verdict

#: An annotator's rate of errors is at least and at most this. Below, a few answers would outweigh
#: any number of others; above, they would say nothing.
_LEAST_RATE = 1e-4
_MOST_RATE = 0.45
#: What is believed of an annotator before the first answer: so many errors in so many answers.
_PRIOR_ERRORS = 1.0
_PRIOR_ANSWERS = 50.0
#: Rate that is assumed of an annotator of whom there is no answer yet.
UNKNOWN_RATE = _PRIOR_ERRORS / _PRIOR_ANSWERS
#: Rounds of estimating the rates and weighing the answers with them.
_ROUNDS = 5
#: Prior log-odds are limited: features never outweigh two answers of a usual annotator.
_MOST_PRIOR = 5.0

#: The log-odds of "same" for the images (i, j) before any answer.
Prior = Callable[[int, int], float]


class Weighed(NamedTuple):
    """Answers that were weighed against each other and against the features.

    Args:
        believed: The answers that the partition agrees with, and those that decide nothing, in the
            order of their events.
        doubted: "same" and "different" answers that it contradicts.
        log_odds: Log-odds of "same" by pair of images (low row, high row), of the prior and of all
            answers about the pair itself.
        rates: Share of wrong answers by annotator that was assumed or estimated.
    """

    believed: list[Answer]
    doubted: list[Answer]
    log_odds: dict[tuple[int, int], float]
    rates: dict[str, float]


def answer_weight(rate: float) -> float:
    """Return the log-odds that an answer of an annotator with a rate of errors adds.

    log((1 - rate) / rate) for "same", and the negative of it for "different".

    Args:
        rate: Share of wrong answers, limited to 0.0001 to 0.45.
    """
    rate = min(max(as_number("rate", rate, 0, 1), _LEAST_RATE), _MOST_RATE)
    return math.log((1 - rate) / rate)


def weigh_answers(
    answers: Iterable[Answer],
    prior: Prior,
    rate: float | None,
    annotator_of: Mapping[int, str] | None = None,
) -> Weighed:
    """Find the partition of the answered images that is most likely, and who contradicts it.

    Each answer is an independent observation of whether two images have one identity, wrong at the
    annotator's rate; the prior is what the features say. The log-odds of a pair are the prior's
    plus those of all answers about it, and the most likely partition has the greatest sum of
    log-odds inside its groups (`correlation_clusters`). With rates near 0 every answer that others
    do not contradict is believed.

    Args:
        answers: The answers in force.
        prior: Log-odds of "same" for two images before any answer, limited to -5 to 5.
        rate: Share of wrong answers of every annotator; None estimates it for each from the answers
            that the partition contradicts, starting from 1 in 50.
        annotator_of: Annotator by event of the answer; without it all answers are of one.

    Returns:
        The answers that are believed and doubted. Time and memory are those of
        `correlation_clusters`, about 1 kB an answer.

    Raises:
        ValueError: A rate outside [0, 1].
    """
    answers = sorted(answers, key=lambda answer: answer.place)
    names = {a.event: (annotator_of or {}).get(a.event, "") for a in answers}
    deciding = [a for a in answers if decides(a)]
    rates = dict.fromkeys(names.values(), UNKNOWN_RATE if rate is None else rate)
    priors = {_pair(a): limited(prior(*_pair(a))) for a in deciding}
    log_odds: dict[tuple[int, int], float] = {}
    same: dict[tuple[int, int], bool] = {}
    for _ in range(_ROUNDS):
        log_odds = _log_odds(deciding, priors, rates, names)
        same = _partition(log_odds)
        if rate is not None:
            break
        estimated = _estimated_rates(deciding, same, names, rates)
        if estimated == rates:
            break
        rates = estimated
    doubted = {a.event for a in deciding if same[_pair(a)] != (a.verdict is Verdict.SAME)}
    return Weighed(
        [a for a in answers if a.event not in doubted],
        [a for a in answers if a.event in doubted],
        log_odds,
        rates,
    )


def decides(answer: Answer) -> bool:
    """Whether an answer says "same" or "different" of two images of the set."""
    usable = min(answer.left, answer.right) >= 0 and answer.left != answer.right
    return usable and answer.verdict in (Verdict.SAME, Verdict.DIFFERENT)


def _pair(answer: Answer) -> tuple[int, int]:
    return min(answer.left, answer.right), max(answer.left, answer.right)


def log_odds_of(probability: float) -> float:
    """Return the log-odds of a probability between 0 and 1."""
    if probability in (0, 1):
        return math.inf if probability else -math.inf
    return math.log(probability / (1 - probability))


def limited(log_odds: float) -> float:
    """Return the log-odds of a prior, limited to -5 to 5."""
    return min(max(log_odds, -_MOST_PRIOR), _MOST_PRIOR)


def _log_odds(
    answers: Sequence[Answer],
    priors: Mapping[tuple[int, int], float],
    rates: Mapping[str, float],
    names: Mapping[int, str],
) -> dict[tuple[int, int], float]:
    """Log-odds of "same" by pair of images."""
    log_odds = dict(priors)
    for answer in answers:
        weight = answer_weight(rates[names[answer.event]])
        log_odds[_pair(answer)] += weight if answer.verdict is Verdict.SAME else -weight
    return log_odds


def _partition(log_odds: Mapping[tuple[int, int], float]) -> dict[tuple[int, int], bool]:
    """Whether the images of each pair are in one group of the most likely partition."""
    images = sorted({image for pair in log_odds for image in pair})
    number = {image: index for index, image in enumerate(images)}
    weights = {(number[i], number[j]): value for (i, j), value in log_odds.items()}
    group = correlation_clusters(len(images), weights)
    return {(i, j): group[number[i]] == group[number[j]] for i, j in log_odds}


def _estimated_rates(
    answers: Sequence[Answer],
    same: Mapping[tuple[int, int], bool],
    names: Mapping[int, str],
    rates: Mapping[str, float],
) -> dict[str, float]:
    """Each annotator's share of answers that the partition contradicts, mixed with the prior's."""
    wrong: dict[str, int] = defaultdict(int)
    total: dict[str, int] = defaultdict(int)
    for answer in answers:
        name = names[answer.event]
        total[name] += 1
        wrong[name] += same[_pair(answer)] != (answer.verdict is Verdict.SAME)
    return {name: (wrong[name] + _PRIOR_ERRORS) / (total[name] + _PRIOR_ANSWERS) for name in rates}
