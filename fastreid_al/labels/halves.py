"""Finds identities that fall into two groups, which may be two people."""

from __future__ import annotations

import numpy as np
import torch
from reid_kernels import similarity_topk
from torch import Tensor, nn

from .margins import Margins

#: Rounds in which images join the nearer of the two groups of their identity.
_ROUNDS = 5
#: Images of an identity, at least.
_LEAST = 4
#: Two groups are suspicious where their centroids are less similar than this share of the
#: similarity of the identity to the nearest other one.
_APART = 0.9
#: Rows whose products are computed at a time.
_ROWS = 4096


def smaller_halves(margins: Margins) -> Tensor:
    """Whether each image is in the smaller of two groups of an identity that may be two: (n,) bool.

    Each identity of four or more images is divided by 2-means on the unit sphere, which starts from
    the image farthest from the centroid and the image farthest from that one. It may be two where
    the cosine of the groups' centroids is below 0.9 times that of the identity's centroid to the
    nearest other one.

    Args:
        margins: The features, the identities and their centroids.

    Returns:
        (n,) bool. Time is O(n D) and that of an exact search among the G centroids, O(G^2 D).
        Memory is that of two more sets of centroids, see `Margins`.
    """
    marked = torch.zeros(len(margins.identities), dtype=torch.bool)
    large = margins.sizes >= _LEAST
    inside = margins.identities >= 0
    inside[inside.clone()] = large[margins.identities[inside]]
    rows = inside.nonzero()[:, 0]
    if not len(rows) or len(margins.sizes) < 2:
        return marked
    groups = margins.identities[rows]
    second, similarity = _two_means(margins.features, rows, groups, margins.centroids)
    counts = groups.bincount(minlength=len(large))
    of_second = groups[second].bincount(minlength=len(large))
    split = large & (similarity < _APART * _nearest_other(margins.centroids)) & (of_second > 0)
    smaller = torch.where(2 * of_second[groups] <= counts[groups], second, ~second)
    marked[rows] = split[groups] & smaller
    return marked


def _two_means(
    features: Tensor, rows: Tensor, groups: Tensor, centroids: Tensor
) -> tuple[Tensor, Tensor]:
    """Divide each group of rows into two.

    Args:
        features: (n, D), unit-norm.
        rows: (m,) int64 rows of the images.
        groups: (m,) int64 their groups.
        centroids: (G, D) centroid of each group.

    Returns:
        Whether each image is in the second half (m,), and the cosine of the two halves (G,), which
        is 1 where a group has no images.
    """
    present = groups.unique()
    first = centroids.clone()
    farthest = _farthest(_cosines(features, rows, groups, centroids), groups)
    first[present.to(first.device)] = features[rows[farthest].to(features.device)]
    second = first.clone()
    farthest = _farthest(_cosines(features, rows, groups, first), groups)
    second[present.to(first.device)] = features[rows[farthest].to(features.device)]
    side = torch.zeros(len(rows), dtype=torch.bool)
    for _ in range(_ROUNDS):
        to_first = _cosines(features, rows, groups, first)
        side = _cosines(features, rows, groups, second) > to_first
        first = _means(features, rows[~side], groups[~side], len(centroids))
        second = _means(features, rows[side], groups[side], len(centroids))
    similarity = torch.ones(len(centroids), dtype=torch.float64)
    similarity[present] = (first * second).sum(1).double().cpu()[present]
    return side, similarity


def _cosines(features: Tensor, rows: Tensor, groups: Tensor, centres: Tensor) -> Tensor:
    """The cosine of each image to the centre of its group: (m,) float64 on the CPU."""
    cosines = torch.empty(len(rows), dtype=torch.float64)
    for part in torch.arange(len(rows)).split(_ROWS):
        images = features[rows[part].to(features.device)]
        of_groups = centres[groups[part].to(features.device)]
        cosines[part] = (images * of_groups).sum(1).double().cpu()
    return cosines


def _farthest(cosines: Tensor, groups: Tensor) -> Tensor:
    """The place of the image with the least cosine in each group that has images, ascending."""
    order = torch.from_numpy(np.lexsort((cosines.numpy(), groups.numpy())))
    present = groups.unique()
    return order[torch.searchsorted(groups[order], present)]


def _means(features: Tensor, rows: Tensor, groups: Tensor, count: int) -> Tensor:
    """The unit-norm mean of each group, (count, D); zeros without images."""
    sums = features.new_zeros(count, features.shape[1])
    for part in torch.arange(len(rows)).split(_ROWS):
        device = features.device
        sums.index_add_(0, groups[part].to(device), features[rows[part].to(device)])
    return nn.functional.normalize(sums, dim=1)


def _nearest_other(centroids: Tensor) -> Tensor:
    """The cosine of each centroid to the nearest other one: (G,) float64 on the CPU."""
    own = torch.arange(len(centroids), device=centroids.device)
    found, _ = similarity_topk(centroids, centroids, 1, normalize=False, exclude=own)
    return found[:, 0].double().cpu()
