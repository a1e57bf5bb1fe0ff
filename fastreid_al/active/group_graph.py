"""Groups of images in a graph of distances: which could be merged, and where one could be split."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..answers.closure import Closure
from ..clustering import average_linkage, jaccard_graph
from ..clustering.jaccard import Graph

#: Joins are sought down to this mean similarity: every pair of connected groups is joined.
_LEAST_SIMILARITY = 2.0**-32
#: Largest Jaccard distance of a pair of images that counts.
_FARTHEST = 0.9
#: Nearest groups that the centroid of a group is compared with.
_NEAR = 10
#: Groups whose nearest groups are looked up at a time.
_ROWS = 1024
#: Pairs of groups whose centroids are multiplied at a time.
_BLOCK = 4096


def graph_of_images(features: Tensor) -> Graph:
    """Return the Jaccard graph of images, on the CPU, with all distances up to 0.9.

    Args:
        features: (n, D) unit-norm.
    """
    graph = jaccard_graph(features, max_distance=_FARTHEST)
    indptr, indices, distances = (part.cpu() for part in graph[:3])
    return Graph(indptr, indices, distances, graph.max_distance)


class Groups(NamedTuple):
    """Groups of images, single images included, and their sums.

    Args:
        labels: (n,) int64 group of each image, from 0 without gaps.
        sizes: (G,) int64 images of each group.
        centroids: (G, D) float32, unit-norm.
        cameras: (G, C) images of each group in each camera; no column where no camera is known.
    """

    labels: Tensor
    sizes: np.ndarray
    centroids: Tensor
    cameras: np.ndarray

    @classmethod
    def of_labels(cls, features: Tensor, labels: Tensor, cameras: Tensor | None) -> Groups:
        """Return the groups of labels.

        Args:
            features: (n, D) float32, unit-norm, on the CPU.
            labels: (n,) int64, any numbers from 0.
            cameras: (n,) int64 camera of each image, -1 where unknown; None where none is known.
        """
        _, labels = labels.unique(return_inverse=True)
        sizes = labels.bincount()  # (G,)
        count = len(sizes)
        sums = features.new_zeros(count, features.shape[1]).index_add_(0, labels, features)
        centroids = nn.functional.normalize(sums, dim=1)
        return cls(
            labels,
            sizes.numpy(),
            centroids,
            _camera_counts(labels, cameras, count),
        )

    def cosines(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return the cosine of the centroids of each pair of groups, (m,)."""
        products = [np.zeros(0)]
        for a, b in zip(
            torch.from_numpy(first).split(_BLOCK),
            torch.from_numpy(second).split(_BLOCK),
            strict=True,
        ):
            products.append((self.centroids[a] * self.centroids[b]).sum(1).double().numpy())
        return np.concatenate(products)

    def same_camera(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return the share of image pairs of one known camera, for each pair of groups, (m,)."""
        pairs = self.sizes[first] * self.sizes[second]
        return (self.cameras[first] * self.cameras[second]).sum(1) / pairs


class Neighbourhoods:
    """The nearest groups of each group, by centroid, while groups are merged and split.

    Only groups that changed are looked up again. The neighbours of the others may have changed
    since: they are those that still exist.
    """

    def __init__(self) -> None:
        #: By name of a group: its images, the names of its nearest groups, and the mean cosine of
        #: its centroid to theirs.
        self._known: dict[int, tuple[list[int], list[int], float]] = {}

    def update(
        self, names: list[int], images: list[list[int]], centroids: Tensor
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the pairs of near groups, and how similar each group is to those around it.

        Args:
            names: G names of the groups, which a group keeps as long as its images do not change.
            images: G lists of images.
            centroids: (G, D) float32, unit-norm.

        Returns:
            The pairs, (m, 2) int64 numbers of groups, and the mean cosine of each centroid to its
            10 nearest others, (G,) float64; 0 for a group alone.
        """
        changed = [
            at
            for at, name in enumerate(names)
            if self._known.get(name, ([], [], 0.0))[0] != images[at]
        ]
        for at, (near, cosine) in zip(changed, _nearest(centroids, changed), strict=True):
            self._known[names[at]] = images[at], [names[g] for g in near], cosine
        number = {name: at for at, name in enumerate(names)}
        pairs = [
            (at, number[other])
            for at, name in enumerate(names)
            for other in self._known[name][1]
            if other in number
        ]
        around = np.array([self._known[name][2] for name in names])
        return np.array(pairs, dtype=np.int64).reshape(-1, 2), around


def _nearest(centroids: Tensor, rows: list[int]) -> Iterator[tuple[list[int], float]]:
    """The nearest other rows of some rows, and the mean cosine to them; the most similar first."""
    count = min(_NEAR, len(centroids) - 1)
    if count < 1:
        yield from (([], 0.0) for _ in rows)
        return
    for block in torch.tensor(rows, dtype=torch.int64).split(_ROWS):
        cosines = centroids[block] @ centroids.T  # (b, G)
        cosines[torch.arange(len(block)), block] = -torch.inf
        found = cosines.topk(count)
        yield from zip(found.indices.tolist(), found.values.double().mean(1).tolist(), strict=True)


class Pairs(NamedTuple):
    """Pairs of groups that could be merged.

    Args:
        first: (m,) int64 group.
        second: (m,) int64 group with a higher number.
        linkage: (m,) float64, mean similarity L of the image pairs of the two groups.
        ranks: (m, 2) int64: how many groups are more similar to `first` than `second` is, by L, and
            to `second` than `first` is.
    """

    first: np.ndarray
    second: np.ndarray
    linkage: np.ndarray
    ranks: np.ndarray


def _camera_counts(labels: Tensor, cameras: Tensor | None, count: int) -> np.ndarray:
    """Images by group and camera, (G, C) int64."""
    if cameras is None or not bool((cameras >= 0).any()):
        return np.zeros((count, 0), dtype=np.int64)
    known = cameras >= 0
    names, numbers = cameras[known].unique(return_inverse=True)
    cells = labels[known] * len(names) + numbers
    return cells.bincount(minlength=count * len(names)).view(count, len(names)).numpy()


def pairs_of_groups(graph: Graph, groups: Groups, near: np.ndarray) -> Pairs:
    """Return the pairs of groups with an edge of the graph between them, and near ones.

    Args:
        graph: Distances of images, on the CPU.
        groups: The groups of the images.
        near: (m, 2) int64 further pairs of groups.

    Returns:
        The pairs. Time is O(e log e) for e edges, memory about 60 bytes an edge.
    """
    count = len(groups.sizes)
    connected, sums = _sums_between(graph, groups.labels, count)
    cells = np.union1d(connected, near.min(1) * count + near.max(1))
    of_cells = np.zeros(len(cells))
    of_cells[np.searchsorted(cells, connected)] = sums
    first, second = np.divmod(cells, count)
    linkage = of_cells / (groups.sizes[first] * groups.sizes[second])
    ranks = np.stack([_ranks(first, second, linkage), _ranks(second, first, linkage)], axis=1)
    return Pairs(first, second, linkage, ranks)


def _ranks(of: np.ndarray, other: np.ndarray, linkage: np.ndarray) -> np.ndarray:
    """How many groups are more similar to `of` than `other` is, for each pair (m,)."""
    m = len(of)
    ends = np.concatenate([of, other])
    values = np.concatenate([linkage, linkage])
    order = np.lexsort((-values, ends))
    starts = np.searchsorted(ends[order], ends[order])
    ranks = np.empty(2 * m, dtype=np.int64)
    ranks[order] = np.arange(2 * m) - starts
    return ranks[:m]


def linkage_of(graph: Graph, labels: Tensor, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the mean similarity L of pairs of groups, (m,) float64; 0 without an edge.

    Args:
        graph: Distances of images, on the CPU.
        labels: (n,) int64 group of each image, -1 for none.
        first: (m,) int64 group of each pair.
        second: (m,) int64 the other group.
    """
    groups = labels[labels >= 0].bincount().numpy()
    cells, sums = _sums_between(graph, labels, len(groups))
    keys = np.minimum(first, second) * len(groups) + np.maximum(first, second)
    if not len(cells):
        return np.zeros(len(keys))
    at = np.searchsorted(cells, keys).clip(max=len(cells) - 1)
    return np.where(cells[at] == keys, sums[at], 0.0) / (groups[first] * groups[second])


def _sums_between(graph: Graph, labels: Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of groups with an edge between them as low * count + high, and sums of similarities.

    Both are (m,), by ascending pair.
    """
    rows = torch.arange(graph.n).repeat_interleave(graph.indptr.diff())
    a = labels[rows]
    b = labels[graph.indices]
    between = (a >= 0) & (a < b)
    keys = (a[between] * count + b[between]).numpy()
    cells, inverse = np.unique(keys, return_inverse=True)
    similarity = 1 - graph.distances[between].double().numpy()
    return cells, np.bincount(inverse, similarity, len(cells))


def parts_of(graph: Graph, rows: list[int], closure: Closure) -> list[list[int]]:
    """Divide a group so that it agrees with the answers, by average linkage.

    Args:
        graph: Distances of images, on the CPU.
        rows: Images of the group, ascending.
        closure: The answers. Images that are known to be the same begin as one; two that are known
            to be different are never joined.

    Returns:
        The images of each part, the largest part first, ties by the lowest image.
    """
    roots = [closure.root(row) for row in rows]
    first_of = {root: at for at, root in reversed(list(enumerate(roots))) if root is not None}
    known = torch.tensor([-1 if root is None else first_of[root] for root in roots])
    links = [
        (first_of[root], first_of[other])
        for root in first_of
        for other in closure.cannot_links(root)
        if other in first_of and other < root
    ]
    pairs = torch.tensor(sorted(links), dtype=torch.int64).reshape(-1, 2)
    linkage = average_linkage(_subgraph(graph, rows), _LEAST_SIMILARITY, known, pairs)
    parts: dict[int, list[int]] = {}
    for index, number in enumerate(linkage.labels.tolist()):
        parts.setdefault(-1 - index if number < 0 else number, []).append(rows[index])
    return sorted(parts.values(), key=lambda images: (-len(images), images[0]))


def _subgraph(graph: Graph, images: list[int]) -> Graph:
    """The graph of some images alone, given ascending, numbered in their order."""
    rows = torch.tensor(images)
    numbers = torch.full((graph.n,), -1)
    numbers[rows] = torch.arange(len(rows))
    counts = graph.indptr.diff()[rows]
    owner = torch.arange(len(rows)).repeat_interleave(counts)  # (edges,)
    within = torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner]
    at = graph.indptr[rows][owner] + within
    columns = numbers[graph.indices[at]]
    kept = columns >= 0
    counts = owner[kept].bincount(minlength=len(rows))
    indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Graph(indptr, columns[kept], graph.distances[at][kept], graph.max_distance)
