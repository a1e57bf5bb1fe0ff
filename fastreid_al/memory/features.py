"""Feature memories and the contrastive loss over class centroids.

The functions are the arithmetic, the classes hold the state. A memory is a buffer: no gradient flows into it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def class_means(bank: Tensor, classes: Tensor, count: int) -> Tensor:
    """Mean of the bank's rows of each class.

    Args:
        bank: (n, D) float.
        classes: (n,) int64, -1 for rows of no class.
        count: Number of classes C; each has one row at least.

    Returns:
        (C, D), not normalised: f . mean is the mean of f . v over the members.
    """
    member = classes >= 0
    sums = bank.new_zeros(count, bank.shape[1]).index_add_(0, classes[member], bank[member])
    return sums / torch.bincount(classes[member], minlength=count).clamp(min=1)[:, None].to(bank.dtype)


def contrast_loss(features: Tensor, centroids: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """UCAL Eq. 1: cross-entropy of f . c_k / tau over the centroids, mean over the batch.

    Args:
        features: (B, D), unit rows, with gradient.
        centroids: (C, D), no gradient.
        targets: (B,) int64 in [0, C).
        temperature: tau.
    """
    return F.cross_entropy(features @ centroids.T / temperature, targets)


def update_rows_(bank: Tensor, features: Tensor, rows: Tensor, momentum: float) -> None:
    """In place, v <- m v + (1 - m) f, normalised, for each image of the batch in order.

    Args:
        bank: (n, D) float.
        features: (B, D), no gradient.
        rows: (B,) int64 in [0, n); a row that stands in the batch several times is updated as often, in batch order.
        momentum: m, the share of the old vector that is kept.
    """
    # Rows do not touch each other, so first occurrences go together, then second ones, and so on.
    turn = _occurrence(rows)
    for k in range(int(turn.max()) + 1 if len(turn) else 0):
        now = turn == k
        bank[rows[now]] = F.normalize(momentum * bank[rows[now]] + (1 - momentum) * features[now])


def hardest_rows(features: Tensor, centroids: Tensor, targets: Tensor) -> Tensor:
    """For each class in the batch the place of its image least similar to its centroid, first one at a tie."""
    similarity = (features * centroids[targets]).sum(1)
    order = similarity.argsort(stable=True)
    return order[_occurrence(targets[order]) == 0]


def _occurrence(values: Tensor) -> Tensor:
    """How often each value stands earlier in the list."""
    order = values.argsort(stable=True)
    ordered = values[order]
    place = torch.arange(len(values), device=values.device)
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[1:] = ordered[1:] != ordered[:-1]
    first = torch.where(starts, place, 0).cummax(0).values if len(values) else place
    return torch.empty_like(place).scatter_(0, order, place - first)


class FeatureMemory:
    """What the two memories share: a bank of unit vectors, the class of each image, Eq. 1 over the class centroids."""

    def __init__(self, momentum: float, temperature: float) -> None:
        self.momentum, self.temperature = momentum, temperature
        self.bank = torch.zeros(0, 0)
        self.classes = torch.zeros(0, dtype=torch.int64)
        self.count = 0

    def start(self, features: Tensor) -> None:
        """Take the features (n, D) of all images, extracted before the first epoch."""
        raise NotImplementedError

    def begin_epoch(self, features: Tensor, classes: Tensor) -> None:
        """Take the epoch's features (n, D) and classes (n,), numbered without gaps, -1 for images of no class."""
        self.classes = classes.to(features.device)
        self.count = int(classes.max()) + 1 if len(classes) else 0

    def centroids(self) -> Tensor:
        """The c_k of Eq. 1, (C, D)."""
        raise NotImplementedError

    def loss(self, features: Tensor, rows: Tensor) -> Tensor:
        """Eq. 1 for the features (B, D) of the images at `rows`, mean over the batch."""
        return contrast_loss(features, self.centroids(), self.classes[rows], self.temperature)

    def update(self, features: Tensor, rows: Tensor) -> None:
        """Move the memory towards the batch's features, after the loss was taken."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Tensor]:
        """The vectors and classes."""
        return {"bank": self.bank, "classes": self.classes}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` gave."""
        self.bank = state["bank"]
        self.classes = state["classes"]
        self.count = int(self.classes.max()) + 1 if len(self.classes) else 0


class InstanceMemory(FeatureMemory):
    """One unit vector per image (SpCL, Ge et al., NeurIPS 2020); a class is the mean of its members' vectors.

    267 MB at n = 32,621 and 8.2 GB at 1e6 images for D = 2,048 in float32.
    """

    def start(self, features: Tensor) -> None:  # noqa: D102
        self.bank = features.clone()

    def centroids(self) -> Tensor:  # noqa: D102
        return class_means(self.bank, self.classes, self.count)

    def update(self, features: Tensor, rows: Tensor) -> None:  # noqa: D102
        update_rows_(self.bank, features, rows, self.momentum)


class ClusterMemory(FeatureMemory):
    """One unit vector per cluster (Cluster Contrast, Dai et al., ACCV 2022), made anew at each epoch.

    Some 12 MB for MSMT17's 1,500 clusters and D = 2,048 in float32.

    Args:
        momentum: Share of the old vector that an update keeps.
        temperature: tau of Eq. 1.
        hardest: Update a cluster only by its batch image least similar to it.
    """

    def __init__(self, momentum: float, temperature: float, hardest: bool = False) -> None:
        super().__init__(momentum, temperature)
        self.hardest = hardest

    def start(self, features: Tensor) -> None:  # noqa: D102
        self.bank = features.new_zeros(0, features.shape[1])

    def begin_epoch(self, features: Tensor, classes: Tensor) -> None:  # noqa: D102
        super().begin_epoch(features, classes)
        self.bank = F.normalize(class_means(features, self.classes, self.count))

    def centroids(self) -> Tensor:  # noqa: D102
        return self.bank

    def update(self, features: Tensor, rows: Tensor) -> None:  # noqa: D102
        targets = self.classes[rows]
        if self.hardest:
            hard = hardest_rows(features, self.bank, targets)
            features, targets = features[hard], targets[hard]
        update_rows_(self.bank, features, targets, self.momentum)
