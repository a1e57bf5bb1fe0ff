"""The gain strategy: what it asks, what its answers change, and what it learns from them."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from fastreid_al.active import refine
from fastreid_al.annotators import Oracle
from fastreid_al.answers import Asker, Ledger, Question, Verdict
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
