"""SNPS, split by hard negative centroid-pair selection: which groups of a cluster may differ in
identity.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..answers.question import Question
from ..arguments import as_features, as_labels, check_choice
from ..clustering.csr import indptr_of
from ..clustering.kmedoids import Groupings, dot_products, kmedoids_many

KMaxRule = Literal["paper", "root"]

#: Most members of a cluster that k-medoids is given: its arrays are quadratic in them (16 MB here).
_SAMPLE = 1000


def propose_splits(
    features: Tensor, labels: Tensor, k_max_rule: KMaxRule = "paper"
) -> list[Question]:
    """Return the questions of UCAL's Sec. 3.2.1: pairs of group medoids inside each cluster.

    For every k in [2, k_max], k-medoids groups the members of a cluster. The score of a grouping is
    sum_j comp_j * indep_j (Eq. 4), where comp_j is the least similarity inside group j, 1 for a
    single image (Eq. 2), and indep_j is one minus the greatest similarity to an image of another
    group (Eq. 3); similarities are clamped to [0, 1]. The groups are those of the best k, the
    smallest of equals.

    Args:
        features: (n, D) unit-norm.
        labels: (n,) int64 cluster of each image, -1 outside every cluster.
        k_max_rule: "paper" is k_max = floor(sqrt(|S| / 2) / 2), as printed, which never splits a
            cluster S of fewer than 32 images; "root" is k_max = floor(sqrt(|S| / 2)), which splits
            from 8 images on.

    Returns:
        One question for every two groups of a cluster, by descending score (1 - s) * sqrt(|A| |B|),
        where s is the similarity of the medoids: an estimate of the pairs gained. Ties are in the
        order of the images asked about. Members of each group are listed by descending similarity
        to its medoid. A question takes about 200 bytes. Similarities are held for 64 MiB of
        clusters at a time. If a cluster has more than 1,000 images, k-medoids is given 1,000 of
        them, evenly spaced, and the others join the group of the most similar medoid.

    Raises:
        ValueError: Wrong shape or dtype, the rule is unknown, or a row that is not finite (on a
            GPU: of a cluster that is split).
    """
    features = as_features("features", features)
    labels = as_labels("labels", labels, len(features))
    check_choice("k_max_rule", k_max_rule, ("paper", "root"))
    members, sizes = _members_and_sizes(labels)  # (m,), (C,)
    k_max = ((sizes.double() / 2).sqrt() / (2 if k_max_rule == "paper" else 1)).long()  # (C,)
    large_enough = k_max >= 2
    members = members[large_enough.repeat_interleave(sizes)]
    sizes = sizes[large_enough]
    k_max = k_max[large_enough]
    sampled, sample_sizes = _sample(members, sizes)
    found = kmedoids_many(
        features, indptr_of(sample_sizes), sampled, torch.minimum(k_max, sample_sizes)
    )
    groups = found.labels  # (m,), position of the group in its cluster
    similarity = found.similarity  # (m,), to the medoid
    if len(sampled) < len(members):
        groups, similarity = _assign_all(features, members, sizes, found, sample_sizes)
    # Number the groups through all clusters instead of from 0 in each.
    groups = groups + indptr_of(found.k)[:-1].repeat_interleave(sizes)
    similarity = similarity.masked_fill(members == found.medoids[groups], torch.inf)
    # By group, then by descending similarity. The sort is stable, so equal members stay in the
    # order of rows.
    by_group = torch.from_numpy(np.lexsort((-similarity.numpy(), groups.numpy())))
    group_sizes = groups.bincount(minlength=len(found.medoids))
    cluster_labels = labels.cpu()[found.medoids[indptr_of(found.k)[:-1]]]
    return _questions(features, found, members[by_group], group_sizes, cluster_labels)


def by_score(question: Question) -> tuple[float, int, int]:
    """Sort key of the order of asking: by descending score, ties by the images asked about."""
    low, high = sorted(question.images)
    return -question.score, low, high


def rows_by_cluster(labels: Tensor) -> list[Tensor]:
    """Return the rows of each cluster, ascending, in the order of the labels."""
    members, sizes = _members_and_sizes(labels)
    return list(members.split(sizes.tolist()))


def _members_and_sizes(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of all clusters, one cluster after the other and ascending in each, and the C
    sizes.
    """
    ordered, order = labels.cpu().sort(stable=True)
    inside = ordered >= 0
    sizes = ordered[inside].unique_consecutive(return_counts=True)[1]
    return order[inside], sizes


def _sample(members: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Keep `_SAMPLE` evenly spaced members of each larger cluster; return rows and C sizes."""
    too_large = sizes > _SAMPLE
    if not bool(too_large.any()):
        return members, sizes
    parts = list(members.split(sizes.tolist()))
    for c in too_large.nonzero()[:, 0].tolist():
        parts[c] = parts[c][torch.linspace(0, len(parts[c]) - 1, _SAMPLE).round().long()]
    return torch.cat(parts), sizes.clamp(max=_SAMPLE)


def _assign_all(
    features: Tensor, members: Tensor, sizes: Tensor, found: Groupings, sample_sizes: Tensor
) -> tuple[Tensor, Tensor]:
    """Assign all members to the groups that k-medoids found on a sample.

    Args:
        features: (n, D) unit-norm.
        members: (m,) int64 rows, one cluster after the other.
        sizes: (C,) int64 members of each cluster.
        found: The groups of the sampled members.
        sample_sizes: (C,) int64 sampled members of each cluster.

    Returns:
        For each member, the group in its cluster and the similarity to its medoid, (m,) each. A
        medoid is in its own group.
    """
    rows_of = members.split(sizes.tolist())
    medoids_of = found.medoids.split(found.k.tolist())
    groups_of = list(found.labels.split(sample_sizes.tolist()))
    similarity_of = list(found.similarity.split(sample_sizes.tolist()))
    for c, rows in enumerate(rows_of):
        if len(rows) > _SAMPLE:
            groups_of[c], similarity_of[c] = _assign(features, rows, medoids_of[c])
    return torch.cat(groups_of), torch.cat(similarity_of)


def _assign(features: Tensor, rows: Tensor, medoids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the most similar medoid of each member of one cluster, by position, and its
    similarity.
    """
    device = features.device
    products = (features[rows.to(device)] @ features[medoids.to(device)].T).cpu().double()  # (m, k)
    bad = (~torch.isfinite(products).all(1)).nonzero()[:, 0]
    if len(bad):
        raise ValueError(f"features: got a value in row {int(rows[bad[0]])} that is not finite")
    groups = products.argmax(1)
    # Among duplicates, a medoid must not join the group of another medoid.
    groups[torch.searchsorted(rows, medoids)] = torch.arange(len(medoids))
    return groups, products.gather(1, groups[:, None])[:, 0]


def _questions(
    features: Tensor,
    found: Groupings,
    members: Tensor,
    group_sizes: Tensor,
    cluster_labels: Tensor,
) -> list[Question]:
    """Return one question for every two groups of a cluster, in the order of asking.

    Args:
        features: (n, D) unit-norm.
        found: The groups, G in all C clusters.
        members: (m,) int64 rows, one group after the other, most central first.
        group_sizes: (G,) int64 members of each group.
        cluster_labels: (C,) int64 label of each cluster.
    """
    products, offsets = dot_products(features, indptr_of(found.k), found.medoids)
    groups = torch.arange(len(group_sizes))  # (G,)
    cluster_of = torch.arange(len(found.k)).repeat_interleave(found.k)  # (G,)
    begin = indptr_of(found.k)[cluster_of]  # (G,), first group of the same cluster
    end = indptr_of(found.k)[cluster_of + 1]  # (G,)
    # Each group is paired with the groups after it in its cluster: q pairs in all.
    later = end - groups - 1  # (G,)
    left = groups.repeat_interleave(later)  # (q,)
    right = left + 1 + torch.arange(len(left)) - indptr_of(later)[left]  # (q,)
    # `products` holds a k x k block for each cluster, flattened, which starts at its offset.
    row_start = offsets[cluster_of] + (groups - begin) * found.k[cluster_of]  # (G,)
    similarity = products.cpu()[row_start[left] + (right - begin[left])]  # (q,)
    sizes = group_sizes[left] * group_sizes[right]
    score = (1 - similarity.clamp(0, 1)) * sizes.double().sqrt()  # (q,)
    images = torch.stack([found.medoids[left], found.medoids[right]])  # (2, q)
    low, high = images.sort(dim=0).values.numpy()
    order = torch.from_numpy(np.lexsort((high, low, -score.numpy())))
    groups_of = members.split(group_sizes.tolist())
    # Columns as lists: indexing tensors one element at a time would be slow.
    columns = (
        images[0],
        images[1],
        left,
        right,
        similarity,
        score,
        cluster_labels[cluster_of[left]],
    )
    rows = zip(*(column[order].tolist() for column in columns), strict=True)
    return [
        Question((i, j), (groups_of[a], groups_of[b]), "split", s, worth, label)
        for i, j, a, b, s, worth, label in rows
    ]
