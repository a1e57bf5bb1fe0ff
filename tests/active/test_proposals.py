"""The questions of SNPS and MPPS, and k-medoids, against the slow references.

The features are short binary fractions, so that every dot product and every sum of them is exact in float64 in any
order, and a tie is a tie on both sides.
"""

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
from fastreid_al.clustering import kmedoids
from tests.support.references_active import reference_kmedoids, reference_merges, reference_splits

Asked = set[frozenset[tuple[int, frozenset[int]]]]
Propose = Callable[[torch.Tensor, torch.Tensor], list[Question]]


def sign_vectors(rng: np.random.Generator, n: int, prototypes: int, flips: int) -> np.ndarray:
    """Unit vectors of 16 entries of +-1/4 near a few prototypes: full of exact ties and of duplicates."""
    signs = rng.choice([-1.0, 1.0], size=(prototypes, 16))[rng.integers(0, prototypes, n)]
    for row in signs:
        row[rng.integers(0, 16, rng.integers(0, flips + 1))] *= -1
    return signs / 4


def quantised(features: np.ndarray) -> np.ndarray:
    """Unit to about six digits, in steps of 2^-20."""
    return np.round(features / np.linalg.norm(features, axis=1, keepdims=True) * 2**20) / 2**20


def cloud(
    rng: np.random.Generator, n: int, centres: int, noise: float, dim: int = 12
) -> np.ndarray:
    """Points near centres that are near each other, as the features of persons are."""
    means = rng.normal(size=(1, dim)) + rng.normal(size=(centres, dim))
    return quantised(means[rng.integers(0, centres, n)] + noise * rng.normal(size=(n, dim)))


def labels_of_sizes(rng: np.random.Generator, sizes: list[int], noise: int) -> np.ndarray:
    """Shuffled labels of clusters of these sizes, with some images in none."""
    return rng.permutation(np.repeat([*range(len(sizes)), -1], [*sizes, noise]))


def asked(questions: list[Question]) -> Asked:
    """The pairs of (image shown, rows of its group), in no order; each once, with the image the first of its group."""
    pairs = []
    for question in questions:
        sides = []
        for image, group in zip(question.images, question.groups, strict=True):
            rows = group.tolist()
            assert group.dtype == torch.int64
            assert rows[0] == image
            assert len(set(rows)) == len(rows)
            sides.append((int(image), frozenset(rows)))
        pairs.append(frozenset(sides))
    assert len(set(pairs)) == len(pairs)
    assert all(len(pair) == 2 for pair in pairs)
    return set(pairs)


def assert_falling(similarities: np.ndarray) -> None:
    """Most central first."""
    assert np.all(similarities[:-1] >= similarities[1:])


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


def assert_same_splits(features: np.ndarray, labels: np.ndarray, rule: str) -> list[Question]:
    questions = propose_splits(
        torch.from_numpy(features), torch.from_numpy(labels), k_max_rule=rule
    )
    splits = reference_splits(features, labels, rule)
    assert asked(questions) == set().union(*(split.questions() for split in splits))
    for question in questions:
        left, right = question.images
        assert question.reason == "split"
        assert question.cluster == labels[left] == labels[right]
        for image, group in zip(question.images, question.groups, strict=True):
            assert_falling(features[group.numpy()[1:]] @ features[image])
        assert question.similarity == pytest.approx(
            float(features[left] @ features[right]), abs=1e-5
        )
        assert math.isfinite(question.score)
    return questions


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


def assert_same_medoids(similarity: np.ndarray, k: int) -> None:
    result = kmedoids(torch.from_numpy(similarity), k)
    medoids, labels = reference_kmedoids(similarity, k)
    assert result.medoids.dtype == result.labels.dtype == torch.int64
    assert result.medoids.tolist() == medoids
    assert result.labels.tolist() == labels


# k-medoids


@settings(max_examples=200, deadline=None)
@given(data=st.data(), m=st.integers(1, 24))
def test_medoids_of_small_whole_similarities(data: st.DataObject, m: int) -> None:
    """Any symmetric matrix, mostly ties, not even the largest on the diagonal."""
    k = data.draw(st.integers(1, m))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    half = rng.integers(0, data.draw(st.integers(1, 40)), size=(m, m)).astype(np.float64) / 8
    assert_same_medoids(np.maximum(half, half.T), k)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    m=st.integers(1, 40),
    k=st.integers(1, 8),
    prototypes=st.integers(1, 6),
)
def test_medoids_of_exact_ties_and_duplicates(seed: int, m: int, k: int, prototypes: int) -> None:
    features = sign_vectors(np.random.default_rng(seed), m, prototypes, flips=3)
    assert_same_medoids(features @ features.T, min(k, m))


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    m=st.integers(4, 30),
    k=st.integers(2, 6),
    extent=st.sampled_from([5, 12, 40]),
)
def test_medoids_of_points_on_a_grid(seed: int, m: int, k: int, extent: int) -> None:
    """Distances in whole numbers: the start is often wrong, and several exchanges mend it equally well."""
    points = np.random.default_rng(seed).integers(0, extent, size=(m, 2))
    distances = np.abs(points[:, None] - points[None, :]).sum(2)
    assert_same_medoids(1 - distances.astype(np.float64), min(k, m))


@pytest.mark.parametrize(
    ("points", "k"),
    [
        ("40 11 11 21 24 32 00 23 30", 3),
        ("24 41 35 21 63 46 37 03 22", 4),
        ("44 32 01 04 30 14 10 03 04", 3),
    ],
)
def test_of_equal_exchanges_the_one_for_the_lowest_point_is_made(points: str, k: int) -> None:
    """Rare grids on which two exchanges tie, that for the lower point being at the higher place."""
    places = np.array([[int(x), int(y)] for x, y in points.split()])
    assert_same_medoids(1.0 - np.abs(places[:, None] - places[None, :]).sum(2), k)


@pytest.mark.parametrize(("m", "k"), [(60, 2), (60, 5), (150, 8), (300, 3), (300, 12)])
def test_medoids_of_a_cloud(m: int, k: int) -> None:
    features = cloud(np.random.default_rng(m + k), m, centres=k + 2, noise=0.6)
    assert_same_medoids(features @ features.T, k)


@pytest.mark.parametrize("m", [1, 2, 7])
def test_one_medoid_and_a_medoid_each(m: int) -> None:
    features = cloud(np.random.default_rng(m), m, centres=2, noise=0.5)
    similarity = features @ features.T
    assert_same_medoids(similarity, 1)
    assert_same_medoids(similarity, m)
    assert sorted(kmedoids(torch.from_numpy(similarity), m).medoids.tolist()) == list(range(m))


def test_a_medoid_belongs_to_itself_among_duplicates() -> None:
    result = kmedoids(torch.ones(5, 5, dtype=torch.float64), 3)
    assert result.medoids.tolist() == [0, 1, 2]
    assert result.labels.tolist() == [0, 1, 2, 0, 0]


def test_a_swap_goes_on_where_the_greedy_start_is_wrong() -> None:
    """BUILD starts between the two pairs of groups; at the optimum each group has a medoid of its own."""
    points = np.array([0.0, 1.0, 2.0, 10.0, 11.0, 12.0, 6.0])
    similarity = 16 - np.abs(points[:, None] - points[None, :])
    assert_same_medoids(similarity, 2)
    result = kmedoids(torch.from_numpy(similarity), 2)
    assert sorted(result.medoids.tolist()) != [1, 6]
    groups = result.labels.tolist()
    assert groups[0] == groups[1] == groups[2] != groups[3] == groups[4] == groups[5]


@pytest.mark.parametrize("k", [-1, 0, 5])
def test_a_number_of_medoids_that_cannot_be(k: int) -> None:
    with pytest.raises(ValueError, match=str(k)):
        kmedoids(torch.eye(4, dtype=torch.float64), k)


# Splits


@pytest.mark.parametrize("rule", ["paper", "root"])
@pytest.mark.parametrize("seed", range(6))
def test_splits_of_clouds(seed: int, rule: str) -> None:
    rng = np.random.default_rng(seed)
    sizes = [1, 2, 7, 8, 31, 32, *rng.integers(1, 120, 4).tolist()]
    labels = labels_of_sizes(rng, sizes, noise=int(rng.integers(0, 40)))
    questions = assert_same_splits(cloud(rng, len(labels), centres=6, noise=0.5), labels, rule)
    assert questions


@pytest.mark.parametrize("rule", ["paper", "root"])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("prototypes", [1, 3, 8])
def test_splits_with_exact_ties(seed: int, prototypes: int, rule: str) -> None:
    rng = np.random.default_rng([seed, prototypes])
    labels = labels_of_sizes(
        rng, [1, 8, 32, *rng.integers(1, 100, 3).tolist()], noise=int(rng.integers(0, 20))
    )
    assert_same_splits(sign_vectors(rng, len(labels), prototypes, flips=2), labels, rule)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.integers(1, 40), max_size=4),
    noise=st.integers(0, 10),
    exact=st.booleans(),
    rule=st.sampled_from(["paper", "root"]),
)
def test_splits_of_any_clustering(
    seed: int, sizes: list[int], noise: int, exact: bool, rule: str
) -> None:
    rng = np.random.default_rng(seed)
    labels = labels_of_sizes(rng, sizes, noise)
    n = len(labels)
    assert_same_splits(sign_vectors(rng, n, 4, 2) if exact else cloud(rng, n, 4, 0.4), labels, rule)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(18, 60), alone=st.integers(1, 4))
def test_splits_with_an_image_alone(seed: int, size: int, alone: int) -> None:
    """Images that are like no other make groups of one."""
    rng = np.random.default_rng(seed)
    features = np.concatenate(
        [cloud(rng, size - alone, 2, 0.3), quantised(rng.normal(size=(alone, 12)))]
    )
    assert_same_splits(features, np.zeros(size, dtype=np.int64), "root")


@pytest.mark.parametrize("seed", [238, 1228, 1272, 1547, 1790, 1800, 1814, 2830])
def test_a_group_of_one_is_wholly_compact(seed: int) -> None:
    """Clusters whose best k hangs on what an image alone counts."""
    rng = np.random.default_rng(seed)
    size, alone = int(rng.integers(18, 40)), int(rng.integers(1, 5))
    features = np.concatenate(
        [cloud(rng, size - alone, 2, 0.3), quantised(rng.normal(size=(alone, 12)))]
    )
    assert_same_splits(features, np.zeros(size, dtype=np.int64), "root")


def test_a_split_of_three_hundred_images() -> None:
    rng = np.random.default_rng(0)
    features = cloud(rng, 300, centres=9, noise=0.3)
    assert_same_splits(features, np.zeros(300, dtype=np.int64), "root")


@pytest.mark.parametrize(("rule", "least"), [("paper", 32), ("root", 8)])
def test_the_smallest_cluster_that_is_split(rule: str, least: int) -> None:
    rng = np.random.default_rng(1)
    features = torch.from_numpy(cloud(rng, least, centres=2, noise=0.1))
    labels = torch.zeros(least, dtype=torch.int64)
    assert len(propose_splits(features, labels, rule)) == 1
    assert propose_splits(features[1:], labels[1:], rule) == []


def test_the_printed_rule_is_the_default() -> None:
    features = torch.from_numpy(cloud(np.random.default_rng(2), 31, centres=2, noise=0.1))
    assert propose_splits(features, torch.zeros(31, dtype=torch.int64)) == []


def test_three_identities_in_one_cluster_are_three_questions() -> None:
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 3, 100)
    features = quantised(np.eye(3)[truth] + 0.05 * rng.normal(size=(100, 3)))
    questions = propose_splits(
        torch.from_numpy(features), torch.zeros(100, dtype=torch.int64), "root"
    )
    assert len(questions) == 3
    for question in questions:
        for group in question.groups:
            rows = group.numpy()
            assert sorted(rows.tolist()) == np.flatnonzero(truth == truth[rows[0]]).tolist()


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="k_max_rule"):
        propose_splits(torch.eye(4, dtype=torch.float64), torch.zeros(4, dtype=torch.int64), "half")


def test_a_cluster_of_more_than_a_thousand_images_is_split_whole() -> None:
    rng = np.random.default_rng(7)
    features = torch.from_numpy(cloud(rng, 1100, centres=6, noise=0.3))
    labels = torch.from_numpy(rng.permutation(np.repeat([0, -1], [1050, 50])))
    questions = propose_splits(features, labels)
    groups = {q.images[side]: q.groups[side].tolist() for q in questions for side in (0, 1)}
    assert len(questions) == len(groups) * (len(groups) - 1) // 2 > 0
    assert (
        sorted(row for group in groups.values() for row in group)
        == (labels == 0).nonzero()[:, 0].tolist()
    )
    similarity = features @ features.T
    for medoid, group in groups.items():
        assert group[0] == medoid
        for row in group[1:]:
            assert similarity[row, medoid] == max(similarity[row, other] for other in groups)


# Merges


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
    """Each cluster has a copy, image by image: two centroids are one and the same, and so are their neighbours'."""
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
    """A large gap behind the first: the two alone are asked about, and once, though each finds the other."""
    features = quantised(np.array([[1.0, 0, 0, 0], [1, 0.1, 0, 0], [0.3, 0, 1, 0], [0.3, 0, 0, 1]]))
    labels = np.array([2, 0, 1, 3])
    questions = assert_same_merges(features, labels)
    assert frozenset(questions[0].images) == {0, 1} or any(
        frozenset(q.images) == {0, 1} for q in questions
    )


@pytest.mark.parametrize("seed", range(20))
def test_the_lowest_row_stands_for_a_cluster_of_equals(seed: int) -> None:
    """Two unit vectors are equally near their mean, and so are duplicates: the rounding must not choose."""
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


# Both


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
