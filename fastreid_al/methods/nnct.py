"""NNCT, nearest-neighbour collaborative training (Tang and Jo, ICIP 2021).

This file follows the paper's sections and is meant to be read next to it.

Each image is a class of its own. The current image flow (Sec. 2.1) is MMCL (Wang and Zhang, CVPR
2020): it predicts from a memory of all features which other images show the same person, and
regresses the similarities of the image to these labels. The neighbour flow (Sec. 2.2) also
regresses them to the labels of the nearest images. The pseudo-label memory bank (PLMB) holds the
latest labels of every image.

| paper | here |
|---|---|
| feature memory M, n x d | `NNCT.memory` |
| similarity s_i (Eq. 1) | computed inside the operators of `memory` |
| L = L_C + lambda^n L_N (Eq. 2) | `NNCT.target_loss`, lambda^n is `lambda_n` |
| multi-class label y_i by MPLP (Sec. 2.1) | `NNCT.predict` |
| MMCL (Eq. 3 and 6) | `ImageMemory.loss` |
| nearest neighbour ranking, NNR (Sec. 2.2.1) | `NNCT.neighbours` |
| PLMB B (Sec. 2.2.2) | `NNCT.label_memory`: Eq. 4 is `lookup_bits`, Eq. 5 is `update` |

The paper does not say what the neighbour flow does in the epochs of single labels. It rests on the
assumption that an image and its neighbour probably show one person, which does not hold in these
epochs. Here it starts with the predicted labels.

The paper removes the layers after the last pooling of ResNet-50 and OSNet and adds a BatchNorm. For
OSNet the recipe therefore sets `network.osnet_fc` to false.

With a labelled source (the domain adaptation of Sec. 3.3, as ECN trains it), a classifier of the
source's identities is trained in addition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from reid_kernels import NotFiniteError
from torch import Tensor, nn

from ..arguments import as_instance, as_integer, as_world
from ..config import BatchConfig, NNCTConfig
from ..data.samplers import PassSampler, iterations_per_epoch
from ..distributed.world import SINGLE_PROCESS, World
from ..errors import DivergedError, SettingError
from ..memory import ImageMemory, ShardedLabelBank
from ..memory.image import Labels
from ..metrics import list_scores
from .adaptation import SourceClassifier, joint_batches, source_seed


class NNCT:
    """The paper's method; without neighbours (k = 0) its baseline "w/o NNCT", MPLP and MMCL.

    Memory: the n x D features in float32 take 267 MB at n = 32,621 and 8.2 GB at 1e6 for D = 2,048.
    The PLMB takes 133 MB and, with the layout "sparse", 260 MB. With several ranks each holds its
    share of both.

    Args:
        n: Number of training images.
        neighbours_k: k, the number of nearest images whose labels an image is also trained with.
        settings: Thresholds and weights.
        batch: Size and number of the batches.
        epochs: Epochs of the run, over which the momentum of the memory grows.
        seed: Seed of the batches.
        source: Classifier of the labelled source to train with in addition.
        world: The ranks over which both memories are sharded; each trains with its part of every
            batch.
        layout: Layout of the PLMB: "bits", "sparse", or "auto", which is bits up to 200,000 images.
        capacity: Most labels of an image that "sparse" holds.

    Raises:
        SettingError: A batch takes more images than there are, of the target or of the source, or
            there are too few images for k neighbours.
    """

    #: NNCT has no clusters that questions could refine.
    labels_before_questions: None = None

    def __init__(
        self,
        n: int,
        neighbours_k: int,
        settings: NNCTConfig,
        batch: BatchConfig,
        epochs: int,
        seed: int,
        source: SourceClassifier | None = None,
        world: World = SINGLE_PROCESS,
        layout: str = "auto",
        capacity: int = 64,
    ) -> None:
        n = as_integer("n", n, 1)
        neighbours_k = as_integer("neighbours_k", neighbours_k)
        as_instance("settings", settings, NNCTConfig)
        as_instance("batch", batch, BatchConfig)
        epochs = as_integer("epochs", epochs, 1)
        seed = as_integer("seed", seed, 0)
        as_world(world)
        _check_batch(batch.size, n, "training images")
        if source is not None:
            as_instance("source", source, SourceClassifier)
            _check_batch(batch.size, len(source), "training images of the source")
        if not 0 <= neighbours_k < n:
            raise SettingError("neighbours_k", neighbours_k, f"0 to {n - 1} for {n} images")
        self.n = n
        self.neighbours_k = neighbours_k
        self.settings = settings
        self.epochs = epochs
        self.seed = seed
        self.source = source
        self.world = world
        self.iterations = iterations_per_epoch(batch.iterations, n, batch.size)
        self._sampler = PassSampler(n, batch.size, self.iterations)
        if source is not None:
            self._source_sampler = PassSampler(len(source), batch.size, self.iterations)
        #: M, allocated with the first batch.
        self.memory = ImageMemory(n, world)
        #: B.
        self.label_memory = ShardedLabelBank(n, layout, capacity, world)
        #: Whether this epoch predicts labels; before that each image is its own only label.
        self.predicts = False
        #: Share of the old vector that an update of the memory keeps in this epoch.
        self.momentum = 0.0
        #: t of MPLP in this epoch; with "auto" the paper's until there are features to judge by.
        self.threshold = 0.6 if settings.threshold == "auto" else settings.threshold

    def layers(self) -> nn.ModuleList:
        """The classifier of the source's identities, if there is a source, else an empty list."""
        return nn.ModuleList([] if self.source is None else [self.source])

    def label_images(self, epoch: int, extract: Callable[..., Tensor]) -> dict[str, float]:
        """Begin an epoch. Labels are predicted batch by batch, not here.

        Args:
            epoch: Number of completed epochs.
            extract: Not called.

        Returns:
            Metrics for the log.
        """
        self.predicts = epoch >= self.settings.single_label
        self.momentum = self.settings.momentum * epoch / self.epochs
        if self.settings.threshold != "auto":
            self.threshold = self.settings.threshold
        elif self.predicts and self.memory.is_allocated:
            self.threshold = self.memory.usual_similarity(self.settings.at_least)
        return {"memory_momentum": self.momentum, "label_threshold": self.threshold}

    def batches(self, epoch: int) -> Iterator[Tensor]:
        """The epoch's batches of image rows, (B,) int64, or (2B,) with a source.

        They depend on seed and epoch alone.
        """
        batches = self._sampler.batches(self.seed, epoch)
        if self.source is None:
            return batches
        source_batches = self._source_sampler.batches(source_seed(self.seed), epoch)
        return joint_batches(batches, source_batches, self.n)

    def loss(self, embeddings: Tensor, rows: Tensor) -> Tensor:
        """The loss of a batch: Eq. 2, and with a source its weighted sum with the source's loss.

        With several ranks each passes its part of the batch. The parts have one size and follow one
        another in the batch. With a source a part is that of the target's images, followed by that
        of the source's. The mean of the ranks' losses is the loss of the batch.

        Args:
            embeddings: (B, D) with gradient, of the images at `rows`, any floating dtype, not
                normalised; (2B, D) with a source.
            rows: (B,) int64, or (2B,).

        Raises:
            TrainingError: On a CPU, the features or the memory are not finite, on any rank. On a
                GPU the loss is NaN instead.
        """
        if self.source is None:
            return self.target_loss(embeddings, rows)
        target, source = embeddings.chunk(2)
        target_rows, source_rows = rows.chunk(2)
        target_loss = self.target_loss(target, target_rows)
        loss: Tensor = self.source(source, source_rows - self.n, target_loss)
        return loss

    def target_loss(self, embeddings: Tensor, rows: Tensor) -> Tensor:
        """Eq. 2, L = L_C + lambda^n L_N, the mean over images of the target.

        Args:
            embeddings: (B, D) with gradient, of the images at `rows`, any floating dtype, not
                normalised.
            rows: (B,) int64.

        Raises:
            TrainingError: On a CPU, the features or the memory are not finite, on any rank. On a
                GPU the loss is NaN instead.
        """
        s = self.settings
        features = _unit(embeddings)
        self._allocate(features)
        try:
            labels = self._labels(*self.memory.gather_batch(features, rows))
            weights = [1.0] + [s.lambda_n] * (len(labels) - 1)
            return self.memory.loss(
                features, labels, weights, delta=s.delta, hard_ratio=s.hard_ratio
            )
        except NotFiniteError as error:
            raise DivergedError(f"the training diverged ({error})") from None

    def _labels(self, batch: Tensor, rows: Tensor) -> list[Labels]:
        """The labels of a batch: those of the images (Eq. 3), then of each neighbour (Eq. 6).

        Args:
            batch: (B, D) unit-norm features.
            rows: (B,) int64, their images.
        """
        if not self.predicts:
            return [_identity_labels(rows)]
        predicted = self.predict(rows)
        self.label_memory.update(rows, *predicted)  # Eq. 5
        neighbours = self.neighbours(batch, rows)  # (B, k)
        if self.neighbours_k == 0:
            return [predicted]
        bits = self.label_memory.lookup_bits(neighbours.T.flatten())  # Eq. 4, (k B, words)
        return [predicted, *bits.split(len(rows))]

    def predict(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """MPLP: the multi-class labels of images (B,) int64 as CSR lists, from the memory alone."""
        return self.memory.predict_labels(rows, self.threshold, self.settings.at_least)

    def neighbours(self, features: Tensor, rows: Tensor) -> Tensor:
        """NNR: the k images most similar to the features of a batch.

        Args:
            features: (B, D) unit-norm.
            rows: (B,) int64, their images, which are left out.

        Returns:
            (B, k) int64, most similar first.
        """
        return self.memory.nearest(features, rows, self.neighbours_k)

    def update(self, embeddings: Tensor, rows: Tensor) -> None:
        """Move the memory towards the features of a batch, after the optimizer's step.

        Args:
            embeddings: (B, D) of the images at `rows`, any floating dtype, not normalised; (2B, D)
                with a source, whose half is not used.
            rows: (B,) int64, or (2B,).
        """
        if self.source is not None:
            embeddings = embeddings.chunk(2)[0]
            rows = rows.chunk(2)[0]
        batch, rows = self.memory.gather_batch(_unit(embeddings.detach()), rows)
        self.memory.update(batch, rows, self.momentum)

    def label_metrics(self, identities: Tensor | None) -> dict[str, float]:
        """Metrics of the labels for the log, the same on all ranks.

        Args:
            identities: (n,) int64 true identity of each image, or None where they are not known.

        Returns:
            `labels_per_image`, without the image itself; with "sparse" `labels_dropped`, the labels
            in this run that did not fit into full lists; with identities the precision and recall
            of the labels.
        """
        indptr, indices = self.label_memory.local_lists()
        labels = sum(self.world.all_gather_counts(len(indices)))
        metrics: dict[str, float] = {"labels_per_image": labels / self.n - 1}
        if self.label_memory.layout == "sparse":
            metrics["labels_dropped"] = self.label_memory.dropped
        if identities is not None:
            scores = list_scores(indptr, indices, identities, self.world)
            for name, value in scores._asdict().items():
                metrics[f"label_{name}"] = value
        return metrics

    def _allocate(self, features: Tensor) -> None:
        """Give the memories the width and the device of the first features (B, D)."""
        if not self.memory.is_allocated:
            self.memory.allocate(features)
            self.label_memory.to(features.device)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on; a rank has its rows of the memories."""
        return {
            "bank": self.memory.state(),
            "label_memory": self.label_memory.state_dict(),
            "predicts": self.predicts,
            "momentum": self.momentum,
            "threshold": self.threshold,
            "layers": self.layers().state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, on any number of ranks.

        Tensors of n rows are whole or sharded.

        Raises:
            ValueError: It is the state of another number of images or of another layout of the
                PLMB, on any rank.
        """
        self.memory.load_state(state["bank"])
        self.label_memory.to(self.memory.bank.device)
        self.label_memory.load_state_dict(state["label_memory"])
        self.predicts = state["predicts"]
        self.momentum = state["momentum"]
        # A state of an earlier version has none: the setting could not be "auto".
        self.threshold = state.get("threshold", self.threshold)
        self.layers().load_state_dict(state.get("layers", {}))


def _check_batch(size: int, images: int, what: str) -> None:
    """Refuse a batch larger than a pass over the images."""
    if size > images:
        raise SettingError(
            "batch.size",
            size,
            f"at most {images}, the number of {what}",
            "nnct draws each image once in a pass",
        )


def _unit(embeddings: Tensor) -> Tensor:
    """Unit-norm rows; half floats become float32."""
    return F.normalize(embeddings if embeddings.dtype == torch.float64 else embeddings.float())


def _identity_labels(rows: Tensor) -> tuple[Tensor, Tensor]:
    """CSR lists in which each image (B,) is its own only label."""
    return torch.arange(len(rows) + 1, device=rows.device), rows
