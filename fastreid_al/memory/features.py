"""Feature memories, contrasted with by UCAL's Eq. 1. The arithmetic is in `reid_kernels`, the state is here.

A memory is a buffer: no gradient flows into it. With a source (SpCL's form of domain adaptation) it also holds a centroid for
each of the source's identities, behind the vectors of the target and moved like them. Rows of the source's images are numbered
after the n of the target, its classes after those of the target.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from reid_kernels import ClassIndex, bank_contrast_loss, class_index, class_means, hardest_rows, update_bank_
from torch import Tensor


class FeatureMemory:
    """What the two memories share: a bank of unit vectors, the class of each image, Eq. 1 over the class centroids.

    Args:
        momentum: Share of the old vector that an update keeps.
        temperature: tau of Eq. 1.
        source: (m,) int64 identity of each of the source's images, numbered without gaps; None without a source.
    """

    def __init__(self, momentum: float, temperature: float, source: Tensor | None = None) -> None:
        self.momentum, self.temperature = momentum, temperature
        self.source = torch.zeros(0, dtype=torch.int64) if source is None else source
        #: Number of the source's identities, each a class.
        self.source_count = int(self.source.max()) + 1 if len(self.source) else 0
        self.bank = torch.zeros(0, 0)
        #: (n + m,) int64, the class of each image.
        self.classes = torch.zeros(0, dtype=torch.int64)
        #: Number of the target's classes.
        self.count = 0

    def start(self, features: Tensor) -> None:
        """Take the features (n, D) of all images, extracted before the first epoch."""
        raise NotImplementedError

    def start_source(self, features: Tensor) -> None:
        """Take the features (m, D) of the source's images, after `start` and before the first epoch."""
        centroids = F.normalize(class_means(features, self.source.to(features.device), self.source_count))
        self.bank = torch.cat([self.bank, centroids]) if len(self.bank) else centroids

    def begin_epoch(self, features: Tensor, classes: Tensor) -> None:
        """Take the epoch's features (n, D) and classes (n,), numbered without gaps, -1 for images of no class."""
        self.count = int(classes.max()) + 1 if len(classes) else 0
        self.classes = torch.cat([classes.to(features.device), self.count + self.source.to(features.device)])

    def loss(self, features: Tensor, rows: Tensor) -> Tensor:
        """Eq. 1 for the features (B, D) of the images at `rows`, mean over those that have a class."""
        raise NotImplementedError

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
        self.count = int(self.classes.max()) + 1 - self.source_count if len(self.classes) else 0


class InstanceMemory(FeatureMemory):
    """One unit vector per image (SpCL, Ge et al., NeurIPS 2020); a class is the mean of its members' vectors.

    267 MB at n = 32,621 and 8.2 GB at 1e6 images for D = 2,048 in float32. The vector of an identity of the source is row
    n + identity, and a class of its own.
    """

    def __init__(self, momentum: float, temperature: float, source: Tensor | None = None) -> None:
        super().__init__(momentum, temperature, source)
        self._index: ClassIndex | None = None

    def start(self, features: Tensor) -> None:  # noqa: D102
        self.bank = features.clone()

    def begin_epoch(self, features: Tensor, classes: Tensor) -> None:  # noqa: D102
        super().begin_epoch(features, classes)
        self._index = self._rows_by_class()

    def loss(self, features: Tensor, rows: Tensor) -> Tensor:  # noqa: D102
        return bank_contrast_loss(features, self.bank, self.classes[rows], self.temperature, classes=self._index)

    def update(self, features: Tensor, rows: Tensor) -> None:  # noqa: D102
        if self.source_count:
            n = len(self.classes) - len(self.source)
            rows = torch.where(rows < n, rows, n + self.classes[rows] - self.count)
        update_bank_(self.bank, features, rows, self.momentum)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:  # noqa: D102
        super().load_state_dict(state)
        self._index = self._rows_by_class()

    def _rows_by_class(self) -> ClassIndex:
        n = len(self.classes) - len(self.source)
        centroids = torch.arange(self.count, self.count + self.source_count, device=self.classes.device)
        return class_index(torch.cat([self.classes[:n], centroids]))


class ClusterMemory(FeatureMemory):
    """One unit vector per cluster (Cluster Contrast, Dai et al., ACCV 2022), made anew at each epoch.

    Some 12 MB for MSMT17's 1,500 clusters and D = 2,048 in float32. The vectors of the source's identities stay.

    Args:
        momentum: Share of the old vector that an update keeps.
        temperature: tau of Eq. 1.
        hardest: Update a cluster only by its batch image least similar to it.
        source: (m,) int64 identity of each of the source's images, numbered without gaps; None without a source.
    """

    def __init__(
        self, momentum: float, temperature: float, hardest: bool = False, source: Tensor | None = None
    ) -> None:
        super().__init__(momentum, temperature, source)
        self.hardest = hardest

    def start(self, features: Tensor) -> None:  # noqa: D102
        self.bank = features.new_zeros(0, features.shape[1])

    def begin_epoch(self, features: Tensor, classes: Tensor) -> None:  # noqa: D102
        super().begin_epoch(features, classes)
        centroids = F.normalize(class_means(features, self.classes[: len(classes)], self.count))
        kept = len(self.bank) - self.source_count
        self.bank = torch.cat([centroids, self.bank[kept:]]) if self.source_count else centroids

    def loss(self, features: Tensor, rows: Tensor) -> Tensor:  # noqa: D102
        return bank_contrast_loss(features, self.bank, self.classes[rows], self.temperature)

    def update(self, features: Tensor, rows: Tensor) -> None:  # noqa: D102
        targets = self.classes[rows]
        if self.hardest:
            hard = hardest_rows(features, self.bank, targets)
            features, targets = features[hard], targets[hard]
        update_bank_(self.bank, features, targets, self.momentum)
