"""MPPS, merge by hard positive centroid-pair selection: which clusters may be one identity."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..answers.question import Question
from ..clustering.neighbours import nearest_neighbours
from .snps import by_score, clusters

#: Gaps that differ by less are equal: that is rounding, which Eq. 6 would blow up into a gap of one.
_EQUAL = 1e-12


def propose_merges(
    features: Tensor, labels: Tensor, l_max: int = 10, delta: float = 0.3
) -> list[Question]:
    """The questions of UCAL's Sec. 3.2.2: pairs of similar cluster centroids.

    For each centroid the l_max most similar others, s_1 >= s_2 >= ...; their gaps d_l = s_l - s_{l+1} (Eq. 5), min-max
    normalised to d* (Eq. 6). At the first l with d*_l > delta, the pairs with centroids 1 to l are asked about. Equal gaps (one
    gap alone, or two clusters in all) have no such l and give no question. The paper does not print l_max.

    Args:
        features: (n, D) unit rows.
        labels: (n,) int64 cluster of each image, -1 outside every cluster.
        l_max: Most similar clusters that are looked at; all others where there are fewer.
        delta: Least normalised gap.

    Returns:
        One question a pair of clusters, by descending score: s * sqrt(|A| |B|), an estimate of the pairs gained; ties by the
        images asked about. What is shown for a cluster is its medoid, the member most similar to the centroid; members are
        listed by descending similarity to the centroid. One float64 copy of the C centroids, 8 bytes an element: 16 MB for
        1,000 clusters and 500 MB for 31,250 (1e6 images) at D = 2,048, and a block of at most 128 MiB of their similarities.

    Raises:
        ValueError: Shapes disagree, or l_max is below 1.
    """
    if len(features) != len(labels):
        raise ValueError(
            f"labels: got {len(labels)}, expected one for each of the {len(features)} features"
        )
    if l_max < 1:
        raise ValueError(f"l_max: got {l_max}, expected at least 1")
    members = clusters(labels)
    if len(members) < 2:
        return []
    centroids = centroids_of(features, members)
    near = nearest_neighbours(centroids, l_max + 1)[:, 1:]
    similarity = torch.stack(
        [(centroids * centroids[column]).sum(1) for column in near.T], 1
    ).clamp(0, 1)
    pairs = sorted(
        {
            _ordered(i, int(near[i, j]))
            for i, count in enumerate(_counts(similarity, delta))
            for j in range(count)
        }
    )
    asked = {i for pair in pairs for i in pair}
    sides = {i: central_first(features, members[i], centroids[i]) for i in asked}
    return sorted((_question(sides, centroids, *pair) for pair in pairs), key=by_score)


def centroids_of(features: Tensor, members: list[Tensor]) -> Tensor:
    """Normalised mean of each group of rows: (C, D) float64 on the CPU."""
    sums = [features[m.to(features.device)].double().sum(0).cpu() for m in members]
    return nn.functional.normalize(torch.stack(sums), dim=1)


def central_first(features: Tensor, members: Tensor, centroid: Tensor) -> Tensor:
    """A group by descending similarity to its centroid, ties to the lowest row."""
    # Not a matrix product: there equal rows may differ in the last bit by where they stand.
    similarity = (features[members.to(features.device)].double().cpu() * centroid).sum(1)
    return members[similarity.argsort(descending=True, stable=True)]


def _counts(similarity: Tensor, delta: float) -> list[int]:
    """How many of the most similar clusters each cluster asks about."""
    gaps = similarity[:, :-1] - similarity[:, 1:]
    if gaps.shape[1] == 0:
        return [0] * len(similarity)
    least, greatest = gaps.amin(1, keepdim=True), gaps.amax(1, keepdim=True)
    wide = ((gaps - least) / (greatest - least) > delta) & (greatest - least > _EQUAL)
    return torch.where(wide.any(1), wide.int().argmax(1) + 1, 0).tolist()


def _question(sides: dict[int, Tensor], centroids: Tensor, i: int, j: int) -> Question:
    a, b = sides[i], sides[j]
    s = float((centroids[i] @ centroids[j]).clamp(0, 1))
    return Question((int(a[0]), int(b[0])), (a, b), "merge", s, s * math.sqrt(len(a) * len(b)))


def _ordered(i: int, j: int) -> tuple[int, int]:
    return (i, j) if i < j else (j, i)
