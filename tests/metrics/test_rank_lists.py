"""Lists of ranked images against sorted lists and a hand-computed case, on any number of ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastreid_al.distributed.world import World
from fastreid_al.metrics import RankLists, list_gallery, rank_gallery, rank_lists, ranking
from tests.metrics.test_ranking import Case, case
from tests.support.process_pool import Pool
from tests.support.references import hand_ranking_case

#: One entry of a list: gallery index, rank, whether it is right, whether it is junk.
Entry = tuple[int, int, bool, bool]


def entries(lists: RankLists) -> list[list[Entry]]:
    """The lists without padding, which stands at their ends."""
    got = []
    for row in zip(lists.gallery, lists.rank, lists.right, lists.junk, strict=True):
        columns = [part.tolist() for part in row]
        length = sum(g >= 0 for g in columns[0])
        assert all(g == -1 for g in columns[0][length:])
        got.append(list(zip(*(part[:length] for part in columns), strict=True)))
    return got


def reference_lists(similarity: np.ndarray, given: Case, top: int) -> list[list[Entry]]:
    """Sort the whole gallery of each query."""
    _, query_ids, query_cameras, _, gallery_ids, gallery_cameras = (x.tolist() for x in given)
    lists = []
    for q, identity in enumerate(query_ids):
        entries: list[Entry] = []
        rank = ignored = 0
        for g in sorted(range(len(gallery_ids)), key=lambda g: (-similarity[q, g], g)):
            right = identity == gallery_ids[g] != -1
            camera = query_cameras[q] != -1 and query_cameras[q] == gallery_cameras[g]
            junk = gallery_ids[g] == -1 or (right and camera)
            if rank == min(top, len(gallery_ids)) or (junk and ignored == top):
                continue
            rank += not junk
            ignored += junk
            entries.append((g, 0 if junk else rank, right, junk))
        lists.append(entries)
    return lists


@given(
    st.integers(1, 12),
    st.integers(1, 40),
    st.integers(1, 10),
    st.integers(0, 2**32 - 1),
    st.integers(1, 45),
)
@settings(max_examples=60, deadline=None)
def test_lists_are_those_of_sorted_galleries(
    queries: int, gallery: int, identities: int, seed: int, top: int
) -> None:
    given = case(queries, gallery, identities, seed, tied=True)
    similarity = (given[0] @ given[3].T).double().numpy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "_BLOCK", 4 * gallery)
        scores, lists = list_gallery(*given, top=top)
    assert entries(lists) == reference_lists(similarity, given, top)
    plain = rank_gallery(*given)
    assert (scores.mAP, scores.queries, scores.skipped) == (plain.mAP, plain.queries, plain.skipped)


def test_the_hand_computed_case_is_listed_with_its_ignored_images() -> None:
    similarity, *labels, _ = hand_ranking_case()
    query_ids, query_cameras, gallery_ids, gallery_cameras = map(torch.as_tensor, labels)
    gallery = torch.eye(8, dtype=torch.float64)
    given = torch.as_tensor(similarity), query_ids, query_cameras
    scores, lists = list_gallery(*given, gallery, gallery_ids, gallery_cameras, top=3)
    first, second, third = entries(lists)
    assert first == [
        (0, 0, True, True),
        (3, 0, False, True),
        (1, 1, True, False),
        (2, 2, False, False),
        (5, 3, False, False),
    ]
    assert second == [
        (3, 0, False, True),
        (1, 1, False, False),
        (5, 2, True, False),
        (7, 3, False, False),
    ]
    assert [entry[0] for entry in third] == [6, 7, 5, 4]
    length = np.linalg.norm(similarity[0])
    assert lists.similarity[0, 0] == pytest.approx(0.95 / length)
    assert torch.isnan(lists.similarity[1, 4:]).all()
    of_queries = scores.of_queries
    assert of_queries.average_precision.tolist() == pytest.approx([3 / 4, 11 / 28, 0])
    assert of_queries.inverse_penalty.tolist() == pytest.approx([2 / 4, 2 / 7, 0])
    assert of_queries.first.tolist() == [1, 2, 0]
    assert of_queries.matches.tolist() == [2, 2, 0]
    assert of_queries.same_camera.tolist() == [1, 0, 1]
    assert of_queries.ranked.tolist() == [True, True, False]
    assert of_queries.junk == 1


def test_the_means_are_those_of_the_scores_of_queries() -> None:
    scores = rank_gallery(*case(40, 300, 12))
    ranked = scores.of_queries.ranked
    assert scores.queries == int(ranked.sum())
    assert scores.mAP == pytest.approx(float(scores.of_queries.average_precision[ranked].mean()))
    assert scores.mINP == pytest.approx(float(scores.of_queries.inverse_penalty[ranked].mean()))
    assert scores.rank(1) == float((scores.of_queries.first[ranked] == 1).double().mean())


def test_an_empty_side_has_empty_lists() -> None:
    query, *facts = case(4, 9, 3)
    gallery, *gallery_facts = facts[2:]
    empty = list_gallery(query, *facts[:2], gallery[:0], *(x[:0] for x in gallery_facts))[1]
    assert empty.gallery.shape == (4, 0)
    none = list_gallery(query[:0], *(x[:0] for x in facts[:2]), gallery, *gallery_facts)[1]
    assert none.gallery.shape == (0, 0)


def test_a_list_has_one_rank_or_more() -> None:
    with pytest.raises(ValueError, match="top: got 0, expected 1 or more"):
        list_gallery(*case(3, 9, 2), top=0)


def list_on_ranks(world: World, given: Case, top: int, block: int) -> list[list[float]]:
    ranking._BLOCK = block
    query, query_ids, query_cameras, gallery, *rest = given
    own = query[world.local_slice(len(query))], gallery[world.local_slice(len(gallery))]
    scores, lists = list_gallery(
        own[0], query_ids, query_cameras, own[1], *rest, top=top, world=world
    )
    similarity = lists.similarity.nan_to_num(nan=-2)
    of_queries = scores.of_queries
    return [
        x.flatten().tolist() for x in (*lists._replace(similarity=similarity), *of_queries[:-1])
    ]


@pytest.mark.parametrize("size", [1, 3, *(pytest.param(x, marks=pytest.mark.slow) for x in (2, 4))])
@pytest.mark.parametrize(
    ("queries", "gallery", "identities", "tied", "top"),
    [
        (50, 400, 12, False, 20),
        (50, 401, 3, True, 50),
        (2, 5, 2, True, 9),
        (1, 1, 1, False, 1),
        (3, 2, 4, False, 5),
    ],
)
def test_all_ranks_return_the_lists_of_a_single_process(
    pool: Pool, size: int, queries: int, gallery: int, identities: int, tied: bool, top: int
) -> None:
    given = case(queries, gallery, identities, tied=tied)
    expected = list_on_ranks(rank_lists.SINGLE_PROCESS, given, top, ranking._BLOCK)
    for block in (ranking._BLOCK, 9 * gallery):
        assert pool.run(list_on_ranks, size, given, top, block) == [expected] * size
