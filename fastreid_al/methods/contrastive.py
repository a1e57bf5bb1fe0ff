"""What the clustering methods share: a feature memory, P x K batches, and the loss of UCAL's Eq. 1."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from reid_kernels import NotFiniteError
from torch import Tensor, nn

from ..config import BatchConfig, MemoryConfig
from ..data.samplers import IdentitySampler, iterations_of
from ..distributed.world import SINGLE_PROCESS, World
from ..errors import TrainingError
from ..memory import ClusterMemory, FeatureMemory, InstanceMemory
from ..metrics import pair_scores
from .adaptation import Source, both_batches, source_seed

Extract = Callable[..., Tensor]

#: Features that differ by less are equal: their graph would hold every pair of images.
_COLLAPSED = 1e-6


class ContrastiveMethod:
    """Give each image a class at each epoch, then contrast its feature with the class centroids.

    A subclass says which classes (`assign`). The state is the memory, the labels and what the subclass adds. With a source, its
    identities are classes too, of a centroid each in the memory (SpCL).

    Over several ranks the labels are on every rank, and batches are those of one process, cut by the loop; the memory and the
    features are shared between the ranks. Labelling, loss, update and state are collective.

    Args:
        cameras: (n,) int64 camera of each training image, -1 where unknown.
        batch: Batches.
        memory: Feature memory and temperature.
        seed: Seed of the batches.
        source: The labelled source to train with as well.
        world: The ranks that train together.
    """

    def __init__(
        self,
        cameras: Tensor,
        batch: BatchConfig,
        memory: MemoryConfig,
        seed: int,
        source: Source | None = None,
        world: World = SINGLE_PROCESS,
    ) -> None:
        self.cameras, self.batch, self.seed, self.source, self.world = (
            cameras,
            batch,
            seed,
            source,
            world,
        )
        self.iterations = iterations_of(batch.iterations, len(cameras), batch.size)
        self.memory = build_memory(memory, None if source is None else source.identities, world)
        #: (n,) int64: the cluster of each image in this epoch, -1 outside every cluster.
        self.labels = torch.zeros(0, dtype=torch.int64)
        #: (n,) int64: the clusters that the epoch's were refined from; None when they were not.
        self.labels_before_questions: Tensor | None = None
        #: What a subclass says of the epoch, for the log.
        self.metrics: dict[str, float] = {}

    def layers(self) -> nn.ModuleList:
        """None: the classes are told apart by the memory."""
        return nn.ModuleList()

    def assign(self, epoch: int, features: Tensor) -> tuple[Tensor, Tensor]:
        """Labels and classes of this epoch from the features, (n,) int64 both; -1 is no cluster, no class.

        Of several ranks each has its rows of the features, and gives all labels and classes.
        """
        raise NotImplementedError

    def features(self, epoch: int, extract: Extract) -> Tensor:
        """The features that the epoch starts from."""
        if isinstance(self.memory, InstanceMemory):
            if epoch == 0:
                self.memory.start(extract())
            return self.memory.features(len(self.cameras))
        return extract()

    def label_images(self, epoch: int, extract: Extract) -> dict[str, float]:
        """Label the images for this epoch, before its first batch.

        Args:
            epoch: Epochs completed.
            extract: Gives the features (n, D) of all training images under the present weights, or those (m, D) of the
                "source"; of several ranks each its own rows.

        Returns:
            Metrics for the log.

        Raises:
            TrainingError: The features are not finite or all the same, or there are fewer than two classes to contrast.
        """
        features = self.features(epoch, extract)
        n = len(self.cameras)
        bad = int(self.world.all_reduce_sum((~torch.isfinite(features).all(1)).sum()))
        if bad:
            raise TrainingError(
                f"epoch {epoch + 1}: the features of {bad} of {n} images are not finite (the training diverged); lower "
                "--optimizer.lr and resume from the last checkpoint"
            )
        if self._spread(features) < _COLLAPSED:
            raise TrainingError(
                f"epoch {epoch + 1}: all {n} images have one and the same feature (the network collapsed, or the images are "
                "copies); lower --optimizer.lr, or start again with another --seed"
            )
        self.labels, classes = self.assign(epoch, features)
        count = int(classes.max()) + 1 if len(classes) else 0
        if count == 0 or count + self.memory.source_count < 2:
            raise TrainingError(self._nothing_to_contrast(epoch, count))
        if epoch == 0 and self.source is not None:
            self.memory.start_source(extract("source"))
        self.memory.begin_epoch(features, classes)
        clustered = int((self.labels >= 0).sum())
        clusters = int(self.labels.max()) + 1
        return {
            "clusters": clusters,
            "clustered": clustered,
            "alone": len(self.labels) - clustered,
            "classes": count,
            **self.metrics,
        }

    def _spread(self, features: Tensor) -> float:
        """The widest range of one value of the features, over all ranks."""
        if self.world.size == 1:
            return float((features.amax(0) - features.amin(0)).max())
        # A rank without images says nothing.
        nothing = features.new_full((1, features.shape[1]), torch.inf)
        highest = self.world.all_reduce_max(torch.cat([features, -nothing]).amax(0))
        return float(
            (highest - self.world.all_reduce_min(torch.cat([features, nothing]).amin(0))).max()
        )

    def batches(self, epoch: int) -> Iterator[Tensor]:
        """The epoch's batches of image rows, (B,) int64, or (2B,) with a source: a function of seed, epoch and classes."""
        n = len(self.cameras)
        batches = self._sampler(self.memory.classes[:n].cpu(), self.cameras).batches(
            self.seed, epoch
        )
        if self.source is None:
            return batches
        sampler = self._sampler(self.source.identities, self.source.cameras)
        return both_batches(batches, sampler.batches(source_seed(self.seed), epoch), n)

    def _sampler(self, classes: Tensor, cameras: Tensor) -> IdentitySampler:
        return IdentitySampler(
            classes, cameras, self.batch.size, self.batch.per_identity, self.iterations
        )

    def loss(self, embeddings: Tensor, rows: Tensor) -> Tensor:
        """Eq. 1 for a batch: embeddings (B, D) with gradient, of any length, of the images at rows (B,).

        With a source the sum of the target's mean and the source's. Of several ranks each gives its part of the batch, B / W
        rows (with a source so many of either), and gets the loss of these: the mean of the ranks' is the batch's.

        Raises:
            TrainingError: The features, or the memory, are not finite. On a GPU the loss is then NaN instead.
        """
        try:
            loss = self.memory.loss(self._unit(embeddings), rows)
            # Both halves are of one size, and all drawn images have a class: the sum of two means, in one pass over the bank.
            return loss if self.source is None else 2 * loss
        except NotFiniteError as error:
            raise TrainingError(
                f"the training diverged ({error}); lower --optimizer.lr and resume from the last checkpoint"
            ) from None

    def update(self, embeddings: Tensor, rows: Tensor) -> None:
        """Update the memory with the batch's features, after the step; of several ranks each gives its part."""
        self.memory.update(self._unit(embeddings), rows)

    def _unit(self, embeddings: Tensor) -> Tensor:
        """Of length one, in the memory's dtype: autocast gives half floats."""
        return F.normalize(embeddings.to(self.memory.bank.dtype))

    def label_metrics(self, identities: Tensor | None) -> dict[str, float]:
        """Precision, recall and F1 of the epoch's clusters over pairs of images, where the identities are known."""
        if identities is None:
            return {}
        return {f"pair_{k}": v for k, v in pair_scores(self.labels, identities)._asdict().items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on; of several ranks each has its rows of the memory."""
        return {"labels": self.labels, "memory": self.memory.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.labels = state["labels"].cpu()
        self.memory.load_state_dict(state["memory"])

    def _nothing_to_contrast(self, epoch: int, count: int) -> str:
        found = "no class" if count == 0 else "one single class"
        return f"epoch {epoch + 1}: {found} among {len(self.labels)} images, nothing to contrast; the set needs two at least"


def build_memory(
    config: MemoryConfig, source: Tensor | None = None, world: World = SINGLE_PROCESS
) -> FeatureMemory:
    """The memory that a configuration names, with the identities (m,) of a source's images."""
    if config.kind == "instance":
        return InstanceMemory(
            0.2 if config.momentum is None else config.momentum, config.temperature, source, world
        )
    momentum = 0.1 if config.momentum is None else config.momentum
    return ClusterMemory(momentum, config.temperature, config.hardest, source, world)
