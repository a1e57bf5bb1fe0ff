"""Cluster quality over pairs of images."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..distributed.world import SINGLE_PROCESS, World


class PairScores(NamedTuple):
    """Over all unordered pairs of images: precision, recall and F1 of "in the same cluster" for "of the same identity"."""

    precision: float
    recall: float
    f1: float


def pair_scores(labels: Tensor, identities: Tensor) -> PairScores:
    """Compare clusters with true identities.

    Args:
        labels: (n,) int64, -1 for an image that is alone.
        identities: (n,) int64.

    Returns:
        The scores, from counts of (label, identity) pairs: O(n log n) time, some 50 bytes an image. Without a predicted pair
        precision is 1, without a true pair recall is 1.
    """
    clustered = labels >= 0
    table = torch.stack([labels[clustered], identities[clustered]], 1)
    both = _pairs(table.unique(dim=0, return_counts=True)[1])
    predicted = _pairs(labels[clustered].unique(return_counts=True)[1])
    true = _pairs(identities.unique(return_counts=True)[1])
    precision = both / predicted if predicted else 1.0
    recall = both / true if true else 1.0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return PairScores(precision, recall, f1)


def _pairs(counts: Tensor) -> int:
    return int((counts * (counts - 1) // 2).sum())


class ListScores(NamedTuple):
    """Over all ordered pairs of two images: precision and recall of "is a label of" for "of the same identity"."""

    precision: float
    recall: float


def list_scores(
    indptr: Tensor, indices: Tensor, identities: Tensor, world: World = SINGLE_PROCESS
) -> ListScores:
    """Compare label lists, in which one class is one image, with true identities.

    Args:
        indptr: (n + 1,) int64; the labels of image i are indices[indptr[i]:indptr[i + 1]], itself left aside. On ranks those of
            `ranks.own(n)`.
        indices: (labels,) int64, none twice in a list.
        identities: (n,) int64.
        world: The ranks that the lists lie on.

    Returns:
        The scores, in some 20 bytes a label. Without a predicted pair precision is 1, without a true pair recall is 1.
    """
    images = torch.arange(len(identities))[world.local_slice(len(identities))].repeat_interleave(
        indptr.diff()
    )
    others = images != indices
    right = sum(
        world.all_gather_counts(
            int((identities[images[others]] == identities[indices[others]]).sum())
        )
    )
    predicted = sum(world.all_gather_counts(int(others.sum())))
    true = 2 * _pairs(identities.unique(return_counts=True)[1])
    return ListScores(right / predicted if predicted else 1.0, right / true if true else 1.0)
