"""The questions of SNPS against a slow reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastreid_al.active import propose_splits
from tests.support.proposals import (
    assert_same_splits,
    cloud,
    labels_of_sizes,
    quantised,
    sign_vectors,
)


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
@example(seed=149, size=48, alone=3)
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
