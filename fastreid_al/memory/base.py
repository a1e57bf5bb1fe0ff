"""The base of the feature memories for the contrastive loss (UCAL, Eq. 1).

The arithmetic is in `reid_kernels`.

A memory is a buffer: no gradient flows into it. With a labelled source (SpCL's domain adaptation)
it also holds a centroid for each identity of the source. These centroids come after the vectors of
the target and move like them. Rows of the source's images are numbered after the n of the target,
and its classes after those of the target.

With several ranks each holds the vectors of some classes, always whole classes. A rank's part of
Eq. 1 for the whole batch is then a log-sum-exp and a weighted mean of its own vectors, and nothing
as long as the number of classes is sent. In a step of W ranks with B features of D float32 values
in all, a rank receives (W - 1) / W of these bytes:

    features and rows of the batch, before the loss and again before the update    2 B (4 D + 8)
    loss and log-sum-exp against each shard, and whether it holds the target       12 B W
    gradients, summed and scattered                                                4 B D
"""

from __future__ import annotations

from typing import Any

import torch
from reid_kernels import ClassIndex
from reid_kernels.checks import as_rows
from reid_kernels.sharded import sharded_bank_contrast_loss, update_shard_
from torch import Tensor

from ..arguments import as_features, as_ids, as_number, as_temperature, as_world, check_range
from ..distributed.world import SINGLE_PROCESS, Sharded, World
from .one_read import fits, one_read_contrast_loss
from .sharding import class_centroids, even_owners, places_on


class FeatureMemory:
    """A bank of unit vectors, the class of each image, and Eq. 1 over the class centroids.

    All methods but the constructor are collective.

    Args:
        momentum: Share of the old vector that an update keeps.
        temperature: tau of Eq. 1.
        source: (m,) int64 identity of each image of the source, numbered without gaps; None without
            a source.
        world: The ranks over which the memory is sharded.
    """

    #: Whether an update takes only the image of a class that is least similar to its vector.
    hardest = False
    #: Whether the loss is computed from one read of the bank, where the shapes allow it.
    one_read = False

    def __init__(
        self,
        momentum: float,
        temperature: float,
        source: Tensor | None = None,
        world: World = SINGLE_PROCESS,
    ) -> None:
        self.momentum = as_number("momentum", momentum, 0, 1)
        self.temperature = as_temperature("temperature", temperature)
        self.world = as_world(world)
        self.source = as_ids("source", [] if source is None else source, low=0, per="image")
        #: Number of the source's identities; each is a class.
        self.source_count = int(self.source.max()) + 1 if len(self.source) else 0
        #: This rank's vectors, in the order of their numbers in the whole memory.
        self.bank = torch.zeros(0, 0)
        #: (n + m,) int64, the class of each image, on every rank.
        self.classes = torch.zeros(0, dtype=torch.int64)
        #: Number of the target's classes.
        self.count = 0
        #: The rows of the bank by class, in this rank's class numbers; None where a row is a class.
        self._index: ClassIndex | None = None
        #: (vectors,) int64 on the CPU, the rank that holds each vector; None before the first
        #: epoch.
        self._owners: Tensor | None = None
        #: (vectors + 1,) int64, the place of each vector in this rank's bank; -1 on other ranks,
        #: and at the end.
        self._places = torch.full((1,), -1)
        #: (classes + 1,) int64, this rank's number of each class; -1 for classes of other ranks,
        #: and at the end.
        self._local_classes = torch.full((1,), -1)

    def start(self, features: Tensor) -> None:
        """Take this rank's rows of the features (n, D) of all images, before the first epoch."""
        raise NotImplementedError

    def start_source(self, features: Tensor) -> None:
        """Take this rank's rows of the features (m, D) of the source's images, after `start`."""
        centroids = class_centroids(features, self.source, self.source_count, self.world)
        self.bank = torch.cat([self.bank, centroids]) if len(self.bank) else centroids

    def begin_epoch(self, features: Tensor, classes: Tensor) -> None:
        """Take the features and the classes of an epoch.

        Args:
            features: This rank's rows of (n, D).
            classes: (n,) int64, the class of each image, on every rank, without gaps; -1 for images
                of no class.
        """
        # A rank that raised alone would leave the others waiting in the next collective.
        self.world.raise_together(lambda: as_features("features", features))
        count = len(features) if self.world.size == 1 else None
        classes = as_ids("classes", classes, count, per="image")
        check_range("classes", classes, -1, len(classes))
        self.count = int(classes.max()) + 1 if len(classes) else 0
        source_classes = self.count + self.source.to(features.device)
        self.classes = torch.cat([classes.to(features.device), source_classes])

    def loss(self, features: Tensor, rows: Tensor) -> Tensor:
        """Eq. 1 for the features of a batch.

        Args:
            features: (b, D) unit-norm, this rank's part of the batch; parts have one size.
            rows: (b,) int64, the images.

        Returns:
            The mean over the images that have a class. If some have none, the sum is divided by the
            count of the whole batch over W, so that the mean of the ranks' losses, and of their
            gradients, is always that of the batch.

        Raises:
            ValueError: Wrong shape or dtype; on a CPU, a row outside the n images.
            RuntimeError: `one_read` is set, and the device has no such form.
        """
        rows = self._checked_rows(rows)
        features = as_rows("features", features)
        if self.one_read and fits(features, self.bank):
            targets = self.classes[rows]
            return one_read_contrast_loss(features, self.bank, targets, self.temperature)
        return sharded_bank_contrast_loss(
            features,
            self.bank,
            self.classes[rows],
            self._local_classes,
            self.temperature,
            self.world,
            classes=self._index,
        )

    def update(self, features: Tensor, rows: Tensor) -> None:
        """Move the memory towards the features of a batch, after its loss was computed.

        The batch is applied in order. The vectors have the same bits on any number of ranks.

        Args:
            features: (b, D) unit-norm, this rank's part of the batch; parts have one size.
            rows: (b,) int64, the images.

        Raises:
            ValueError: Wrong shape or dtype; on a CPU, a row outside the n images.
        """
        rows = self._checked_rows(rows)
        features = as_features("features", features, finite=False)
        batch = self.world.all_gather(features)  # (B, D)
        # Images of one class stay in the order of the batch, with a source too.
        vectors = self.world.all_gather(self._vectors_of(rows.to(features.device)))  # (B,)
        places = self._places[vectors]
        update_shard_(self.bank, batch, places, self.momentum, self.world, hardest=self.hardest)

    def _checked_rows(self, rows: Tensor) -> Tensor:
        """Rows of images of the memory; a negative one would count from the end."""
        count = len(self.classes) or len(self._places) - 1
        return as_ids("rows", rows, low=0, high=count, per="image of the batch")

    def state_dict(self) -> dict[str, Any]:
        """The vectors by their number, cut evenly over the ranks, and the classes."""
        if self._owners is None:
            return {"bank": self.world.shard(self.bank[:0], 0), "classes": self.classes}
        n = len(self._owners)
        bank = self.world.move_rows(self.bank, self._owners, even_owners(self.world, n))
        return {"bank": self.world.shard(bank, n), "classes": self.classes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, on any number of ranks."""
        bank: Tensor | Sharded = state["bank"]
        self.bank = self.world.local_rows(bank)
        self.classes = state["classes"]
        self.count = int(self.classes.max()) + 1 - self.source_count if len(self.classes) else 0
        self._owners = None
        if self.count:
            n = bank.n if isinstance(bank, Sharded) else len(bank)
            self._owners = even_owners(self.world, n)
            self._arrange()

    def _arrange(self) -> None:
        """Move the vectors so that each class is whole on one rank, and number them there."""
        raise NotImplementedError

    def _vectors_of(self, rows: Tensor) -> Tensor:
        """The number of the vector that each image (b,) moves; -1 for none."""
        raise NotImplementedError

    def _move(self, owners: Tensor) -> None:
        """Move each vector to its rank in `owners` (vectors,), and number the vectors there."""
        if self._owners is not None:
            self.bank = self.world.move_rows(self.bank, self._owners, owners)
        self._owners = owners
        self._places = places_on(owners, self.world.rank).to(self.bank.device)
