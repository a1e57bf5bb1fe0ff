"""The base of the clustering methods: feature memory, P x K batches and UCAL's loss (Eq. 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from reid_kernels import NotFiniteError
from torch import Tensor, nn

from ..arguments import as_ids, as_instance, as_integer, as_world
from ..config import BatchConfig, MemoryConfig
from ..data.samplers import IdentitySampler, iterations_per_epoch
from ..distributed.world import SINGLE_PROCESS, Sharded, World
from ..errors import DivergedError, TrainingError
from ..memory import ClusterMemory, FeatureMemory, InstanceMemory
from ..metrics.clusters import scores_by_key
from .adaptation import Source, joint_batches, source_seed

Extract = Callable[..., Tensor]

#: If all features differ by less than this, they count as equal: their graph would hold every pair
#: of images.
_COLLAPSED = 1e-6


class ContrastiveMethod:
    """Give each image a class at each epoch, then contrast its feature with the class centroids.

    A subclass defines the classes in `assign`. The state is the memory, the labels and what the
    subclass adds. With a labelled source, its identities are classes too, with one centroid each in
    the memory (SpCL).

    With several ranks the labels are on every rank, while the memory and the features are sharded.
    The batches are those of a single process; the training loop cuts them. Labelling, loss, update
    and state are collective.

    Args:
        cameras: (n,) int64 camera of each training image, -1 where unknown.
        batch: Size and number of the batches.
        memory: Feature memory and temperature.
        seed: Seed of the batches.
        source: The labelled source to train with in addition.
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
        self.cameras = as_ids("cameras", cameras, low=-1, per="image").cpu()
        self.batch = as_instance("batch", batch, BatchConfig)
        as_instance("memory", memory, MemoryConfig)
        self.seed = as_integer("seed", seed, 0)
        self.source = source if source is None else as_instance("source", source, Source)
        self.world = as_world(world)
        cameras = self.cameras
        self.iterations = iterations_per_epoch(batch.iterations, len(cameras), batch.size)
        self.memory = build_memory(memory, None if source is None else source.identities, world)
        #: (n,) int64: the cluster of each image in this epoch, -1 outside every cluster.
        self.labels = torch.zeros(0, dtype=torch.int64)
        #: (n,) int64: the clusters of this epoch before questions refined them; None in an epoch
        #: without questions.
        self.labels_before_questions: Tensor | None = None
        #: Metrics of the epoch that a subclass adds to the log.
        self.metrics: dict[str, float] = {}

    def layers(self) -> nn.ModuleList:
        """An empty list: the memory distinguishes the classes, so no classifier is trained."""
        return nn.ModuleList()

    def assign(self, epoch: int, features: Tensor) -> tuple[Tensor, Tensor]:
        """Define the labels and classes of an epoch.

        Args:
            epoch: Number of completed epochs.
            features: This rank's rows of (n, D).

        Returns:
            Labels and classes of all images on every rank, (n,) int64 both; -1 for no cluster, and
            for no class.
        """
        raise NotImplementedError

    def features(self, epoch: int, extract: Extract) -> Tensor:
        """The features that the epoch starts from, this rank's rows of (n, D).

        An instance memory provides them after the first epoch; otherwise they are extracted.
        """
        if isinstance(self.memory, InstanceMemory):
            if epoch == 0:
                self.memory.start(extract())
            return self.memory.features(len(self.cameras))
        return extract()

    def label_images(self, epoch: int, extract: Extract) -> dict[str, float]:
        """Label the images for this epoch, before its first batch.

        Args:
            epoch: Number of completed epochs.
            extract: Returns the features (n, D) of all training images under the current weights,
                or with the argument "source" those (m, D) of the source; each rank gets its own
                rows.

        Returns:
            Metrics for the log.

        Raises:
            TrainingError: The features are not finite or all the same, or there are fewer than two
                classes to contrast.
        """
        features = self.features(epoch, extract)
        self._check_features(epoch, features)
        self.labels, classes = self.assign(epoch, features)
        count = int(classes.max()) + 1 if len(classes) else 0
        if count == 0 or count + self.memory.source_count < 2:
            raise TrainingError(self._too_few_classes(epoch, count))
        if epoch == 0 and self.source is not None:
            self.memory.start_source(extract("source"))
        self.memory.begin_epoch(features, classes)
        clustered = int((self.labels >= 0).sum())
        return {
            "clusters": int(self.labels.max()) + 1,
            "clustered": clustered,
            # Images outside every cluster. The key is that of the files of older runs.
            "alone": len(self.labels) - clustered,
            "classes": count,
            **self.metrics,
        }

    def _check_features(self, epoch: int, features: Tensor) -> None:
        """Refuse features (rows, D) that are not finite, or equal for all images of all ranks."""
        n = len(self.cameras)
        broken = int(self.world.all_reduce_sum((~torch.isfinite(features).all(1)).sum()))
        if broken:
            raise DivergedError(
                f"epoch {epoch + 1}: the features of {broken} of {n} images are not finite "
                "(the training diverged)"
            )
        if _largest_range(features, self.world) < _COLLAPSED:
            raise TrainingError(
                f"epoch {epoch + 1}: all {n} images have one and the same feature (the network "
                "collapsed, or the images are copies); lower `optimizer.lr`, or start again with "
                "another `seed`"
            )

    def batches(self, epoch: int) -> Iterator[Tensor]:
        """The epoch's batches of image rows, (B,) int64, or (2B,) with a source.

        They depend on seed, epoch and classes.
        """
        n = len(self.cameras)
        sampler = self._sampler(self.memory.classes[:n].cpu(), self.cameras)
        batches = sampler.batches(self.seed, epoch)
        if self.source is None:
            return batches
        source_sampler = self._sampler(self.source.identities, self.source.cameras)
        return joint_batches(batches, source_sampler.batches(source_seed(self.seed), epoch), n)

    def _sampler(self, classes: Tensor, cameras: Tensor) -> IdentitySampler:
        return IdentitySampler(
            classes, cameras, self.batch.size, self.batch.per_identity, self.iterations
        )

    def loss(self, embeddings: Tensor, rows: Tensor) -> Tensor:
        """Eq. 1 for a batch; with a source the sum of the target's mean and the source's mean.

        With several ranks each passes its part of the batch, B / W rows (with a source as many of
        each domain), and gets the loss of that part. The mean of the ranks' losses is that of the
        batch.

        Args:
            embeddings: (B, D) with gradient, of the images at `rows`, any floating dtype, not
                normalised.
            rows: (B,) int64.

        Raises:
            TrainingError: On a CPU, the features or the memory are not finite, on any rank. On a
                GPU the loss is NaN instead.
        """
        try:
            loss = self.memory.loss(self._unit(embeddings), rows)
        except NotFiniteError as error:
            raise DivergedError(f"the training diverged ({error})") from None
        # With a source both halves of the batch have one size, and every sampled image has a class.
        # Twice the mean of the batch is therefore the sum of the two means, in one pass over the
        # bank.
        return loss if self.source is None else 2 * loss

    def update(self, embeddings: Tensor, rows: Tensor) -> None:
        """Update the memory with the batch's features, after the optimizer's step.

        Args:
            embeddings: (B, D) of the images at `rows`, any floating dtype, not normalised.
            rows: (B,) int64; this rank's part of the batch.
        """
        self.memory.update(self._unit(embeddings), rows)

    def _unit(self, embeddings: Tensor) -> Tensor:
        """Unit-norm rows in the memory's dtype; under autocast embeddings are half floats."""
        return F.normalize(embeddings.to(self.memory.bank.dtype))

    def label_metrics(self, identities: Tensor | None) -> dict[str, float | None]:
        """Scores of the epoch's clusters: `pair_scores` and `cluster_scores`; None where undefined.

        Args:
            identities: (n,) int64 true identity of each image, or None where they are not known:
                then nothing is returned.
        """
        return {} if identities is None else scores_by_key(self.labels, identities, self.cameras)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on; each rank has its rows of the memory."""
        return {"labels": self.labels, "memory": self.memory.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, on any number of ranks.

        Raises:
            ValueError: It is the state of another number of images, or holds classes that no image
                can have.
        """
        self._check_state(state)
        self.labels = state["labels"].cpu()
        self.memory.load_state_dict(state["memory"])

    def _check_state(self, state: dict[str, Any]) -> None:
        memory = state["memory"]
        n = len(self.cameras)
        images = n + len(self.memory.source)
        _check_numbers("labels", state["labels"], n, n)
        _check_numbers("classes", memory["classes"], images, n + self.memory.source_count)
        bank: Tensor | Sharded = memory["bank"]
        rows = bank.rows if isinstance(bank, Sharded) else bank
        if rows.ndim != 2 or not rows.is_floating_point() or not torch.isfinite(rows).all():
            raise ValueError(f"the feature memory is {tuple(rows.shape)} of {rows.dtype}")
        classes = int(memory["classes"].max()) + 1 if len(memory["classes"]) else 0
        instances = n + self.memory.source_count
        expected = instances if isinstance(self.memory, InstanceMemory) else classes
        count = bank.n if isinstance(bank, Sharded) else len(bank)
        if classes and count != expected:
            raise ValueError(f"the feature memory has {count:,} vectors, expected {expected:,}")

    def _too_few_classes(self, epoch: int, count: int) -> str:
        """The message of an epoch whose images have no class (count 0), or one."""
        classes = "no class" if count == 0 else "one single class"
        return (
            f"epoch {epoch + 1}: {classes} among {len(self.labels)} images, nothing to contrast; "
            "the set needs at least two"
        )


def _check_numbers(name: str, numbers: Tensor, length: int, count: int) -> None:
    """Refuse numbers of clusters or classes that are not (length,) int64 from -1 to count - 1."""
    if numbers.dtype != torch.int64 or numbers.shape != (length,):
        raise ValueError(
            f"{name}: got {tuple(numbers.shape)} of {numbers.dtype}, expected ({length},) int64"
        )
    if length and (int(numbers.min()) < -1 or int(numbers.max()) >= count):
        raise ValueError(f"{name}: got numbers outside -1 to {count - 1}")


def build_memory(
    config: MemoryConfig, source: Tensor | None = None, world: World = SINGLE_PROCESS
) -> FeatureMemory:
    """Build the memory that a configuration names.

    Args:
        config: Kind, momentum (None: the published one of the kind), temperature, update and form
            of the loss.
        source: (m,) int64 identities of the source's images, or None.
        world: The ranks over which the memory is sharded.
    """
    if config.kind == "instance":
        momentum = 0.2 if config.momentum is None else config.momentum
        return InstanceMemory(momentum, config.temperature, source, world)
    momentum = 0.1 if config.momentum is None else config.momentum
    return ClusterMemory(
        momentum, config.temperature, config.hardest, source, world, config.one_read
    )


def _largest_range(features: Tensor, world: World) -> float:
    """The largest difference of two images in one dimension of the features, over all ranks.

    Args:
        features: This rank's rows (rows, D), possibly none.
        world: The ranks.
    """
    if len(features):
        highest = features.amax(0)  # (D,)
        lowest = features.amin(0)
    else:
        # A rank without images must not change the result.
        highest = features.new_full((features.shape[1],), -torch.inf)
        lowest = -highest
    highest = world.all_reduce_max(highest)
    lowest = world.all_reduce_min(lowest)
    return float((highest - lowest).max())
