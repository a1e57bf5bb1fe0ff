"""Cluster quality over pairs of images."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


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
