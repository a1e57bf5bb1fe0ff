"""One round of questions: budgets, answers, resumed rounds, and the labels that they lead to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastreid_al.active import refine
from fastreid_al.active.partition import Partition
from fastreid_al.annotators import Oracle
from fastreid_al.answers import (
    Asker,
    Ledger,
    NoAnswer,
    Question,
    QuitAsking,
    Verdict,
)
from fastreid_al.config import QuestionConfig
from fastreid_al.metrics import pair_scores
from tests.support.asking import Counting, crowded
from tests.support.features import clustered_features

SAME, DIFFERENT, UNSURE = Verdict.SAME, Verdict.DIFFERENT, Verdict.UNSURE
STRATEGIES = ("ucal", "gain", "spal", "random")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_pair_is_asked_twice_over_many_rounds_nor_one_that_the_answers_imply(
    strategy: str,
) -> None:
    features, identities, labels = crowded()

    class Strict(Counting):
        def answer(self, question: Question) -> Verdict:
            assert asker.closure.verdict(*question.images) is None
            return super().answer(question)

    annotator = Strict(identities)
    asker = Asker(annotator)
    for epoch in range(4):
        refine(
            features,
            labels,
            asker,
            strategy,
            QuestionConfig(per_epoch=60, k_max_rule="root"),
            epoch,
        )
    assert annotator.asked
    assert len(annotator.asked) == len(set(annotator.asked)) == asker.asked


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("closure", ["transitive", "none"])
def test_with_a_perfect_oracle_the_labels_contradict_no_answer(strategy: str, closure: str) -> None:
    features, identities, labels = crowded()
    asker = Asker(Oracle(identities), closure=closure)
    refined, spent = refine(
        features, labels, asker, strategy, QuestionConfig(per_epoch=150, k_max_rule="root")
    )
    assert 0 < spent.questions <= 150
    assert sum(spent.verdicts.values()) == spent.questions
    if closure == "transitive":
        for answer in asker.ledger.answers():
            together = refined[answer.left] == refined[answer.right] >= 0
            assert bool(together) == (answer.verdict is SAME)


@pytest.mark.parametrize("strategy", ["ucal", "gain"])
def test_questions_make_the_clusters_better_and_gain_more_than_random_pairs(strategy: str) -> None:
    features, identities, labels = crowded()
    config = QuestionConfig(per_epoch=120, k_max_rule="root", merge_share=1.0)
    before = pair_scores(labels, identities).f1
    after = pair_scores(
        refine(features, labels, Asker(Oracle(identities)), strategy, config).labels, identities
    ).f1
    random = pair_scores(
        refine(features, labels, Asker(Oracle(identities)), "random", config).labels, identities
    ).f1
    assert after > before + 0.1
    assert after > random + 0.1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_budgets_hold_in_a_round_and_in_all(strategy: str) -> None:
    features, identities, labels = crowded()
    annotator = Counting(identities)
    asker = Asker(annotator, budget=25)
    spent = [
        refine(
            features,
            labels,
            asker,
            strategy,
            QuestionConfig(per_epoch=10, k_max_rule="root"),
            epoch,
        )[1].questions
        for epoch in range(4)
    ]
    assert spent == [10, 10, 5, 0]
    assert len(annotator.asked) == 25 == asker.asked


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_budget_of_nothing_asks_nothing_and_leaves_the_clusters(strategy: str) -> None:
    features, identities, labels = crowded()
    refined, spent = refine(features, labels, Asker(Oracle(identities), budget=0), strategy)
    assert spent.questions == 0
    assert torch.equal(refined, Partition(labels).labels())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_someone_who_is_always_unsure_changes_nothing(strategy: str) -> None:
    features, identities, labels = crowded()
    asker = Asker(Oracle(identities, unsure=1.0))
    refined, spent = refine(
        features, labels, asker, strategy, QuestionConfig(per_epoch=100, k_max_rule="root")
    )
    assert spent.questions > 0
    assert spent.verdicts["unsure"] == spent.questions
    assert torch.equal(refined, Partition(labels).labels())


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    "labels", [torch.full((12,), -1), torch.zeros(12, dtype=torch.int64), torch.arange(12) // 6]
)
def test_few_or_no_clusters_are_no_trouble(strategy: str, labels: Tensor) -> None:
    features = torch.from_numpy(clustered_features(12, 3)).float()
    refined, _ = refine(features, labels, Asker(Oracle(torch.arange(12) // 4)), strategy)
    assert refined.shape == (12,)


def test_ucal_stops_merging_at_its_share_of_the_clusters() -> None:
    features, identities, labels = crowded()
    clusters = int(labels.max()) + 1

    def merged(share: float) -> int:
        # k_max of the paper splits no cluster of this size, so clusters only merge.
        config = QuestionConfig(merge_share=share)
        refined = refine(features, labels, Asker(Oracle(identities)), "ucal", config).labels
        return clusters - (int(refined.max()) + 1)

    assert merged(0.05) == 2
    assert merged(0.0) == 0
    assert merged(1.0) > 4


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_round_that_was_broken_off_goes_on_where_it_stood_and_ends_in_the_same_labels(
    strategy: str, tmp_path: Path
) -> None:
    features, identities, labels = crowded()
    config = QuestionConfig(per_epoch=80, k_max_rule="root")
    whole = refine(features, labels, Asker(Oracle(identities)), strategy, config)

    class Leaving(Counting):
        def answer(self, question: Question) -> Verdict:
            if len(self.asked) == 33:
                raise QuitAsking
            return super().answer(question)

    first, second = Leaving(identities), Counting(identities)
    with Ledger.open(str(tmp_path / "a.sqlite")) as ledger, pytest.raises(QuitAsking):
        refine(features, labels, Asker(first, ledger, run="mine"), strategy, config)
    with Ledger.open(str(tmp_path / "a.sqlite")) as ledger:
        asker = Asker(second, ledger, run="mine")
        refined, spent = refine(features, labels, asker, strategy, config)
    assert torch.equal(refined, whole.labels)
    assert spent.questions == whole.spent.questions == asker.asked
    assert len(first.asked) == 33
    assert len(second.asked) == whole.spent.questions - 33
    assert not set(first.asked) & set(second.asked)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_annotator_may_pass_and_nothing_is_recorded_or_spent(strategy: str) -> None:
    features, identities, labels = crowded()

    class Passing(Counting):
        def answer(self, question: Question) -> Verdict:
            if sum(question.images) % 2:
                raise NoAnswer
            return super().answer(question)

    annotator = Passing(identities)
    asker = Asker(annotator)
    _, spent = refine(
        features, labels, asker, strategy, QuestionConfig(per_epoch=30, k_max_rule="root")
    )
    assert 0 < spent.questions == len(annotator.asked) == len(asker.ledger.answers()) <= 30


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_papers_memory_changes_the_labels_too_and_asks_no_pair_twice(strategy: str) -> None:
    features, identities, labels = crowded()
    annotator = Counting(identities)
    asker = Asker(annotator, closure="none")
    for epoch in range(3):
        refined = refine(
            features,
            labels,
            asker,
            strategy,
            QuestionConfig(per_epoch=200, k_max_rule="root"),
            epoch,
        ).labels
    assert len(annotator.asked) == len(set(annotator.asked))
    assert not torch.equal(refined, Partition(labels).labels())
    assert pair_scores(refined, identities).f1 > pair_scores(labels, identities).f1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_over_many_rounds_no_answer_contradicts_the_labels(strategy: str) -> None:
    features, identities, labels = crowded(seed=3)
    asker = Asker(Oracle(identities))
    for epoch in range(4):
        refined = refine(
            features,
            labels,
            asker,
            strategy,
            QuestionConfig(per_epoch=60, k_max_rule="root"),
            epoch,
        ).labels
        for answer in asker.ledger.answers():
            assert bool(refined[answer.left] == refined[answer.right] >= 0) == (
                answer.verdict is SAME
            )


@pytest.mark.parametrize("strategy", ["ucal", "gain"])
def test_what_a_round_merged_stays_merged_at_its_end(strategy: str) -> None:
    features, identities, labels = crowded()
    asker = Asker(Oracle(identities))
    config = QuestionConfig(per_epoch=60, k_max_rule="root", merge_share=1.0)
    for epoch in range(3):
        refined = refine(features, labels, asker, strategy, config, epoch).labels
        merged = asker.current_labels()
        assert int(merged.max()) < int(labels.max())
        assert torch.equal(refined, merged)
