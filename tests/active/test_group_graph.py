"""Groups of images in a graph: pairs, joins and parts, against dense arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fastreid_al.active.group_graph import (
    Groups,
    Neighbourhoods,
    linkage_of,
    pairs_of_groups,
    parts_of,
)
from fastreid_al.answers import Answer, Closure, Verdict
from fastreid_al.clustering import Graph
from tests.support.features import clustered_features
from tests.support.graphs import dense_distances, graph_of, random_distances

N = 60


def some_groups(seed: int) -> tuple[Graph, np.ndarray, Tensor, Tensor, Tensor]:
    """A graph, its dense similarities, features, groups with gaps in their numbers, cameras."""
    random = np.random.default_rng(seed)
    graph = graph_of(random_distances(N, seed), max_distance=0.9)
    similarity = 1 - dense_distances(graph)
    np.fill_diagonal(similarity, 0)
    features = torch.from_numpy(clustered_features(N, 6, 8, 0.5, seed)).float()
    labels = torch.from_numpy(2 * random.integers(12, size=N))
    cameras = torch.from_numpy(random.integers(-1, 3, size=N))
    return graph, similarity, features, labels, cameras


def closure_of(*answers: tuple[int, int, Verdict]) -> Closure:
    return Closure.replay([Answer(at + 1, *answer) for at, answer in enumerate(answers)])


@pytest.mark.parametrize("seed", range(3))
def test_groups_have_sizes_centroids_and_cameras(seed: int) -> None:
    _, _, features, labels, cameras = some_groups(seed)
    groups = Groups.of_labels(features, labels, cameras)
    for number, label in enumerate(labels.unique().tolist()):
        rows = labels == label
        assert (groups.labels[rows] == number).all()
        assert groups.sizes[number] == int(rows.sum())
        mean = features[rows].double().mean(0)
        np.testing.assert_allclose(groups.centroids[number], mean / mean.norm(), atol=1e-6)
        expected = [int((cameras[rows] == camera).sum()) for camera in range(3)]
        assert groups.cameras[number].tolist() == expected


def test_neighbourhoods_are_exact_at_first_and_for_what_changed() -> None:
    random = np.random.default_rng(0)
    centroids = torch.from_numpy(clustered_features(30, 6, 8, 0.5, 0)).float()
    names = random.permutation(30).tolist()
    images = [[3 * at, 3 * at + 1] for at in range(30)]
    neighbourhoods = Neighbourhoods()
    pairs, around = neighbourhoods.update(names, images, centroids)
    cosines = (centroids.double() @ centroids.double().T).numpy()
    np.fill_diagonal(cosines, -np.inf)
    order = np.argsort(-cosines, axis=1)[:, :10]
    assert {tuple(pair) for pair in pairs} == {(a, b) for a in range(30) for b in order[a]}
    np.testing.assert_allclose(around, np.sort(cosines, axis=1)[:, -10:].mean(1), atol=1e-6)
    # Groups 0 and 1 become one: the others keep what they knew, without the group that is gone.
    fewer = centroids[1:]
    pairs, after = neighbourhoods.update(names[1:], [images[0] + images[1], *images[2:]], fewer)
    np.testing.assert_array_equal(after[1:], around[2:])
    assert after[0] == pytest.approx(np.sort(cosines[1, 1:])[-10:].mean(), abs=1e-6)
    assert {tuple(p) for p in pairs if p[0]} == {
        (a - 1, b - 1) for a in range(2, 30) for b in order[a] if b
    }


def test_a_group_alone_has_no_neighbours() -> None:
    pairs, around = Neighbourhoods().update([7], [[0, 1]], torch.ones(1, 1))
    assert pairs.shape == (0, 2)
    assert around.tolist() == [0]


@pytest.mark.parametrize("seed", range(3))
def test_pairs_have_an_edge_or_near_centroids_and_means_and_places(seed: int) -> None:
    graph, similarity, features, labels, cameras = some_groups(seed)
    groups = Groups.of_labels(features, labels, cameras)
    random = np.random.default_rng(seed)
    near = random.integers(len(groups.sizes), size=(20, 2))
    near = near[near[:, 0] != near[:, 1]]
    pairs = pairs_of_groups(graph, groups, near)
    count = len(groups.sizes)
    linkage = np.zeros((count, count))
    for a in range(count):
        for b in range(count):
            if a != b:
                block = similarity[np.ix_(groups.labels == a, groups.labels == b)]
                linkage[a, b] = block.mean()
    further = {tuple(sorted(pair)) for pair in near.tolist()}
    expected = [
        (a, b)
        for a in range(count)
        for b in range(a + 1, count)
        if linkage[a, b] > 0 or (a, b) in further
    ]
    assert list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == expected
    for at, (a, b) in enumerate(expected):
        assert pairs.linkage[at] == pytest.approx(linkage[a, b], abs=1e-6)
        above = int((linkage[a] > pairs.linkage[at] + 1e-9).sum())
        ties = int((linkage[a] == 0).sum()) if linkage[a, b] == 0 else 1
        assert above <= pairs.ranks[at, 0] <= above + ties
        above = int((linkage[b] > pairs.linkage[at] + 1e-9).sum())
        ties = int((linkage[b] == 0).sum()) if linkage[a, b] == 0 else 1
        assert above <= pairs.ranks[at, 1] <= above + ties
    same = groups.same_camera(pairs.first, pairs.second)
    for at, (a, b) in enumerate(expected):
        of_a = cameras[groups.labels == a][:, None]
        of_b = cameras[groups.labels == b]
        assert same[at] == pytest.approx(float(((of_a == of_b) & (of_a >= 0)).double().mean()))


def test_groups_without_cameras_share_none() -> None:
    graph, _, features, labels, _ = some_groups(0)
    for cameras in (None, torch.full((N,), -1)):
        groups = Groups.of_labels(features, labels, cameras)
        pairs = pairs_of_groups(graph, groups, np.zeros((0, 2), dtype=np.int64))
        assert not groups.same_camera(pairs.first, pairs.second).any()


@pytest.mark.parametrize("seed", range(3))
def test_linkage_of_chosen_groups_is_the_mean_of_their_pairs(seed: int) -> None:
    graph, similarity, _, labels, _ = some_groups(seed)
    labels = labels // 2
    labels[::5] = -1
    first, second = np.array([0, 3, 5, 2]), np.array([4, 1, 7, 9])
    got = linkage_of(graph, labels, first, second)
    for a, b, linkage in zip(first, second, got, strict=True):
        block = similarity[np.ix_(labels == a, labels == b)]
        assert linkage == pytest.approx(block.mean(), abs=1e-6)


def test_groups_without_an_edge_have_linkage_0() -> None:
    graph = graph_of(np.ones((4, 4)))
    assert linkage_of(graph, torch.arange(4), np.array([0]), np.array([3])).tolist() == [0]


@pytest.mark.parametrize("seed", range(3))
def test_parts_agree_with_the_answers(seed: int) -> None:
    graph, _, _, _, _ = some_groups(seed)
    rows = list(range(0, N, 2))
    closure = closure_of(
        (0, 10, Verdict.DIFFERENT), (10, 20, Verdict.SAME), (20, 30, Verdict.DIFFERENT)
    )
    parts = parts_of(graph, rows, closure)
    assert sorted(image for part in parts for image in part) == rows
    part_of = {image: number for number, part in enumerate(parts) for image in part}
    assert part_of[10] == part_of[20]
    assert part_of[0] != part_of[10] != part_of[30]
    assert [len(part) for part in parts] == sorted((len(part) for part in parts), reverse=True)


def test_a_group_without_answers_stays_as_far_as_it_is_connected() -> None:
    distances = np.ones((5, 5))
    distances[0, 1] = distances[1, 0] = distances[2, 3] = distances[3, 2] = 0.5
    parts = parts_of(graph_of(distances), [0, 1, 2, 4], Closure())
    assert parts == [[0, 1], [2], [4]]
