"""Clusters are split and merged so that no answer contradicts them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastreid_al.active.partition import (
    Follow,
    Partition,
    apply_answers,
    join_groups,
    join_images,
)
from fastreid_al.answers import (
    Closure,
    Verdict,
)
from fastreid_al.answers.question import Answer
from fastreid_al.metrics import pair_scores
from fastreid_al.synthetic.features import planted_partition
from tests.support.answered_labels import labels_by_answers
from tests.support.features import clustered_features

SAME, DIFFERENT, UNSURE = Verdict.SAME, Verdict.DIFFERENT, Verdict.UNSURE


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


def random_answers(seed: int, identities: Tensor, count: int) -> list[Answer]:
    """True answers about random pairs, half of them "same" where there are enough."""
    random = np.random.default_rng(seed)
    answers = []
    for event in range(1, count + 1):
        a, b = random.choice(len(identities), 2, replace=False).tolist()
        if random.random() < 0.5:
            others = (identities == identities[a]).nonzero()[:, 0].tolist()
            b = int(random.choice(others))
        if a != b:
            verdict = SAME if identities[a] == identities[b] else DIFFERENT
            answers.append(Answer(event, a, b, verdict))
    return answers


@pytest.mark.parametrize("follow", ["all", "compact"])
@pytest.mark.parametrize("count", [5, 30, 120])
@pytest.mark.parametrize("seed", range(8))
def test_labels_are_those_of_a_slow_form(seed: int, count: int, follow: Follow) -> None:
    features, identities, _ = planted_partition(90, 16, sizes=(3, 12), spread=1.0, seed=seed)
    random = np.random.default_rng(seed)
    # Clusters that mix and divide identities.
    labels = identities // 2 + 40 * torch.from_numpy(random.integers(2, size=90))
    labels[torch.from_numpy(random.random(90) < 0.1)] = -1
    closure = Closure.replay(random_answers(seed, identities, count))

    def known(a: int, b: int) -> bool | None:
        verdict = closure.verdict(a, b)
        return None if verdict is None else verdict is SAME

    after = apply_answers(features, labels, closure, follow=follow)
    found = [set((after == c).nonzero()[:, 0].tolist()) for c in range(int(after.max()) + 1)]
    expected = labels_by_answers(features.numpy(), labels.numpy(), known, follow)
    assert found == expected


def test_an_old_same_moves_its_images_and_leaves_the_rest_of_a_mixed_cluster() -> None:
    # Two directions, and two clusters that hold images of both.
    directions = torch.eye(4)[[0, 0, 0, 1, 1, 1, 0, 0, 1, 1]]
    features = torch.nn.functional.normalize(directions + 0.01 * torch.eye(10, 4), dim=1)
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1, 1])
    closure = Closure.replay([Answer(1, 0, 6, SAME), Answer(2, 1, 6, SAME)])
    after = apply_answers(features, labels, closure)
    assert after.tolist() == [0, 0, 0, 0, 0, 0, 0, 1, 1, 1]
    assert apply_answers(features, labels, closure, follow="all").tolist() == [0] * 10


@pytest.mark.parametrize("follow", ["all", "compact"])
def test_an_old_same_of_central_images_merges_compact_clusters(follow: Follow) -> None:
    features = torch.eye(4)[[0, 0, 0, 1, 1, 1, 2, 2, 2]]
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    closure = Closure.replay([Answer(1, 2, 4, SAME)])
    after = apply_answers(features, labels, closure, follow=follow)
    assert after.tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 1]


def test_an_image_outside_every_cluster_joins_the_cluster_of_its_partner() -> None:
    labels = torch.tensor([0, 0, 0, -1, -1])
    after = apply_answers(torch.eye(5), labels, Closure.replay([Answer(1, 3, 1, SAME)]))
    assert after.tolist() == [0, 0, 0, 0, -1]


@pytest.mark.parametrize("follow", ["all", "compact"])
def test_the_order_of_same_answers_does_not_matter(follow: Follow) -> None:
    features, identities, _ = planted_partition(120, 16, sizes=(3, 12), spread=1.2, seed=2)
    labels = (identities + torch.arange(120) // 40) // 2
    answers = [a for a in random_answers(3, identities, 90) if a.verdict is SAME]
    expected = apply_answers(features, labels, Closure.replay(answers), follow=follow)
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(len(answers)).tolist()
        closure = Closure.replay([answers[at] for at in order])
        assert torch.equal(apply_answers(features, labels, closure, follow=follow), expected)


def test_true_links_lower_the_precision_of_few_clusterings_and_by_little() -> None:
    kept = []
    for seed in range(120):
        random = np.random.default_rng(seed)
        features, identities, _ = planted_partition(200, 24, sizes=(4, 16), spread=1.2, seed=seed)
        labels = identities.clone()
        moved = torch.from_numpy(random.random(200) < (0.3, 0.6, 0.9)[seed % 3])
        labels[moved] = torch.from_numpy(random.integers(20, size=200))[moved]
        count = 2 * int(random.integers(1, 81))
        links = [a for a in random_answers(seed, identities, count) if a.verdict is SAME]
        before = pair_scores(labels, identities)
        after = pair_scores(apply_answers(features, labels, Closure.replay(links)), identities)
        kept.append((after.precision / before.precision, after.f1 / before.f1))
    precision, f1 = np.array(kept).T
    assert precision.min() >= 0.75 and np.mean(precision >= 0.97) >= 0.97
    assert f1.min() >= 0.85 and np.mean(f1 >= 0.97) >= 0.97


@pytest.mark.parametrize("seed", range(8))
def test_groups_are_joined_as_in_a_slow_form_and_move_no_other_image(seed: int) -> None:
    features, identities, cameras = planted_partition(90, 16, sizes=(3, 12), spread=1.0, seed=seed)
    random = np.random.default_rng(seed)
    labels = torch.from_numpy(random.integers(-1, 25, size=90))
    groups = identities * int(cameras.max() + 1) + cameras
    groups[torch.from_numpy(random.random(90) < 0.3)] = -1

    def known(a: int, b: int) -> bool | None:
        return True if groups[a] == groups[b] >= 0 else None

    after = join_images(features, labels, groups)
    found = [set((after == c).nonzero()[:, 0].tolist()) for c in range(int(after.max()) + 1)]
    assert found == labels_by_answers(features.numpy(), labels.numpy(), known, follow="none")
    before = Partition(labels).labels()
    rest = ((groups < 0) & (after >= 0)).nonzero()[:, 0].tolist()
    assert all((after[a] == after[b]) == (before[a] == before[b]) for a in rest for b in rest)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.3, 0.6, 0.9]))
def test_true_tracks_hardly_lower_the_precision_of_any_clustering(seed: int, mixed: float) -> None:
    features, identities, cameras = planted_partition(200, 24, sizes=(4, 16), seed=seed)
    random = np.random.default_rng(seed)
    labels = identities.clone()
    moved = torch.from_numpy(random.random(200) < mixed)
    labels[moved] = torch.from_numpy(random.integers(20, size=200))[moved]
    tracks = identities * int(cameras.max() + 1) + cameras
    before = pair_scores(labels, identities)
    after = pair_scores(join_images(features, labels, tracks), identities)
    assert after.precision >= 0.97 * before.precision
    assert after.f1 >= 0.97 * before.f1


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
    assert join_groups(3, verdicts, {(0, 1): 0.5, (0, 2): 0.6, (1, 2): 0.7}) == expected
