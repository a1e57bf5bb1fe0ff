"""Rankings against a hand-computed case and sorted lists, and on any number of ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastreid_al.distributed.world import World
from fastreid_al.metrics import Ranking, rank_gallery, ranking
from tests.support.features import clustered_features, unit
from tests.support.process_pool import Pool
from tests.support.references import hand_ranking_case, reference_ranking

Case = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def labels(
    random: np.random.Generator, n: int, identities: int, cameras: int
) -> tuple[Tensor, Tensor]:
    """Identities and cameras, including junk and unknown cameras."""
    bounds = identities, cameras
    return tuple(torch.from_numpy(random.integers(-1, most, n)) for most in bounds)  # type: ignore


def coarse(n: int, seed: int) -> Tensor:
    """Rows whose products are exact and often equal."""
    return torch.from_numpy(np.random.default_rng(seed).choice([-0.5, 0.5], (n, 4))).float()


def case(queries: int, gallery: int, identities: int, seed: int = 0, tied: bool = False) -> Case:
    random = np.random.default_rng(seed)
    rows = (
        coarse(queries + gallery, seed)
        if tied
        else torch.from_numpy(clustered_features(queries + gallery, 20)).float()
    )
    first, second = (labels(random, n, identities, 3) for n in (queries, gallery))
    return rows[:queries], *first, rows[queries:], *second


def assert_sorted(got: Ranking, given: Case) -> None:
    query, query_ids, query_cameras, gallery, gallery_ids, gallery_cameras = given
    facts = (x.numpy() for x in (query_ids, query_cameras, gallery_ids, gallery_cameras))
    expected = reference_ranking((query @ gallery.T).numpy(), *facts)
    assert got.mAP == pytest.approx(expected["mAP"], abs=1e-12)
    assert got.mINP == pytest.approx(expected["mINP"], abs=1e-12)
    assert got.skipped == expected["skipped"]
    np.testing.assert_allclose(got.cmc, expected["cmc"][: len(got.cmc)], atol=1e-12)


@given(
    st.integers(1, 12),
    st.integers(1, 40),
    st.integers(1, 10),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 3, 128]),
)
@settings(max_examples=60, deadline=None)
def test_counted_positions_are_those_of_sorted_lists(
    queries: int, gallery: int, identities: int, seed: int, few: int
) -> None:
    given = case(queries, gallery, identities, seed, tied=True)
    with pytest.MonkeyPatch.context() as patch:
        # Count by comparison or by search, in several blocks and products.
        for name, value in (("_FEW", few), ("_BLOCK", 4 * gallery), ("_TILE", 16)):
            patch.setattr(ranking, name, value)
        assert_sorted(rank_gallery(*given), given)


@pytest.mark.parametrize("identities", [4, 60])
@pytest.mark.parametrize("tied", [True, False])
def test_galleries_larger_than_a_counted_block(
    identities: int, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = case(24, 900, identities, tied=tied)
    monkeypatch.setattr(ranking, "_COUNTED", 1)
    assert_sorted(rank_gallery(*given), given)


def test_a_gallery_of_one_identity_and_a_gallery_of_one_image() -> None:
    given = case(5, 300, 1, tied=True)
    assert_sorted(rank_gallery(*given), given)
    query, ids, cameras = torch.eye(2), torch.tensor([0, 1]), torch.tensor([0, 0])
    got = rank_gallery(query, ids, cameras, query[:1], ids[:1], cameras[:1] + 1)
    assert (got.mAP, got.mINP, got.queries, got.skipped, len(got.cmc)) == (1, 1, 1, 1, 1)


def test_half_floats_are_ranked_by_their_products_in_float32() -> None:
    query, *facts = case(30, 200, 9)
    query, gallery = query.half(), facts[2].half()
    wide = rank_gallery(query.float(), *facts[:2], gallery.float(), *facts[3:])
    assert rank_gallery(query, *facts[:2], gallery, *facts[3:]).mAP == wide.mAP


def test_a_chosen_precision_of_products_is_left_alone() -> None:
    given = case(10, 50, 5)
    expected = rank_gallery(*given).mAP
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert rank_gallery(*given).mAP == expected


def test_nothing_to_rank_scores_zero() -> None:
    query, *facts = case(4, 9, 3)
    gallery, *gallery_facts = facts[2:]
    empty = rank_gallery(query, *facts[:2], gallery[:0], *(x[:0] for x in gallery_facts))
    assert (empty.mAP, empty.queries, empty.skipped, len(empty.cmc)) == (0, 0, 4, 0)
    none = rank_gallery(query[:0], *(x[:0] for x in facts[:2]), gallery, *gallery_facts)
    assert (none.mAP, none.queries, none.skipped) == (0, 0, 0)


def rank_on_ranks(
    world: World, given: Case, block: int
) -> tuple[float, float, list[float], int, int]:
    ranking._BLOCK = block
    query, query_ids, query_cameras, gallery, *rest = given
    own = query[world.local_slice(len(query))], gallery[world.local_slice(len(gallery))]
    got = rank_gallery(own[0], query_ids, query_cameras, own[1], *rest, world=world)
    return got.mAP, got.mINP, got.cmc.tolist(), got.queries, got.skipped


@pytest.mark.parametrize("size", [1, 3, *(pytest.param(x, marks=pytest.mark.slow) for x in (2, 4))])
@pytest.mark.parametrize(
    ("queries", "gallery", "identities", "tied"),
    [
        (50, 400, 12, False),
        (50, 401, 12, True),
        (2, 5, 2, True),
        (1, 1, 1, False),
        (3, 2, 4, False),
        (7, 300, 1, False),
    ],
)
def test_all_ranks_return_the_scores_of_a_single_process(
    pool: Pool, size: int, queries: int, gallery: int, identities: int, tied: bool
) -> None:
    given = case(queries, gallery, identities, tied=tied)
    got = rank_gallery(*given)
    expected = got.mAP, got.mINP, got.cmc.tolist(), got.queries, got.skipped
    for block in (ranking._BLOCK, 9 * gallery):
        assert pool.run(rank_on_ranks, size, given, block) == [expected] * size


def wrong(world: World) -> str:
    query, ids, cameras, gallery, *rest = case(9, 30, 4)
    own = query[world.local_slice(9)].clone()
    if world.rank == 1:
        own[0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite") as raised:
        rank_gallery(own, ids, cameras, gallery[world.local_slice(30)], *rest, world=world)
    return str(raised.value)


def test_an_error_on_one_rank_is_raised_on_all(pool: Pool) -> None:
    assert pool.run(wrong, 3) == ["query_features: 1 of 3 rows are not finite"] * 3


def without_width(world: World) -> float:
    query, ids, cameras, gallery, *rest = case(2, 2, 1, seed=3)
    shards = (
        x[world.local_slice(2)] if world.rank < 2 else x.new_zeros(0, 0) for x in (query, gallery)
    )
    first, second = shards
    return rank_gallery(first, ids, cameras, second, *rest, world=world).mAP


def test_a_rank_without_rows_need_not_know_their_width(pool: Pool) -> None:
    assert pool.run(without_width, 4) == [rank_gallery(*case(2, 2, 1, seed=3)).mAP] * 4


def rank_similarity(similarity: np.ndarray, *labels: np.ndarray) -> Ranking:
    """Rank given similarities: queries are their rows, the gallery the unit vectors."""
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


def assert_equal(got: Ranking, expected: dict) -> None:
    assert got.mAP == pytest.approx(expected["mAP"], abs=1e-12)
    assert got.mINP == pytest.approx(expected["mINP"], abs=1e-12)
    assert got.skipped == expected["skipped"]
    cmc = np.asarray(expected["cmc"])
    assert np.allclose(got.cmc.numpy()[: len(cmc)], cmc[: len(got.cmc)], atol=1e-12)


def test_hand_computed_ranking() -> None:
    *case, expected = hand_ranking_case()
    assert_equal(rank_similarity(*case), expected)


@pytest.mark.parametrize("seed", range(20))
def test_ranking_equals_the_reference(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(seed)
    queries, gallery = random.integers(1, 40), random.integers(1, 90)
    # With few identities and cameras there are junk, distractors, same-camera images, queries
    # without a match, and ties.
    labels = (
        random.integers(-1, 12, queries),
        random.integers(-1, 3, queries),
        random.integers(-1, 9, gallery),
        random.integers(-1, 3, gallery),
    )
    similarity = np.round(random.normal(size=(queries, gallery)), 1)
    if seed % 2:
        monkeypatch.setattr("fastreid_al.metrics.ranking._BLOCK", 5 * int(gallery))
    got = rank_similarity(similarity, *labels)
    assert_equal(got, reference_ranking(similarity, *labels))
    assert got.queries + got.skipped == queries


def test_no_query_with_a_match_scores_zero() -> None:
    got = rank_similarity(
        np.zeros((2, 3)), np.array([0, 1]), np.zeros(2, int), np.array([5, 6, -1]), np.zeros(3, int)
    )
    assert (got.mAP, got.mINP, got.rank(1), got.queries, got.skipped) == (0, 0, 0, 0, 2)


def test_unknown_cameras_never_drop_a_match() -> None:
    got = rank_similarity(
        np.array([[1.0, 0.5]]), np.array([3]), np.array([-1]), np.array([3, 4]), np.array([-1, -1])
    )
    assert got.mAP == 1


def test_perfect_features_rank_perfectly_in_float32() -> None:
    ids = torch.arange(10).repeat(2)
    features = (
        torch.from_numpy(unit(np.random.default_rng(0).normal(size=(10, 8)))).float().repeat(2, 1)
    )
    cameras: Tensor = torch.arange(20) // 10
    got = rank_gallery(features[:10], ids[:10], cameras[:10], features[10:], ids[10:], cameras[10:])
    assert got.mAP == got.mINP == got.rank(1) == 1


def test_wrong_shapes_are_named() -> None:
    f, i = torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"gallery_cameras: got shape \(3,\), expected \(2,\)"):
        rank_gallery(f, i, i, f, i[:2], i)
    empty, ids = torch.zeros(2, 0), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(
        ValueError, match=r"query_features: got shape \(2, 0\), expected one column"
    ):
        rank_gallery(empty, ids, ids, empty, ids, ids)
    with pytest.raises(ValueError, match="query_features: 3 of 3 rows are not finite"):
        rank_gallery(f / 0, i, i, f, i, i)
    with pytest.raises(ValueError, match=r"widths \[4, 5\]"):
        rank_gallery(f, i, i, torch.zeros(3, 5), i, i)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_rows_of_any_length_are_ranked_by_cosine(dtype: torch.dtype) -> None:
    query, *facts, gallery, gallery_ids, gallery_cameras = case(12, 60, 8)
    expected = rank_gallery(
        query.to(dtype), *facts, gallery.to(dtype), gallery_ids, gallery_cameras
    )
    largest = torch.finfo(dtype).max
    for factor in (3.0, 1e-2, largest * 0.9, 1e-3 if dtype == torch.float16 else 1e-30):
        lengths = torch.full((60, 1), 1.0, dtype=torch.float64)
        lengths[::2] = factor
        long = (gallery.double() * lengths).to(dtype)
        got = rank_gallery(query.to(dtype), *facts, long, gallery_ids, gallery_cameras)
        assert got.mAP == pytest.approx(expected.mAP, abs=2e-2 if dtype == torch.float16 else 1e-6)


def test_arrays_and_lists_of_ids_rank_alike() -> None:
    given = case(12, 60, 8)
    expected = rank_gallery(*given)
    arrays = [x.numpy() for x in given]
    assert rank_gallery(*arrays)[:2] == expected[:2]  # type: ignore[arg-type]
    arrays = [x if x.ndim == 2 else x.astype(np.int32)[::-1].copy()[::-1] for x in arrays]
    assert rank_gallery(*arrays)[:2] == expected[:2]  # type: ignore[arg-type]
    lists = [x if x.ndim == 2 else x.tolist() for x in given]
    assert rank_gallery(*lists)[:2] == expected[:2]  # type: ignore[arg-type]


def test_rank_0_does_not_exist() -> None:
    with pytest.raises(ValueError, match="k: got 0, expected 1 or more"):
        rank_gallery(*case(3, 9, 2)).rank(0)
