"""NNCT's feature memory: the latest feature of every image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from reid_kernels.sharded import (
    bank_rows,
    sharded_label_prediction,
    sharded_multilabel_bank_loss,
    sharded_similarity_topk,
    sharded_update_bank_,
)
from torch import Tensor

from ..arguments import as_features, as_ids, as_integer, as_number, as_world, described
from ..distributed.world import SINGLE_PROCESS, Sharded, World

#: Images whose neighbourhoods say how similar near images are.
_SAMPLE = 1024
#: The most neighbours that are looked up.
_MOST_NEIGHBOURS = 1024
#: Similarities that differ by less may be the same.
_ROUNDING = 1e-5
#: Labels of a batch: (indptr (B + 1,), indices), or bit rows (B, ceil(n / 32)) int32.
Labels = Tensor | tuple[Tensor, Tensor]


class ImageMemory:
    """The feature memory M of NNCT: one unit vector per image, zero until the image is first seen.

    The vectors take 267 MB at n = 32,621 and 8.2 GB at 1e6 images for D = 2,048 in float32; each of
    W ranks holds ceil(n / W) of them. A rank computes for the whole batch against its own vectors,
    and gets the losses and gradients of its part of the batch. All methods but `allocate` are
    collective.

    Args:
        n: Number of images.
        world: The ranks over which the memory is sharded.
    """

    def __init__(self, n: int, world: World = SINGLE_PROCESS) -> None:
        self._n = as_integer("n", n, 0)
        self._world = as_world(world)
        #: This rank's rows of (n, D); (0, 0) before `allocate`.
        self.bank = torch.zeros(0, 0)

    @property
    def is_allocated(self) -> bool:
        """Whether the width of the features is known."""
        return self.bank.shape[1] > 0

    def allocate(self, features: Tensor) -> None:
        """Make the vectors, all zero, with the width, dtype and device of features (B, D)."""
        features = as_features("features", features, finite=False)
        own = self._world.local_slice(self._n)
        self.bank = features.new_zeros(own.stop - own.start, features.shape[1])

    def gather_batch(self, features: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The whole batch, (B, D) and (B,), from each rank's part of it, without gradient."""
        features = as_features("features", features, finite=False)
        rows = as_ids("rows", rows, len(features), per="feature row")
        return self._world.all_gather(features), self._world.all_gather(rows)

    def predict_labels(
        self, rows: Tensor, threshold: float, at_least: int
    ) -> tuple[Tensor, Tensor]:
        """MPLP: the multi-class labels of images, from the memory alone.

        Args:
            rows: (B,) int64, the same on all ranks.
            threshold: t, the similarity above which an image is a candidate.
            at_least: The least bound on ranks in the walk.

        Returns:
            `indptr` (B + 1,) and `indices`, int64, the same on all ranks.
        """
        return sharded_label_prediction(
            self.bank, rows, self._n, self._world, threshold=threshold, at_least=at_least
        )

    def usual_similarity(self, rank: int) -> float:
        """The median similarity of an image to the image that is the rank-th nearest to it.

        It is that of 1,024 images at most, evenly spaced: n x D x 2,048 operations. It lies between
        two of their similarities that differ, because the median is the similarity of some pair,
        and rounding would decide whether that pair is above it.

        Args:
            rank: 1 for the nearest image; at most 1,024 and n - 1 count.

        Returns:
            The similarity, the same on all ranks; 0 where most images have no feature yet.
        """
        rank = min(as_integer("rank", rank, 1), self._n - 1, _MOST_NEIGHBOURS)
        if rank == 0:
            return 0.0
        step = -(-self._n // _SAMPLE)
        rows = torch.arange(0, self._n, step, device=self.bank.device)
        features = bank_rows(self.bank, rows, self._n, self._world).to(self.bank.dtype)
        similarity, _ = sharded_similarity_topk(
            features, self.bank, rank, self._n, self._world, normalize=False, exclude=rows
        )
        ascending = similarity[:, -1].double().sort().values
        median = float(ascending[(len(ascending) - 1) // 2])
        above = ascending[ascending > median + _ROUNDING]
        return (median + float(above[0])) / 2 if len(above) else median

    def nearest(self, features: Tensor, rows: Tensor, k: int) -> Tensor:
        """NNR: the images most similar to features, each feature's own image left out.

        Args:
            features: (B, D) unit-norm, the same on all ranks.
            rows: (B,) int64, the images of the features.
            k: Number of neighbours; 0 is allowed.

        Returns:
            (B, k) int64, most similar first.
        """
        rows = as_ids("rows", rows, per="feature row")
        if as_integer("k", k, 0) == 0:
            return rows.new_zeros(len(rows), 0)
        # The operator uses "ieee" precision, which proves no candidates: the host does not wait,
        # and a batch is too small for the proof to pay.
        return sharded_similarity_topk(
            features, self.bank, k, self._n, self._world, normalize=False, exclude=rows
        )[1]

    def loss(
        self,
        features: Tensor,
        labels: Sequence[Labels],
        weights: Sequence[float],
        *,
        delta: float,
        hard_ratio: float,
    ) -> Tensor:
        """MMCL of features against several sets of labels, weighted and summed.

        Args:
            features: (b, D) unit-norm with gradient, this rank's part of the batch; parts have one
                size.
            labels: J sets of labels of the whole batch, the same on all ranks.
            weights: J factors.
            delta: Weight of the positives.
            hard_ratio: Share of the negatives that is hard.

        Returns:
            The mean over this rank's part.

        Raises:
            ValueError: Wrong shapes, dtypes or numbers.
        """
        if not isinstance(labels, list | tuple) or not isinstance(weights, list | tuple):
            got = f"{described(labels)} and {described(weights)}"
            raise ValueError(f"labels, weights: got {got}, expected two lists")
        if not labels or len(labels) != len(weights):
            raise ValueError(
                f"weights: got {len(weights)}, expected one for each of {len(labels)} sets of "
                "labels, at least one"
            )
        weights = [as_number("weights", weight) for weight in weights]
        return sharded_multilabel_bank_loss(
            features,
            self.bank,
            labels,
            weights,
            self._n,
            self._world,
            delta=delta,
            hard_ratio=hard_ratio,
        )

    def update(self, features: Tensor, rows: Tensor, momentum: float) -> None:
        """Move the vectors of images towards features, in batch order.

        Args:
            features: (B, D) unit-norm, the same on all ranks.
            rows: (B,) int64, the images.
            momentum: Share of the old vector that is kept.
        """
        sharded_update_bank_(self.bank, features, rows, momentum, self._n, self._world)

    def state(self) -> Tensor | Sharded:
        """The vectors as a state dictionary takes them; (0, 0) before the first batch."""
        return self._world.shard(self.bank, self._n) if self.is_allocated else self.bank

    def load_state(self, state: Tensor | Sharded) -> None:
        """Restore what `state` returned, whole or sharded, on any number of ranks.

        Raises:
            ValueError: It has the vectors of another number of images.
        """
        count = state.n if isinstance(state, Sharded) else len(state)
        if count not in (0, self._n):
            raise ValueError(f"the feature memory is of {count:,} images, the set has {self._n:,}")
        self.bank = self._world.local_rows(state)
