"""SNPS, split by hard negative centroid-pair selection: which groups inside a cluster may be different identities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..answers.question import Question
from ..clustering.csr import indptr_of
from ..clustering.kmedoids import Groupings, dot_products, kmedoids_many

KMaxRule = Literal["paper", "root"]

#: k-medoids looks at no more members of a cluster than this: its arrays are quadratic in them (16 MB here).
_MOST = 1000


def propose_splits(
    features: Tensor, labels: Tensor, k_max_rule: KMaxRule = "paper"
) -> list[Question]:
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
        descending similarity to its medoid. Some 200 bytes a question; similarities of 64 MiB of clusters are held at a time,
        and of a cluster beyond 1,000 images only 1,000, evenly spaced, are given to k-medoids, the others going to the most
        similar medoid.

    Raises:
        ValueError: Shapes disagree, the rule has another name, or a row of a cluster that is split is not finite.
    """
    if len(features) != len(labels):
        raise ValueError(
            f"labels: got {len(labels)}, expected one for each of the {len(features)} features"
        )
    if k_max_rule not in ("paper", "root"):
        raise ValueError(f"k_max_rule: got {k_max_rule!r}, expected 'paper' or 'root'")
    members, sizes = _by_cluster(labels)
    k_max = ((sizes.double() / 2).sqrt() / (2 if k_max_rule == "paper" else 1)).long()
    members, sizes, k_max = (
        members[(k_max >= 2).repeat_interleave(sizes)],
        sizes[k_max >= 2],
        k_max[k_max >= 2],
    )
    looked_at, seen = _looked_at(members, sizes)
    found = kmedoids_many(features, indptr_of(seen), looked_at, torch.minimum(k_max, seen))
    groups, similarity = found.labels, found.similarity
    if len(looked_at) < len(members):
        groups, similarity = _of_all(features, members.split(sizes.tolist()), found, seen)
    # Places of groups go on from one cluster to the next.
    groups = groups + indptr_of(found.k)[:-1].repeat_interleave(sizes)
    similarity = similarity.masked_fill(members == found.medoids[groups], torch.inf)
    # Stable: equals stay in the order of rows.
    central_first = torch.from_numpy(np.lexsort((-similarity.numpy(), groups.numpy())))
    names = labels.cpu()[found.medoids[indptr_of(found.k)[:-1]]]
    return _questions(
        features,
        found,
        members[central_first],
        groups.bincount(minlength=len(found.medoids)),
        names,
    )


def by_score(question: Question) -> tuple[float, int, int]:
    """The order in which questions are asked: by descending score, ties by the images asked about."""
    low, high = sorted(question.images)
    return -question.score, low, high


def clusters(labels: Tensor) -> list[Tensor]:
    """Rows of the members of each cluster, ascending, in the order of labels."""
    members, sizes = _by_cluster(labels)
    return list(members.split(sizes.tolist()))


def _by_cluster(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in the order of labels, ascending inside each, without those outside every cluster; how many there are of each."""
    ordered, order = labels.cpu().sort(stable=True)
    inside = ordered >= 0
    return order[inside], ordered[inside].unique_consecutive(return_counts=True)[1]


def _looked_at(members: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Members that k-medoids looks at, of a large cluster `_MOST`, evenly spaced; how many there are of each cluster."""
    if not bool((sizes > _MOST).any()):
        return members, sizes
    parts = list(members.split(sizes.tolist()))
    for c in (sizes > _MOST).nonzero()[:, 0].tolist():
        parts[c] = parts[c][torch.linspace(0, len(parts[c]) - 1, _MOST).round().long()]
    return torch.cat(parts), sizes.clamp(max=_MOST)


def _of_all(
    features: Tensor, parts: Sequence[Tensor], found: Groupings, seen: Tensor
) -> tuple[Tensor, Tensor]:
    """Labels and similarities of all members, also of those that were not looked at: a medoid's label is its own."""
    labels, similarities = [], []
    known = zip(
        parts,
        found.medoids.split(found.k.tolist()),
        found.labels.split(seen.tolist()),
        found.similarity.split(seen.tolist()),
        strict=True,
    )
    for members, medoids, groups, similarity in known:
        if len(members) > _MOST:
            products = (
                (features[members.to(features.device)] @ features[medoids.to(features.device)].T)
                .cpu()
                .double()
            )
            bad = (~torch.isfinite(products).all(1)).nonzero()[:, 0]
            if len(bad):
                raise ValueError(
                    f"features: found a value in row {int(members[bad[0]])} that is not finite"
                )
            groups = products.argmax(1)
            groups[torch.searchsorted(members, medoids)] = torch.arange(len(medoids))
            similarity = products.gather(1, groups[:, None])[:, 0]
        labels.append(groups)
        similarities.append(similarity)
    return torch.cat(labels), torch.cat(similarities)


def _questions(
    features: Tensor, found: Groupings, members: Tensor, sizes: Tensor, names: Tensor
) -> list[Question]:
    """One for every two groups of a cluster, in the order of asking: `members` of one group after another, of `sizes` each."""
    products, offsets = dot_products(features, indptr_of(found.k), found.medoids)
    # Each group with those after it in its cluster.
    groups, owner = torch.arange(len(sizes)), torch.arange(len(found.k)).repeat_interleave(found.k)
    begin, end = indptr_of(found.k)[owner], indptr_of(found.k)[owner + 1]
    left = groups.repeat_interleave(end - groups - 1)
    right = left + 1 + torch.arange(len(left)) - indptr_of(end - groups - 1)[left]
    similarity = products.cpu()[
        (offsets[owner] + (groups - begin) * found.k[owner])[left] + (right - begin[left])
    ]
    score = (1 - similarity.clamp(0, 1)) * (sizes[left] * sizes[right]).double().sqrt()
    images = torch.stack([found.medoids[left], found.medoids[right]])
    low, high = images.sort(dim=0).values.numpy()
    order = torch.from_numpy(np.lexsort((high, low, -score.numpy())))
    sides = members.split(sizes.tolist())
    columns = (images[0], images[1], left, right, similarity, score, names[owner[left]])
    return [
        Question((x, y), (sides[a], sides[b]), "split", s, worth, name)
        for x, y, a, b, s, worth, name in zip(
            *(column[order].tolist() for column in columns), strict=True
        )
    ]
