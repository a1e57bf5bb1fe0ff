"""The questions of MPPS against a slow reference, and what SNPS and MPPS have in common."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastreid_al.active import propose_merges, propose_splits
from fastreid_al.answers import Question
from tests.support.proposals import (
    Asked,
    asked,
    assert_falling,
    assert_same_splits,
    cloud,
    labels_of_sizes,
    quantised,
    sign_vectors,
)
from tests.support.references_active import reference_merges

Propose = Callable[[torch.Tensor, torch.Tensor], list[Question]]


def expected_merges(features: np.ndarray, labels: np.ndarray, **options: float) -> Asked:
    merges = reference_merges(features, labels, **options)
    members = {
        int(x): frozenset(np.flatnonzero(labels == x).tolist()) for x in set(labels.tolist())
    }
    return {
        frozenset(
            (row, members[cluster])
            for row, cluster in zip(merge.shown, merge.clusters, strict=True)
        )
        for merge in merges
    }


def assert_same_merges(
    features: np.ndarray, labels: np.ndarray, **options: float
) -> list[Question]:
    questions = propose_merges(torch.from_numpy(features), torch.from_numpy(labels), **options)
    assert asked(questions) == expected_merges(features, labels, **options)
    similarity = {
        frozenset(x.clusters): x.similarity for x in reference_merges(features, labels, **options)
    }
    for question in questions:
        clusters = frozenset(int(labels[row]) for row in question.images)
        assert question.reason == "merge"
        assert question.cluster == -1
        for group in question.groups:
            assert_falling(features[group.numpy()] @ features[group.numpy()].sum(0))
        assert question.similarity == pytest.approx(similarity[clusters], abs=1e-9)
        assert math.isfinite(question.score)
    return questions


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.integers(1, 12), max_size=14),
    noise=st.integers(0, 8),
    spread=st.sampled_from([0.2, 0.6, 2.0]),
    l_max=st.sampled_from([1, 2, 3, 5, 10, 50]),
    delta=st.sampled_from([0.0, 0.1, 0.3, 0.6, 0.95, 1.0]),
)
def test_merges_of_any_clustering(
    seed: int, sizes: list[int], noise: int, spread: float, l_max: int, delta: float
) -> None:
    rng = np.random.default_rng(seed)
    labels = labels_of_sizes(rng, sizes, noise)
    features = cloud(rng, len(labels), centres=5, noise=spread)
    assert_same_merges(features, labels, l_max=l_max, delta=delta)


@pytest.mark.parametrize("seed", range(5))
def test_merges_of_large_clusters(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = [1, 300, *rng.integers(1, 60, 20).tolist()]
    labels = labels_of_sizes(rng, sizes, noise=30)
    assert assert_same_merges(cloud(rng, len(labels), centres=7, noise=1.0), labels)


@pytest.mark.parametrize("seed", range(8))
def test_merges_with_clusters_that_are_there_twice(seed: int) -> None:
    """Each cluster has a copy, image by image: two centroids are one and the same, and so are their
    neighbours'.
    """
    rng = np.random.default_rng(seed)
    once = labels_of_sizes(rng, rng.integers(1, 7, 6).tolist(), noise=3)
    features = cloud(rng, len(once), centres=6, noise=0.5)
    twice = np.concatenate([once, np.where(once >= 0, once + 6, -1)])
    for l_max in (3, 10, 20):
        questions = assert_same_merges(np.concatenate([features, features]), twice, l_max=l_max)
        pairs = {frozenset(int(twice[row]) for row in question.images) for question in questions}
        assert {frozenset((x, x + 6)) for x in range(6)} <= pairs


@pytest.mark.parametrize("seed", range(4))
def test_merges_of_clusters_that_are_all_the_same(seed: int) -> None:
    """All gaps are equal, whatever the last digit of a dot product says."""
    rng = np.random.default_rng(seed)
    one = cloud(rng, 5, centres=1, noise=0.5, dim=37)
    assert_same_merges(np.concatenate([one] * 9), np.repeat(np.arange(9), 5))


def test_clusters_at_right_angles_have_equal_gaps() -> None:
    assert assert_same_merges(np.eye(6), np.arange(6)) == []


def test_opposite_clusters_count_as_unlike_not_as_less_than_that() -> None:
    """Similarities under 0 are 0: the only gaps are those above it."""
    angles = np.array([0.0, 0.3, 2.0, 3.0])
    features = quantised(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    assert_same_merges(features, np.arange(4))


@pytest.mark.parametrize("clusters", [0, 1, 2])
@pytest.mark.parametrize("noise", [0, 5])
def test_few_clusters_have_no_gap(clusters: int, noise: int) -> None:
    rng = np.random.default_rng(clusters)
    labels = labels_of_sizes(rng, [4] * clusters, noise)
    features = cloud(rng, len(labels), centres=2, noise=0.5)
    assert assert_same_merges(features, labels) == []
    assert assert_same_splits(features, labels, "paper") == []


def test_one_near_centroid_makes_one_question() -> None:
    """A large gap behind the first: the two alone are asked about, and once, though each finds the
    other.
    """
    features = quantised(np.array([[1.0, 0, 0, 0], [1, 0.1, 0, 0], [0.3, 0, 1, 0], [0.3, 0, 0, 1]]))
    labels = np.array([2, 0, 1, 3])
    questions = assert_same_merges(features, labels)
    assert frozenset(questions[0].images) == {0, 1} or any(
        frozenset(q.images) == {0, 1} for q in questions
    )


@pytest.mark.parametrize("seed", range(20))
def test_the_lowest_row_stands_for_a_cluster_of_equals(seed: int) -> None:
    """Two unit vectors are equally near their mean, and so are duplicates: the rounding must not
    choose.
    """
    rng = np.random.default_rng(seed)
    features = np.repeat(sign_vectors(rng, 10, 10, flips=0), 2, axis=0)
    other = rng.permutation(20)
    mixed = np.concatenate([sign_vectors(rng, 20, 20, flips=0), features[other]])
    labels = np.concatenate([np.repeat(np.arange(10), 2), np.repeat(np.arange(10, 20), 2)[other]])
    questions = propose_merges(torch.from_numpy(mixed), torch.from_numpy(labels))
    assert questions
    for question in questions:
        for image in question.images:
            assert image == np.flatnonzero(labels == labels[image])[0]


@pytest.mark.parametrize("dim", [3, 37, 128, 512, 2048])
@pytest.mark.parametrize("copies", [2, 5, 19, 64])
def test_duplicates_are_listed_by_row(dim: int, copies: int) -> None:
    """Where a row lies in a matrix must not change the last digit of its similarity."""
    rng = np.random.default_rng([dim, copies])
    images = rng.normal(size=(6, dim)) + 2 * rng.normal(size=(1, dim))
    labels = rng.permutation(np.repeat(np.arange(6), copies))
    features = (images / np.linalg.norm(images, axis=1, keepdims=True))[labels]
    questions = propose_merges(torch.from_numpy(features), torch.from_numpy(labels))
    assert questions
    for question in questions:
        for image, group in zip(question.images, question.groups, strict=True):
            assert group.tolist() == np.flatnonzero(labels == labels[image]).tolist()


@pytest.mark.parametrize("l_max", [0, -1])
def test_no_neighbours_at_all_are_refused(l_max: int) -> None:
    with pytest.raises(ValueError, match="l_max"):
        propose_merges(torch.eye(4, dtype=torch.float64), torch.arange(4), l_max=l_max)


@pytest.mark.parametrize("propose", [propose_splits, propose_merges])
def test_asking_changes_nothing_and_is_repeatable(propose: Propose) -> None:
    rng = np.random.default_rng(4)
    array = labels_of_sizes(rng, [40, 50, 3, 6, 1], noise=4)
    features, labels = (
        torch.from_numpy(cloud(rng, len(array), centres=5, noise=0.5)),
        torch.from_numpy(array),
    )
    before = features.clone(), labels.clone()
    first, second = propose(features, labels), propose(features, labels)
    assert torch.equal(features, before[0]) and torch.equal(labels, before[1])
    assert [q.images for q in first] == [q.images for q in second]
    assert [q.score for q in first] == [q.score for q in second]


@pytest.mark.parametrize("propose", [propose_splits, propose_merges])
def test_labels_need_not_follow_each_other(propose: Propose) -> None:
    rng = np.random.default_rng(5)
    array = labels_of_sizes(rng, [40, 50, 3, 6, 1], noise=4)
    features = torch.from_numpy(cloud(rng, len(array), centres=5, noise=0.5))
    spread = np.where(array >= 0, 7 * array + 3, -1)
    assert asked(propose(features, torch.from_numpy(array))) == asked(
        propose(features, torch.from_numpy(spread))
    )


@pytest.mark.parametrize("propose", [propose_splits, propose_merges])
def test_single_precision_features_ask_the_same(propose: Propose) -> None:
    """Of features that single precision holds exactly, no tie may break another way."""
    rng = np.random.default_rng(6)
    array = labels_of_sizes(rng, [40, 50, 3, 6, 1], noise=4)
    features, labels = (
        torch.from_numpy(cloud(rng, len(array), centres=5, noise=0.5)),
        torch.from_numpy(array),
    )
    assert asked(propose(features.float(), labels)) == asked(propose(features, labels))
