"""SNPS, split by hard negative centroid-pair selection: which groups inside a cluster may be different identities."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..clustering.kmedoids import build, kmedoids
from .questions import Question

KMaxRule = Literal["paper", "root"]

#: k-medoids looks at no more members of a cluster than this: its arrays are quadratic in them (32 MB here).
_MOST = 1000


def propose_splits(features: Tensor, labels: Tensor, k_max_rule: KMaxRule = "paper") -> list[Question]:
    """The questions of UCAL's Sec. 3.2.1: pairs of group medoids inside each cluster.

    For every k in [2, k_max], k-medoids groups the members of a cluster, and the grouping is worth sum_j comp_j * indep_j
    (Eq. 4), with comp_j the least similarity inside group j, 1 for a single image (Eq. 2), and indep_j one minus the greatest
    similarity to an image of another group (Eq. 3); similarities are clamped to [0, 1]. The best k, the smallest of equals,
    gives the groups.

    Args:
        features: (n, D) unit rows.
        labels: (n,) int64 cluster of each image, -1 outside every cluster.
        k_max_rule: k_max is floor(sqrt(|S| / 2) / 2) as printed ("paper"), which never splits a cluster under 32 images, or
            floor(sqrt(|S| / 2)) ("root"), which splits from 8 images on.

    Returns:
        One question for every two groups of a cluster, by descending score: (1 - s) * sqrt(|A| |B|) with s the similarity of
        the medoids, an estimate of the pairs gained; ties by the images asked about. Members of each group are listed by
        descending similarity to its medoid. Some 200 bytes a question; the features of one cluster at a time are copied, and
        of a cluster beyond 1,000 images only 1,000, evenly spaced, are given to k-medoids, the others going to the most
        similar medoid.

    Raises:
        ValueError: Shapes disagree, or the rule has another name.
    """
    if len(features) != len(labels):
        raise ValueError(f"labels: found {len(labels)}, wanted one for each of the {len(features)} features")
    if k_max_rule not in ("paper", "root"):
        raise ValueError(f"k_max_rule: found {k_max_rule!r}, wanted 'paper' or 'root'")
    questions = [q for members in clusters(labels) for q in _split(features, labels, members, k_max_rule)]
    return sorted(questions, key=by_score)


def by_score(question: Question) -> tuple[float, int, int]:
    """The order in which questions are asked: by descending score, ties by the images asked about."""
    low, high = sorted(question.images)
    return -question.score, low, high


def clusters(labels: Tensor) -> list[Tensor]:
    """Rows of the members of each cluster, ascending, in the order of labels."""
    order = labels.cpu().argsort(stable=True)
    ordered = labels.cpu()[order]
    order, ordered = order[ordered >= 0], ordered[ordered >= 0]
    return list(order.split(ordered.unique_consecutive(return_counts=True)[1].tolist()))


def _k_max(size: int, rule: KMaxRule) -> int:
    return math.floor(math.sqrt(size / 2) / (2 if rule == "paper" else 1))


def _split(features: Tensor, labels: Tensor, members: Tensor, rule: KMaxRule) -> list[Question]:
    k_max = _k_max(len(members), rule)
    if k_max < 2:
        return []
    looked_at = members
    if len(members) > _MOST:
        looked_at = members[torch.linspace(0, len(members) - 1, _MOST).round().long()]
    rows = features[looked_at.to(features.device)].cpu().double()
    similarity = rows @ rows.T
    medoids, groups = _best_grouping(similarity, min(k_max, len(looked_at)))
    if len(members) > _MOST:
        groups = _nearest(features, members, looked_at[medoids])
    return _questions(
        features, members, groups, looked_at[medoids], similarity[medoids][:, medoids], int(labels[members[0]])
    )


def _best_grouping(similarity: Tensor, k_max: int) -> tuple[Tensor, Tensor]:
    """Medoids and groups of the k with the best score."""
    start = build(similarity.numpy(), k_max)
    found = [kmedoids(similarity, k, start[:k]) for k in range(2, k_max + 1)]
    scores = [_reliability(similarity.numpy(), f.labels.numpy(), len(f.medoids)) for f in found]
    return found[int(np.argmax(np.round(scores, 12)))]


def _reliability(similarity: np.ndarray, groups: np.ndarray, k: int) -> float:
    """Eq. 4: the sum of comp * indep over groups."""
    s = similarity.clip(0, 1)
    total = 0.0
    for j in range(k):
        inside = groups == j
        own = s[inside]
        compactness = own[:, inside].min() if inside.sum() > 1 else 1.0
        total += compactness * (1 - own[:, ~inside].max())
    return total


def _nearest(features: Tensor, members: Tensor, medoids: Tensor) -> Tensor:
    """The place of the most similar medoid for each member, a medoid's own for itself."""
    device = features.device
    groups = (features[members.to(device)] @ features[medoids.to(device)].T).argmax(1).cpu()
    groups[torch.searchsorted(members, medoids)] = torch.arange(len(medoids))
    return groups


def _questions(
    features: Tensor, members: Tensor, groups: Tensor, medoids: Tensor, between: Tensor, cluster: int
) -> list[Question]:
    sides = [_central_first(features, members[groups == j], int(medoid)) for j, medoid in enumerate(medoids)]
    questions = []
    for i in range(len(sides)):
        for j in range(i + 1, len(sides)):
            s = float(between[i, j])
            score = (1 - min(max(s, 0.0), 1.0)) * math.sqrt(len(sides[i]) * len(sides[j]))
            images = int(medoids[i]), int(medoids[j])
            questions.append(Question(images, (sides[i], sides[j]), "split", s, score, cluster))
    return questions


def _central_first(features: Tensor, group: Tensor, medoid: int) -> Tensor:
    """A group by descending similarity to its medoid, which comes first."""
    similarity = (features[group.to(features.device)] @ features[medoid]).cpu()
    similarity[group == medoid] = torch.inf
    return group[similarity.argsort(descending=True, stable=True)]
