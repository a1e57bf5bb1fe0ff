"""Ranking and pair scores against a hand-computed case and independent references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fastreid_al.metrics import Ranking, pair_scores, rank_gallery
from tests.support.features import unit
from tests.support.references import hand_ranking_case, reference_pairs, reference_ranking


def rank_similarity(similarity: np.ndarray, *labels: np.ndarray) -> Ranking:
    """Rank given similarities: the query features are the rows, the gallery features the unit vectors."""
    query_ids, query_cameras, gallery_ids, gallery_cameras = (torch.as_tensor(a) for a in labels)
    gallery = torch.eye(similarity.shape[1], dtype=torch.float64)
    return rank_gallery(
        torch.as_tensor(similarity),
        query_ids,
        query_cameras,
        gallery,
        gallery_ids,
        gallery_cameras,
        length=10_000,
    )


def assert_equal(found: Ranking, expected: dict) -> None:
    assert found.mAP == pytest.approx(expected["mAP"], abs=1e-12)
    assert found.mINP == pytest.approx(expected["mINP"], abs=1e-12)
    assert found.skipped == expected["skipped"]
    cmc = np.asarray(expected["cmc"])
    assert np.allclose(found.cmc.numpy()[: len(cmc)], cmc[: len(found.cmc)], atol=1e-12)


def test_hand_computed_ranking() -> None:
    *case, expected = hand_ranking_case()
    assert_equal(rank_similarity(*case), expected)


@pytest.mark.parametrize("seed", range(20))
def test_ranking_equals_the_reference(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(seed)
    queries, gallery = random.integers(1, 40), random.integers(1, 90)
    # Few identities and cameras: junk, distractors, same-camera images, match-less queries and ties all occur.
    labels = (
        random.integers(-1, 12, queries),
        random.integers(-1, 3, queries),
        random.integers(-1, 9, gallery),
        random.integers(-1, 3, gallery),
    )
    similarity = np.round(random.normal(size=(queries, gallery)), 1)
    if seed % 2:
        monkeypatch.setattr("fastreid_al.metrics.ranking._BLOCK", 5 * int(gallery))
    found = rank_similarity(similarity, *labels)
    assert_equal(found, reference_ranking(similarity, *labels))
    assert found.queries + found.skipped == queries


def test_no_query_with_a_match_scores_zero() -> None:
    found = rank_similarity(
        np.zeros((2, 3)), np.array([0, 1]), np.zeros(2, int), np.array([5, 6, -1]), np.zeros(3, int)
    )
    assert (found.mAP, found.mINP, found.rank(1), found.queries, found.skipped) == (0, 0, 0, 0, 2)


def test_unknown_cameras_never_drop_a_match() -> None:
    found = rank_similarity(
        np.array([[1.0, 0.5]]), np.array([3]), np.array([-1]), np.array([3, 4]), np.array([-1, -1])
    )
    assert found.mAP == 1


def test_perfect_features_rank_perfectly_in_float32() -> None:
    ids = torch.arange(10).repeat(2)
    features = (
        torch.from_numpy(unit(np.random.default_rng(0).normal(size=(10, 8)))).float().repeat(2, 1)
    )
    cameras: Tensor = torch.arange(20) // 10
    found = rank_gallery(
        features[:10], ids[:10], cameras[:10], features[10:], ids[10:], cameras[10:]
    )
    assert found.mAP == found.mINP == found.rank(1) == 1


def test_wrong_shapes_are_named() -> None:
    f, i = torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match="gallery: got ids"):
        rank_gallery(f, i, i, f, i[:2], i)
    with pytest.raises(ValueError, match="query_features: 3 of 3 rows are not finite"):
        rank_gallery(f / 0, i, i, f, i, i)
    with pytest.raises(ValueError, match=r"widths \[4, 5\]"):
        rank_gallery(f, i, i, torch.zeros(3, 5), i, i)


@pytest.mark.parametrize("seed", range(10))
def test_pair_scores_equal_brute_force(seed: int) -> None:
    random = np.random.default_rng(seed)
    labels, identities = random.integers(-1, 1 + seed * 2, 60), random.integers(0, 8, 60)
    found = pair_scores(torch.from_numpy(labels), torch.from_numpy(identities))
    assert found == pytest.approx(reference_pairs(labels, identities), abs=1e-12)


def test_pair_scores_of_no_pairs() -> None:
    assert pair_scores(torch.tensor([-1, -1]), torch.tensor([0, 1])) == (1, 1, 1)
