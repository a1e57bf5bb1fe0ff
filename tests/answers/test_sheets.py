"""Sheets: several questions about one image at a time, for annotators that take them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from fastreid_al.active import refine
from fastreid_al.active.refine import Refined
from fastreid_al.annotators import Oracle
from fastreid_al.answers import (
    Asker,
    Ledger,
    NoAnswer,
    Question,
    QuitAsking,
    UndoLast,
    Verdict,
)
from fastreid_al.answers.asker import OutOfQuestions, RoundAgain
from fastreid_al.config import QuestionConfig
from tests.support.asking import Counting, crowded, question

SAME, DIFFERENT, UNSURE = Verdict.SAME, Verdict.DIFFERENT, Verdict.UNSURE
#: Images 0, 2, 4, ... are one identity.
IDENTITIES = torch.arange(12) % 2


class SheetOracle(Counting):
    """An oracle that remembers its sheets, and may do something else before an answer to one."""

    def __init__(self, identities: Tensor, before: Callable[[int], None] | None = None) -> None:
        super().__init__(identities)
        self.sheets: list[list[int]] = []
        self.before = before or (lambda number: None)

    def answer_sheet(self, questions: Sequence[Question]) -> list[Verdict]:
        self.sheets.append([q.images[1] for q in questions])
        self.before(len(self.sheets))
        return [self.oracle.answer(q) for q in questions]


def about(first: int, others: Sequence[int]) -> list[Question]:
    return [question(first, other) for other in others]


def test_all_open_questions_of_a_sheet_are_asked_at_a_time() -> None:
    annotator = SheetOracle(IDENTITIES)
    asker = Asker(annotator)
    asker.begin(1)
    assert asker.ask(question(0, 4)) is SAME
    verdicts = asker.ask_sheet(about(0, [1, 2, 4, 7]))
    assert verdicts == [DIFFERENT, SAME, SAME, DIFFERENT]
    assert annotator.sheets == [[1, 2, 7]]
    assert annotator.asked == [(0, 4)]
    # What follows is not asked about: image 2 is image 4, and that is not image 1.
    assert asker.ask_sheet(about(4, [1, 2, 9])) == [DIFFERENT, SAME, DIFFERENT]
    assert annotator.sheets[1:] == [[9]]
    spent = asker.end()
    assert (spent.questions, spent.remembered) == (5, 3)
    answers = asker.ledger.answers()
    assert [(a.left, a.right) for a in answers] == [(0, 4), (0, 1), (0, 2), (0, 7), (4, 9)]


def test_an_annotator_without_sheets_gets_one_question_after_the_other() -> None:
    annotator = Counting(IDENTITIES)
    asker = Asker(annotator)
    asker.begin(1)
    assert asker.ask_sheet(about(0, [1, 2, 4])) == [DIFFERENT, SAME, SAME]
    assert annotator.asked == [(0, 1), (0, 2), (0, 4)]


def test_an_empty_sheet_asks_nothing() -> None:
    asker = Asker(SheetOracle(IDENTITIES), budget=0)
    asker.begin(1)
    assert asker.ask_sheet([]) == []


def test_the_seconds_of_a_sheet_are_divided_over_its_answers() -> None:
    asker = Asker(Oracle(IDENTITIES, seconds=4, seconds_more=0.5), minutes=0.2)
    asker.begin(1)
    asker.ask_sheet(about(0, [1, 2, 3, 4, 5]))
    assert [a.seconds for a in asker.ledger.answers()] == pytest.approx([1.2] * 5, abs=1e-5)
    asker.ask_sheet(about(6, [7, 9]))
    asker.ask(question(8, 9))
    with pytest.raises(OutOfQuestions):
        asker.ask_sheet(about(10, [8, 9]))
    assert asker.end().seconds == pytest.approx(6 + 4.5 + 4)


def test_measured_seconds_are_divided_too(monkeypatch: pytest.MonkeyPatch) -> None:
    instants = iter([100.0, 106.0])
    monkeypatch.setattr("fastreid_al.answers.at_once.time.monotonic", lambda: next(instants))
    asker = Asker(SheetOracle(IDENTITIES))
    asker.begin(1)
    asker.ask_sheet(about(0, [1, 2, 3]))
    assert [a.seconds for a in asker.ledger.answers()] == pytest.approx([2.0] * 3, abs=1e-5)


def test_a_sheet_is_cut_to_the_budget() -> None:
    annotator = SheetOracle(IDENTITIES)
    asker = Asker(annotator, budget=3)
    asker.begin(1)
    assert asker.ask_sheet(about(0, [2, 4, 6, 8])) == [SAME, SAME, SAME, UNSURE]
    assert annotator.sheets == [[2, 4, 6]]
    with pytest.raises(OutOfQuestions):
        asker.ask_sheet(about(1, [3, 5]))
    # What earlier answers decide costs nothing.
    assert asker.ask_sheet(about(2, [4, 6])) == [SAME, SAME]


def test_undo_takes_the_whole_sheet_back() -> None:
    def slip(number: int) -> None:
        if number == 2:
            raise UndoLast

    annotator = SheetOracle(IDENTITIES, slip)
    asker = Asker(annotator)
    asker.begin(1)
    asker.ask(question(1, 2))
    asker.ask_sheet(about(0, [1, 2]))
    with pytest.raises(RoundAgain):
        asker.ask_sheet(about(3, [5, 7]))
    assert [(a.left, a.right) for a in asker.ledger.answers()] == [(1, 2)]


def test_undo_after_a_single_question_takes_that_back_alone() -> None:
    def slip(number: int) -> None:
        if number == 2:
            raise UndoLast

    asker = Asker(SheetOracle(IDENTITIES, slip))
    asker.begin(1)
    asker.ask_sheet(about(0, [1, 2]))
    asker.ask(question(3, 4))
    with pytest.raises(RoundAgain):
        asker.ask_sheet(about(3, [5, 7]))
    assert len(asker.ledger.answers()) == 2


def test_a_sheet_that_is_passed_on_is_not_asked_again_in_this_round() -> None:
    def leave_out(number: int) -> None:
        raise NoAnswer

    annotator = SheetOracle(IDENTITIES, leave_out)
    asker = Asker(annotator)
    asker.begin(1)
    assert asker.ask_sheet(about(0, [1, 2])) == [UNSURE, UNSURE]
    assert asker.ask_sheet(about(0, [1, 2])) == [UNSURE, UNSURE]
    assert len(annotator.sheets) == 1
    assert asker.end().questions == 0


def test_a_merge_on_a_sheet_is_confirmed_with_other_images() -> None:
    annotator = SheetOracle(torch.tensor([0, 0, 0, 0, 0, 0, 1, 1]))
    asker = Asker(annotator, confirm_merges=1)
    asker.begin(1)
    first, second, third = [0, 1], [2, 3, 4], [6, 7]
    questions = [question(0, 2, first, second), question(0, 6, first, third)]
    assert asker.ask_sheet(questions) == [SAME, DIFFERENT]
    assert annotator.sheets == [[2, 6]]
    assert annotator.asked == [(1, 3)]


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        ([question(0, 1), question(2, 3)], "several first images"),
        ([question(0, 1), question(0, 1)], "twice"),
        ([question(0, 1), "another"], "questions: got"),
    ],
)
def test_what_is_no_sheet_is_refused(questions: list[Question], message: str) -> None:
    asker = Asker(SheetOracle(IDENTITIES))
    asker.begin(1)
    with pytest.raises((ValueError, TypeError), match=message):
        asker.ask_sheet(questions)
    assert asker.ledger.answers() == []


def test_an_annotator_that_leaves_verdicts_out_is_named() -> None:
    class Short(SheetOracle):
        def answer_sheet(self, questions: Sequence[Question]) -> list[Verdict]:
            return super().answer_sheet(questions)[1:]

    asker = Asker(Short(IDENTITIES))
    asker.begin(1)
    with pytest.raises(ValueError, match=r"got 1 verdicts of 'counting', expected 2"):
        asker.ask_sheet(about(0, [1, 2]))
    assert asker.ledger.answers() == []


class Stop(Exception):  # noqa: N818
    """The process ends."""


def run(annotator: SheetOracle, asker: Asker, seed: int) -> Refined:
    features, _, labels = crowded(seed=seed)
    asker.annotator = annotator
    return refine(features, labels, asker, "gain", QuestionConfig(per_epoch=70, sheet=5))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("answers", [1, 7, 23, 24, 25, 26, 27, 68, 69])
def test_a_round_that_ends_within_a_sheet_is_resumed_as_the_same_round(
    answers: int, seed: int
) -> None:
    _, identities, _ = crowded(seed=seed)
    whole = Asker(SheetOracle(identities), run="mine")
    expected = run(SheetOracle(identities), whole, seed)

    asker = Asker(SheetOracle(identities), run="mine")
    append = asker.ledger.append

    def append_some(*arguments: object, **fields: object) -> int:
        if asker.ledger.last_event() == answers:
            raise Stop
        return append(*arguments, **fields)  # type: ignore[arg-type]

    asker.ledger.append = append_some  # type: ignore[method-assign]
    with pytest.raises(Stop):
        run(SheetOracle(identities), asker, seed)
    asker.ledger.append = append  # type: ignore[method-assign]
    assert len(asker.ledger.answers()) == answers
    again = Asker(SheetOracle(identities), asker.ledger, run="mine")
    got = run(SheetOracle(identities), again, seed)
    assert torch.equal(got.labels, expected.labels)
    assert got.spent.verdicts == expected.spent.verdicts
    given = [(a.left, a.right, a.verdict) for a in whole.ledger.answers()]
    assert [(a.left, a.right, a.verdict) for a in asker.ledger.answers()] == given


def test_a_person_who_leaves_a_sheet_open_is_asked_again() -> None:
    def leave(number: int) -> None:
        if number == 3:
            raise QuitAsking

    _, identities, _ = crowded()
    whole = Asker(SheetOracle(identities), run="mine")
    expected = run(SheetOracle(identities), whole, 0)
    asker = Asker(SheetOracle(identities), run="mine")
    with pytest.raises(QuitAsking):
        run(SheetOracle(identities, leave), asker, 0)
    got = run(SheetOracle(identities), asker, 0)
    assert torch.equal(got.labels, expected.labels)


def interrupted(ahead: Sequence[tuple[int, int]], **settings: Any) -> tuple[Asker, SheetOracle]:
    """An asker whose round was interrupted after some answers, about to be begun again."""
    first = Asker(Oracle(IDENTITIES, seconds=4), run="mine")
    first.begin(1)
    for a, b in ahead:
        first.ask(question(a, b))
    annotator = SheetOracle(IDENTITIES)
    again = Asker(annotator, first.ledger, run="mine", **settings)
    again.begin(1)
    return again, annotator


@pytest.mark.parametrize(
    ("ahead", "budget", "others"),
    [
        ([(0, 3)], 2, [1, 2, 3, 4]),
        ([(0, 5), (0, 7), (0, 9), (2, 3), (4, 5)], 5, [1, 2, 3, 4, 9, 8]),
        ([(2, 3)], 3, [1, 3, 5, 7]),
    ],
)
def test_a_round_that_differs_from_the_interrupted_one_keeps_to_the_budget(
    ahead: list[tuple[int, int]], budget: int, others: list[int]
) -> None:
    asker, _ = interrupted(ahead, budget=budget)
    with contextlib.suppress(OutOfQuestions):
        asker.ask_sheet(about(0, others))
    assert asker.end().questions == budget
    assert len(asker.ledger.answers()) == budget


@pytest.mark.parametrize("ahead", [[(0, 1), (0, 2), (0, 3)], [(2, 3), (0, 1)]])
def test_answers_of_a_sheet_that_cannot_go_on_are_counted(ahead: list[tuple[int, int]]) -> None:
    asker, annotator = interrupted(ahead, minutes=0.0)
    with pytest.raises(OutOfQuestions):
        asker.ask_sheet(about(0, [1, 2, 3, 4]))
    spent = asker.end()
    assert spent.questions == len(ahead)
    assert spent.seconds == pytest.approx(4 * len(ahead), abs=1e-5)
    assert asker.closure.verdict(0, 1) is DIFFERENT
    assert annotator.sheets == []


def test_minutes_end_a_resumed_round_where_they_ended_the_undisturbed_one() -> None:
    def asked(ledger: Ledger | None, stop_after: int | None) -> Asker:
        oracle = Oracle(torch.arange(40), seconds=4, seconds_more=0.5)
        asker = Asker(oracle, ledger, run="mine", minutes=0.2)
        asker.begin(1)
        with contextlib.suppress(OutOfQuestions):
            for number in range(5):
                if number == stop_after:
                    return asker
                asker.ask_sheet(about(number, range(10 + 5 * number, 15 + 5 * number)))
        asker.end()
        return asker

    whole = asked(None, None)
    assert whole.asked in (10, 15)
    for stop_after in (1, 2):
        assert asked(asked(None, stop_after).ledger, None).asked == whole.asked


def test_each_undo_takes_one_sheet_back() -> None:
    undo = [False]

    def slip(number: int) -> None:
        if undo[0]:
            raise UndoLast

    asker = Asker(SheetOracle(IDENTITIES, slip))
    asker.begin(1)
    for first in (0, 1, 2):
        asker.ask_sheet(about(first, [5, 8, 11]))
    undo[0] = True
    for left in (6, 3, 0):
        with pytest.raises(RoundAgain):
            asker.ask_sheet(about(3, [6, 7]))
        assert len(asker.ledger.answers()) == left


@pytest.mark.parametrize("wrong", [None, "same", True])
def test_what_is_no_verdict_is_refused_before_anything_is_recorded(wrong: Any) -> None:
    class Wrong(SheetOracle):
        def answer_sheet(self, questions: Sequence[Question]) -> list[Verdict]:
            return [SAME, wrong]

    asker = Asker(Wrong(IDENTITIES))
    asker.begin(1)
    with pytest.raises(ValueError, match=r"answer_sheet: got .* of 'counting', expected verdicts"):
        asker.ask_sheet(about(0, [1, 2]))
    assert asker.ledger.answers() == []


def test_pairs_that_were_asked_about_are_closed() -> None:
    annotator = SheetOracle(torch.tensor([0, 0, 0, 0, 1, 1]))
    asker = Asker(annotator, confirm_merges=1, budget=2)
    asker.begin(1)
    assert asker.ask(question(0, 4)) is DIFFERENT
    with pytest.raises(OutOfQuestions):
        asker.ask(question(0, 2, [0, 1], [2, 3]))
    # The second answer waits for its confirmation.
    assert asker.closed_pairs() == [(0, 4)]
