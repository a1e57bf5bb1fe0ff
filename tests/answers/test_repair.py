"""The answers of a contradiction that are likely wrong are found."""

from __future__ import annotations

import itertools
import math
import random
import shutil
from pathlib import Path

import pytest

from fastreid_al.answers.agreement import known_verdicts
from fastreid_al.answers.closure import Closure
from fastreid_al.answers.database import PEOPLE, QUESTIONS
from fastreid_al.answers.ledger import Ledger, Origin, insert_event
from fastreid_al.answers.posterior import answer_weight
from fastreid_al.answers.question import Answer, Verdict
from fastreid_al.answers.repair import _Core, _Graph, conflicts, find_suspects
from fastreid_al.ledger import main
from tests.support.ledgers import keys, put

SAME, DIFFERENT, UNSURE = Verdict.SAME, Verdict.DIFFERENT, Verdict.UNSURE
WRITTEN = Path(__file__).parent / "data" / "ledger_0_1.sqlite"


def small(seed: int) -> tuple[list[Answer], dict[int, float], tuple[int, int]]:
    """Answers about seven images that "same" answers connect, and a pair that is "different"."""
    draw = random.Random(seed)
    pairs = [(draw.randrange(i), i) for i in range(1, 7)]
    pairs += draw.sample([p for p in itertools.combinations(range(7), 2) if p not in pairs], 3)
    others = [p for p in itertools.combinations(range(7), 2) if p not in pairs]
    apart = draw.sample(others, 3)
    said = [(p, SAME) for p in pairs] + [(p, DIFFERENT) for p in apart]
    answers = [Answer(i + 1, *pair, verdict) for i, (pair, verdict) in enumerate(said)]
    return answers, {a.event: draw.uniform(0.5, 5) for a in answers}, apart[0]


@pytest.mark.parametrize("seed", range(12))
def test_cuts_are_the_smallest_of_all_that_contain_a_pair(seed: int) -> None:
    answers, weights, (a, b) = small(seed)
    core = _Core(_Graph(answers, Closure.replay(answers), weights, None), (a, b))
    # Every way to divide the images, also those that the core leaves out.
    divisions = [
        set(side)
        for count in range(1, 7)
        for side in itertools.combinations(range(7), count)
        if a in side and b not in side
    ]

    def crossing(side: set[int], verdict: Verdict) -> list[Answer]:
        return [
            x for x in answers if x.verdict is verdict and (x.left in side) != (x.right in side)
        ]

    def capacity(side: set[int]) -> float:
        return sum(weights[x.event] for x in crossing(side, SAME))

    for index in (None, *range(len(core.pairs))):
        found = core.smallest_cut(index)
        fitting = [
            side
            for side in divisions
            if index is None
            or core.pairs[index] in [(x.left, x.right) for x in crossing(side, SAME)]
        ]
        if found is None:
            assert not fitting
            continue
        cut, value = found
        cut_pairs = {core.pairs[i] for i in cut}
        assert index is None or index in cut
        assert sum(weights[x.event] for x in answers if (x.left, x.right) in cut_pairs) == (
            pytest.approx(min(map(capacity, fitting)), abs=0.01)
        )
        # The value is that of a division whose crossing pairs are the cut.
        values = [
            sum(weights[x.event] for x in crossing(side, DIFFERENT)) - capacity(side)
            for side in fitting
            if {(x.left, x.right) for x in crossing(side, SAME)} == cut_pairs
        ]
        assert any(value == pytest.approx(v, abs=0.01) for v in values)


def test_each_answer_of_a_triangle_is_equally_suspect() -> None:
    answers = [Answer(1, 0, 1, SAME), Answer(2, 1, 2, SAME), Answer(3, 0, 2, DIFFERENT)]
    (found,) = find_suspects(answers)
    # The "different" is asked again first.
    assert [s.event for s in found] == [3, 1, 2]
    assert [s.probability for s in found] == pytest.approx([1 / 3] * 3)


def test_probabilities_follow_from_the_weights() -> None:
    answers = [Answer(1, 0, 1, SAME), Answer(2, 1, 2, SAME), Answer(3, 0, 2, DIFFERENT)]
    (found,) = find_suspects(answers, weights={1: 1.0, 2: 2.0, 3: 3.0})
    # Exactly one of three is wrong, and the other two are right.
    odds = {1: math.exp(-1), 2: math.exp(-2), 3: math.exp(-3)}
    total = sum(odds.values())
    assert [s.event for s in found] == [1, 2, 3]
    for event, probability in found:
        assert probability == pytest.approx(odds[event] / total, abs=1e-3)


def test_the_features_move_suspicion() -> None:
    answers = [Answer(1, 0, 1, SAME), Answer(2, 1, 2, SAME), Answer(3, 0, 2, DIFFERENT)]
    (found,) = find_suspects(answers, prior=lambda i, j: -3.0 if (i, j) == (1, 2) else 0.0)
    assert found[0].event == 2
    assert found[0].probability > 0.8


def test_a_wrong_same_between_two_groups_is_found_against_several_different() -> None:
    pairs = [(0, 1), (0, 2), (3, 4), (3, 5), (1, 2), (4, 5)]
    answers = [Answer(i + 1, *pair, SAME) for i, pair in enumerate(pairs)]
    answers += [Answer(7 + i, i, 3 + i, DIFFERENT) for i in range(3)]
    wrong = Answer(10, 0, 4, SAME)
    (found,) = find_suspects([*answers, wrong])
    assert found[0].event == 10
    assert found[0].probability > 0.99


def test_a_wrong_different_within_a_group_is_found() -> None:
    answers = [
        Answer(i + 1, *pair, SAME) for i, pair in enumerate(itertools.combinations(range(4), 2))
    ]
    (found,) = find_suspects([*answers, Answer(7, 0, 3, DIFFERENT)])
    assert found[0].event == 7
    assert found[0].probability > 0.9


def test_a_same_that_does_not_count_is_no_suspect() -> None:
    answers = [
        *(Answer(1, 0, 1, SAME), Answer(2, 1, 2, SAME), Answer(3, 0, 3, SAME, need=2)),
        *(Answer(4, 3, 2, SAME, need=3), Answer(5, 0, 2, DIFFERENT)),
    ]
    (found,) = find_suspects(answers)
    assert {s.event for s in found} == {1, 2, 5}


def test_a_large_component_is_searched_along_its_chain() -> None:
    # A ladder of 2 x 100 images, cut in its middle by many "different".
    rungs = [(2 * i, 2 * i + 1) for i in range(100)]
    rails = [(i, i + 2) for i in range(198) if i not in (98, 99)]
    same = [Answer(i + 1, *pair, SAME) for i, pair in enumerate(rungs + rails)]
    bridge = Answer(1000, 98, 100, SAME)
    answers = [*same, *(Answer(500 + i, i, 199 - i, DIFFERENT) for i in range(5)), bridge]
    (found,) = find_suspects(answers)
    assert found[0].event == 1000
    with pytest.raises(ValueError, match="limit"):
        find_suspects(answers, limit=0)


def planted(seed: int, share: float, degree: int) -> tuple[list[Answer], set[int]]:
    """Answers about 40 identities of 6 images, and the events of those that are wrong."""
    draw = random.Random(seed)
    answers: list[Answer] = []
    wrong = set()
    seen: set[tuple[int, int]] = set()
    while len(answers) < 240 * degree:
        a = draw.randrange(240)
        # Half of the questions are about one identity, the others about two that look alike.
        one = a // 6 if draw.random() < 0.5 else draw.choice([a // 6 + 1, a // 6 + 2]) % 40
        b = 6 * one + draw.randrange(6)
        pair = min(a, b), max(a, b)
        if a == b or pair in seen:
            continue
        seen.add(pair)
        event = len(answers) + 1
        truth = a // 6 == b // 6
        if draw.random() < share:
            wrong.add(event)
            truth = not truth
        answers.append(Answer(event, *pair, SAME if truth else DIFFERENT))
    return answers, wrong


@pytest.mark.parametrize("share", [0.02, 0.05, 0.1])
def test_suspects_contain_a_planted_error(share: float) -> None:
    hits = []
    for seed in range(4):
        answers, wrong = planted(seed, share, 2)
        hits += [any(s.event in wrong for s in found) for found in find_suspects(answers)]
    assert len(hits) > 20
    assert sum(hits) / len(hits) >= 0.8


def test_conflicts_of_a_ledger_name_people_times_and_paths(filled: str) -> None:
    with Ledger.open(filled, keys()) as ledger:
        put(ledger, 0, 3, annotator="cleo", answered_at=200.0, epoch=7)
        (found,) = conflicts(ledger)
    assert found.answer[:4] == (7, 0, 3, ("train/0.jpg", "train/3.jpg"))
    assert found.answer[4:8] == ("same", ("cleo",), 200.0, 7)
    assert [link.event for link in found.against] == [1, 2, 3]
    assert [link.people for link in found.against] == [("anna",), ("bert",), ("anna",)]
    assert found.set_aside == (7,)
    assert {s.event for s in found.suspects} == {1, 2, 3, 7}


def test_a_ledger_without_contradiction_has_no_conflicts(filled: str) -> None:
    with Ledger.open(filled, write=False) as ledger:
        assert conflicts(ledger) == []


def queued(ledger: Ledger, left: int, right: int, gold: str | None = None) -> int:
    """Publish a question, and return its number."""
    with ledger.store.writing() as connection, ledger.numbering(connection, left, right) as ids:
        values = {
            **{"run": "", "epoch": 0, "left_id": ids[left], "right_id": ids[right]},
            **{"left_images": "[]", "right_images": "[]", "reason": "merge", "gold": gold},
            **{"known_event": 0, "status": "answered", "made_at": 0.0},
        }
        return connection.execute(QUESTIONS.insert(), values).inserted_primary_key[0]


def test_votes_and_errors_of_people_weigh(file: str) -> None:
    """Two careful people outweigh one answer; a person who errs is suspected."""
    with Ledger.open(file, keys()) as ledger:
        with ledger.store.writing() as connection:
            connection.execute(
                PEOPLE.insert(), {"name": "anna", "role": "annotate", "made_at": 0.0}
            )
        first, second, third = (queued(ledger, *pair) for pair in ((0, 1), (1, 2), (0, 2)))
        put(ledger, 0, 1, origin=Origin("web", question=first))
        put(ledger, 0, 1, annotator="bert", origin=Origin("web", question=first))
        put(ledger, 1, 2, annotator="dora", origin=Origin("web", question=second))
        put(ledger, 0, 2, DIFFERENT, origin=Origin("web", question=third))
        # Dora's answers about other pairs are not those of the others.
        for left, right in ((4, 5), (5, 6), (6, 7), (7, 8), (8, 9)):
            for who in ("anna", "bert", "dora"):
                verdict = DIFFERENT if who == "dora" else SAME
                question = queued(ledger, left, right)
                put(ledger, left, right, verdict, annotator=who, origin=Origin(question=question))
        found = next(c for c in conflicts(ledger) if c.answer.left < 4)
    links = {link.event: link for link in (found.answer, *found.against)}
    assert links[1].people == ("anna", "bert")
    usual = links[4].weight
    assert links[1].weight == pytest.approx(2 * usual, rel=0.1)
    assert links[3].weight < 0.8 * usual
    assert found.suspects[0].event == 3


def test_known_answers_weigh(file: str) -> None:
    """Whoever errs where the answer is known is suspected first."""
    with Ledger.open(file, keys()) as ledger:
        put(ledger, 0, 1)
        put(ledger, 1, 2, annotator="dora")
        put(ledger, 0, 2, DIFFERENT)
        for right in range(3, 9):
            question = queued(ledger, 9, right, gold="different")
            known = {"kind": "gold", "verdict": "same", "annotator": "dora", "question": question}
            with (
                ledger.store.writing() as connection,
                ledger.numbering(connection, 9, right) as ids,
            ):
                images = {"left_id": ids[9], "right_id": ids[right]}
                insert_event(connection, {**known, **images, "asked_at": 0.0, "answered_at": 1.0})
        (found,) = conflicts(ledger)
    assert found.suspects[0].event == 2
    assert found.suspects[0].probability > 0.7


def test_a_ledger_of_version_0_1_has_conflicts(file: str) -> None:
    shutil.copy(WRITTEN, file)
    with Ledger.open(file, write=False) as ledger:
        assert known_verdicts(ledger) == {}
        (found,) = conflicts(ledger)
    assert found.answer.event == 12
    assert {s.event for s in found.suspects} == {1, 2, 12}


def test_the_command_prints_conflicts(filled: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["conflicts", filled])
    assert capsys.readouterr().out == "no contradictions\n"
    with Ledger.open(filled, keys()) as ledger:
        put(ledger, 0, 3, annotator="cleo\n", answered_at=200.0)
    main(["conflicts", filled])
    answer, *against, aside, ask = capsys.readouterr().out.splitlines()
    assert answer == (
        "event 7 (train/0.jpg, train/3.jpg: same) by cleo\\n, 1970-01-01 00:03:20 UTC, epoch 3"
    )
    assert [line.split()[:3] for line in against] == [["against", "event", n] for n in "123"]
    assert aside == "  set aside: 7"
    assert ask.startswith("  ask again: event 3 (25% wrong), event 1 (25% wrong)")


def test_a_damaged_time_is_an_unknown_time(filled: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Ledger.open(filled, keys()) as ledger:
        put(ledger, 0, 3, answered_at=1e200)
    main(["conflicts", filled])
    assert "by anna, an unknown time" in capsys.readouterr().out


def test_an_answer_is_taken_back_while_a_run_trains(
    filled: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Ledger.open(filled, keys()) as trainer:
        main(["undo", filled, "--event", "3"])
        assert [a.event for a in trainer.answers()] == [1, 2, 4]
    assert capsys.readouterr().out.startswith("event 7 undoes event 3")


def test_the_usual_weight_is_that_of_an_unknown_person() -> None:
    answers = [Answer(1, 0, 1, SAME), Answer(2, 0, 1, DIFFERENT)]
    graph = _Graph(answers, Closure.replay(answers), {}, None)
    assert graph.same[0, 1] == graph.different[0, 1] == pytest.approx(answer_weight(0.02))
