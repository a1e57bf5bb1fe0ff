"""The asker asks nothing twice, confirms merges, and resumes rounds from the ledger."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from fastreid_al.active import refine
from fastreid_al.annotators import Oracle
from fastreid_al.answers import (
    Asker,
    Ledger,
    Question,
    QuitAsking,
    UndoLast,
    Verdict,
)
from fastreid_al.answers.asker import OutOfQuestions
from fastreid_al.config import QuestionConfig
from fastreid_al.metrics import pair_scores
from tests.support.asking import Counting, crowded
from tests.support.ledgers import put

SAME, DIFFERENT, UNSURE = Verdict.SAME, Verdict.DIFFERENT, Verdict.UNSURE


def test_an_answer_taken_back_is_asked_again_and_the_round_is_as_if_it_had_never_been_given() -> (
    None
):
    features, identities, labels = crowded()
    config = QuestionConfig(per_epoch=40, k_max_rule="root")

    class Slipping(Counting):
        def answer(self, question: Question) -> Verdict:
            truth = super().answer(question)
            if len(self.asked) == 20:
                return DIFFERENT if truth is SAME else SAME
            if len(self.asked) == 21:
                raise UndoLast
            return truth

    annotator = Slipping(identities)
    asker = Asker(annotator)
    refined, spent = refine(features, labels, asker, "gain", config)
    assert torch.equal(
        refined, refine(features, labels, Asker(Oracle(identities)), "gain", config).labels
    )
    assert spent.questions == 40
    assert annotator.asked[19] == annotator.asked[21]
    assert len(asker.ledger.answers()) == 40


def test_answers_given_before_count_from_the_first_round_on() -> None:
    features, identities, labels = crowded()
    config = QuestionConfig(per_epoch=100, k_max_rule="root")
    asker = Asker(Oracle(identities))
    refine(features, labels, asker, "gain", config)
    annotator = Counting(identities)
    later = Asker(annotator, asker.ledger, budget=0)
    refined = refine(features, labels, later, "gain", config).labels
    assert annotator.asked == []
    assert pair_scores(refined, identities).f1 > pair_scores(labels, identities).f1


@pytest.mark.parametrize("error", [0.0, 1.0])
def test_a_merge_that_needs_confirmation_counts_when_other_images_agree(error: float) -> None:
    identities = torch.tensor([0] * 6)
    groups = torch.arange(3), torch.arange(3, 6)
    question = Question((0, 3), groups, "merge", 0.9, 1.0)
    annotator = Counting(identities, error=error)
    asker = Asker(annotator, confirm_merges=2)
    asker.begin(0)
    verdict = asker.ask(question)
    if error:
        assert (verdict, annotator.asked) == (DIFFERENT, [(0, 3)])
    else:
        assert (verdict, annotator.asked) == (SAME, [(0, 3), (1, 4), (2, 5)])
        assert asker.closure.verdict(0, 3) is SAME
        assert asker.closure.verdict(1, 3) is None
    asker.end()
    asker.begin(1)
    assert asker.ask(question) is verdict
    assert len(annotator.asked) == (1 if error else 3)


def test_a_merge_that_other_images_speak_against_does_not_count_and_is_not_asked_again() -> None:
    identities = torch.tensor([0, 1, 1, 0, 2, 2])
    question = Question((0, 3), (torch.arange(3), torch.arange(3, 6)), "merge", 0.9, 1.0)
    annotator = Counting(identities)
    asker = Asker(annotator, confirm_merges=1)
    for epoch in range(2):
        asker.begin(epoch)
        assert asker.ask(question) is UNSURE
        asker.end()
    assert annotator.asked == [(0, 3), (1, 4)]
    assert asker.closure.verdict(0, 3) is None
    assert asker.closure.verdict(1, 4) is DIFFERENT


def test_a_merge_is_not_confirmed_by_an_image_that_was_marked_as_odd() -> None:
    # Image 1 is somebody else, and the person says so when they see it beside image 0.
    identities = torch.tensor([0, 1, 0, 0, 0, 0])
    question = Question((0, 3), (torch.arange(3), torch.arange(3, 6)), "merge", 0.9, 1.0)
    asker = Asker(Oracle(identities), confirm_merges=1, judge_members=True)
    asker.begin(0)
    assert asker.ask(question) is SAME
    shown = [(a.left, a.right) for a in asker.ledger.answers() if not a.is_member]
    assert shown == [(0, 3), (2, 5)]
    assert asker.closure.verdict(0, 1) is DIFFERENT


def test_where_answers_may_be_wrong_one_shown_image_is_kept_to_confirm_a_merge() -> None:
    # The groups hold one person, and beside each shown image one image of somebody else.
    identities = torch.tensor([0, 1, 0, 0, 2, 0])
    groups = torch.arange(3), torch.arange(3, 6)
    unlikely = Question((0, 3), groups, "merge", 0.9, 1.0, probability=0.01)
    annotator = Counting(identities)
    asker = Asker(annotator, expected_error=0.02)
    asker.begin(0)
    asker.weigh(lambda i, j: 0.0)
    assert asker.ask(unlikely) is UNSURE
    assert annotator.asked == [(0, 3), (0, 4)]
    # The image that was exchanged is another person; the shown ones are not known to differ.
    assert asker.closure.verdict(0, 4) is DIFFERENT
    assert asker.closure.verdict(1, 4) is None
    annotator.oracle = Oracle(torch.zeros(6, dtype=torch.int64))
    again = Question((1, 5), (torch.tensor([1, 2]), torch.tensor([5])), "merge", 0.9, 1.0, -1, 0.01)
    assert asker.ask(again) is SAME
    assert annotator.asked[2:] == [(1, 5), (2, 5)]


def test_a_merge_of_single_images_needs_no_more_pairs_than_there_are() -> None:
    asker = Asker(Counting(torch.zeros(3, dtype=torch.int64)), confirm_merges=5)
    asker.begin(0)
    assert (
        asker.ask(Question((0, 1), (torch.tensor([0]), torch.tensor([1, 2])), "merge", 0.9, 1.0))
        is SAME
    )
    assert asker.annotator.asked == [(0, 1), (0, 2)]


def test_the_budget_ends_a_confirmation_and_the_merge_waits() -> None:
    asker = Asker(Counting(torch.zeros(6, dtype=torch.int64)), confirm_merges=2)
    asker.begin(0, limit=2)
    question = Question((0, 3), (torch.arange(3), torch.arange(3, 6)), "merge", 0.9, 1.0)
    with pytest.raises(OutOfQuestions):
        asker.ask(question)
    asker.end()
    assert asker.closure.verdict(0, 3) is None
    asker.begin(1, limit=2)
    assert asker.ask(question) is SAME
    assert len(asker.annotator.asked) == 3


def test_answers_that_a_changed_round_does_not_ask_for_are_known_and_counted(
    tmp_path: Path,
) -> None:
    features, identities, labels = crowded()
    settings = QuestionConfig(k_max_rule="root")

    class Leaving(Counting):
        def answer(self, question: Question) -> Verdict:
            if len(self.asked) == 30:
                raise QuitAsking
            return super().answer(question)

    with Ledger.open(str(tmp_path / "a.sqlite")) as ledger, pytest.raises(QuitAsking):
        refine(
            features,
            labels,
            Asker(Leaving(identities), ledger, run="mine", budget=60),
            "ucal",
            settings,
        )
    with Ledger.open(str(tmp_path / "a.sqlite")) as ledger:
        ledger.undo(5, "somebody")
        annotator = Counting(identities)
        asker = Asker(annotator, ledger, run="mine", budget=60)
        refine(features, labels, asker, "gain", settings)
        assert len(ledger.answers()) == asker.asked == 60
        assert len(annotator.asked) == 31
        given = [frozenset((a.left, a.right)) for a in ledger.answers()]
        assert len(given) == len(set(given))


def test_answers_of_another_run_are_known_at_once_and_not_counted() -> None:
    features, identities, labels = crowded()
    settings = QuestionConfig(per_epoch=40, k_max_rule="root")
    mine = Asker(Oracle(identities), run="mine")
    refine(features, labels, Asker(Oracle(identities), mine.ledger, run="other"), "gain", settings)
    spent = refine(features, labels, mine, "gain", settings).spent
    assert spent.questions == mine.asked == 40
    assert len(mine.ledger.answers()) == 80


def test_a_ledger_that_is_behind_the_checkpoint_is_read_from_its_own_end() -> None:
    features, identities, labels = crowded()
    settings = QuestionConfig(per_epoch=20, k_max_rule="root")
    asker = Asker(Oracle(identities), run="mine", budget=60)
    asker.load_state_dict({"position": 40, "asked": 40, "seconds": 1.0})
    assert asker.position == 0
    assert refine(features, labels, asker, "gain", settings).spent.questions == 20
    assert asker.asked == 60


def test_undo_takes_back_answers_of_this_run_alone() -> None:
    features, identities, labels = crowded()
    settings = QuestionConfig(per_epoch=5, k_max_rule="root")
    other = Asker(Oracle(identities), run="other")
    refine(features, labels, other, "gain", settings)

    class Slipping(Counting):
        undone = False

        def answer(self, question: Question) -> Verdict:
            if not self.undone:
                self.undone = True
                raise UndoLast
            return super().answer(question)

    refine(
        features, labels, Asker(Slipping(identities), other.ledger, run="mine"), "gain", settings
    )
    assert len(other.ledger.answers()) == 10


def test_a_confirmation_that_nobody_can_decide_ends() -> None:
    class Hesitant(Counting):
        def answer(self, question: Question) -> Verdict:
            super().answer(question)
            return SAME if len(self.asked) == 1 else UNSURE

    annotator = Hesitant(torch.zeros(60, dtype=torch.int64))
    asker = Asker(annotator, confirm_merges=1)
    asker.begin(0)
    assert (
        asker.ask(Question((0, 30), (torch.arange(30), torch.arange(30, 60)), "merge", 0.9, 1.0))
        is UNSURE
    )
    assert len(annotator.asked) <= 7


def test_seconds_are_of_a_clock_that_nobody_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    features, identities, labels = crowded()
    wall = iter(range(10**6, 0, -3600))  # set back by an hour at every look
    monkeypatch.setattr("fastreid_al.answers.at_once.time.time", lambda: float(next(wall)))
    asker = Asker(Oracle(identities))
    refine(features, labels, asker, "gain", QuestionConfig(per_epoch=5, k_max_rule="root"))
    answers = asker.ledger.answers()
    assert len(answers) == 5 and all(0 <= answer.seconds < 5 for answer in answers)
    assert 0 <= asker.seconds < 5 and 0 <= asker.ledger.seconds() < 5


@pytest.mark.parametrize("state", [{"position": -1}, {"asked": "3"}, {"seconds": float("nan")}])
def test_a_state_that_no_asker_had_is_refused(state: dict[str, object]) -> None:
    asker = Asker(Oracle(torch.tensor([0, 1])))
    with pytest.raises(ValueError, match=r"questions: got .* expected 0 or more"):
        asker.load_state_dict({**asker.state_dict(), **state})


def weighing(annotator: object, groups: int = 3) -> tuple[Asker, Question]:
    """An asker that expects errors, and a question about two groups of images."""
    asker = Asker(annotator, expected_error=0.05)  # type: ignore[arg-type]
    asker.begin(1)
    both = torch.arange(groups), torch.arange(groups, 2 * groups)
    return asker, Question((0, groups), both, "merge", 0.9, 1.0)


@pytest.mark.parametrize(("prior", "questions"), [(3.5, 1), (-1.0, 1), (-3.0, 2), (-5.0, 2)])
def test_a_merge_needs_as_many_answers_as_the_features_leave_open(
    prior: float, questions: int
) -> None:
    annotator = Counting(torch.tensor([0] * 6))
    asker, question = weighing(annotator)
    asker.weigh(lambda i, j: prior)
    assert asker.ask(question) is SAME
    assert len(annotator.asked) == questions


def test_without_expected_errors_nothing_is_weighed() -> None:
    annotator = Counting(torch.tensor([0] * 6))
    asker = Asker(annotator)
    asker.begin(1)
    asker.weigh(lambda i, j: -5.0)
    question = Question((0, 3), (torch.arange(3), torch.arange(3, 6)), "merge", 0.9, 1.0)
    assert asker.ask(question) is SAME
    assert len(annotator.asked) == 1


def test_a_doubted_answer_is_kept_and_its_pair_is_not_asked_about_again() -> None:
    identities = torch.tensor([0, 0, 0, 1])

    class Mistaken(Counting):
        def answer(self, question: Question) -> Verdict:
            truth = super().answer(question)
            return SAME if set(question.images) == {2, 3} else truth

    annotator = Mistaken(identities)
    # Without inference every pair is asked about, also those that the closure would decide.
    every = Asker(annotator, closure="none")
    every.begin(1)
    for i, j in [(0, 1), (1, 2), (0, 2), (2, 3), (0, 3), (1, 3)]:
        every.ask(Question.about_images(i, j, "split", 0.5))
    every.end()
    asker = Asker(annotator, every.ledger, expected_error=0.05)
    asker.begin(1)
    asker.weigh(lambda i, j: 0.0)
    assert asker.closure.verdict(2, 3) is DIFFERENT
    assert asker.closure.verdict(0, 2) is SAME
    assert asker.spent.doubted == 1
    assert not asker.can_ask(2, 3)
    assert len(asker.ledger.answers()) == 6
    asked = len(annotator.asked)
    assert asker.ask(Question.about_images(2, 3, "merge", 0.5)) is DIFFERENT
    assert len(annotator.asked) == asked


def test_refined_labels_do_not_follow_a_doubted_answer() -> None:
    features, identities, labels = crowded()
    config = QuestionConfig(per_epoch=100, k_max_rule="root")
    believing = Asker(Oracle(identities, error=0.1, seed=1))
    weighing_ = Asker(Oracle(identities, error=0.1, seed=1), expected_error=0.1)
    scores = []
    for asker in (believing, weighing_):
        refined = labels
        for epoch in range(1, 6):
            refined, spent = refine(features, refined, asker, "gain", config, epoch)
        scores.append(pair_scores(refined, identities).f1)
    assert spent.doubted > 0
    assert scores[1] > scores[0]


def test_questions_end_when_their_minutes_are_over() -> None:
    annotator = Oracle(torch.arange(9), seconds=4)
    asker = Asker(annotator, minutes=0.5)
    asker.begin(1)
    for j in range(1, 6):
        asker.ask(Question.about_images(0, j, "merge", 0.5))
    asker.end()
    asker.begin(2)
    # The 8th answer, after 28 seconds, is the last.
    for j in range(2, 5):
        asker.ask(Question.about_images(1, j, "merge", 0.5))
    ninth = Question.about_images(1, 5, "merge", 0.5)
    with pytest.raises(OutOfQuestions):
        asker.ask(ninth)
    assert asker.end().seconds == 12
    assert asker.asked == 8


def test_observations_are_kept_when_the_round_ends() -> None:
    asker = Asker(Oracle(torch.arange(4)))
    asker.begin(3)
    asker.observe("merge", [0.5, -1], 1)
    assert asker.observations == {}
    asker.begin(3)  # The round begins again.
    asker.observe("merge", [0.25, 2], 0)
    asker.end()
    assert asker.observations == {"merge": [(3, (0.25, 2.0), 0.0)]}
    other = Asker(Oracle(torch.arange(4)))
    other.load_state_dict(asker.state_dict())
    assert other.observations == asker.observations
    with pytest.raises(ValueError, match="inputs: got nan"):
        asker.observe("merge", [math.nan], 1)
    state = {**asker.state_dict(), "observations": {"merge": [[3, 0.5, 7]]}}
    with pytest.raises(ValueError, match="observations: got 7"):
        other.load_state_dict(state)


def test_a_state_without_observations_is_read() -> None:
    asker = Asker(Oracle(torch.arange(4)))
    asker.load_state_dict({"position": 0, "asked": 3, "seconds": 1.5})
    assert asker.observations == {}
    assert asker.asked == 3


def test_an_expected_error_outside_0_to_1_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected_error: got 1\.5"):
        Asker(Oracle(torch.zeros(2, dtype=torch.int64)), expected_error=1.5)


def test_an_annotator_without_answers_is_taken_to_err_once_in_fifty() -> None:
    annotator = Counting(torch.tensor([0] * 6))
    asker = Asker(annotator, expected_error=None)
    asker.begin(1)
    asker.weigh(lambda i, j: -4.0)
    question = Question((0, 3), (torch.arange(3), torch.arange(3, 6)), "merge", 0.9, 1.0)
    assert asker.ask(question) is SAME
    assert len(annotator.asked) == 2


@pytest.mark.parametrize("closure", ["transitive", "none"])
def test_images_of_a_track_stay_together_and_yield_to_answers(closure: str) -> None:
    features, identities, labels = crowded()
    tracks = torch.full_like(identities, -1)
    tracks[:6] = torch.tensor([0, 0, 0, 1, 1, -1])
    ledger = Ledger.open("sqlite://")
    asker = Asker(Oracle(identities), ledger, closure=closure, tracks=tracks)
    refined = refine(features, labels, asker, "random", QuestionConfig(per_epoch=0)).labels
    assert len(set(refined[:3].tolist())) == len(set(refined[3:5].tolist())) == 1
    put(ledger, 0, 1, DIFFERENT)
    refined = refine(features, labels, asker, "random", QuestionConfig(per_epoch=0)).labels
    assert refined[0] != refined[1] == refined[2]


def test_nobody_is_asked_about_two_images_of_a_track() -> None:
    features, identities, labels = crowded()
    annotator = Counting(identities)
    tracks = torch.where(torch.arange(len(labels)) % 2 == 0, identities, -1)
    asker = Asker(annotator, tracks=tracks)
    refine(features, labels, asker, "gain", QuestionConfig(per_epoch=60))
    assert annotator.asked
    assert not any(tracks[a] == tracks[b] >= 0 for a, b in annotator.asked)
