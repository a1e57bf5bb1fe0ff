"""MPPS, merge by hard positive centroid-pair selection: which clusters may be one identity."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..answers.question import Question
from ..arguments import as_features, as_integer, as_labels, as_number
from ..clustering.neighbours import nearest_neighbours
from .snps import by_score, rows_by_cluster

#: Gaps that differ by less are equal: the difference is rounding, which Eq. 6 would magnify to a
#: gap of one.
_EQUAL = 1e-12


def propose_merges(
    features: Tensor, labels: Tensor, l_max: int = 10, delta: float = 0.3
) -> list[Question]:
    """Return the questions of UCAL's Sec. 3.2.2: pairs of similar cluster centroids.

    For each centroid, s_1 >= s_2 >= ... are the similarities of the l_max most similar other
    centroids. Their gaps are d_l = s_l - s_{l+1} (Eq. 5), and d*_l are the gaps after min-max
    normalisation (Eq. 6). At the first l with d*_l > delta, the pairs with centroids 1 to l are
    asked about. If all gaps are equal (a single gap, or only two clusters), there is no such l and
    no question. The paper does not print l_max.

    Args:
        features: (n, D) unit-norm.
        labels: (n,) int64 cluster of each image, -1 outside every cluster.
        l_max: Number of most similar clusters that are considered; all other clusters if there are
            fewer.
        delta: Least normalised gap.

    Returns:
        One question per pair of clusters, by descending score s * sqrt(|A| |B|), an estimate of the
        pairs gained; ties in the order of the images asked about. A cluster is represented by its
        medoid, the member most similar to the centroid; its members are listed by descending
        similarity to the centroid. The C centroids are copied to float64, 8 bytes an element: 16 MB
        for 1,000 clusters and 500 MB for 31,250 (1e6 images) at D = 2,048. Their similarities are
        computed in blocks of at most 128 MiB.

    Raises:
        ValueError: Wrong shape or dtype, l_max is below 1, or a row that is not finite, on a CPU.
    """
    features = as_features("features", features)
    labels = as_labels("labels", labels, len(features))
    l_max = as_integer("l_max", l_max, 1)
    delta = as_number("delta", delta)
    members = rows_by_cluster(labels)
    if len(members) < 2:
        return []
    centroids = centroids_of(features, members)  # (C, D)
    nearest = nearest_neighbours(centroids, l_max + 1)[:, 1:]  # (C, L)
    columns = [(centroids * centroids[column]).sum(1) for column in nearest.T]
    similarity = torch.stack(columns, 1).clamp(0, 1)  # (C, L)
    pairs: set[tuple[int, int]] = set()
    for i, count in enumerate(_pairs_to_ask(similarity, delta)):
        for j in nearest[i, :count].tolist():
            pairs.add((min(i, j), max(i, j)))
    groups: dict[int, Tensor] = {}
    for cluster in {cluster for pair in pairs for cluster in pair}:
        groups[cluster] = central_first(features, members[cluster], centroids[cluster])
    questions = [_question(groups, centroids, i, j) for i, j in sorted(pairs)]
    return sorted(questions, key=by_score)


def centroids_of(features: Tensor, members: list[Tensor]) -> Tensor:
    """Return the unit-norm mean of each group of rows, (C, D) float64 on the CPU.

    Args:
        features: (n, D) unit-norm.
        members: Rows of each of the C groups.
    """
    sums = [features[rows.to(features.device)].double().sum(0).cpu() for rows in members]
    return nn.functional.normalize(torch.stack(sums), dim=1)


def central_first(features: Tensor, members: Tensor, centroid: Tensor) -> Tensor:
    """Sort a group by descending similarity to its centroid, ties by ascending row.

    Args:
        features: (n, D) unit-norm.
        members: (m,) int64 rows of the group, ascending.
        centroid: (D,) float64 on the CPU.

    Returns:
        (m,) int64 rows; the first is the medoid.
    """
    # Not a matrix product: equal rows could differ there in the last bit, depending on their
    # position.
    similarity = (features[members.to(features.device)].double().cpu() * centroid).sum(1)  # (m,)
    return members[similarity.argsort(descending=True, stable=True)]


def _pairs_to_ask(similarity: Tensor, delta: float) -> list[int]:
    """Return l of Sec. 3.2.2 for each cluster: how many of its most similar clusters are asked
    about.

    Args:
        similarity: (C, L), descending along each row.
        delta: Least normalised gap.
    """
    gaps = similarity[:, :-1] - similarity[:, 1:]  # (C, L - 1), Eq. 5
    if gaps.shape[1] == 0:
        return [0] * len(similarity)
    smallest = gaps.amin(1, keepdim=True)
    extent = gaps.amax(1, keepdim=True) - smallest
    wide = ((gaps - smallest) / extent > delta) & (extent > _EQUAL)  # (C, L - 1), Eq. 6
    # argmax of booleans is the first True.
    return torch.where(wide.any(1), wide.int().argmax(1) + 1, 0).tolist()


def _question(groups: dict[int, Tensor], centroids: Tensor, i: int, j: int) -> Question:
    first = groups[i]
    second = groups[j]
    similarity = float((centroids[i] @ centroids[j]).clamp(0, 1))
    score = similarity * math.sqrt(len(first) * len(second))
    images = int(first[0]), int(second[0])
    return Question(images, (first, second), "merge", similarity, score)
