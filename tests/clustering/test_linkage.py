"""Average linkage against fractions and SciPy: C++, Python, ranks, constraints, bad input."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from fastreid_al import native
from fastreid_al.clustering import Graph, Linkage, average_linkage, jaccard_graph
from fastreid_al.distributed.world import World
from tests.support.features import FEATURE_SETS, clustered_features
from tests.support.graphs import dense_distances, graph_of, random_distances
from tests.support.process_pool import Pool
from tests.support.references import reference_linkage


@pytest.fixture(params=["extension", "Python"])
def _implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extension, or Python without it."""
    if request.param == "extension" and native.extension() is None:
        pytest.skip("the extension is not built")
    if request.param == "Python":
        monkeypatch.setattr(native, "extension", lambda: None)


def in_python(*args: Any, **settings: Any) -> Linkage:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "extension", lambda: None)
        return average_linkage(*args, **settings)


def without_ties(n: int, seed: int, density: float = 1.0) -> np.ndarray:
    """A symmetric matrix of different distances, 1 where there is no edge."""
    random = np.random.default_rng(seed)
    upper = np.triu(random.random((n, n)), 1)
    upper[np.triu(random.random((n, n)) >= density, 1)] = 1
    return upper + upper.T


def constraints(n: int, seed: int, share: float = 0.5) -> tuple[Tensor, Tensor]:
    """Initial groups and cannot-links between them."""
    random = np.random.default_rng(seed)
    groups = np.where(random.random(n) < share, random.integers(0, max(1, n // 4), n), -1)
    pairs = random.integers(0, max(1, n), (n // 2, 2))
    a, b = groups[pairs].T if len(pairs) else groups[:0].reshape(2, 0)
    apart = (pairs[:, 0] != pairs[:, 1]) & ((a != b) | (a < 0))
    return torch.from_numpy(groups), torch.from_numpy(pairs[apart])


def partition(labels: Tensor) -> set[frozenset[int]]:
    """The clusters, with every other image as a cluster of its own."""
    clusters: dict[tuple[str, int], set[int]] = {}
    for image, label in enumerate(labels.tolist()):
        clusters.setdefault(("image", image) if label < 0 else ("", label), set()).add(image)
    return {frozenset(members) for members in clusters.values()}


def same_bits(a: Linkage, b: Linkage) -> bool:
    pairs = zip((a.labels, a.start, *a.merges), (b.labels, b.start, *b.merges), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def check_against_fractions(
    distance: np.ndarray,
    threshold: float,
    groups: Tensor | None = None,
    cannot_links: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> None:
    graph = graph_of(distance, dtype, 1.0)
    got = average_linkage(graph, threshold, groups, cannot_links)
    labels, joins = reference_linkage(
        dense_distances(graph),
        threshold,
        None if groups is None else groups.numpy(),
        None if cannot_links is None else cannot_links.numpy(),
    )
    assert got.labels.dtype == torch.int64
    assert got.labels.tolist() == labels.tolist()
    columns = got.merges.first, got.merges.second, *got.merges.sizes.T
    found = list(zip(*(x.tolist() for x in columns), strict=True))
    assert found == [join[:4] for join in joins]
    assert got.merges.similarity.tolist() == [float(join[4]) for join in joins]


@pytest.mark.usefixtures("_implementation")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threshold", [1e-12, 0.2, 0.5, 1.0])
@pytest.mark.parametrize(("n", "density"), [(1, 1.0), (2, 1.0), (14, 1.0), (22, 0.2), (9, 0.0)])
def test_labels_and_merges_equal_those_in_fractions(
    n: int, density: float, threshold: float, dtype: torch.dtype
) -> None:
    for seed in range(2):
        for distance in (
            random_distances(n, seed, density=density),
            without_ties(n, seed, density),
        ):
            check_against_fractions(distance, threshold, dtype=dtype)
            check_against_fractions(distance, threshold, *constraints(n, seed), dtype=dtype)


@pytest.mark.usefixtures("_implementation")
@pytest.mark.parametrize("density", [1.0, 0.3])
def test_clusters_equal_those_of_scipy(density: float) -> None:
    for seed, n in enumerate((2, 30, 120)):
        distance = without_ties(n, seed, density)
        tree = linkage(squareform(distance, checks=False), method="average")
        for threshold in (0.1, 0.4, 0.47, 0.6, 0.9):
            got = average_linkage(graph_of(distance, max_distance=1.0), threshold)
            cut = torch.from_numpy(fcluster(tree, 1 - threshold, criterion="distance"))
            assert partition(got.labels) == partition(cut)
            heights = tree[tree[:, 2] <= 1 - threshold, 2]
            assert np.allclose(1 - got.merges.similarity.numpy(), np.sort(heights), atol=1e-9)


ANY_LINKAGE = {
    "n": st.integers(0, 40),
    "seed": st.integers(0, 2**32 - 1),
    "density": st.sampled_from([0.0, 0.05, 0.1, 0.3, 1.0]),
    "levels": st.sampled_from([1, 2, 8, 0]),
    "threshold": st.sampled_from([1e-300, 0.05, 0.2, 0.35, 0.5, 0.8, 1.0]),
    "share": st.sampled_from([0.0, 0.2, 0.8]),
}


def check_properties(
    n: int, seed: int, density: float, levels: int, threshold: float, share: float
) -> None:
    if levels:
        distance = random_distances(n, seed, levels, density)
    else:
        distance = without_ties(n, seed, density)
    groups, cannot_links = constraints(n, seed, share)
    for graph in (graph_of(distance), graph_of(distance, torch.float32)):
        got = average_linkage(graph, threshold, groups, cannot_links)
        assert same_bits(got, in_python(graph, threshold, groups, cannot_links))
        check_constraints(got.labels, groups, cannot_links)
        check_thresholds(graph, got, groups, cannot_links)
        check_history(got)


def check_constraints(labels: Tensor, groups: Tensor, cannot_links: Tensor) -> None:
    a, b = labels[cannot_links].T
    assert not bool(((a == b) & (a >= 0)).any())
    for group in groups[groups >= 0].unique():
        members = labels[groups == group]
        assert bool((members == members[0]).all())
        assert len(members) == 1 or int(members[0]) >= 0


def check_thresholds(graph: Graph, got: Linkage, groups: Tensor, cannot_links: Tensor) -> None:
    coarse = partition(got.labels)
    for threshold in (max(got.threshold, 0.36), 1.0):
        fine = average_linkage(graph, threshold, groups, cannot_links)
        assert torch.equal(got.labels_at(threshold), fine.labels)
        joins = len(fine.merges.first)
        assert all(torch.equal(x, y[:joins]) for x, y in zip(fine.merges, got.merges, strict=True))
        assert all(any(part <= whole for whole in coarse) for part in partition(fine.labels))


def check_history(got: Linkage) -> None:
    first, second, sizes, _ = got.merges
    assert bool((first < second).all())
    assert len(second.unique()) == len(second)
    similarity = got.merges.similarity
    assert bool((similarity[1:] <= similarity[:-1]).all())
    assert bool((similarity >= max(1, round(got.threshold * 2**32)) / 2**32).all())
    # A cluster is numbered by its lowest image and has the images of the joins that led to it.
    lowest = [int((got.labels == c).nonzero()[0]) for c in got.labels[got.labels >= 0].unique()]
    assert lowest == sorted(lowest)
    members = torch.bincount(got.start, minlength=len(got.start)).tolist()
    for a, b, (size_a, size_b) in zip(first.tolist(), second.tolist(), sizes.tolist(), strict=True):
        assert (members[a], members[b]) == (size_a, size_b)
        members[a] += members[b]
        assert got.labels[a] == got.labels[b]


@settings(max_examples=40, deadline=None)
@given(**ANY_LINKAGE)
def test_implementations_agree_and_constraints_and_thresholds_hold(
    n: int, seed: int, density: float, levels: int, threshold: float, share: float
) -> None:
    check_properties(n, seed, density, levels, threshold, share)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(**ANY_LINKAGE)
def test_implementations_agree_and_constraints_and_thresholds_hold_in_many_cases(
    n: int, seed: int, density: float, levels: int, threshold: float, share: float
) -> None:
    check_properties(n, seed, density, levels, threshold, share)


@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(1, 30),
    seed=st.integers(0, 2**32 - 1),
    density=st.sampled_from([0.1, 0.3, 1.0]),
    threshold=st.sampled_from([0.05, 0.35, 0.6]),
)
def test_the_order_of_images_does_not_matter_without_ties(
    n: int, seed: int, density: float, threshold: float
) -> None:
    distance = without_ties(n, seed, density)
    groups, cannot_links = constraints(n, seed, 0.2)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(n))
    place = order.argsort()
    moved = graph_of(distance[np.ix_(order, order)])
    before = average_linkage(graph_of(distance), threshold, groups, cannot_links)
    after = average_linkage(moved, threshold, groups[order], place[cannot_links])
    assert partition(after.labels[place]) == partition(before.labels)
    assert torch.equal(after.merges.similarity, before.merges.similarity)


@pytest.mark.usefixtures("_implementation")
def test_among_equal_similarities_the_lowest_images_are_joined_first() -> None:
    # All pairs of six images are alike: 0 takes one after the other.
    got = average_linkage(graph_of(np.full((6, 6), 0.5)), 0.5)
    assert got.labels.tolist() == [0] * 6
    assert got.merges.first.tolist() == [0] * 5
    assert got.merges.second.tolist() == [1, 2, 3, 4, 5]
    assert got.merges.sizes.tolist() == [[1, 1], [2, 1], [3, 1], [4, 1], [5, 1]]
    assert got.merges.similarity.tolist() == [0.5] * 5
    # A path of equal edges: after the first join, image 2 is at half the similarity of the pair.
    distance = np.ones((4, 4))
    for a in range(3):
        distance[a, a + 1] = distance[a + 1, a] = 0.2
    got = average_linkage(graph_of(distance), 0.3)
    assert got.labels.tolist() == [0, 0, 1, 1]
    assert average_linkage(graph_of(distance), 0.2).labels.tolist() == [0, 0, 0, 0]
    assert average_linkage(graph_of(distance), 0.2 + 1e-9).labels.tolist() == [0, 0, 1, 1]


def test_a_hub_whose_neighbours_are_joined_first_is_joined_in_its_turn() -> None:
    # Image 0 is next to many pairs, each of which is closer to itself.
    random = np.random.default_rng(0)
    pairs = 150
    distance = np.ones((2 * pairs + 1, 2 * pairs + 1))
    for a in range(1, 2 * pairs, 2):
        distance[a, a + 1] = distance[a + 1, a] = 0.1
        distance[0, a] = distance[a, 0] = 0.2 + 0.4 * random.random()
    graph = graph_of(distance)
    links = torch.tensor([[0, 2], [0, 5], [0, 7]])
    for threshold in (0.01, 0.3):
        got = average_linkage(graph, threshold, cannot_links=links)
        assert same_bits(got, in_python(graph, threshold, cannot_links=links))
        assert len(got.merges.first) > pairs


@pytest.mark.usefixtures("_implementation")
def test_copies_of_an_image_are_one_cluster() -> None:
    distance = without_ties(12, 0)
    rows = np.random.default_rng(0).integers(0, 12, 50)
    copies = distance[np.ix_(rows, rows)]
    got = average_linkage(graph_of(copies, max_distance=1.0), 1.0)
    expected = {frozenset(np.flatnonzero(rows == row).tolist()) for row in set(rows.tolist())}
    assert partition(got.labels) == expected


@pytest.mark.usefixtures("_implementation")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_pair_at_the_threshold_is_joined(dtype: torch.dtype) -> None:
    for distance in (0.0, 0.25, 0.5):
        graph = graph_of(np.array([[0, distance], [distance, 0]]), dtype)
        assert average_linkage(graph, 1 - distance).labels.tolist() == [0, 0]
        if distance:
            assert average_linkage(graph, 1 - distance + 1e-6).labels.tolist() == [-1, -1]
    # 1 - 0.9 is less than 0.1, and rounds to the same multiple of 2^-32.
    graph = graph_of(np.array([[0, 0.9], [0.9, 0]]), max_distance=0.95)
    assert 1 - 0.9 < 0.1
    assert average_linkage(graph, 0.1).labels.tolist() == [0, 0]


@pytest.mark.usefixtures("_implementation")
def test_a_cannot_link_holds_for_all_that_is_joined_to_its_images() -> None:
    # 0-1 and 2-3 are close, and all four are alike; 0 and 3 are different.
    distance = np.full((4, 4), 0.3)
    distance[0, 1] = distance[1, 0] = distance[2, 3] = distance[3, 2] = 0.1
    graph = graph_of(distance)
    links = torch.tensor([[3, 0]])
    assert average_linkage(graph, 0.5).labels.tolist() == [0, 0, 0, 0]
    assert average_linkage(graph, 0.5, cannot_links=links).labels.tolist() == [0, 0, 1, 1]
    groups = torch.tensor([-1, 5, 5, -1])
    got = average_linkage(graph, 0.5, groups, links)
    # 0 joins the group of 1 and 2 first; 3 is at the same similarity, but is forbidden afterwards.
    assert got.labels.tolist() == [0, 0, 0, -1]
    assert got.start.tolist() == [0, 1, 1, 3]


@pytest.mark.usefixtures("_implementation")
def test_initial_groups_are_joined_whatever_their_similarity() -> None:
    nothing = graph_of(np.ones((5, 5)))
    got = average_linkage(nothing, 0.5, torch.tensor([7, -1, 2**40, 7, 2**40]))
    assert got.labels.tolist() == [0, -1, 1, 0, 1]
    assert got.labels_at(1.0).tolist() == [0, -1, 1, 0, 1]
    assert len(got.merges.first) == 0
    assert got.start.tolist() == [0, 1, 2, 0, 2]


@pytest.mark.usefixtures("_implementation")
def test_graphs_without_nodes_or_edges() -> None:
    for n in (0, 1, 3):
        graph = Graph(
            torch.zeros(n + 1, dtype=torch.int64),
            torch.zeros(0, dtype=torch.int64),
            torch.zeros(0),
            0.62,
        )
        got = average_linkage(graph, 0.5, torch.full((n,), -1), torch.empty(0, 2).long())
        assert got.labels.tolist() == [-1] * n
        assert [tuple(x.shape) for x in got.merges] == [(0,), (0,), (0, 2), (0,)]
        assert got.merges.similarity.shape == (0,)
        assert got.labels_at(0.7).tolist() == [-1] * n


@pytest.mark.usefixtures("_implementation")
def test_arrays_may_be_views_and_of_any_integers() -> None:
    graph = graph_of(random_distances(40, 1))
    groups, links = constraints(40, 1)
    expected = average_linkage(graph, 0.4, groups, links)
    strided = [torch.stack([x, x + 1], dim=1)[:, 0] for x in graph[:3]]
    views = (
        Graph(*strided, 0.62),
        0.4,
        groups.int().tolist(),
        links.flip(1).numpy().astype(np.int16),
    )
    assert same_bits(average_linkage(*views), expected)
    assert same_bits(average_linkage(graph, 0.4, groups, links.T.contiguous().T), expected)


@pytest.mark.usefixtures("_implementation")
@pytest.mark.parametrize("name", FEATURE_SETS)
def test_jaccard_graphs_are_clustered_as_their_dense_form(name: str) -> None:
    graph = jaccard_graph(torch.from_numpy(FEATURE_SETS[name][:60]), k1=12, max_distance=0.9)
    labels, _ = reference_linkage(dense_distances(graph), 0.3)
    assert average_linkage(graph, 0.3).labels.tolist() == labels.tolist()


def test_results_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.from_numpy(clustered_features(4000, 250, spread=0.9))
    graph = jaccard_graph(features, k1=20, max_distance=0.9)
    groups, links = constraints(4000, 0, 0.05)
    expected = average_linkage(graph, 0.3, groups, links)
    assert len(expected.merges.first) > 1000
    for threads in (1, 2, 4, 7):
        monkeypatch.setattr(native, "threads", lambda threads=threads: threads)
        for _ in range(2):
            assert same_bits(average_linkage(graph, 0.3, groups, links), expected)
    assert same_bits(in_python(graph, 0.3, groups, links), expected)


def on_rank(
    world: World, graph: Graph, threshold: float, groups: Tensor | None, links: Tensor | None
) -> Linkage:
    own = world.local_slice(graph.n)
    first, last = (int(x) for x in graph.indptr[[own.start, own.stop]])
    indptr = graph.indptr[own.start : own.stop + 1] - first
    rows = Graph(indptr, graph.indices[first:last], graph.distances[first:last], graph.max_distance)
    return average_linkage(rows, threshold, groups, links, world=world)


@pytest.mark.parametrize("size", [3, *(pytest.param(x, marks=pytest.mark.slow) for x in (2, 4))])
def test_all_ranks_get_the_result_of_a_single_process(pool: Pool, size: int) -> None:
    for n, constrained in ((97, True), (97, False), (5, False)):
        graph = graph_of(random_distances(n, n, density=0.1))
        arguments = 0.3, *(constraints(n, 0) if constrained else (None, None))
        expected = average_linkage(graph, *arguments)
        for got in pool.run(on_rank, size, graph, *arguments):
            assert same_bits(got, expected)


def refused_on_rank(world: World, graph: Graph, links: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        on_rank(world, graph, 0.3, None, links)


def test_all_ranks_refuse_what_is_wrong(pool: Pool) -> None:
    graph = graph_of(random_distances(30, 0))
    above = graph.distances.clone()
    above[3] = 1.5
    for wrong, links, message in (
        (graph._replace(distances=above), None, "got a distance of 1.5"),
        (graph._replace(indices=graph.indices + 25), None, "graph: got an index"),
        (graph, torch.tensor([[4, 4]]), "cannot_links: got images 4 and 4 in row 0"),
    ):
        pool.run(refused_on_rank, 3, wrong, links, message)


PATH = Graph(
    torch.tensor([0, 1, 3, 4]), torch.tensor([1, 0, 2, 1]), torch.full((4,), 0.1).double(), 0.62
)
MALFORMED: dict[str, tuple[Callable[[Graph], Graph], str]] = {
    "falling": (
        lambda g: g._replace(indptr=torch.tensor([0, 2, 1, 4])),
        "indptr decreases after node 1",
    ),
    "high": (lambda g: g._replace(indices=torch.tensor([1, 0, 3, 1])), "got an index 3"),
    "no indptr": (
        lambda g: g._replace(indptr=torch.zeros(0, dtype=torch.int64)),
        "got shapes (0,)",
    ),
    "twice": (
        lambda g: g._replace(indices=torch.tensor([1, 2, 2, 1])),
        "graph: the indices of node 1 do not ascend",
    ),
    "one direction": (
        lambda g: g._replace(indptr=torch.tensor([0, 2, 4, 4]), indices=torch.tensor([1, 2, 1, 2])),
        "graph: got 3 entries above the diagonal and 0 below it, expected a symmetric graph",
    ),
    "negative": (lambda g: g._replace(distances=g.distances - 1), "got a distance of -0.9"),
    "far": (lambda g: g._replace(distances=g.distances + 1), "got a distance of 1.1"),
    "NaN": (lambda g: g._replace(distances=g.distances * torch.nan), "got a distance of nan"),
}


@pytest.mark.usefixtures("_implementation")
@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_graph_is_refused(name: str) -> None:
    assert average_linkage(PATH, 0.4).labels.tolist() == [0, 0, 0]
    spoil, message = MALFORMED[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        average_linkage(spoil(PATH), 0.4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"graph": None}, "graph: got None, expected a Graph"),
        ({"threshold": 0}, "threshold: got 0, expected a number above 0"),
        ({"threshold": 1.1}, "threshold: got 1.1, expected a number in [0, 1]"),
        ({"threshold": float("nan")}, "threshold: got nan"),
        ({"groups": torch.zeros(2).long()}, "groups: got shape (2,), expected (3,)"),
        ({"groups": torch.tensor([0, -2, 1])}, "groups: got -2 at index 1"),
        ({"cannot_links": torch.zeros(1, 3).long()}, "cannot_links: got shape (1, 3)"),
        ({"cannot_links": torch.zeros(2).long()}, "cannot_links: got shape (2,), expected (m, 2)"),
        ({"cannot_links": torch.tensor([[0, 3]])}, "cannot_links: got 3 at index 1"),
        ({"cannot_links": torch.ones(1, 2)}, "cannot_links: got dtype torch.float32"),
        (
            {"cannot_links": torch.tensor([[0, 1], [2, 0]]), "groups": torch.tensor([4, -1, 4])},
            "cannot_links: got images 2 and 0 in row 1 (1 such rows)",
        ),
    ],
)
def test_arguments_out_of_range_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        average_linkage(**{"graph": PATH, "threshold": 0.5, **arguments})


def test_labels_below_the_threshold_are_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("threshold: got 0.3, expected a number in")):
        average_linkage(PATH, 0.5).labels_at(0.3)
