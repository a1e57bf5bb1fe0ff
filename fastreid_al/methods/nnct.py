"""NNCT, nearest-neighbour collaborative training (Tang and Jo, ICIP 2021), to be read beside the paper.

Each image is a class of its own. Sec. 2.1, the current image flow, is MMCL (Wang and Zhang, CVPR 2020): predict which other
images show the same person from a memory of all features, and regress the similarities to these labels. Sec. 2.2, the neighbour
flow, regresses them to the labels of the nearest images as well, which the pseudo-label memory bank (PLMB) keeps up to date.

The paper is silent about the neighbour flow in the epochs of single labels. Its premise, that an image and its neighbour are
likely of one identity, does not hold there, so it begins with the predicted labels.

The paper removes what stands above the last pooling of ResNet-50 and OSNet and adds a BatchNorm: the recipe has
`--network.osnet-fc false`.

With a labelled source (Sec. 3.3's domain adaptation, as ECN trains it) a classifier of its identities is trained beside.

On several ranks each keeps its own images' rows of both memories. A rank is given its part of the batch; the features of the
whole batch meet every rank's rows of the memory, and the losses and gradients of its part come back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from reid_kernels import (
    NotFiniteError,
    label_prediction,
    multilabel_bank_loss,
    similarity_topk,
    update_bank_,
)
from reid_kernels.sharded import (
    sharded_label_prediction,
    sharded_multilabel_bank_loss,
    sharded_similarity_topk,
    sharded_update_bank_,
    with_gradient,
)
from torch import Tensor, nn

from ..config import BatchConfig, NNCTConfig
from ..data.samplers import PassSampler, iterations_of
from ..distributed.world import SINGLE_PROCESS, Sharded, World
from ..errors import TrainingError
from ..memory import PseudoLabelMemoryBank, ShardedLabelMemory
from ..metrics import list_scores
from .adaptation import SourceClassifier, both_batches, source_seed


class NNCT:
    """The paper's method; without neighbours its "w/o NNCT", which is MPLP and MMCL.

    Memory: the features n x D float32, 267 MB at n = 32,621 and 8.2 GB at 1e6 for D = 2,048, and the PLMB, 133 MB and (sparse)
    260 MB; of both each of W ranks has 1 / W.

    Args:
        n: Number of training images.
        neighbours_k: k, the nearest images whose labels an image is trained with.
        settings: Thresholds and weights.
        batch: Batches.
        epochs: Epochs of the run, over which the momentum of the memory grows.
        seed: Seed of the batches.
        source: The labelled source to train with as well.
        world: The ranks that share the memories; each trains with a part of every batch.
        layout: Layout of the PLMB: bits, sparse, or auto, by the number of images.
        capacity: Labels that a list of the sparse layout has room for.

    Raises:
        ValueError: There are fewer images, or images of the source, than a batch takes, or than neighbours are wanted.
    """

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
        if batch.size > n:
            raise ValueError(
                f"--batch.size {batch.size} is more than the {n} training images; nnct draws each once in a pass: "
                f"give {n} or less"
            )
        if source is not None and batch.size > len(source):
            raise ValueError(
                f"--batch.size {batch.size} is more than the {len(source)} training images of the source; nnct draws each once "
                f"in a pass: give {len(source)} or less"
            )
        if not 0 <= neighbours_k < n:
            raise ValueError(
                f"--neighbours-k {neighbours_k} is out of range; {n} images have 0 to {n - 1} neighbours"
            )
        self.n, self.neighbours_k, self.settings, self.epochs, self.seed = (
            n,
            neighbours_k,
            settings,
            epochs,
            seed,
        )
        self._size = batch.size
        self.iterations = iterations_of(batch.iterations, n, batch.size)
        self._sampler = PassSampler(n, batch.size, self.iterations)
        self.source, self.world = source, world
        #: M: this rank's rows of (n, D), zero until an image is first seen; made with the first batch.
        self.bank = torch.zeros(0, 0)
        #: B of Eq. 4 and 5.
        self.label_memory: PseudoLabelMemoryBank | ShardedLabelMemory = (
            PseudoLabelMemoryBank(n, layout, capacity)
            if world.size == 1
            else ShardedLabelMemory(n, layout, capacity, world)
        )
        #: No clusters are refined.
        self.labels_before_questions: None = None
        #: Whether the labels are predicted in the epoch under way, or each image is its own only one.
        self.predicts = False
        #: Share of the old vector that an update of the memory keeps in the epoch under way.
        self.momentum = 0.0

    def layers(self) -> nn.ModuleList:
        """The classifier of the source's identities, where there is a source."""
        return nn.ModuleList([] if self.source is None else [self.source])

    def label_images(self, epoch: int, extract: Callable[..., Tensor]) -> dict[str, float]:
        """Begin an epoch: labels are predicted batch by batch.

        Args:
            epoch: Epochs completed.
            extract: Not called.

        Returns:
            Facts for the log.
        """
        self.predicts = epoch >= self.settings.single_label
        self.momentum = self.settings.momentum * epoch / self.epochs
        return {"memory_momentum": self.momentum}

    def batches(self, epoch: int) -> Iterator[Tensor]:
        """The epoch's batches of image rows, (B,) int64, or (2B,) with a source: a function of the seed and the epoch."""
        batches = self._sampler.batches(self.seed, epoch)
        if self.source is None:
            return batches
        sampler = PassSampler(len(self.source), self._size, self.iterations)
        return both_batches(batches, sampler.batches(source_seed(self.seed), epoch), self.n)

    def loss(self, embeddings: Tensor, rows: Tensor) -> Tensor:
        """The loss of a batch: that of the target's images and, with a source, the weighted sum of both.

        On several ranks each gives a part of the batch, the parts as long as each other and one behind the other, with a source
        its part of the target's images and behind them its part of the source's. The mean of the ranks' losses is the batch's.

        Args:
            embeddings: (B, D) with gradient, of the images at `rows`, of any length and floating dtype; (2B, D) with a source.
            rows: (B,) int64, or (2B,).

        Raises:
            TrainingError: The features, or the memory, are not finite, on any rank. On a GPU the loss is then NaN instead.
        """
        if self.source is None:
            return self.target_loss(embeddings, rows)
        (target, source), (target_rows, source_rows) = embeddings.chunk(2), rows.chunk(2)
        loss: Tensor = self.source(
            source, source_rows - self.n, self.target_loss(target, target_rows)
        )
        return loss

    def target_loss(self, embeddings: Tensor, rows: Tensor) -> Tensor:
        """Eq. 2 for images of the target, mean over them: L = L_C + lambda^n L_N.

        Args:
            embeddings: (B, D) with gradient, of the images at `rows`, of any length; this rank's part.
            rows: (B,) int64.

        Raises:
            TrainingError: The features, or the memory, are not finite. On a GPU the loss is then NaN instead.
        """
        features = _unit(embeddings)
        self._make_memories(features)
        try:
            if self.world.size > 1:
                return self._shared_loss(features, embeddings.detach(), rows)
            if not self.predicts:
                return self._mmcl(features, _own_labels(rows))
            labels = self.predict(rows)
            self.label_memory.update(rows, *labels)
            loss = self._mmcl(features, labels)
            for neighbour in self.neighbours(features.detach(), rows).unbind(1):
                loss = loss + self.settings.lambda_n * self._mmcl(
                    features, self.label_memory.lookup_bits(neighbour)
                )
            return loss
        except NotFiniteError as error:
            raise TrainingError(
                f"the training diverged ({error}); lower --optimizer.lr and resume from the last checkpoint"
            ) from None

    def _shared_loss(self, features: Tensor, embeddings: Tensor, rows: Tensor) -> Tensor:
        """`target_loss` of this rank's part of the batch. Every rank computes for all of it, with its part of the memory."""
        world, s = self.world, self.settings
        first = world.rank * len(rows)
        batch, rows = _unit(world.all_gather(embeddings)), world.all_gather(rows)
        labels: list[Tensor | tuple[Tensor, Tensor]]
        if self.predicts:
            predicted = self.predict(rows)
            self.label_memory.update(rows, *predicted)
            near = self.neighbours(batch, rows).T
            labels = [predicted]
            if len(near):
                labels += self.label_memory.lookup_bits(near.flatten()).split(len(rows))
        else:
            labels = [_own_labels(rows)]
        weights = [1.0] + [s.lambda_n] * (len(labels) - 1)
        losses, gradient = sharded_multilabel_bank_loss(
            batch, self.bank, labels, weights, self.n, world, delta=s.delta, hard_ratio=s.hard_ratio
        )
        own = slice(first, first + len(features))
        return with_gradient(features, losses[own], gradient[own]).mean()

    def predict(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """MPLP: the multi-class labels of images (B,), the same on all ranks, as CSR lists, from the memory alone."""
        s = self.settings
        if self.world.size > 1:
            return sharded_label_prediction(
                self.bank, rows, self.n, self.world, threshold=s.threshold, at_least=s.at_least
            )
        return label_prediction(self.bank, rows, threshold=s.threshold, at_least=s.at_least)

    def neighbours(self, features: Tensor, rows: Tensor) -> Tensor:
        """NNR: the k images (B, k) most similar to features (B, D) in the memory, each image itself left out.

        On several ranks the batch is the same on all.
        """
        k = self.neighbours_k
        if k == 0:
            return rows.new_zeros(len(rows), 0)
        if self.world.size > 1:
            return sharded_similarity_topk(
                features, self.bank, k, self.n, self.world, normalize=False, exclude=rows
            )[1]
        # Without a proof of candidates the host does not wait, and a batch is too small for the proof to pay.
        return similarity_topk(
            features, self.bank, k, normalize=False, exclude=rows, precision="ieee"
        )[1]

    def _mmcl(self, features: Tensor, labels: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        """Eq. 3 and 6 in MMCL's form: the similarities s of Eq. 1 against one set of labels each."""
        s = self.settings
        return multilabel_bank_loss(
            features, self.bank, labels, delta=s.delta, hard_ratio=s.hard_ratio
        )

    def update(self, embeddings: Tensor, rows: Tensor) -> None:
        """Move the memory towards the batch's features, after the step; on several ranks each gives its part, as for `loss`."""
        if self.source is not None:
            embeddings, rows = embeddings.chunk(2)[0], rows.chunk(2)[0]
        world = self.world
        batch, rows = _unit(world.all_gather(embeddings.detach())), world.all_gather(rows)
        if world.size == 1:
            update_bank_(self.bank, batch, rows, self.momentum)
        else:
            sharded_update_bank_(self.bank, batch, rows, self.momentum, self.n, world)

    def label_lists(self) -> tuple[Tensor, Tensor]:
        """The latest labels of this rank's images as CSR lists, ascending, on the CPU: 8 bytes a label."""
        memory = self.label_memory
        images = torch.arange(self.n, device=memory.device)[self.world.local_slice(self.n)]
        lists = (
            memory.local.lookup(images)
            if isinstance(memory, ShardedLabelMemory)
            else memory.lookup(images)
        )
        return lists[0].cpu(), lists[1].cpu()

    def label_metrics(self, identities: Tensor | None) -> dict[str, float]:
        """What the log says of the labels.

        Labels of an image, itself left aside; those that short lists had no room for, in the run so far; precision and recall
        of the labels, where the identities are known. The same on all ranks.
        """
        indptr, indices = self.label_lists()
        metrics: dict[str, float] = {
            "labels_per_image": sum(self.world.all_gather_counts(len(indices))) / self.n - 1
        }
        if self.label_memory.layout == "sparse":
            metrics["labels_dropped"] = self.label_memory.dropped
        if identities is not None:
            scores = list_scores(indptr, indices, identities, self.world)
            metrics |= {f"label_{k}": v for k, v in scores._asdict().items()}
        return metrics

    def _make_memories(self, features: Tensor) -> None:
        """The width and the place of the memories are those of the first features."""
        if self.bank.shape[1] == 0:
            own = self.world.local_slice(self.n)
            self.bank = features.new_zeros(own.stop - own.start, features.shape[1])
            self.label_memory.to(features.device)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on. Collective: each rank has its rows of the memories."""
        return {
            "bank": self.bank if self.bank.shape[1] == 0 else self.world.shard(self.bank, self.n),
            "label_memory": self.label_memory.state_dict(),
            "predicts": self.predicts,
            "momentum": self.momentum,
            "layers": self.layers().state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave, on any number of ranks; tensors of n rows are whole, or this rank's rows.

        Raises:
            ValueError: It is that of other images, or of another layout of the PLMB; on any rank.
        """
        bank = state["bank"]
        count = bank.n if isinstance(bank, Sharded) else len(bank)
        if count not in (0, self.n):
            raise ValueError(f"the feature memory is of {count:,} images, the set has {self.n:,}")
        bank = self.world.local_rows(bank)
        self.label_memory.to(bank.device)
        self.world.raise_together(lambda: self.label_memory.load_state_dict(state["label_memory"]))
        self.bank, self.predicts, self.momentum = bank, state["predicts"], state["momentum"]
        self.layers().load_state_dict(state.get("layers", {}))


def _unit(embeddings: Tensor) -> Tensor:
    """Unit-norm rows; half floats become float32."""
    return F.normalize(embeddings if embeddings.dtype == torch.float64 else embeddings.float())


def _own_labels(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Each image is its own only label."""
    return torch.arange(len(rows) + 1, device=rows.device), rows
