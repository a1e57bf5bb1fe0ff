"""Cluster scores against brute force, and what they are by definition."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastreid_al.metrics import ClusterScores, cluster_scores, pair_scores
from fastreid_al.metrics.clusters import scores_by_key
from tests.support.references import reference_clusters

#: Images as (label, identity, camera).
IMAGES = st.lists(
    st.tuples(st.integers(-1, 6), st.integers(0, 5), st.integers(-1, 2)), min_size=0, max_size=40
)
SEED = st.integers(0, 2**32 - 1)
Images = list[tuple[int, int, int]]


def columns(images: Images) -> tuple[Tensor, Tensor, Tensor]:
    table = torch.tensor(images, dtype=torch.int64).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 2]


def alike(got: ClusterScores, expected: tuple[float | None, ...]) -> bool:
    return all(
        a == b if a is None or b is None else math.isclose(a, b, abs_tol=1e-12)
        for a, b in zip(got, expected, strict=True)
    )


@settings(deadline=None)
@given(images=IMAGES)
def test_scores_equal_brute_force(images: Images) -> None:
    labels, identities, cameras = columns(images)
    got = cluster_scores(labels, identities, cameras)
    arrays = labels.numpy(), identities.numpy(), cameras.numpy()
    assert alike(got, reference_clusters(*arrays))
    without = cluster_scores(labels, identities)
    assert without == got._replace(cross_camera_recall=None)
    assert all(value is None or 0 <= value <= 1 for value in got)
    assert "NaN" not in json.dumps(got)


@pytest.mark.parametrize("seed", range(4))
def test_scores_of_many_images_equal_brute_force(seed: int) -> None:
    random = np.random.default_rng(seed)
    n = 400
    identities, cameras = random.integers(0, 40, n), random.integers(-1, 5, n)
    # Clusters of fragments of identities, with some images in wrong ones and some in none.
    labels = 2 * identities + random.integers(0, 2, n)
    labels = np.where(random.random(n) < 0.2, random.integers(-1, 80, n), labels)
    arrays = labels, identities, cameras
    got = cluster_scores(*(torch.from_numpy(x) for x in arrays))
    assert alike(got, reference_clusters(*arrays))


@settings(deadline=None)
@given(images=IMAGES, seed=SEED)
def test_order_and_numbers_do_not_matter(images: Images, seed: int) -> None:
    labels, identities, cameras = columns(images)
    got = cluster_scores(labels, identities, cameras)
    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=random)

    def renumbered(ids: Tensor) -> Tensor:
        numbers = 1_000_000_007 * torch.randperm(8, generator=random)
        return torch.where(ids < 0, -1, numbers[ids])[order]

    again = cluster_scores(renumbered(labels), renumbered(identities), renumbered(cameras))
    assert alike(again, tuple(got))


@settings(deadline=None)
@given(images=IMAGES)
def test_clusters_that_are_the_identities_score_1(images: Images) -> None:
    _, identities, cameras = columns(images)
    got = cluster_scores(identities, identities, cameras)
    assert set(got) <= {1.0, None}
    assert (got.class_purity is None) == (len(identities.unique()) == len(identities))
    twice = identities.repeat(2)
    cameras = torch.arange(2).repeat_interleave(len(images))
    assert not images or cluster_scores(twice, twice, cameras) == (1.0,) * 7


@settings(deadline=None)
@given(images=IMAGES.filter(bool))
def test_one_cluster_finds_all(images: Images) -> None:
    _, identities, cameras = columns(images)
    got = cluster_scores(torch.zeros_like(identities), identities, cameras)
    counts = identities.bincount().double()
    n = len(images)
    assert got.bcubed_recall == 1
    assert got.bcubed_precision == pytest.approx(float((counts**2).sum()) / n**2)
    assert got.cross_camera_recall in (1, None)
    if n > 1:
        assert got.class_purity == pytest.approx(float(counts.max()) / n)
        assert got.class_completeness == 1


@settings(deadline=None)
@given(images=IMAGES.filter(bool), outside=st.booleans())
def test_single_images_are_pure_and_find_nothing(images: Images, outside: bool) -> None:
    _, identities, cameras = columns(images)
    labels = torch.full_like(identities, -1) if outside else torch.arange(len(images))
    got = cluster_scores(labels, identities, cameras)
    assert got.bcubed_precision == 1
    assert got.bcubed_recall == pytest.approx(len(identities.unique()) / len(images))
    assert got.class_purity is None and got.class_completeness is None
    assert got.cross_camera_recall in (0, None)
    assert got.identities_covered in (0, None)


@settings(deadline=None)
@given(images=IMAGES)
def test_with_a_camera_for_each_image_recall_over_cameras_is_pair_recall(images: Images) -> None:
    labels, identities, _ = columns(images)
    got = cluster_scores(labels, identities, torch.arange(len(images))).cross_camera_recall
    several = bool((identities.bincount() > 1).any())
    assert got == (pair_scores(labels, identities).recall if several else None)


def test_a_small_case_by_hand() -> None:
    #         cluster 0     cluster 1  cluster 2  none
    labels = [0, 0, 0, 0,   1, 1,      2, 2,      -1]  # fmt: skip
    people = [7, 7, 7, 5,   7, 5,      5, 5,       9]  # fmt: skip
    cameras = [0, 0, 1, 0,  1, 1,      0, -1,      2]  # fmt: skip
    got = cluster_scores(*(torch.tensor(x) for x in (labels, people, cameras)))
    precision = (3 * 3 / 4 + 1 / 4 + 2 * 1 / 2 + 2 + 1) / 9
    recall = (3 * 3 / 4 + 1 / 4 + (1 / 4 + 1 / 4) + 2 * 2 / 4 + 1) / 9
    assert got == pytest.approx(
        (
            precision,
            recall,
            2 * precision * recall / (precision + recall),
            (3 / 4 + 1 / 2 + 1) / 3,
            (3 / 4 + 1 / 4 + 2 / 4) / 3,
            # Of 7: (0, 2), (1, 2) found, (0, 4), (1, 4) not. Of 5: (3, 5), (5, 6) not.
            2 / 6,
            # 7 by cluster 0, 5 by cluster 2; cluster 1 has two most frequent identities. 9 has one
            # image.
            1,
        )
    )


def test_the_few_images_of_a_giant_cluster_decide_pairs_and_not_classes() -> None:
    """The reason for these scores: 1 cluster of 100 in 51 decides the precision of pairs."""
    labels = torch.cat([torch.zeros(100, dtype=torch.int64), torch.arange(1, 51).repeat(4)])
    people = torch.cat([torch.arange(100) % 20, torch.arange(100, 150).repeat(4)])
    assert pair_scores(labels, people).precision < 0.15
    purity = cluster_scores(labels, people).class_purity
    assert purity == pytest.approx((50 + 5 / 100) / 51)


def test_no_image_is_no_score() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert cluster_scores(none, none, none) == (None,) * 7


def test_scores_have_the_keys_of_the_log() -> None:
    labels, people, cameras = torch.tensor([0, 0, 1]), torch.tensor([0, 0, 0]), torch.arange(3)
    assert scores_by_key(labels, people, cameras) == {
        **{"pair_precision": 1, "pair_recall": 1 / 3, "pair_f1": 0.5},
        **cluster_scores(labels, people, cameras)._asdict(),
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, -2], [0, 1], None), "labels: got -2 at index 1, expected -1 or more"),
        (([0, 1], [0], None), r"identities: got shape \(1,\), expected \(2,\)"),
        (([0, 1], [0, 1.5], None), "identities: got 1.5 in a list"),
        (([0, 1], [0, 1], [0]), r"cameras: got shape \(1,\), expected \(2,\)"),
        (([0, 1], [0, 1], [0, -2]), "cameras: got -2 at index 1, expected -1 or more"),
        (([0, 1], [0, 1], torch.zeros(2)), "cameras: got dtype torch.float32"),
    ],
)
def test_what_cannot_be_compared_is_named(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cluster_scores(*arguments)
