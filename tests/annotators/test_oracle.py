"""The oracle answers from true identities, always alike, with errors at the given rates."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from fastreid_al.annotators import Oracle
from fastreid_al.answers.question import (
    Annotator,
    Verdict,
)
from tests.support.asking import question

S, D, U, X = Verdict.SAME, Verdict.DIFFERENT, Verdict.UNSURE, Verdict.NOT_COMPARABLE
IDENTITIES = torch.arange(150) % 30
ROOT = Path(__file__).parents[2]
PAIRS = list(combinations(range(150), 2))


def answers(
    annotator: Annotator, pairs: Sequence[tuple[int, int]] = PAIRS
) -> dict[tuple[int, int], Verdict]:
    return {pair: annotator.answer(question(*pair)) for pair in pairs}


def truth(pair: tuple[int, int]) -> Verdict:
    return S if IDENTITIES[pair[0]] == IDENTITIES[pair[1]] else D


def test_oracle_without_errors_tells_the_truth() -> None:
    oracle = Oracle(IDENTITIES)
    assert oracle.name == "oracle"
    assert answers(oracle) == {pair: truth(pair) for pair in PAIRS}


def test_oracle_answers_alike_in_any_order_of_questions_and_of_images() -> None:
    rates: dict[str, Any] = {"error": 0.2, "unsure": 0.2, "not_comparable": 0.2, "seed": 5}
    expected = answers(Oracle(IDENTITIES, **rates))
    shuffled = random.Random(0).sample(PAIRS, len(PAIRS))
    assert answers(Oracle(IDENTITIES, **rates), shuffled) == expected
    turned = Oracle(IDENTITIES, **rates)
    assert {(a, b): turned.answer(question(b, a)) for a, b in PAIRS} == expected


def test_oracle_answers_alike_in_another_process() -> None:
    code = (
        "import torch\n"
        "from fastreid_al.annotators import Oracle\n"
        "from fastreid_al.answers.question import Question\n"
        "oracle = Oracle(torch.arange(150) % 30, error=0.3, unsure=0.2, seed=1)\n"
        "for b in range(1, 150):\n"
        "    rows = torch.tensor([0]), torch.tensor([b])\n"
        "    print(oracle.answer(Question((0, b), rows, 'merge', 0.0, 0.0)).value)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    here = answers(
        Oracle(IDENTITIES, error=0.3, unsure=0.2, seed=1), [(0, b) for b in range(1, 150)]
    )
    assert said[:-1] == [verdict.value for verdict in here.values()]


def test_oracle_answers_by_name_not_by_row() -> None:
    names = [f"cam/{row:03}.jpg" for row in range(150)]
    moved = torch.randperm(150).tolist()
    oracle = Oracle(IDENTITIES, names, error=0.5, seed=2)
    other = Oracle(
        IDENTITIES[torch.tensor(moved)], [names[row] for row in moved], error=0.5, seed=2
    )
    place = {row: at for at, row in enumerate(moved)}
    assert all(
        oracle.answer(question(a, b)) is other.answer(question(place[a], place[b]))
        for a, b in PAIRS
    )


def test_oracle_keeps_names_apart() -> None:
    """The pairs ("a", "b,c") and ("a,b", "c") are not one pair, for any separator."""
    names = ['a"', ' "b', "a", '", "b', "a\0b", "c", "a", "b\0c"]
    oracle = Oracle(torch.arange(8), names)
    assert oracle._uniform(0, 1) != oracle._uniform(2, 3)
    assert oracle._uniform(4, 5) != oracle._uniform(6, 7)


def test_oracle_seeds_differ() -> None:
    assert answers(Oracle(IDENTITIES, error=0.5, seed=0)) != answers(
        Oracle(IDENTITIES, error=0.5, seed=1)
    )


@pytest.mark.parametrize(
    "rates", [(0.1, 0.05, 0.2), (0.0, 0.3, 0.0), (0.4, 0.0, 0.0), (0.7, 0.2, 0.1), (0.2, 0.7, 0.1)]
)
def test_oracle_rates_come_out_near(rates: tuple[float, float, float]) -> None:
    error, unsure, not_comparable = rates
    said = answers(Oracle(IDENTITIES, error=error, unsure=unsure, not_comparable=not_comparable))
    got = Counter(v if v in (U, X) else v is truth(pair) for pair, v in said.items())
    expected: dict[Any, float] = {
        U: unsure,
        X: not_comparable,
        False: error,
        True: 1 - error - unsure - not_comparable,
    }
    for outcome, rate in expected.items():
        assert got[outcome] / len(PAIRS) == pytest.approx(rate, abs=0.015)
    wrong = {truth(pair) for pair, v in said.items() if v in (S, D) and v is not truth(pair)}
    assert wrong == ({S, D} if error else set())


def test_oracle_rates_of_one_leave_nothing_to_chance() -> None:
    assert set(answers(Oracle(IDENTITIES, unsure=1)).values()) == {U}
    assert set(answers(Oracle(IDENTITIES, not_comparable=1)).values()) == {X}
    wrong = {S: D, D: S}
    assert answers(Oracle(IDENTITIES, error=1)) == {pair: wrong[truth(pair)] for pair in PAIRS}


@pytest.mark.parametrize(
    "rates",
    [
        {"error": -0.1},
        {"unsure": 1.1},
        {"not_comparable": float("nan")},
        {"error": 0.6, "unsure": 0.5},
    ],
)
def test_oracle_refuses_rates_that_are_no_shares(rates: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"a number in \[0, 1\]|a sum of 1\.1"):
        Oracle(IDENTITIES, **rates)


def test_oracle_needs_true_identities_and_a_name_each() -> None:
    with pytest.raises(ValueError, match=r"needs true identities: 1 of 3"):
        Oracle(torch.tensor([0, -1, 2]))
    with pytest.raises(ValueError, match="names: got 2, expected one for each of 3"):
        Oracle(torch.tensor([0, 1, 2]), ["a", "b"])
