"""Errors of people are found from answers to the same questions."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest

from fastreid_al.answers.agreement import (
    ErrorEstimate,
    Gold,
    Vote,
    agreement,
    estimate_errors,
    votes_of,
)
from fastreid_al.answers.ledger import Event

CAREFUL = ("anna", "ben", "cleo")
#: The prior as it is documented: mode 0.02, weight of 25 answers.
PRIOR_ERRORS, PRIOR_ANSWERS = 0.5, 25.0


def density(votes: Sequence[Vote], gold: Sequence[Gold], rates: dict[str, float]) -> float:
    """Posterior density by enumerating the true answers of all items, but for a constant."""
    items = sorted({item for _, item, _ in votes})
    likelihood = 0.0
    for truths in itertools.product((True, False), repeat=len(items)):
        truth = dict(zip(items, truths, strict=True))
        p = 0.5 ** len(items)
        for person, item, said in votes:
            p *= 1 - rates[person] if said == truth[item] else rates[person]
        likelihood += p
    for person, _, said, truth_of_item in gold:
        likelihood *= 1 - rates[person] if said == truth_of_item else rates[person]
    for rate in rates.values():
        likelihood *= rate**PRIOR_ERRORS * (1 - rate) ** (PRIOR_ANSWERS - PRIOR_ERRORS)
    return likelihood


def small(seed: int) -> tuple[list[Vote], list[Gold]]:
    """Votes of two people on four items, so that every truth can be tried."""
    draw = random.Random(seed)
    votes = [(who, item, draw.random() < 0.5) for who in ("anna", "ben") for item in range(4)]
    gold = [(draw.choice(("anna", "ben")), "g", draw.random() < 0.5, True) for _ in range(6)]
    return votes, gold


@pytest.mark.parametrize("seed", range(4))
def test_rates_and_intervals_are_those_of_all_truths_enumerated(seed: int) -> None:
    votes, gold = small(seed)
    found = estimate_errors(votes, gold)
    steps = [0.5 * ((i + 0.5) / 60) ** 2 for i in range(60)]
    # The greatest density for each rate of anna, over the rates of ben.
    profile = [max(density(votes, gold, {"anna": a, "ben": b}) for b in steps) for a in steps]
    mass = [p * (i + 0.5) for i, p in enumerate(profile)]
    below = [sum(mass[: i + 1]) / sum(mass) for i in range(60)]
    low = steps[next(i for i, m in enumerate(below) if m >= 0.05)]
    high = steps[next(i for i, m in enumerate(below) if m >= 0.95)]
    assert found["anna"].low == pytest.approx(low, abs=0.01)
    assert found["anna"].high == pytest.approx(high, abs=0.01)
    # No point of the grid is denser than the estimate.
    rates = {name: estimate.rate for name, estimate in found.items()}
    assert density(votes, gold, rates) >= 0.999 * max(profile)


def planted(
    seed: int, answers: int, second: float = 1.0, gold_share: float = 1 / 20
) -> tuple[list[Vote], list[Gold]]:
    """Answers of dora, wrong in 20 of 100, and of three people, wrong in 2 of 100.

    Questions get a second vote with a probability, and a third where the two disagree.
    """
    draw = random.Random(seed)
    left = dict.fromkeys((*CAREFUL, "dora"), answers)
    votes: list[Vote] = []
    gold: list[Gold] = []
    item = 0
    while any(left.values()):
        item += 1
        truth = draw.random() < 0.4
        waiting = [name for name, count in left.items() if count]
        draw.shuffle(waiting)
        known = draw.random() < gold_share
        wanted = 1 if known or draw.random() >= second else 2
        said: list[bool] = []
        while waiting and len(said) < wanted:
            who = waiting.pop()
            left[who] -= 1
            said.append(truth != (draw.random() < (0.2 if who == "dora" else 0.02)))
            if known:
                gold.append((who, item, said[-1], truth))
            else:
                votes.append((who, item, said[-1]))
            if len(said) == 2 and said[0] != said[1]:
                wanted = 3
    return votes, gold


def above(found: dict[str, ErrorEstimate], end: str) -> bool:
    """Whether the interval of dora lies above a value of everybody else."""
    return found["dora"].low > max(getattr(found[name], end) for name in CAREFUL)


def test_a_planted_annotator_is_found_within_100_answers() -> None:
    found = [estimate_errors(*planted(seed, 100)) for seed in range(20)]
    # Seen: the interval lies above the others' rates in all of 40, above their intervals in 36.
    assert sum(above(f, "rate") for f in found) >= 18
    assert sum(above(f, "high") for f in found) >= 16


def test_a_planted_annotator_stands_apart_within_200_answers() -> None:
    found = [estimate_errors(*planted(seed, 200)) for seed in range(10)]
    assert sum(above(f, "high") for f in found) >= 9


def test_gold_alone_needs_more_than_a_hundred_answers() -> None:
    few = [estimate_errors(*planted(seed, 100, second=0)) for seed in range(10)]
    many = [estimate_errors(*planted(seed, 2000, second=0)) for seed in range(10)]
    # Five answers with a known truth do not tell 20 % from 2 %.
    assert sum(above(f, "high") for f in few) <= 2
    assert sum(above(f, "high") for f in many) >= 8


def test_nothing_is_known_of_a_person_whose_answers_nobody_checked() -> None:
    alone = estimate_errors([("anna", i, i % 2 == 0) for i in range(50)])["anna"]
    assert (alone.votes, alone.compared, alone.rate) == (50, 0, 0.02)
    assert alone.low < 0.01
    assert alone.high > 0.1
    assert estimate_errors([]) == {}


def test_two_people_who_disagree_are_both_uncertain() -> None:
    votes = [(who, i, who == "anna" or i % 4 > 0) for who in ("anna", "ben") for i in range(100)]
    found = estimate_errors(votes)
    assert found["anna"][1:] == pytest.approx(found["ben"][1:], rel=1e-6)
    # Either may have made all 25 errors, or none.
    assert found["anna"].low < 0.03
    assert found["anna"].high > 0.2
    gold = [("anna", i, True, True) for i in range(100)]
    decided = estimate_errors(votes, gold)
    assert decided["ben"].low > decided["anna"].high


def test_the_order_of_votes_and_the_names_of_people_do_not_matter() -> None:
    votes, gold = planted(3, 60)
    found = estimate_errors(votes, gold)
    mixed = random.Random(0).sample(votes, len(votes))
    assert estimate_errors(mixed, gold[::-1]) == found
    other = {"anna": "z", "ben": "y", "cleo": "x", "dora": "a"}
    renamed = estimate_errors(
        [(other[p], i, s) for p, i, s in votes], [(other[p], i, s, t) for p, i, s, t in gold]
    )
    for name, estimate in found.items():
        assert renamed[other[name]] == pytest.approx(estimate, rel=1e-6)


def test_the_last_vote_of_a_person_on_an_item_counts() -> None:
    votes = [("anna", 1, False), ("anna", 1, True), ("ben", 1, True), ("ben", 2, True)]
    assert agreement(votes) == {("anna", "ben"): (1, 1)}
    found = estimate_errors(votes)
    assert (found["anna"].votes, found["ben"].votes, found["ben"].compared) == (1, 2, 1)


def test_agreement_counts_items_of_both() -> None:
    votes = [("ben", 1, True), ("anna", 1, True), ("anna", 2, False), ("ben", 2, True)]
    votes += [("cleo", 2, True), ("cleo", 3, True)]
    assert agreement(votes) == {
        ("anna", "ben"): (1, 2),
        ("anna", "cleo"): (0, 1),
        ("ben", "cleo"): (1, 1),
    }


def event(number: int, kind: str = "answer", verdict: str = "same", **more: object) -> Event:
    values = {
        **{"left": "a", "right": "b", "left_digest": "", "right_digest": "", "annotator": "anna"},
        **{"asked_at": 0.0, "answered_at": 1.0, "epoch": 0, "reason": "", "score": None},
        **{"similarity": None, "need": 1, "confirms": None, "undoes": None, "undone_by": None},
        **{"run": "", "shown": ([], []), **more},
    }
    return Event(id=number, kind=kind, verdict=verdict, **values)  # type: ignore[arg-type]


def test_votes_are_read_from_the_events_of_a_ledger() -> None:
    events = [
        event(1, question=7),
        event(2, left="b", right="a", verdict="different", annotator="ben"),
        event(3, verdict="unsure"),
        event(4, undone_by=5),
        event(6, "gold", question=8, annotator="ben"),
        event(7, "gold", question=9),
    ]
    votes, gold = votes_of(events, {8: "different"})
    assert votes == [("anna", ("a", "b"), True), ("ben", ("a", "b"), False)]
    assert gold == [("ben", ("a", "b"), True, False)]
