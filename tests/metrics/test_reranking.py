"""Re-ranking against dense forms of its definition and of the published algorithm."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastreid_al.distributed.world import World
from fastreid_al.metrics import Ranking, rank_gallery, rerank_gallery, reranking
from tests.support.features import unit
from tests.support.process_pool import Pool
from tests.support.references import reference_ranking

Case = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def case(
    queries: int, gallery: int, identities: int, seed: int = 0, spread: float = 1.0, dim: int = 24
) -> Case:
    random = np.random.default_rng(seed)
    n = queries + gallery
    ids = random.integers(identities, size=n)
    rows = unit(
        unit(random.normal(size=(identities, dim)))[ids]
        + spread * random.normal(size=(n, dim)) / np.sqrt(dim)
    )
    features, ids, cameras = (torch.from_numpy(x) for x in (rows, ids, random.integers(-1, 4, n)))
    return (
        features[:queries],
        ids[:queries],
        cameras[:queries],
        features[queries:],
        ids[queries:],
        cameras[queries:],
    )


def dense(
    query: Tensor, gallery: Tensor, k1: int, k2: int, original: float, normalised: bool
) -> np.ndarray:
    """d* of queries and gallery, (q, g).

    With `normalised` as published: squared distances divided by the greatest of their column.
    """
    rows = torch.cat([query, gallery]).double().numpy()
    n, queries = len(rows), len(query)
    similarity = rows @ rows.T
    np.fill_diagonal(similarity, 2)
    order = np.argsort(-similarity, axis=1, kind="stable")
    np.fill_diagonal(similarity, 1)
    squared = np.maximum(2 - 2 * similarity, 0)
    exponent = (squared / squared.max(0)).T if normalised else squared
    last = exponent if normalised else squared / 2

    def reciprocal(i: int, k: int) -> np.ndarray:
        return np.array([j for j in order[i, : k + 1] if i in order[j, : k + 1]])

    weights = np.zeros((n, n))
    for i in range(n):
        members = reciprocal(i, k1)
        expanded = members
        for j in members:
            others = reciprocal(j, round(k1 / 2))
            if len(np.intersect1d(others, members)) > 2 / 3 * len(others):
                expanded = np.append(expanded, others)
        expanded = np.unique(expanded)
        exponential = np.exp(-exponent[i, expanded])
        weights[i, expanded] = exponential / exponential.sum()
    weights = np.stack([weights[order[i, :k2]].mean(0) for i in range(n)])
    smaller = np.stack([np.minimum(weights[i], weights[queries:]).sum(1) for i in range(queries)])
    return (1 - original) * (1 - smaller / (2 - smaller)) + original * last[:queries, queries:]


def dense_scores(given: Case, *settings: Any) -> dict[str, Any]:
    query, query_ids, query_cameras, gallery, *rest = given
    facts = (x.numpy() for x in (query_ids, query_cameras, *rest))
    return reference_ranking(-dense(query, gallery, *settings), *facts)


@pytest.mark.parametrize(
    ("queries", "gallery", "identities", "k1", "k2", "original"),
    [
        (30, 150, 20, 20, 6, 0.3),
        (40, 90, 12, 6, 3, 0.3),
        (25, 60, 9, 7, 1, 0.0),
        (3, 8, 3, 20, 6, 0.5),
        (1, 1, 1, 2, 2, 0.3),
    ],
)
def test_final_distances_are_those_of_the_definition(
    queries: int,
    gallery: int,
    identities: int,
    k1: int,
    k2: int,
    original: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = case(queries, gallery, identities)
    settings = {"k1": k1, "k2": k2, "original": original}
    got = torch.full((queries, gallery), torch.nan, dtype=torch.float64)
    score_blocks = reranking.score_blocks

    def recording(blocks: Iterable[tuple[Tensor, Tensor]], *rest: Any) -> Ranking:
        def recorded() -> Iterable[tuple[Tensor, Tensor]]:
            for rows, scores in blocks:
                got[rows] = -scores
                yield rows, scores

        return score_blocks(recorded(), *rest)

    monkeypatch.setattr(reranking, "score_blocks", recording)
    monkeypatch.setattr(reranking, "_BLOCK", 7 * gallery)
    ranking = rerank_gallery(*given, **settings)
    expected = dense(given[0], given[3], k1, k2, original, normalised=False)
    ranked = ~got.isnan().any(1).numpy()
    assert ranked.sum() >= ranking.queries
    np.testing.assert_allclose(got.numpy()[ranked], expected[ranked], atol=1e-12)
    scores = dense_scores(given, k1, k2, original, False)
    assert ranking.mAP == pytest.approx(scores["mAP"], abs=1e-12)
    assert ranking.mINP == pytest.approx(scores["mINP"], abs=1e-12)
    assert ranking.skipped == scores["skipped"]


@pytest.mark.parametrize("seed", [0, *(pytest.param(x, marks=pytest.mark.slow) for x in (1, 2))])
def test_scores_are_near_the_published_algorithm_and_above_plain_ones(
    seed: int,
) -> None:
    given = case(60, 300, 30, seed, spread=1.4)
    published = dense_scores(given, 20, 6, 0.3, True)["mAP"]
    got = rerank_gallery(*(x.float() if x.is_floating_point() else x for x in given)).mAP
    assert got == pytest.approx(published, abs=0.01)
    assert got > rank_gallery(*given).mAP + 0.02


def test_the_original_distance_alone_gives_the_plain_ranking() -> None:
    given = case(30, 120, 15)
    plain, got = rank_gallery(*given), rerank_gallery(*given, original=1.0)
    assert (got.mAP, got.mINP, got.queries) == (plain.mAP, plain.mINP, plain.queries)
    assert torch.equal(got.cmc, plain.cmc)


def test_features_that_are_all_equal_are_ranked_by_index() -> None:
    query, *facts = case(8, 500, 5)
    gallery = torch.zeros_like(facts[2])
    query, gallery = torch.zeros_like(query), gallery
    query[:, 0] = gallery[:, 0] = 1
    plain = rank_gallery(query, *facts[:2], gallery, *facts[3:])
    assert 0 < rerank_gallery(query, *facts[:2], gallery, *facts[3:]).mAP <= 1
    assert rerank_gallery(query, *facts[:2], gallery, *facts[3:], original=1.0).mAP == plain.mAP


def test_wrong_settings_and_rows_are_named() -> None:
    query, *facts = case(4, 9, 3)
    for settings in ({"k1": 0}, {"k2": 0}):
        with pytest.raises(ValueError, match="got 0, expected 1"):
            rerank_gallery(query, *facts, **settings)
    with pytest.raises(ValueError, match=r"original: got 1\.5"):
        rerank_gallery(query, *facts, original=1.5)
    with pytest.raises(ValueError, match="expected rows that are not zero"):
        rerank_gallery(0 * query, *facts)
    with pytest.raises(ValueError, match="expected float32 or float64, both alike"):
        rerank_gallery(query.float(), *facts)
    with pytest.raises(ValueError, match="expected float32 or float64, both alike"):
        rerank_gallery(query, *facts[:2], facts[2].float(), *facts[3:])


def test_nothing_to_rank_again_scores_zero() -> None:
    query, *facts = case(4, 9, 3)
    assert rerank_gallery(query[:0], *(x[:0] for x in facts[:2]), *facts[2:]).queries == 0
    assert rerank_gallery(query, *facts[:2], *(x[:0] for x in facts[2:])).skipped == 4


def rerank_on_ranks(world: World, given: Case) -> tuple[float, float]:
    query, query_ids, query_cameras, gallery, *rest = given
    own = query[world.local_slice(len(query))], gallery[world.local_slice(len(gallery))]
    got = rerank_gallery(own[0], query_ids, query_cameras, own[1], *rest, world=world)
    return got.mAP, got.mINP


@pytest.mark.parametrize("size", [3, *(pytest.param(x, marks=pytest.mark.slow) for x in (2, 4))])
def test_all_ranks_return_the_scores_of_a_single_process(pool: Pool, size: int) -> None:
    for queries, gallery in ((20, 90), (2, 30)):
        given = case(queries, gallery, 8)
        got = rerank_gallery(*given)
        assert pool.run(rerank_on_ranks, size, given) == [(got.mAP, got.mINP)] * size
