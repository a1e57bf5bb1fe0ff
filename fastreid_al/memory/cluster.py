"""The cluster memory: one vector per cluster (Cluster Contrast)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..arguments import as_features, as_flag
from ..distributed.world import SINGLE_PROCESS, World
from .base import FeatureMemory
from .sharding import class_centroids, even_owners


class ClusterMemory(FeatureMemory):
    """One unit vector per cluster, new at each epoch (Cluster Contrast, Dai et al., ACCV 2022).

    The vectors take 12 MB for MSMT17's 1,500 clusters and D = 2,048 in float32; each of W ranks
    holds ceil(C / W) of C clusters. The vectors of the source's identities are kept over the
    epochs. While the centroids are computed, a rank holds some columns of the features of its
    clusters' images.

    This is the memory of the training engine: it knows classes, epochs, a source and ranks.
    `reid_kernels.compat.ClusterMemory` is a drop-in replacement for the class of that name in the
    published code of Cluster Contrast, and is not used here.

    Args:
        momentum: Share of the old vector that an update keeps.
        temperature: tau of Eq. 1.
        hardest: Update a cluster only by the image of the batch that is least similar to it.
        source: (m,) int64 identity of each image of the source, numbered without gaps; None without
            a source.
        world: The ranks over which the memory is sharded.
        one_read: Compute the loss from one read of the memory (`one_read_contrast_loss`), with
            16-bit products. Needs a single rank and a GPU of compute capability 9.0 or later. Its
            speed was not measured.

    Raises:
        ValueError: `one_read` with several ranks, or another argument out of range.
    """

    def __init__(
        self,
        momentum: float,
        temperature: float,
        hardest: bool = False,
        source: Tensor | None = None,
        world: World = SINGLE_PROCESS,
        one_read: bool = False,
    ) -> None:
        super().__init__(momentum, temperature, source, world)
        self.hardest = as_flag("hardest", hardest)
        self.one_read = as_flag("one_read", one_read)
        if one_read and self.world.size > 1:
            raise ValueError(
                f"one_read: got true with {self.world.size} ranks, expected one rank; "
                "set memory.one_read to false"
            )

    def start(self, features: Tensor) -> None:  # noqa: D102
        features = self.world.raise_together(lambda: as_features("features", features))
        self.bank = features.new_zeros(0, features.shape[1])
        self._owners = None

    def begin_epoch(self, features: Tensor, classes: Tensor) -> None:  # noqa: D102
        super().begin_epoch(features, classes)
        features = as_features("features", features, finite=False)
        classes = self.classes[: len(self.classes) - len(self.source)]
        centroids = class_centroids(features, classes, self.count, self.world)
        if self.source_count:
            own = self.world.local_slice(self.source_count)
            first = len(self.bank) - (own.stop - own.start)
            centroids = torch.cat([centroids, self.bank[first:]])
        self.bank = centroids
        # The centroids are already on their ranks.
        self._owners = None
        self._arrange()

    def _vectors_of(self, rows: Tensor) -> Tensor:
        return self.classes[rows]

    def _arrange(self) -> None:
        """Cut the clusters, and the source's identities, evenly over the ranks."""
        self._move(even_owners(self.world, self.count, self.source_count))
        self._local_classes = self._places
