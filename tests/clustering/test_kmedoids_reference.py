"""k-medoids against a slow reference, with exact ties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastreid_al.clustering import kmedoids
from tests.support.proposals import (
    cloud,
    sign_vectors,
)
from tests.support.references_active import reference_kmedoids


def assert_same_medoids(similarity: np.ndarray, k: int) -> None:
    result = kmedoids(torch.from_numpy(similarity), k)
    medoids, labels = reference_kmedoids(similarity, k)
    assert result.medoids.dtype == result.labels.dtype == torch.int64
    assert result.medoids.tolist() == medoids
    assert result.labels.tolist() == labels


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
    """Distances in whole numbers: the start is often wrong, and several exchanges mend it equally
    well.
    """
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
    """BUILD starts between the two pairs of groups; at the optimum each group has a medoid of its
    own.
    """
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
