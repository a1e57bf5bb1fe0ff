"""How often people err, and how often two of them agree, from answers to the same questions."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import sqlalchemy as sa

from .database import QUESTIONS
from .ledger import Event, Ledger
from .question import Verdict

#: What is believed of a person before the first answer: so many errors in so many answers. The
#: share is that of `posterior.UNKNOWN_RATE`; half as many answers, because an answer is counted
#: only where something else tells whether it is right.
_PRIOR_ERRORS = 0.5
_PRIOR_ANSWERS = 25.0
#: A person who errs more often than this would answer the opposite of what is seen.
_MOST_RATE = 0.5
#: A person who errs more often than this is one who errs often.
OFTEN = 0.1
#: Rates for which the profile likelihood is computed.
_GRID = 96
_TAIL = 0.05
_ROUNDS = 300
#: A change of all rates below this ends the estimate.
_LEAST_CHANGE = 1e-7

#: A person, what was judged, and whether the person said "same".
Vote = tuple[str, Hashable, bool]
#: A person, what was judged, whether the person said "same", and whether it is.
Gold = tuple[str, Hashable, bool, bool]


class ErrorEstimate(NamedTuple):
    """How often a person's "same" and "different" are wrong.

    Args:
        votes: Answers of the person, those to questions with a known answer included.
        rate: The most likely share of wrong answers; 0.02 where nothing is known.
        low: Lower end of the interval that holds the share with a probability of 90 %.
        high: Upper end.
        compared: Those of the votes that somebody else's vote or a known answer checks. The others
            do not change the estimate.
        often: Probability that more than one in ten of the person's answers is wrong.
    """

    votes: int
    rate: float
    low: float
    high: float
    compared: int = 0
    often: float = 0.0


class _Counted(NamedTuple):
    """Votes as arrays, for P people and m patterns: items with the same votes are one pattern.

    Args:
        same: (P, m) float64, 1 where the person said "same" of the items of the pattern.
        different: (P, m) float64, 1 where the person said "different".
        items: (m,) float64, items of each pattern.
        wrong: (P,) float64, wrong answers to questions with a known answer.
        right: (P,) float64, right answers to them.
    """

    same: np.ndarray
    different: np.ndarray
    items: np.ndarray
    wrong: np.ndarray
    right: np.ndarray


def estimate_errors(votes: Sequence[Vote], gold: Sequence[Gold] = ()) -> dict[str, ErrorEstimate]:
    """Estimate how often each person errs, where the true answers are unknown.

    The model is that of Dawid and Skene (Applied Statistics 28, 1979) with one rate of errors for
    each person: an item is "same" or "different" with equal probability, and people err
    independently of each other. (A share of "same" that is estimated too would blame whoever gives
    the rarer verdict.) The rates have a Beta prior with mode 0.02 and the weight of 25 answers, so
    that few votes do not say much. EM finds the rates with the greatest posterior density. The
    interval of a person is that of the profile of this density: for each rate of the person, the
    other rates take their most likely values. So two people who only disagree with each other both
    have a wide interval, because nothing says who of them is wrong.

    A person with 20 % errors among three with 2 %, 100 answers each, 1 in 20 with a known answer, a
    third vote where two disagree: the person's interval lay above the others' intervals in 36 of 40
    draws when all questions got a second vote, in 24 when half of them did, in 6 when a fifth did;
    after 200 answers in 40, 38 and 29. It lay above the others' rates in 40, 37 and 33. Known
    answers alone say nothing after 100 answers, because they are five. The interval held the true
    share in 83 to 89 % of these cases, as the prior draws it towards 2 %.

    Args:
        votes: (person, item, said "same"). A person's last vote on an item counts. An item is
            anything that can be a key; only items with votes of two people say something.
        gold: (person, item, said "same", is "same") for items whose answer is known.

    Returns:
        The estimate of each person, ordered by name. A rate is at most 0.5. The result depends on
        neither the order of the items nor the names of the people. Time is O(P^2 m) for P people
        and m different combinations of votes.
    """
    counted, people = _count(votes, gold)
    if not people:
        return {}
    rates = _most_likely(counted, None, np.empty(0))[0][0]
    given = Counter(name for name, *_ in {(person, item) for person, item, _ in votes})
    given.update(person for person, *_ in gold)
    checked = (counted.same + counted.different) @ counted.items + counted.wrong + counted.right
    found = {}
    for number, name in enumerate(people):
        low, high, often = _interval(counted, number)
        # The most likely rate may lie outside where few answers were compared.
        rate = min(max(float(rates[number]), low), high)
        found[name] = ErrorEstimate(given[name], rate, low, high, int(checked[number]), often)
    return found


def agreement(votes: Sequence[Vote]) -> dict[tuple[str, str], tuple[int, int]]:
    """Count how often each two people said the same of an item.

    Args:
        votes: (person, item, said "same"). A person's last vote on an item counts.

    Returns:
        (items with the same vote, items with a vote of both) by two names in their order; people
        without an item in common are left out.
    """
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for said in _votes_by_item(votes).values():
        for a, b in combinations(sorted(said), 2):
            agreed, both = found.get((a, b), (0, 0))
            found[a, b] = agreed + (said[a] == said[b]), both + 1
    return dict(sorted(found.items()))


def votes_of(
    events: Iterable[Event], truths: Mapping[int, str] | None = None
) -> tuple[list[Vote], list[Gold]]:
    """Return the votes that the events of a ledger hold.

    The item of a vote is the pair of images, so that answers to two questions about one pair are
    compared. Undone answers, and answers that are neither "same" nor "different", are left out.

    Args:
        events: The events, in order.
        truths: The known verdict of a question, by its number.

    Returns:
        The votes, and the answers to questions whose answer is known.
    """
    votes: list[Vote] = []
    gold: list[Gold] = []
    deciding = (Verdict.SAME.value, Verdict.DIFFERENT.value)
    for event in events:
        if event.undone_by is not None or event.verdict not in deciding:
            continue
        pair = tuple(sorted((str(event.left), str(event.right))))
        said = event.verdict == Verdict.SAME.value
        truth = (truths or {}).get(-1 if event.question is None else event.question)
        if event.kind == "answer":
            votes.append((event.annotator, pair, said))
        elif event.kind == "gold" and truth in deciding:
            gold.append((event.annotator, pair, said, truth == Verdict.SAME.value))
    return votes, gold


def known_verdicts(ledger: Ledger) -> dict[int, str]:
    """Return the verdict of each question of a ledger whose answer is known, by its number."""
    if ledger.store.format == 1:
        return {}
    known = sa.select(QUESTIONS.c.id, QUESTIONS.c.gold).where(QUESTIONS.c.gold.is_not(None))
    with ledger.store.reading() as connection:
        return {line.id: line.gold for line in connection.execute(known)}


def _votes_by_item(votes: Sequence[Vote]) -> dict[Hashable, dict[str, bool]]:
    by_item: dict[Hashable, dict[str, bool]] = defaultdict(dict)
    for person, item, said in votes:
        by_item[item][person] = bool(said)
    return by_item


def _count(votes: Sequence[Vote], gold: Sequence[Gold]) -> tuple[_Counted, list[str]]:
    """Return the votes as arrays, and the names of the people in their order."""
    people = sorted({person for person, *_ in votes} | {person for person, *_ in gold})
    number = {name: index for index, name in enumerate(people)}
    patterns: Counter[tuple[tuple[int, bool], ...]] = Counter(
        tuple(sorted((number[person], said) for person, said in of_item.items()))
        for of_item in _votes_by_item(votes).values()
        # One vote alone says nothing of who gave it.
        if len(of_item) > 1
    )
    ordered = sorted(patterns)
    same, different = np.zeros((2, len(people), len(ordered)))
    for column, pattern in enumerate(ordered):
        for row, said in pattern:
            (same if said else different)[row, column] = 1
    items = np.array([patterns[pattern] for pattern in ordered], dtype=np.float64)
    wrong, right = np.zeros((2, len(people)))
    for person, _, said, truth in gold:
        (right if bool(said) == bool(truth) else wrong)[number[person]] += 1
    return _Counted(same, different, items, wrong, right), people


def _most_likely(
    counted: _Counted, fixed: int | None, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Find the most likely rates by EM.

    Args:
        counted: The votes.
        fixed: A person whose rate is given; None when all are estimated.
        values: (G,) float64, rates of that person; for each the others are estimated.

    Returns:
        The rates (G, P), and the log of the posterior density at each (G,); G is 1 without a person
        whose rate is given.
    """
    runs = 1 if fixed is None else len(values)
    rates = np.full((runs, len(counted.wrong)), _PRIOR_ERRORS / _PRIOR_ANSWERS)
    if fixed is not None:
        rates[:, fixed] = values
    total = (counted.same + counted.different) @ counted.items + counted.wrong + counted.right
    for _ in range(_ROUNDS):
        is_same, _ = _expected(counted, rates)
        before = rates
        wrong = (counted.items * is_same) @ counted.different.T
        wrong += (counted.items * (1 - is_same)) @ counted.same.T
        rates = (wrong + counted.wrong + _PRIOR_ERRORS) / (total + _PRIOR_ANSWERS)
        rates = np.minimum(rates, _MOST_RATE)
        if fixed is not None:
            rates[:, fixed] = values
        if np.abs(rates - before).max() < _LEAST_CHANGE:
            break
    return rates, _log_density(counted, rates)


def _expected(counted: _Counted, rates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the probability of "same" of each pattern (G, m), and the log-likelihood (G,)."""
    right = np.log1p(-rates)
    wrong = np.log(rates)
    if_same = right @ counted.same + wrong @ counted.different
    if_different = wrong @ counted.same + right @ counted.different
    either = np.logaddexp(if_same, if_different)
    return np.exp(if_same - either), either @ counted.items


def _log_density(counted: _Counted, rates: np.ndarray) -> np.ndarray:
    """Return the log of the posterior density of rates (G, P), but for a constant."""
    _, likelihood = _expected(counted, rates)
    right, wrong = np.log1p(-rates), np.log(rates)
    of_rates = wrong @ (counted.wrong + _PRIOR_ERRORS)
    of_rates += right @ (counted.right + _PRIOR_ANSWERS - _PRIOR_ERRORS)
    return likelihood + of_rates


def _interval(counted: _Counted, person: int) -> tuple[float, float, float]:
    """Return the ends of the 90 % interval of a person's rate, and the probability of more than
    `OFTEN`.
    """
    # Rates are the closer the smaller they are: rate = u^2 / 2 at the middles of equal steps of u.
    steps = np.linspace(0, 1, _GRID + 1)
    middles = (steps[1:] + steps[:-1]) / 2
    _, density = _most_likely(counted, person, _MOST_RATE * middles**2)
    mass = np.exp(density - density.max()) * middles
    below = np.concatenate([[0.0], np.cumsum(mass)]) / mass.sum()
    low, high = np.interp([_TAIL, 1 - _TAIL], below, steps)
    often = 1 - np.interp(math.sqrt(OFTEN / _MOST_RATE), steps, below)
    return _MOST_RATE * math.pow(low, 2), _MOST_RATE * math.pow(high, 2), float(often)
