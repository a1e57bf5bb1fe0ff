"""Strategies that ask nothing and correct the clusters with the true identities.

Each corrects one kind of error completely and leaves the others. What a run gains with it is the
most that answers about this kind of error can be worth.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastreid_al.active.strategies import Strategy
from fastreid_al.answers import Asker
from fastreid_al.config import QuestionConfig

#: Changes labels (n,) with the identities (n,).
Edit = Callable[[Tensor, Tensor], Tensor]


def correcting(edit: Edit, identities: Tensor) -> Strategy:
    """Return a strategy that changes the clusters of each round with an edit."""

    def correct(features: Tensor, labels: Tensor, asker: Asker, config: QuestionConfig) -> None:
        edited = edit(labels, identities)
        asker.current_labels = lambda: edited

    return correct


def majority(labels: Tensor, identities: Tensor) -> Tensor:
    """Return the most frequent identity of each label, (L,) int64; ties to the lowest.

    Labels without an image, below the highest one, have identity -1.
    """
    clustered = labels >= 0
    table = torch.stack([labels[clustered], identities[clustered]], 1)
    pairs, counts = table.unique(dim=0, return_counts=True)  # by cluster, then by identity
    order = counts.argsort(descending=True, stable=True)
    order = order[pairs[order, 0].argsort(stable=True)]
    first = torch.ones(len(order), dtype=torch.bool)
    first[1:] = pairs[order[1:], 0] != pairs[order[:-1], 0]
    of_label = torch.full((int(labels.max()) + 1,), -1)
    of_label[pairs[order[first], 0]] = pairs[order[first], 1]
    return of_label


def split_clusters(labels: Tensor, identities: Tensor) -> Tensor:
    """Split every cluster into its identities: precision becomes 1, nothing is joined."""
    numbers = labels * (int(identities.max()) + 1) + identities
    return torch.where(labels < 0, -1, _numbered(numbers))


def merge_clusters(labels: Tensor, identities: Tensor) -> Tensor:
    """Join the clusters that have the same most frequent identity; nothing is split."""
    of_cluster = majority(labels, identities)
    return torch.where(labels < 0, -1, of_cluster[labels.clamp(min=0)])


def assign_noise(labels: Tensor, identities: Tensor) -> Tensor:
    """Give every image outside the clusters to the largest cluster of its identity, if any."""
    of_cluster = majority(labels, identities)
    sizes = torch.bincount(labels[labels >= 0], minlength=len(of_cluster))
    cluster_of = torch.full((int(identities.max()) + 1,), -1)
    for cluster in sizes.argsort(stable=True).tolist():
        if sizes[cluster]:
            cluster_of[of_cluster[cluster]] = cluster
    return torch.where(labels < 0, cluster_of[identities], labels)


def drop_impure_images(labels: Tensor, identities: Tensor) -> Tensor:
    """Take every image out that does not have its cluster's most frequent identity."""
    of_cluster = majority(labels, identities)
    right = of_cluster[labels.clamp(min=0)] == identities
    return torch.where((labels >= 0) & right, labels, -1)


def label_share(share: float) -> Edit:
    """Return an edit that gives a random share of the images their true identity.

    An image without one stays where it is, next to the labelled images of the identity that most
    labelled images of its cluster have.
    """

    def label(labels: Tensor, identities: Tensor) -> Tensor:
        known = torch.rand(len(labels), generator=torch.Generator().manual_seed(0)) < share
        count = int(identities.max()) + 1
        of_cluster = torch.full((int(labels.max()) + 1,), -1)
        seen = torch.where(known, labels, -1)
        if bool((seen >= 0).any()):
            most = majority(seen, identities)
            of_cluster[: len(most)] = most
        inside = labels >= 0
        target = of_cluster[labels.clamp(min=0)]
        edited = torch.where(inside & (target >= 0), target, count + labels)
        edited = torch.where(inside, edited, -1)
        return torch.where(known, identities, edited)

    return label


def _numbered(numbers: Tensor) -> Tensor:
    """Number distinct values from 0."""
    return numbers.unique(return_inverse=True)[1]


EDITS: dict[str, Edit] = {
    "split": split_clusters,
    "merge": merge_clusters,
    "noise": assign_noise,
    "drop": drop_impure_images,
    "split-merge": lambda labels, identities: merge_clusters(
        split_clusters(labels, identities), identities
    ),
    "true-10": label_share(0.1),
    "true-30": label_share(0.3),
}
