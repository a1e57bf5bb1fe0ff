"""The instance memory: one vector per image (SpCL)."""

from __future__ import annotations

import torch
from reid_kernels import class_index
from torch import Tensor

from ..arguments import as_features
from .base import FeatureMemory
from .sharding import even_owners, places_on


class InstanceMemory(FeatureMemory):
    """One unit vector per image (SpCL, Ge et al., NeurIPS 2020).

    The centroid of a class is the mean of its members' vectors.

    The vectors take 267 MB at n = 32,621 and 8.2 GB at 1e6 images for D = 2,048 in float32. Image i
    has vector i. Identity j of the source has vector n + j, and is a class of its own.

    With W ranks a class is whole on one of them, so the vectors move at each epoch. A rank holds
    ceil(n / W) of them and at most the rest of one more class: 1 GB at 1e6 images and W = 8. It
    holds both the old and the new ones while they move. A class of more than n / W images still
    lies on one rank, which in the worst case holds as much as a single process. The numbers of
    images and classes, some 40 bytes an image, are on every rank. Summing B x C logits over the
    ranks would avoid the moves, but C can be n.
    """

    def start(self, features: Tensor) -> None:  # noqa: D102
        features = as_features("features", features, finite=False)
        n = sum(self.world.all_gather_counts(len(features)))
        self.bank = features.clone()
        self._owners = None
        self._places = places_on(even_owners(self.world, n), self.world.rank).to(features.device)

    def features(self, n: int) -> Tensor:
        """The vectors of the n images: this rank's rows, cut evenly.

        The vectors are then ordered by image; `begin_epoch` must come before the next loss.
        """
        if self._owners is not None:
            self._move(self._by_image(n))
        own = self.world.local_slice(n)
        return self.bank[: own.stop - own.start]

    def begin_epoch(self, features: Tensor, classes: Tensor) -> None:  # noqa: D102
        super().begin_epoch(features, classes)
        if self._owners is None:
            self._owners = self._by_image(len(classes))
        self._arrange()

    def _vectors_of(self, rows: Tensor) -> Tensor:
        if not self.source_count:
            return rows
        n = len(self.classes) - len(self.source)
        return torch.where(rows < n, rows, n + self.classes[rows] - self.count)

    def _by_image(self, n: int) -> Tensor:
        """The rank of each vector if those of images and those of the source are cut evenly."""
        return even_owners(self.world, n, self.source_count)

    def _arrange(self) -> None:
        """Put the classes on the ranks in the order of their numbers, then vectors of no class.

        A class goes to the rank to which an even cut of that order gives its first vector.
        """
        n = len(self.classes) - len(self.source)
        class_count = self.count + self.source_count
        source_classes = torch.arange(self.count, class_count)
        classes = torch.cat([self.classes[:n].cpu(), source_classes])  # (vectors,)
        has_class = classes >= 0
        sizes = torch.bincount(classes[has_class], minlength=class_count)
        step = max(1, -(-len(classes) // self.world.size))
        class_owners = (sizes.cumsum(0) - sizes) // step
        # Vectors of no class follow all others: their position is the number of those with a class
        # and those before.
        owners = (sizes.sum() + (~has_class).cumsum(0) - 1) // step
        owners[has_class] = class_owners[classes[has_class]]
        self._move(owners)
        self._local_classes = places_on(class_owners, self.world.rank).to(self.bank.device)
        own_classes = classes[owners == self.world.rank].to(self.bank.device)
        self._index = class_index(self._local_classes[own_classes])
