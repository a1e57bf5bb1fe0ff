"""Cluster quality over pairs of images."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..arguments import as_ids, as_labels, as_lists, as_world
from ..distributed.world import SINGLE_PROCESS, World


class PairScores(NamedTuple):
    """Precision, recall and F1 over all unordered pairs of images.

    A pair is predicted if it is in one cluster, and true if it has one identity.
    """

    precision: float
    recall: float
    f1: float


def pair_scores(labels: Tensor, identities: Tensor) -> PairScores:
    """Compare clusters with true identities.

    Args:
        labels: (n,) int64, -1 for an unclustered image.
        identities: (n,) int64.

    Returns:
        The scores, from counts of (label, identity) pairs: O(n log n) time, about 50 bytes an
        image. Without a predicted pair precision is 1; without a true pair recall is 1.

    Raises:
        ValueError: Wrong shape or dtype, other lengths, or a label below -1.
    """
    labels = as_labels("labels", labels)
    identities = as_ids("identities", identities, len(labels), per="image").to(labels.device)
    clustered = labels >= 0
    table = torch.stack([labels[clustered], identities[clustered]], 1)  # (clustered, 2)
    both = _pairs(table.unique(dim=0, return_counts=True)[1])
    predicted = _pairs(labels[clustered].unique(return_counts=True)[1])
    true = _pairs(identities.unique(return_counts=True)[1])
    precision = both / predicted if predicted else 1.0
    recall = both / true if true else 1.0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return PairScores(precision, recall, f1)


def changed_pairs(before: Tensor, after: Tensor) -> int:
    """Count the pairs of images that are in one cluster before or after, and not both.

    Args:
        before: (n,) int64 labels, -1 for an unclustered image.
        after: (n,) int64 labels, -1 for an unclustered image.

    Returns:
        The number of pairs that were joined or set apart, in O(n log n) time and about 50 bytes an
        image.

    Raises:
        ValueError: Wrong shape or dtype, other lengths, or a label below -1.
    """
    before = as_labels("before", before)
    after = as_labels("after", after, len(before)).to(before.device)
    of_before = _pairs(before[before >= 0].unique(return_counts=True)[1])
    of_after = _pairs(after[after >= 0].unique(return_counts=True)[1])
    kept = (before >= 0) & (after >= 0)
    table = torch.stack([before[kept], after[kept]], 1)
    return of_before + of_after - 2 * _pairs(table.unique(dim=0, return_counts=True)[1])


def _pairs(counts: Tensor) -> int:
    """Number of unordered pairs inside groups of these sizes."""
    return int((counts * (counts - 1) // 2).sum())


class ListScores(NamedTuple):
    """Precision and recall over all ordered pairs of two images.

    A pair (i, j) is predicted if j is a label of i, and true if both have one identity.
    """

    precision: float
    recall: float


def list_scores(
    indptr: Tensor, indices: Tensor, identities: Tensor, world: World = SINGLE_PROCESS
) -> ListScores:
    """Compare label lists, whose classes are the images, with true identities.

    Args:
        indptr: (n + 1,) int64; the labels of image i are indices[indptr[i]:indptr[i + 1]]. An
            image's label of itself is ignored. On several ranks, the images of
            `world.local_slice(n)`.
        indices: (labels,) int64, without repetitions in a list.
        identities: (n,) int64.
        world: The ranks that the lists are sharded over.

    Returns:
        The scores, in about 20 bytes a label. Without a predicted pair precision is 1; without a
        true pair recall is 1.

    Raises:
        ValueError: Wrong shape or dtype; an `indptr` that does not ascend from 0 to the number of
            labels; a label outside [0, n), or twice in a list. If it is so on one rank, all ranks
            raise.
    """
    identities = as_ids("identities", identities, per="image").cpu()
    n = len(identities)
    own = as_world(world).local_slice(n)
    indptr, indices = world.raise_together(lambda: _checked_lists(indptr, indices, own, n))
    images = torch.arange(n)[own].repeat_interleave(indptr.diff())  # (labels,)
    others = images != indices
    same = identities[images[others]] == identities[indices[others]]
    right = sum(world.all_gather_counts(int(same.sum())))
    predicted = sum(world.all_gather_counts(int(others.sum())))
    true = 2 * _pairs(identities.unique(return_counts=True)[1])
    return ListScores(right / predicted if predicted else 1.0, right / true if true else 1.0)


def _checked_lists(indptr: Tensor, indices: Tensor, own: slice, n: int) -> tuple[Tensor, Tensor]:
    """Lists of this rank's images on the CPU, without repetitions."""
    indptr, indices = (x.cpu() for x in as_lists(indptr, indices, own.stop - own.start, n))
    starts = torch.zeros(len(indices) + 1, dtype=torch.bool)
    starts[indptr] = True
    if bool(((indices[1:] <= indices[:-1]) & ~starts[1:-1]).any()):
        # Not ascending everywhere, so that a sort has to tell.
        rows = torch.arange(len(indptr) - 1).repeat_interleave(indptr.diff())
        ordered = (rows * n + indices).sort().values
        repeated = (ordered[1:] == ordered[:-1]).nonzero()
        if len(repeated):
            row, label = divmod(int(ordered[repeated[0, 0]]), n)
            raise ValueError(
                f"indices: got {label} twice in the list of image {own.start + row}, "
                "expected each label once"
            )
    return indptr, indices
