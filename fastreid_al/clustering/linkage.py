"""Average linkage (UPGMA, Sokal and Michener 1958) on a sparse graph of distances.

Similarities are rounded to whole numbers, in units of 2^-32. Their sums are exact, and averages are
compared as fractions of whole numbers. The result depends neither on the order of a sum nor on the
number of threads, and the C++ and Python implementations return the same bits.
"""

from __future__ import annotations

import bisect
import heapq
import math
from collections import defaultdict
from typing import NamedTuple

import torch
from torch import Tensor

from .. import native
from ..arguments import as_ids, as_instance, as_labels, as_number, as_tensor, as_world
from ..distributed.world import SINGLE_PROCESS, World
from .csr import indptr_of
from .dbscan import check_graph, lowest_nodes, nodes_of_all
from .jaccard import Graph

#: A similarity of 1, as a whole number.
_UNIT = 2**32
#: Images are numbered with 31 bits.
_MOST_IMAGES = 2**31 - 1
#: So that a sum of similarities has 63 bits at most: an edge is in the arrays twice.
_MOST_ENTRIES = 2**32 - 1
#: Rows whose entries are counted at a time.
_BLOCK = 2**16
#: In place of a sum of similarities: the groups must not be joined.
_CANNOT_LINK = -1


class Merges(NamedTuple):
    """The joins of two groups, in the order in which they were made: by falling similarity.

    A group is named by its lowest image. Among equal similarities the pair with the lowest `first`
    was joined, then the one with the lowest `second`.

    Args:
        first: (m,) int64, the group whose lowest image is lower; the union keeps this name.
        second: (m,) int64, the other group. No image is named here twice.
        sizes: (m, 2) int64, images of the two groups.
        sums: (m,) int64, the sum of the similarities of their pairs, in units of 2^-32.
    """

    first: Tensor
    second: Tensor
    sizes: Tensor
    sums: Tensor

    @property
    def similarity(self) -> Tensor:
        """L of each join, the mean similarity of its pairs: (m,) float64, falling."""
        return self.sums.double() / self.sizes.prod(1).double() / _UNIT


class Linkage(NamedTuple):
    """Clusters of average linkage, and the joins that led to them.

    It takes 16 bytes an image and 40 bytes a join, of which there are fewer than images: 1.8 MB at
    n = 32,621 and 56 MB at 1e6 at most.

    Args:
        labels: (n,) int64, clusters of two or more images numbered by their lowest image, -1 for
            every other image.
        merges: The joins; those inside cluster c are where `labels[merges.first] == c`.
        start: (n,) int64, the lowest image of each image's initial group.
        threshold: The least L of a join.
    """

    labels: Tensor
    merges: Merges
    start: Tensor
    threshold: float

    def labels_at(self, threshold: float) -> Tensor:
        """Return the labels that `average_linkage` gives at a higher threshold: (n,) int64.

        Raises:
            ValueError: The threshold is below that of the linkage, or above 1.
        """
        units = _units(as_number("threshold", threshold, self.threshold, 1))
        first, second, sizes, sums = self.merges

        def is_below(join: int) -> bool:
            # In integers of Python, which are exact.
            return int(sums[join]) < units * math.prod(sizes[join].tolist())

        # L falls, so the joins that reach the threshold come first.
        kept = bisect.bisect_left(range(len(first)), True, key=is_below)
        return _labels(self.start, first[:kept], second[:kept])


def average_linkage(
    graph: Graph,
    threshold: float,
    groups: Tensor | None = None,
    cannot_links: Tensor | None = None,
    world: World = SINGLE_PROCESS,
) -> Linkage:
    """Join the two most similar groups of images until none are similar enough.

    The similarity of a pair of images is 1 - distance if it is an edge of the graph, and 0
    otherwise. The similarity L(A, B) of two groups is the mean over the |A| |B| pairs of their
    images. The two groups with the greatest L are joined while L reaches the threshold. A group is
    named by its lowest image. Among equal L the pair with the lowest first group is joined, then
    the one with the lowest second group.

    Args:
        graph: Distances in [0, 1], on the CPU or a GPU, such as those of `jaccard_graph`. Means
            include pairs below the threshold, so a wide max_distance such as 0.9 is better.
        threshold: The least L of a join, above 0 and at most 1. It is rounded to a multiple of
            2^-32, as similarities are, but not to 0.
        groups: (n,) int64 must-links: images of one number form an initial group, -1 is a single
            image. On several ranks these are the same on all of them.
        cannot_links: (m, 2) int64 pairs of images. Two groups with such a pair between them are
            never joined. On several ranks these are the same on all of them.
        world: The ranks, each with its rows of the graph as `jaccard_graph` returned them. The
            first rank gathers the graph and computes on its CPU; all ranks get the result.

    Returns:
        The labels and the joins, on the device of the graph. They do not depend on the number of
        threads or ranks.

    Memory:
        In addition to the graph and the result, C++ needs 24 bytes for each edge that could lie
        inside a cluster, and about 90 bytes an image: at most 23 MB at n = 32,621 with 50
        neighbours an image, 690 MB at 1e6. An edge could lie inside a cluster if a path of pairs
        that reach the threshold connects its ends. Without the extension, dictionaries take about
        300 bytes an edge. Each group that ever exists is searched once, in time linear in its
        edges. A cluster that grew from single images has at most 1 + d / threshold images, where d
        is their mean number of neighbours inside it. So time is linear in the edges while clusters
        are small against n.

    Raises:
        ValueError: The threshold is outside its range, the graph is malformed or not symmetric, has
            a distance outside [0, 1], 2^31 images or 2^32 entries, `groups` has another length,
            or a cannot-link joins images of one initial group. If it is so on one rank, all ranks
            raise.
    """
    as_world(world)
    as_instance("graph", graph, Graph)
    threshold = float(as_number("threshold", threshold, 0, 1))
    if threshold == 0:
        raise ValueError("threshold: got 0, expected a number above 0, such as 0.35")
    n = nodes_of_all(graph, world)

    def checked() -> tuple[Tensor, Tensor]:
        check_graph(graph, n)
        start = _initial_groups(groups, n)
        return start, _checked_pairs(cannot_links, start)

    start, pairs = world.raise_together(checked)
    whole = _gathered(graph, world)
    merges = world.compute_on_first(lambda: _merges(whole, start, pairs, _units(threshold)))
    device = graph.distances.device
    labels = _labels(start, merges.first, merges.second)
    return Linkage(
        labels.to(device),
        Merges(*(x.to(device) for x in merges)),
        start.to(device),
        threshold,
    )


def _units(threshold: float) -> int:
    """A threshold in the units of similarities, at least 1."""
    return max(1, round(threshold * _UNIT))


def _labels(start: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Labels (n,) after some joins of the initial groups."""
    parents = torch.arange(len(start), device=start.device)
    # A group is joined to a lower one once; afterwards it has another name.
    parents[second] = first
    while not torch.equal(above := parents[parents], parents):
        parents = above
    lowest = parents[start]  # (n,) lowest image of each image's cluster
    clusters = torch.bincount(lowest, minlength=len(start)) > 1
    numbers = clusters.cumsum(0) - 1
    return torch.where(clusters[lowest], numbers[lowest], -1)


def _initial_groups(groups: Tensor | None, n: int) -> Tensor:
    """The lowest image of each image's initial group: (n,) int64, on the CPU."""
    images = torch.arange(n)
    if groups is None:
        return images
    groups = as_labels("groups", as_ids("groups", groups, n, per="image").cpu())
    _, numbers = torch.unique(groups, return_inverse=True)
    lowest = torch.full_like(images, n).scatter_reduce_(0, numbers, images, "amin")
    return torch.where(groups < 0, images, lowest[numbers])


def _checked_pairs(cannot_links: Tensor | None, start: Tensor) -> Tensor:
    """The cannot-links (m, 2) int64, on the CPU."""
    if cannot_links is None:
        return torch.empty(0, 2, dtype=torch.int64)
    links = as_tensor("cannot_links", cannot_links, 2, "(m, 2)")
    if links.shape[1] != 2:
        raise ValueError(f"cannot_links: got shape {tuple(links.shape)}, expected (m, 2)")
    images = as_ids("cannot_links", links.reshape(-1), per="image of a pair").cpu()
    pairs = as_ids("cannot_links", images, low=0, high=len(start)).view(-1, 2).contiguous()
    joined = (start[pairs[:, 0]] == start[pairs[:, 1]]).nonzero()[:, 0]
    if len(joined):
        at = int(joined[0])
        a, b = pairs[at].tolist()
        raise ValueError(
            f"cannot_links: got images {a} and {b} in row {at} ({len(joined)} such rows), expected "
            "two images that are not in one initial group"
        )
    return pairs


def _gathered(graph: Graph, world: World) -> tuple[Tensor, Tensor, Tensor]:
    """indptr, indices and distances of all ranks, on the first rank's CPU."""
    counts = world.gather_rows_to_first(graph.indptr.diff())
    indices = world.gather_rows_to_first(graph.indices)
    distances = world.gather_rows_to_first(graph.distances)
    return (
        indptr_of(counts).cpu(),
        indices.cpu().contiguous(),
        distances.detach().cpu().contiguous(),
    )


def _merges(
    graph: tuple[Tensor, Tensor, Tensor], start: Tensor, pairs: Tensor, units: int
) -> Merges:
    _check_entries(*graph)
    if native.extension() is not None:
        return _by_extension(*graph, start, pairs, units)
    return _by_heap(*graph, start, pairs, units)


def _check_entries(indptr: Tensor, indices: Tensor, distances: Tensor) -> None:
    """Refuse a graph that is not symmetric, names a pair twice or has a distance past 1."""
    n = len(indptr) - 1
    if n > _MOST_IMAGES or len(indices) > _MOST_ENTRIES:
        raise ValueError(
            f"graph: got {n} nodes and {len(indices)} entries, "
            f"expected {_MOST_IMAGES} and {_MOST_ENTRIES} at most"
        )
    if not len(indices):
        return
    low, high = (float(x) for x in torch.aminmax(distances))
    if not (low >= 0 and high <= 1):
        wrong = high if not high <= 1 else low
        raise ValueError(f"graph: got a distance of {wrong:g}, expected distances in [0, 1]")
    falls = (indices[1:] <= indices[:-1]).nonzero()[:, 0] + 1
    rows = torch.searchsorted(indptr, falls, right=True) - 1
    inside = (indptr[rows] < falls).nonzero()[:, 0]
    if len(inside):
        raise ValueError(
            f"graph: the indices of node {int(rows[inside[0]])} do not ascend, expected ascending "
            "indices in each row"
        )
    above, below = _entries_beside_diagonal(indptr, indices)
    if above != below:
        raise ValueError(
            f"graph: got {above} entries above the diagonal and {below} below it, expected a "
            "symmetric graph"
        )


def _entries_beside_diagonal(indptr: Tensor, indices: Tensor) -> tuple[int, int]:
    """The numbers of entries above and below the diagonal."""
    above = below = 0
    for first in range(0, len(indptr) - 1, _BLOCK):
        ends = indptr[first : first + _BLOCK + 1]
        columns = indices[int(ends[0]) : int(ends[-1])]
        rows = torch.arange(first, first + len(ends) - 1)
        rows = rows.repeat_interleave(ends.diff(), output_size=len(columns))
        above += int((columns > rows).sum())
        below += int((columns < rows).sum())
    return above, below


def _by_extension(
    indptr: Tensor, indices: Tensor, distances: Tensor, start: Tensor, pairs: Tensor, units: int
) -> Merges:
    module = native.extension()
    assert module is not None
    doubles = distances.dtype == torch.float64
    form = module.average_linkage_float64 if doubles else module.average_linkage_float32
    found = form(
        indptr=native.address(indptr),
        indices=native.address(indices),
        distances=native.address(distances),
        n=len(start),
        groups=native.address(start),
        cannot_links=native.address(pairs),
        cannot_link_count=len(pairs),
        threshold=units,
        threads=native.threads(),
    )
    merges = _empty_merges(found.count)
    found.write(*map(native.address, merges))
    return merges


def _empty_merges(count: int) -> Merges:
    shapes = (count,), (count,), (count, 2), (count,)
    return Merges(*(torch.empty(shape, dtype=torch.int64) for shape in shapes))


def _by_heap(
    indptr: Tensor, indices: Tensor, distances: Tensor, start: Tensor, pairs: Tensor, units: int
) -> Merges:
    """The joins in Python, one after the other, from a heap of the pairs that reach the threshold.

    The implementation in C++ follows chains of nearest neighbours instead.
    """
    a, b, sums, pairs = _edges_inside(indptr, indices, distances, start, pairs, units)
    near: dict[int, dict[int, int]] = defaultdict(dict)
    for i, j, s in zip(a.tolist(), b.tolist(), sums.tolist(), strict=True):
        near[i][j] = near[j][i] = near[i].get(j, 0) + s
    for i, j in start[pairs].tolist():
        near[i][j] = near[j][i] = _CANNOT_LINK
    sizes = torch.bincount(start, minlength=len(start)).tolist()
    joins = _joins(near, sizes, units)
    table = torch.tensor(joins, dtype=torch.int64).view(-1, 5)  # (joins, 5)
    return Merges(*(table[:, at].clone() for at in (0, 1, slice(2, 4), 4)))


def _edges_inside(
    indptr: Tensor, indices: Tensor, distances: Tensor, start: Tensor, pairs: Tensor, units: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The edges and cannot-links between initial groups that could get into one cluster.

    L reaches the threshold only if a pair of images does, so clusters lie inside the components
    over such pairs and the initial groups.

    Returns:
        The initial groups of both ends of each edge, its similarity as a whole number, and the
        cannot-links.
    """
    rows = torch.arange(len(start)).repeat_interleave(indptr.diff(), output_size=len(indices))
    above = indices > rows
    a, b = start[rows[above]], start[indices[above]]
    similarity = ((1 - distances[above].double()) * _UNIT).round().long()
    strong = similarity >= units
    roots = lowest_nodes(a[strong], b[strong], torch.arange(len(start)))
    inside = (roots[a] == roots[b]) & (a != b) & (similarity > 0)
    together = roots[start[pairs[:, 0]]] == roots[start[pairs[:, 1]]]
    return a[inside], b[inside], similarity[inside], pairs[together]


def _joins(
    near: dict[int, dict[int, int]], sizes: list[int], units: int
) -> list[tuple[int, int, int, int, int]]:
    """Join groups, the most similar first.

    Args:
        near: For each group the groups with an edge or a cannot-link to it, and the sum of the
            similarities of the pairs; written to.
        sizes: (n,) images of each group; written to.
        units: The threshold.

    Returns:
        For each join both groups, their sizes, and the sum.
    """

    def falling(i: int, j: int) -> int:
        # As L falls, this ascends. Products of sizes are below 2^60, so two different fractions
        # differ by more than 2^-120, and their whole parts after a shift by 128 bits differ.
        return -((near[i][j] << 128) // (sizes[i] * sizes[j]))

    def push(i: int, j: int) -> None:
        if near[i][j] >= units * sizes[i] * sizes[j]:
            heapq.heappush(heap, (falling(i, j), min(i, j), max(i, j)))

    heap: list[tuple[int, int, int]] = []
    for i, others in near.items():
        for j in others:
            if i < j:
                push(i, j)
    joins = []
    while heap:
        key, i, j = heapq.heappop(heap)
        # An entry from before a join of one of its groups has another key, or names a group that is
        # gone.
        if j not in near.get(i, ()) or key != falling(i, j):
            continue
        joins.append((i, j, sizes[i], sizes[j], near[i][j]))
        sizes[i] += sizes[j]
        _move(near, j, i)
        for other in near[i]:
            push(i, other)
    return joins


def _move(near: dict[int, dict[int, int]], source: int, target: int) -> None:
    """Add the neighbours of a group to those of another, and forget the group."""
    for other, added in near.pop(source).items():
        del near[other][source]
        if other == target:
            continue
        present = near[target].get(other, 0)
        banned = _CANNOT_LINK in (present, added)
        near[target][other] = near[other][target] = _CANNOT_LINK if banned else present + added
