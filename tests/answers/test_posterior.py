"""Answers of annotators who err: what is believed, and what an answer weighs."""

from __future__ import annotations

import math
import random

import pytest

from fastreid_al.answers import Answer, Closure, Verdict
from fastreid_al.answers.posterior import answer_weight, log_odds_of, weigh_answers

SAME, DIFFERENT, UNSURE = Verdict.SAME, Verdict.DIFFERENT, Verdict.UNSURE


def answers(*said: tuple[int, int, Verdict]) -> list[Answer]:
    return [Answer(event, *one) for event, one in enumerate(said, 1)]


def even(i: int, j: int) -> float:
    """A prior that says nothing."""
    return 0.0


def test_an_answer_weighs_what_bayes_says() -> None:
    assert answer_weight(0.05) == pytest.approx(math.log(19))
    assert answer_weight(0.0) == pytest.approx(math.log(9999))
    assert answer_weight(0.9) > 0


def test_log_odds_of_a_probability() -> None:
    assert log_odds_of(0.5) == 0
    assert log_odds_of(0.95) == pytest.approx(math.log(19))
    assert log_odds_of(1.0) == math.inf
    assert log_odds_of(0.0) == -math.inf


def test_answers_that_agree_are_all_believed() -> None:
    given = answers((0, 1, SAME), (1, 2, SAME), (0, 2, SAME), (2, 3, DIFFERENT), (0, 9, UNSURE))
    weighed = weigh_answers(given, even, 0.05)
    assert weighed.believed == given
    assert weighed.doubted == []
    assert weighed.log_odds[2, 3] == pytest.approx(-math.log(19))


def test_one_answer_against_several_is_doubted_whichever_came_first() -> None:
    agree = [(0, 1, SAME), (1, 2, SAME), (0, 2, SAME), (2, 3, SAME), (1, 3, SAME)]
    for position in range(len(agree) + 1):
        said = [*agree[:position], (0, 3, DIFFERENT), *agree[position:]]
        weighed = weigh_answers(answers(*said), even, 0.05)
        assert [(a.left, a.right) for a in weighed.doubted] == [(0, 3)]


def test_the_prior_decides_where_answers_are_even() -> None:
    # A triangle of "same, same, different" does not say which answer is wrong.
    given = answers((0, 1, SAME), (1, 2, SAME), (0, 2, DIFFERENT))
    for wrong in [(0, 1), (1, 2), (0, 2)]:

        def prior(i: int, j: int, wrong: tuple[int, int] = wrong) -> float:
            said_same = (i, j) != (0, 2)
            likely = ((i, j) != wrong) == said_same
            return 1.0 if likely else -1.0

        weighed = weigh_answers(given, prior, 0.05)
        assert [(a.left, a.right) for a in weighed.doubted] == [wrong]


def test_features_outweigh_one_answer_of_a_careless_annotator_only() -> None:
    given = answers((0, 1, SAME))
    assert weigh_answers(given, lambda i, j: -3.5, 0.05).doubted == given
    assert weigh_answers(given, lambda i, j: -3.5, 0.01).believed == given
    twice = answers((0, 1, SAME), (0, 1, SAME))
    assert weigh_answers(twice, lambda i, j: -1000.0, 0.05).believed == twice


def test_without_errors_the_closure_of_consistent_answers_is_that_of_all() -> None:
    draw = random.Random(3)
    identity = [draw.randrange(8) for _ in range(40)]
    said = []
    for _ in range(300):
        i, j = draw.sample(range(40), 2)
        said.append((i, j, SAME if identity[i] == identity[j] else DIFFERENT))
    given = answers(*said)
    weighed = weigh_answers(given, lambda i, j: draw.uniform(-5, 5), 0.0)
    assert weighed.believed == given
    closure, believed = Closure.replay(given), Closure.replay(weighed.believed)
    assert all(closure.verdict(i, j) == believed.verdict(i, j) for i in range(40) for j in range(i))


def test_wrong_answers_are_found_among_many() -> None:
    draw = random.Random(5)
    identity = [draw.randrange(6) for _ in range(30)]
    said, wrong = [], set()
    for event in range(1, 401):
        i, j = draw.sample(range(30), 2)
        mistaken = draw.random() < 0.05
        same = (identity[i] == identity[j]) != mistaken
        said.append((i, j, SAME if same else DIFFERENT))
        if mistaken:
            wrong.add(event)
    weighed = weigh_answers(answers(*said), even, 0.05)
    doubted = {a.event for a in weighed.doubted}
    assert len(wrong) > 10
    # A wrong answer that no other contradicts cannot be told from a right one.
    assert len(doubted ^ wrong) <= 1
    # Hard closure, for comparison, is wrong about many pairs.
    for kept, most in ((weighed.believed, 5), (answers(*said), 10**9)):
        closure = Closure.replay(kept)
        mistakes = sum(
            closure.verdict(i, j) is not None
            and (closure.verdict(i, j) is SAME) != (identity[i] == identity[j])
            for i in range(30)
            for j in range(i)
        )
        assert mistakes <= most
        assert most == 5 or mistakes > 20


def test_rates_are_estimated_for_each_annotator() -> None:
    draw = random.Random(7)
    identity = [draw.randrange(5) for _ in range(25)]
    said, names = [], {}
    for event in range(1, 801):
        i, j = draw.sample(range(25), 2)
        names[event] = "careless" if event % 2 else "careful"
        mistaken = names[event] == "careless" and draw.random() < 0.2
        same = (identity[i] == identity[j]) != mistaken
        said.append((i, j, SAME if same else DIFFERENT))
    weighed = weigh_answers(answers(*said), even, None, names)
    assert weighed.rates["careless"] == pytest.approx(0.2, abs=0.05)
    assert weighed.rates["careful"] < 0.01


def test_answers_about_images_that_are_gone_are_left_alone() -> None:
    given = answers((-1, 4, SAME), (3, 3, DIFFERENT))
    weighed = weigh_answers(given, even, 0.05)
    assert weighed.believed == given
    assert weighed.log_odds == {}


def test_a_rate_outside_0_to_1_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rate: got 1\.5"):
        weigh_answers(answers((0, 1, SAME)), even, 1.5)
