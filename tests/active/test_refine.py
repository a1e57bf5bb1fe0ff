"""One round of questions: who is asked what, what it does to the labels, and that nothing is asked twice or lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastreid_al.active import refine
from fastreid_al.active.partition import Partition, apply_answers, settle
from fastreid_al.active.strategies.random_pairs import random_pairs
from fastreid_al.active.strategies.spal import farthest_and_nearest_pairs
from fastreid_al.annotators import Oracle
from fastreid_al.answers import (
    Asker,
    Closure,
    Ledger,
    NoAnswer,
    Question,
    QuitAsking,
    UndoLast,
    Verdict,
)
from fastreid_al.answers.asker import OutOfQuestions
from fastreid_al.answers.question import Answer
from fastreid_al.config import QuestionConfig
from fastreid_al.metrics import pair_scores
from tests.support.features import clustered_features

SAME, DIFFERENT, UNSURE = Verdict.SAME, Verdict.DIFFERENT, Verdict.UNSURE
STRATEGIES = ("ucal", "gain", "spal", "random")


def crowded(n: int = 400, people: int = 20, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Features of people seen in two clouds each, their identities, and clusters that split and mix them."""
    random = np.random.default_rng(seed)
    clouds = clustered_features(2 * people, 2 * people, 16, 0.0, seed)
    identities = random.integers(people, size=n)
    cloud = 2 * identities + random.integers(2, size=n)
    # The two clouds of a person lie near each other, those of neighbours nearly as near.
    centres = (
        clouds[cloud] + 1.2 * clustered_features(people, people, 16, 0.0, seed + 1)[identities]
    )
    features = centres + 0.5 * random.normal(size=(n, 16)) / 4
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    labels = cloud.copy()
    mixed = random.random(n) < 0.15
    labels[mixed] = (labels[mixed] + 2) % (2 * people)
    labels[random.random(n) < 0.1] = -1
    return (
        torch.from_numpy(features).float(),
        torch.from_numpy(identities),
        torch.from_numpy(labels),
    )


class Counting:
    """An oracle that remembers what it was asked."""

    name = "counting"

    def __init__(self, identities: Tensor, **rates: float) -> None:
        self.oracle, self.asked = Oracle(identities, **rates), []

    def answer(self, question: Question) -> Verdict:
        self.asked.append(tuple(sorted(question.images)))
        return self.oracle.answer(question)


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


@st.composite
def answered_labels(draw: st.DrawFn) -> tuple[list[Answer], Tensor]:
    images = 12
    pair = st.tuples(st.integers(0, images - 1), st.integers(0, images - 1)).filter(
        lambda p: p[0] != p[1]
    )
    answers = draw(st.lists(st.tuples(pair, st.sampled_from([SAME, DIFFERENT])), max_size=20))
    labels = draw(st.lists(st.integers(-1, 3), min_size=images, max_size=images))
    return [Answer(i + 1, *p, v) for i, (p, v) in enumerate(answers)], torch.tensor(labels)


@settings(max_examples=300, deadline=None)
@given(answered_labels())
def test_memory_brings_together_what_is_the_same_and_sets_apart_what_is_different(
    given_: tuple[list[Answer], Tensor],
) -> None:
    answers, labels = given_
    features = torch.from_numpy(clustered_features(12, 4)).float()
    closure = Closure.replay(answers)
    after = apply_answers(features, labels, closure)
    for a in range(12):
        for b in range(a):
            together = bool(after[a] == after[b] >= 0)
            if closure.verdict(a, b) is SAME:
                assert together
            if closure.verdict(a, b) is DIFFERENT:
                assert not together
    if not answers:
        assert torch.equal(after, Partition(labels).labels())


def test_an_image_that_would_bring_enemies_together_moves_alone() -> None:
    features = torch.from_numpy(clustered_features(6, 2)).float()
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    # 0 and 3 are different, 1 and 4 the same: 4 moves to 1, the clusters stay.
    closure = Closure.replay([Answer(1, 0, 3, DIFFERENT), Answer(2, 1, 4, SAME)])
    assert apply_answers(features, labels, closure).tolist() in (
        [0, 0, 0, 1, 0, 1],
        [0, 1, 0, 1, 1, 1],
    )


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ({}, [0, 0, 0]),
        ({(0, 1): DIFFERENT, (0, 2): DIFFERENT, (1, 2): DIFFERENT}, [0, 1, 2]),
        ({(0, 1): SAME, (0, 2): DIFFERENT, (1, 2): DIFFERENT}, [0, 0, 2]),
        ({(0, 1): DIFFERENT}, [0, 1, 1]),
        ({(0, 1): DIFFERENT, (0, 2): SAME}, [0, 1, 0]),
        ({(0, 1): UNSURE, (0, 2): UNSURE, (1, 2): UNSURE}, [0, 0, 0]),
        ({(0, 1): SAME, (1, 2): SAME, (0, 2): DIFFERENT}, [0, 1, 1]),
    ],
)
def test_groups_part_only_where_someone_said_different(
    verdicts: dict[tuple[int, int], Verdict], expected: list[int]
) -> None:
    assert settle(3, verdicts, {(0, 1): 0.5, (0, 2): 0.6, (1, 2): 0.7}) == expected


def test_spal_pairs_are_the_farthest_inside_and_the_nearest_outside() -> None:
    features, _, labels = crowded(120)
    found = {(q.reason, q.images) for q in farthest_and_nearest_pairs(features, labels)}
    similarity = (features.double() @ features.double().T).numpy()
    np.fill_diagonal(similarity, np.nan)
    expected = set()
    for i in range(120):
        inside = (labels == labels[i]).numpy() & (int(labels[i]) >= 0)
        inside[i] = False
        outside = ~inside
        outside[i] = False
        if inside.any():
            j = int(np.where(inside, similarity[i], np.inf).argmin())
            expected.add(("split", (min(i, j), max(i, j))))
        j = int(np.where(outside, similarity[i], -np.inf).argmax())
        expected.add(("merge", (min(i, j), max(i, j))))
    assert found == expected


def test_random_pairs_are_the_same_for_a_seed_and_never_an_image_with_itself() -> None:
    pairs = random_pairs(50, 200, seed=3)
    assert pairs == random_pairs(50, 200, seed=3)
    assert all(a < b for a, b in pairs)
    assert random_pairs(1, 5, 0) == []


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


def test_gain_asks_until_no_merge_is_left() -> None:
    features, identities, labels = crowded(seed=5)
    asker = Asker(Oracle(identities))
    refined = refine(features, labels, asker, "gain", QuestionConfig()).labels
    assert pair_scores(refined, identities).recall > 0.99
