"""Cluster quality by image, by class and by identity: what the training sees of the clusters."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..arguments import as_ids, as_labels
from .pairs import pair_scores


class ClusterScores(NamedTuple):
    """Scores between 0 and 1 of clusters against true identities; None where undefined.

    An identity is the most frequent of a cluster if no other identity has more images in it.

    In pair scores a cluster counts by its pairs: one of 140 images as much as 9,730 of two images.
    Training draws classes uniformly (`IdentitySampler`), so that the scores by class are those of
    what a batch sees.

    Args:
        bcubed_precision: B-cubed precision (Bagga and Baldwin, 1998; Amigó et al., 2009): mean over
            images of the share of the image's cluster that has its identity. The image itself
            counts. An image outside every cluster is a cluster of one image.
        bcubed_recall: Mean over images of the share of the image's identity that is in its cluster.
        bcubed_f1: Harmonic mean of B-cubed precision and B-cubed recall.
        class_purity: Mean over the clusters of two or more images of the share of the most frequent
            identity. Purity (Manning, Raghavan and Schütze, 2008, Sec. 16.3) weights a cluster by
            its images, this mean weights all alike. Clusters of one image are left out, also where
            training makes each a class of its own: their purity is 1, whatever was clustered.
        class_completeness: Mean over the same clusters of the share of the most frequent identity's
            images, of the whole set, that are in the cluster. Of several most frequent identities
            the one with the greatest share counts. It is not the completeness of the V-measure,
            which is an entropy.
        cross_camera_recall: Share of the pairs of images of one identity and of two different
            cameras that are in one cluster. Pairs with an unknown camera are left out.
        identities_covered: Share of the identities of two or more images that are the only most
            frequent identity of a cluster of two or more images.
    """

    bcubed_precision: float | None
    bcubed_recall: float | None
    bcubed_f1: float | None
    class_purity: float | None
    class_completeness: float | None
    cross_camera_recall: float | None
    identities_covered: float | None


def cluster_scores(
    labels: Tensor, identities: Tensor, cameras: Tensor | None = None
) -> ClusterScores:
    """Compare clusters with true identities, by image, by class and by identity.

    Args:
        labels: (n,) int64, -1 for an image outside every cluster.
        identities: (n,) int64.
        cameras: (n,) int64, -1 where unknown; None where no camera is known.

    Returns:
        The scores, whose definitions are those of `ClusterScores`, from counts of (cluster,
        identity) pairs: O(n log n) time, about 160 bytes an image (5 MB at n = 32,621, 160 MB at
        1e6). A mean or a share of nothing is None: all scores without images, `class_purity` and
        `class_completeness` without a cluster of two images, `cross_camera_recall` without such a
        pair, `identities_covered` without an identity of two images.

    Raises:
        ValueError: Wrong shape or dtype, other lengths, or a label or a camera below -1.
    """
    labels = as_labels("labels", labels)
    n = len(labels)
    identities = as_ids("identities", identities, n, per="image").to(labels.device)
    if cameras is not None:
        cameras = as_ids("cameras", cameras, n, low=-1, per="image").to(labels.device)
    clusters = _with_singles(labels)  # (n,)
    identities = _numbered(identities)  # (n,)
    sizes = clusters.bincount()  # (clusters,)
    totals = identities.bincount()  # (identities,)
    joined, base = _joined(clusters, identities)
    cells, counts = joined.unique(return_counts=True)  # (cells,) each
    cluster = cells // base
    identity = cells % base
    squares = counts.double() ** 2
    precision = _ratio((squares / sizes[cluster]).sum(), n)
    recall = _ratio((squares / totals[identity]).sum(), n)

    most = _largest(counts, cluster, len(sizes))  # (clusters,)
    frequent = counts == most[cluster]  # (cells,)
    several = sizes >= 2  # (clusters,)
    shares = torch.where(frequent, counts.double() / totals[identity], 0.0)  # (cells,)
    whole = _largest(shares, cluster, len(sizes))  # (clusters,)
    only = several & (cluster[frequent].bincount(minlength=len(sizes)) == 1)  # (clusters,)
    covered = identity[frequent & only[cluster]].unique()
    return ClusterScores(
        precision,
        recall,
        _harmonic_mean(precision, recall),
        _ratio((most[several].double() / sizes[several]).sum(), several.sum()),
        _ratio(whole[several].sum(), several.sum()),
        None if cameras is None else _cross_camera_recall(clusters, identities, cameras),
        _ratio(len(covered), (totals >= 2).sum()),
    )


def scores_by_key(
    labels: Tensor, identities: Tensor, cameras: Tensor | None = None
) -> dict[str, float | None]:
    """Return pair scores and cluster scores by their keys in metrics.jsonl.

    Args:
        labels: (n,) int64, -1 for an image outside every cluster.
        identities: (n,) int64.
        cameras: (n,) int64, -1 where unknown; None where no camera is known.
    """
    pairs = pair_scores(labels, identities)._asdict()
    clusters = cluster_scores(labels, identities, cameras)._asdict()
    return {**{f"pair_{name}": value for name, value in pairs.items()}, **clusters}


def _with_singles(labels: Tensor) -> Tensor:
    """Clusters (n,) numbered without gaps, where each image outside every cluster is one."""
    clustered = labels >= 0
    numbers = _numbered(labels[clustered])
    first = int(numbers.max()) + 1 if len(numbers) else 0
    clusters = torch.empty_like(labels)
    clusters[clustered] = numbers
    outside = len(labels) - len(numbers)
    clusters[~clustered] = torch.arange(first, first + outside, device=labels.device)
    return clusters


def _numbered(ids: Tensor) -> Tensor:
    """Ids (m,) int64 numbered from 0 without gaps."""
    return ids.unique(return_inverse=True)[1]


def _joined(rows: Tensor, columns: Tensor) -> tuple[Tensor, int]:
    """One number (m,) for each pair of numbers, each from 0 and below n, and its base."""
    base = int(columns.max()) + 1 if len(columns) else 1
    # Both are below the number of images, so that the product fits into 64 bits.
    return rows * base + columns, base


def _largest(values: Tensor, groups: Tensor, count: int) -> Tensor:
    """The largest value (count,) of each group, 0 at least."""
    return values.new_zeros(count).scatter_reduce(0, groups, values, "amax")


def _cross_camera_recall(clusters: Tensor, identities: Tensor, cameras: Tensor) -> float | None:
    """Recall of the pairs of one identity and two cameras; clusters and identities have numbers."""
    known = cameras >= 0
    clusters = clusters[known]
    identities = identities[known]
    cameras = _numbered(cameras[known])
    together = _numbered(_joined(clusters, identities)[0])
    found = _pairs(together) - _pairs(_joined(together, cameras)[0])
    true = _pairs(identities) - _pairs(_joined(identities, cameras)[0])
    return _ratio(found, true)


def _pairs(groups: Tensor) -> int:
    """Number of unordered pairs of items (m,) of one group."""
    counts = groups.unique(return_counts=True)[1]
    return int((counts * (counts - 1) // 2).sum())


def _ratio(part: Tensor | float, whole: Tensor | int) -> float | None:
    """A share or a mean; None of nothing."""
    return float(part) / int(whole) if int(whole) else None


def _harmonic_mean(precision: float | None, recall: float | None) -> float | None:
    """The harmonic mean of two scores above 0; None where they are undefined."""
    if precision is None or recall is None:
        return None
    return 2 * precision * recall / (precision + recall)
