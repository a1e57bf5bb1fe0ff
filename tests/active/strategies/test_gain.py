"""The gain strategy: what it asks, what its answers change, and what it learns from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from fastreid_al.active import refine
from fastreid_al.annotators import Oracle
from fastreid_al.answers import Asker, Ledger, Question, Verdict
from fastreid_al.answers.asker import CurrentLabels
from fastreid_al.clustering import average_linkage, jaccard_graph
from fastreid_al.config import QuestionConfig
from fastreid_al.metrics import cluster_scores, pair_scores
from tests.support.asking import crowded


class Recording:
    """An oracle that keeps the questions."""

    name = "recording"

    def __init__(self, identities: Tensor, **rates: float) -> None:
        self.oracle = Oracle(identities, **rates)
        self.asked: list[Question] = []

    def answer(self, question: Question) -> Verdict:
        self.asked.append(question)
        return self.oracle.answer(question)


def linked(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features, identities, and clusters of average linkage."""
    features, identities, _ = crowded(seed=seed)
    return features, identities, average_linkage(jaccard_graph(features, 20, 6, 0.9), 0.3).labels


def ask(
    budget: int, seed: int = 0, aim: Literal["classes", "pairs"] = "pairs", **settings: float
) -> tuple[Tensor, Tensor, Tensor, Recording]:
    features, identities, labels = linked(seed)
    annotator = Recording(identities, **settings)
    asker = Asker(annotator, seed=seed)
    refined = refine(
        features, labels, asker, "gain", QuestionConfig(per_epoch=budget, aim=aim)
    ).labels
    return labels, refined, identities, annotator


@pytest.mark.parametrize("seed", range(3))
def test_answers_improve_the_clusters(seed: int) -> None:
    before, after, identities, annotator = ask(60, seed)
    assert len(annotator.asked) == 60
    assert pair_scores(after, identities).f1 > pair_scores(before, identities).f1 + 0.03


@pytest.mark.parametrize("seed", range(3))
def test_merges_alone_make_classes_complete(seed: int) -> None:
    before, after, identities, annotator = ask(60, seed, "classes")
    assert {question.reason for question in annotator.asked} == {"merge"}
    whole = cluster_scores(after, identities).class_completeness
    assert whole is not None
    assert whole > (cluster_scores(before, identities).class_completeness or 0) + 0.05


def test_splits_and_merges_are_asked_about() -> None:
    *_, annotator = ask(80)
    assert {question.reason for question in annotator.asked} == {"split", "merge"}
    for question in annotator.asked:
        first, second = (set(group.tolist()) for group in question.groups)
        assert not first & second
        assert question.images[0] in first
        assert question.images[1] in second
        assert question.score > 0


def test_no_pair_is_asked_about_twice() -> None:
    *_, annotator = ask(300)
    pairs = [tuple(sorted(question.images)) for question in annotator.asked]
    assert len(set(pairs)) == len(pairs)


def test_gain_goes_on_with_a_confirmation_that_the_budget_broke_off() -> None:
    features = torch.nn.functional.normalize(
        torch.tensor([[1.0, 0.1], [1, 0.12], [1, 0.14], [1, -0.1], [1, -0.12]]), dim=1
    )
    labels, identities = torch.tensor([0, 0, 0, 1, 1]), torch.zeros(5, dtype=torch.int64)
    asker = Asker(Oracle(identities), confirm_merges=1)
    assert refine(features, labels, asker, "gain", QuestionConfig(per_epoch=1)).labels.tolist() == [
        0,
        0,
        0,
        1,
        1,
    ]
    assert (
        refine(features, labels, asker, "gain", QuestionConfig(per_epoch=1)).labels.tolist()
        == [0] * 5
    )


def test_it_asks_until_nothing_is_left() -> None:
    before, after, identities, annotator = ask(5000)
    assert len(annotator.asked) < 5000
    scores = pair_scores(after, identities)
    assert scores.precision > pair_scores(before, identities).precision
    assert scores.recall > 0.9


def test_unsure_answers_change_nothing_and_are_not_repeated() -> None:
    before, after, _, annotator = ask(200, unsure=1.0)
    assert torch.equal(before, after)
    pairs = [tuple(sorted(question.images)) for question in annotator.asked]
    assert len(set(pairs)) == len(pairs) > 50


def test_later_rounds_learn_from_earlier_ones() -> None:
    features, identities, labels = linked(0)
    asker = Asker(Recording(identities))
    config = QuestionConfig(per_epoch=30)
    refine(features, labels, asker, "gain", config, epoch=1)
    learnt = {name: len(rows) for name, rows in asker.observations.items()}
    assert sum(learnt.values()) == 30
    copy = Asker(Recording(identities), asker.ledger, run=asker.run)
    copy.load_state_dict(asker.state_dict())
    assert copy.observations == asker.observations
    # The next round of both asks the same, and learns the same.
    one = refine(features, labels, asker, "gain", config, epoch=2)
    state = asker.state_dict()
    assert len(asker.ledger.answers()) == 60
    assert sum(len(rows) for rows in state["observations"].values()) == 60
    assert one.spent.questions == 30


def test_a_round_that_was_interrupted_goes_on_with_the_same_questions() -> None:
    features, identities, labels = linked(1)
    config = QuestionConfig(per_epoch=40)
    whole = Asker(Recording(identities), run="a")
    expected = refine(features, labels, whole, "gain", config).labels
    questions = [answer[1:4] for answer in whole.ledger.answers()]

    ledger = Ledger.open("sqlite://")
    for answer in whole.ledger.answers()[:17]:
        ledger.append(
            answer.left,
            answer.right,
            answer.verdict,
            annotator="counting",
            asked_at=0,
            answered_at=0,
            epoch=0,
            reason="merge",
            run="a",
        )
    resumed = Asker(Recording(identities), ledger, run="a")
    got = refine(features, labels, resumed, "gain", config).labels
    assert torch.equal(got, expected)
    assert [answer[1:4] for answer in ledger.answers()] == questions


def test_the_outlook_falls_to_nothing_as_questions_are_answered() -> None:
    features, identities, labels = linked(0)
    asker = Asker(Recording(identities))
    shares = []
    for epoch in range(1, 6):
        labels = refine(features, labels, asker, "gain", QuestionConfig(per_epoch=60), epoch)[0]
        assert asker.outlook is not None
        shares.append(asker.outlook.share)
    assert shares[0] > 0.02
    assert shares[-1] < 0.05


def test_an_unlikely_merge_needs_answers_that_agree_where_answers_may_be_wrong() -> None:
    features, identities, labels = linked(2)
    annotator = Recording(identities)
    asker = Asker(annotator, expected_error=0.2)
    refine(features, labels, asker, "gain", QuestionConfig(per_epoch=80))
    reasons = [event.reason for event in asker.ledger.events()]
    assert "confirm" in reasons


@pytest.mark.parametrize("error", [0.0, 0.05])
def test_where_answers_may_be_wrong_images_like_the_shown_one_come_next(error: float) -> None:
    features, identities, labels = linked(2)
    annotator = Recording(identities)
    asker = Asker(annotator, expected_error=error)
    refine(features, labels, asker, "gain", QuestionConfig(per_epoch=40))
    groups = [group for question in annotator.asked for group in question.groups]
    likeness = [features[group[1:]] @ features[group[0]] for group in groups if len(group) > 3]
    assert likeness
    assert all(bool((values.diff() < 1e-6).all()) for values in likeness) == (error > 0)


class Sheets(Recording):
    """A recording oracle that answers sheets, too."""

    def __init__(self, identities: Tensor) -> None:
        super().__init__(identities)
        self.sheets: list[list[Question]] = []

    def answer_sheet(self, questions: Sequence[Question]) -> list[Verdict]:
        self.sheets.append(list(questions))
        return [self.oracle.answer(question) for question in questions]


def ask_sheets(budget: int, sheet: int, seed: int = 0) -> tuple[Sheets, Tensor]:
    features, identities, labels = linked(seed)
    annotator = Sheets(identities)
    config = QuestionConfig(per_epoch=budget, sheet=sheet)
    return annotator, refine(features, labels, Asker(annotator), "gain", config).labels


def test_merges_of_a_cluster_are_asked_about_on_sheets() -> None:
    annotator, labels = ask_sheets(120, 6)
    assert annotator.sheets
    for questions in annotator.sheets:
        assert 2 <= len(questions) <= 6
        assert len({question.images[0] for question in questions}) == 1
        assert {question.reason for question in questions} == {"merge"}
        scores = [question.score for question in questions]
        assert scores == sorted(scores, reverse=True)
        groups = [set(questions[0].groups[0].tolist())]
        groups += [set(question.groups[1].tolist()) for question in questions]
        assert len(set.union(*groups)) == sum(map(len, groups))
    answers = len(annotator.asked) + sum(map(len, annotator.sheets))
    assert answers == 120
    assert {question.reason for question in annotator.asked} >= {"split"}
    _, identities, before = linked(0)
    assert pair_scores(labels, identities).f1 > pair_scores(before, identities).f1 + 0.03


def test_sheets_of_one_are_pairs() -> None:
    annotator, labels = ask_sheets(60, 1)
    assert annotator.sheets == []
    _, of_pairs, _, recording = ask(60)
    assert [q.images for q in annotator.asked] == [q.images for q in recording.asked]
    assert torch.equal(labels, of_pairs)


def test_an_annotator_without_sheets_is_asked_about_the_same_pairs_with_any_setting() -> None:
    features, identities, labels = linked(0)
    asked = []
    for sheet in (1, 6):
        annotator = Recording(identities)
        config = QuestionConfig(per_epoch=60, sheet=sheet)
        refine(features, labels, Asker(annotator), "gain", config)
        asked.append([question.images for question in annotator.asked])
    assert asked[0] == asked[1]


def test_the_outlook_of_complete_classes_counts_the_clusters_that_will_merge() -> None:
    expected = merged = 0.0
    for seed in range(4):
        features, identities, labels = linked(seed)
        asker = Asker(Oracle(identities))
        outlooks = []

        def after_answer(
            questions: int, current: CurrentLabels, asker: Asker = asker, seen: Any = outlooks
        ) -> None:
            if questions in (21, 71):
                seen.append(asker.outlook)

        asker.after_answer = after_answer
        refine(features, labels, asker, "gain", QuestionConfig(per_epoch=71, aim="classes"))
        first, last = outlooks
        assert first.counts == last.counts == "clusters"
        assert first.questions == 50
        expected += first.changed
        merged += first.total - last.total
    # After the first twenty answers the expectation is right on average.
    assert 0.7 < merged / expected < 1.4


@pytest.mark.parametrize(
    ("rates", "closure"), [({"unsure": 0.5}, "transitive"), ({}, "transitive"), ({}, "none")]
)
@pytest.mark.parametrize("sheet", [1, 5])
def test_pairs_that_were_asked_about_do_not_fill_the_list_of_candidates(
    rates: dict[str, float],
    closure: Literal["transitive", "none"],
    sheet: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    for candidates in (3000, 15):
        monkeypatch.setattr("fastreid_al.active.strategies.gain._CANDIDATES", candidates)
        features, identities, labels = linked(0)
        asker = Asker(Oracle(identities, **rates), closure=closure)
        config = QuestionConfig(aim="classes", sheet=sheet)
        refine(features, labels, asker, "gain", config)
        asked.append(asker.asked)
        # Nothing is left to ask.
        assert asker.outlook is not None and asker.outlook.questions <= 5
    assert asked[1] > 0.8 * asked[0] > 40


class Judging(Oracle):
    """An oracle that judges thumbnails, takes sheets, and checks the groups that it is asked about.

    No group may hold images that are known to be different, by the answers before the question.
    """

    def __init__(self, identities: Tensor, error: float = 0.0) -> None:
        super().__init__(identities, error=error)
        self.asked: list[Question] = []
        self.asker: Asker | None = None

    def answer(self, question: Question) -> Verdict:
        if question.reason != "member":
            self.check(question)
        return super().answer(question)

    def check(self, question: Question) -> None:
        assert self.asker is not None
        self.asked.append(question)
        closure = self.asker.closure
        for group in question.groups:
            roots = {closure.root(row) for row in group.tolist()} - {None}
            for root in roots:
                assert root is not None
                assert not closure.cannot_links(root) & roots


def judged(
    features: Tensor, labels: Tensor, annotator: Judging, window: int = 1, **settings: Any
) -> Tensor:
    """Labels after a round with judged thumbnails."""
    annotator.asker = Asker(annotator, judge_members=True, window=window)
    return refine(features, labels, annotator.asker, "gain", QuestionConfig(**settings)).labels


def test_a_merge_leaves_the_images_that_were_marked_as_odd() -> None:
    # Two groups of one person; the first holds one image of somebody else, whose group is near.
    angles = [0, 2, 4, 6, 14, 8, 10, 12, 20, 22, 24]
    radians = torch.tensor(angles, dtype=torch.float32).deg2rad()
    features = torch.stack([radians.cos(), radians.sin()], dim=1)
    identities = torch.tensor([0, 0, 0, 0, 1, 0, 0, 0, 1, 1, 1])
    labels = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
    annotator = Judging(identities)
    refined = judged(features, labels, annotator)
    first, *later = annotator.asked
    assert set(first.groups[0].tolist()) == {0, 1, 2, 3, 4}
    assert set(first.groups[1].tolist()) == {5, 6, 7}
    # The odd image is asked about on its own, and joins the group that it belongs to.
    sides = [set(group.tolist()) for question in later for group in question.groups]
    assert {4} in sides
    assert all(4 not in side or side <= {4, 8, 9, 10} for side in sides)
    assert refined.tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("sheet", [1, 5])
@pytest.mark.parametrize("error", [0.0, 0.05])
def test_no_group_that_is_asked_about_holds_images_known_to_be_different(
    window: int, sheet: int, error: float
) -> None:
    # Every seventh image lies in the cluster of somebody else.
    features, identities, labels = crowded(seed=3)
    annotator = Judging(identities, error=error)
    settings = {"sheet": sheet, "per_epoch": 60}
    refined = judged(features, labels, annotator, window, **settings)
    assert len(annotator.asked) == 60
    assert annotator.asker is not None
    pairs = annotator.asker.closure.cannot_linked_images()
    marked = [(a, b) for a, b in pairs if labels[a] == labels[b] >= 0]
    assert marked
    assert all(refined[a] != refined[b] or refined[a] < 0 for a, b in marked)


def test_marks_are_used_whatever_the_question_itself_was_answered() -> None:
    # Two people, with an image of the second one in the group of the first.
    angles = [0, 2, 4, 12, 14, 16, 18]
    radians = torch.tensor(angles, dtype=torch.float32).deg2rad()
    features = torch.stack([radians.cos(), radians.sin()], dim=1)
    identities = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    annotator = Judging(identities)
    refined = judged(features, torch.tensor([0, 0, 0, 0, 1, 1, 1]), annotator)
    first, second = annotator.asked[:2]
    assert set(first.groups[0].tolist()) == {0, 1, 2, 3}
    assert {3} in [set(group.tolist()) for group in second.groups]
    assert refined.tolist() == [0, 0, 0, 1, 1, 1, 1]
