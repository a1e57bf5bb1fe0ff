"""Which clusters are least coherent, which may mix identities, and which may be parts of one."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch
from reid_kernels import similarity_topk
from torch import Tensor

from ..clustering.neighbours import nearest_neighbours

#: Rows that are compared with their centroids at a time.
_ROWS = 2**16
#: Rounds of dividing a cluster into two groups.
_ROUNDS = 10
#: Nearest clusters that are looked at of each cluster.
_NEAREST = 10
#: Clusters with fewer images are not divided: two images fall apart in one way only.
_LEAST = 3


class Clusters(NamedTuple):
    """The clusters of a set, by number from 0.

    About 16 bytes an image and 4 D + 40 bytes a cluster: 0.5 MB and 8 MB at n = 32,621 with 1,000
    clusters, 16 MB and 0.8 GB at 1e6 with 1e5 clusters, for D = 2,048.

    Args:
        labels: (c,) int64, the label of each cluster, ascending.
        rows: (m,) int64, the images of all clusters, one cluster after the other, each from the
            most central image to the least.
        starts: (c + 1,) int64, where the images of a cluster begin in `rows`.
        similarity: (m,) float32, cosine similarity of each image of `rows` to its centroid.
        centroids: (c, D) float32, unit-norm.
    """

    labels: Tensor
    rows: Tensor
    starts: Tensor
    similarity: Tensor
    centroids: Tensor

    def __len__(self) -> int:
        """Number of clusters."""
        return len(self.labels)

    def images(self, cluster: int) -> Tensor:
        """Rows of the images of a cluster (s,), most central first."""
        return self.rows[self.starts[cluster] : self.starts[cluster + 1]]

    def similarities(self, cluster: int) -> Tensor:
        """Similarities of the images of a cluster to its centroid, (s,), falling."""
        return self.similarity[self.starts[cluster] : self.starts[cluster + 1]]

    @property
    def sizes(self) -> Tensor:
        """Number of images of each cluster, (c,) int64."""
        return self.starts.diff()

    def coherence(self) -> Tensor:
        """Mean similarity of the images of each cluster to its centroid, (c,) float64."""
        sums = torch.zeros(len(self), dtype=torch.float64)
        cluster = torch.arange(len(self)).repeat_interleave(self.sizes)
        sums.index_add_(0, cluster, self.similarity.double())
        return sums / self.sizes


def gather_clusters(features: Tensor, labels: Tensor) -> Clusters:
    """Return the clusters of two or more images, with their centroids.

    Args:
        features: (n, D) float32, unit-norm, on any device.
        labels: (n,) int64 on the CPU, -1 outside every cluster.

    Returns:
        The clusters, on the CPU.
    """
    known, index, counts = labels.unique(return_inverse=True, return_counts=True)
    several = (counts >= 2) & (known >= 0)
    number = several.cumsum(0) - 1
    rows = several[index].nonzero()[:, 0]
    cluster = number[index[rows]]
    centroids = features.new_zeros(int(several.sum()), features.shape[1])
    for part, of in zip(rows.split(_ROWS), cluster.split(_ROWS), strict=True):
        device = features.device
        centroids.index_add_(0, of.to(device), features[part.to(device)])
    centroids = torch.nn.functional.normalize(centroids, dim=1)
    similarity = torch.cat(
        [
            (features[part.to(features.device)] * centroids[of.to(features.device)]).sum(1).cpu()
            for part, of in zip(rows.split(_ROWS), cluster.split(_ROWS), strict=True)
        ]
        or [torch.empty(0)]
    )
    order = similarity.argsort(descending=True, stable=True)
    order = order[cluster[order].argsort(stable=True)]
    sizes = cluster.bincount(minlength=len(centroids))
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    return Clusters(known[several], rows[order], starts, similarity[order], centroids.cpu())


class Division(NamedTuple):
    """A cluster that falls apart into two groups.

    Args:
        cluster: Its number.
        first: (a,) int64, rows of the larger group.
        second: (b,) int64, rows of the other one.
        between: Cosine similarity of the centroids of the two groups.
        other: Greatest cosine similarity of the centroid of a group to that of another cluster, -1
            where there is no other cluster.
    """

    cluster: int
    first: Tensor
    second: Tensor
    between: float
    other: float


def divided_clusters(features: Tensor, clusters: Clusters, most: int) -> list[Division]:
    """Return the clusters that most likely hold two identities, the most likely first.

    Every cluster of three or more images is divided by k-means with two centres on unit-norm
    features, which begins at the two images that lie farthest apart. The less similar the groups
    are to each other, and the more similar one of them is to another cluster, the more likely the
    cluster is a false merge: they are in the order of `other` minus `between`. A wide gap alone
    says little, because one person seen by two cameras has it, too.

    Args:
        features: (n, D) float32, unit-norm, on any device.
        clusters: The clusters.
        most: Most clusters that are returned.

    Memory:
        A byte an image, and the centroids of the groups, 8 D bytes a cluster. Nothing is quadratic
        in the number of clusters or in the size of one.
    """
    several = (clusters.sizes >= _LEAST).nonzero()[:, 0]
    if most < 1 or not len(several):
        return []
    seconds = []
    centres = features.new_empty(len(several), 2, features.shape[1])  # (s, 2, D)
    for number, cluster in enumerate(several.tolist()):
        own = features[clusters.images(cluster).to(features.device)]
        second = _divide(own)
        seconds.append(second.cpu())
        centres[number] = _centres(own, second)
    between = (centres[:, 0] * centres[:, 1]).sum(1).cpu()
    other = _nearest_other(centres.flatten(0, 1), clusters, several.repeat_interleave(2))
    other = other.view(-1, 2).amax(1)
    order = (other - between).argsort(descending=True, stable=True)[:most].tolist()
    divisions = []
    for number in order:
        cluster = int(several[number])
        images, second = clusters.images(cluster), seconds[number]
        first, smaller = sorted((images[~second], images[second]), key=len, reverse=True)
        values = float(between[number]), float(other[number])
        divisions.append(Division(cluster, first, smaller, *values))
    return divisions


def _nearest_other(rows: Tensor, clusters: Clusters, own: Tensor) -> Tensor:
    """Similarity of rows (m, D) to the nearest centroid of a cluster but their own (m,)."""
    if len(clusters) < 2:
        return torch.full((len(rows),), -1.0)
    centroids = clusters.centroids.to(rows.device)
    exclude = own.to(rows.device)
    values, _ = similarity_topk(rows, centroids, 1, normalize=False, exclude=exclude)
    return values[:, 0].cpu()


def _divide(features: Tensor) -> Tensor:
    """Divide images (m, D) into two groups, neither empty: which are in the second (m,)."""
    mean = features.mean(0)
    one = features[(features @ mean).argmin()]
    farthest = (features @ one).argmin()
    second = features @ features[farthest] > features @ one
    # Images that are all alike have no two groups; one of them stands for the second.
    second[farthest] = True
    for _ in range(_ROUNDS):
        centres = _centres(features, second)
        now = features @ centres[1] > features @ centres[0]
        if torch.equal(now, second) or not bool(now.any()) or bool(now.all()):
            break
        second = now
    return second


def _centres(features: Tensor, second: Tensor) -> Tensor:
    """The centroids (2, D), unit-norm, of images (m, D) outside and inside the second group."""
    sums = torch.stack([features[~second].sum(0), features[second].sum(0)])
    return torch.nn.functional.normalize(sums, dim=1)


class NearPair(NamedTuple):
    """Two clusters that lie near each other.

    Args:
        first: Number of one cluster.
        second: Number of the other.
        similarity: Cosine similarity of their centroids.
    """

    first: int
    second: int
    similarity: float


def near_clusters(
    clusters: Clusters, apart: Collection[tuple[int, int]], most: int
) -> list[NearPair]:
    """Return the pairs of clusters whose centroids are most similar, the most similar first.

    Args:
        clusters: The clusters.
        apart: Pairs of clusters (low, high) that are known to be different people; left out.
        most: Most pairs that are returned.

    Memory:
        Lists of 11 neighbours a cluster, 88 bytes, and what `nearest_neighbours` needs. Nothing is
        quadratic in the number of clusters.
    """
    if len(clusters) < 2 or most < 1:
        return []
    near = nearest_neighbours(clusters.centroids, min(_NEAREST + 1, len(clusters)))[:, 1:]
    first = torch.arange(len(clusters))[:, None].expand_as(near).flatten()
    second = near.flatten()
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    pairs = torch.stack([low, high]).unique(dim=1)
    centroids = clusters.centroids
    similarity = torch.cat(
        [
            (centroids[a] * centroids[b]).sum(1)
            for a, b in zip(pairs[0].split(_ROWS), pairs[1].split(_ROWS), strict=True)
        ]
    )
    found: list[NearPair] = []
    for index in similarity.argsort(descending=True, stable=True).tolist():
        if len(found) == most:
            break
        a, b = pairs[:, index].tolist()
        if (a, b) not in apart:
            found.append(NearPair(a, b, float(similarity[index])))
    return found
