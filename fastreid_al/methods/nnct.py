"""NNCT, nearest-neighbour collaborative training (Tang and Jo, ICIP 2021), to be read beside the paper.

Each image is a class of its own. Sec. 2.1, the current image flow, is MMCL (Wang and Zhang, CVPR 2020): predict which other
images show the same person from a memory of all features, and regress the similarities to these labels. Sec. 2.2, the neighbour
flow, regresses them to the labels of the nearest images as well, which the pseudo-label memory bank (PLMB) keeps up to date.

The paper is silent about the neighbour flow in the epochs of single labels. Its premise, that an image and its neighbour are
likely of one identity, does not hold there, so it begins with the predicted labels.

The paper removes what stands above the last pooling of ResNet-50 and OSNet and adds a BatchNorm: the recipe has
`--network.osnet-fc false`.

With a labelled source (Sec. 3.3's domain adaptation, as ECN trains it) a classifier of its identities is trained beside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from reid_kernels import NotFiniteError, label_prediction, multilabel_bank_loss, similarity_topk, update_bank_
from torch import Tensor, nn

from ..config import BatchConfig, NNCTConfig
from ..data.samplers import PassSampler, iterations_of
from ..errors import TrainingError
from ..memory import PseudoLabelMemoryBank
from ..metrics import list_scores
from .adaptation import SourceClassifier, both_batches, source_seed


class NNCT:
    """The paper's method; without neighbours its "w/o NNCT", which is MPLP and MMCL.

    Memory: the features n x D float32, 267 MB at n = 32,621 and 8.2 GB at 1e6 for D = 2,048, and the PLMB, 133 MB and (sparse)
    260 MB.

    Args:
        n: Number of training images.
        neighbours_k: k, the nearest images whose labels an image is trained with.
        settings: Thresholds, weights and the layout of the PLMB.
        batch: Batches.
        epochs: Epochs of the run, over which the momentum of the memory grows.
        seed: Seed of the batches.
        source: The labelled source to train with as well.

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
            raise ValueError(f"--neighbours-k {neighbours_k} is out of range; {n} images have 0 to {n - 1} neighbours")
        self.n, self.neighbours_k, self.settings, self.epochs, self.seed = n, neighbours_k, settings, epochs, seed
        self._size = batch.size
        self.iterations = iterations_of(batch.iterations, n, batch.size)
        self._sampler = PassSampler(n, batch.size, self.iterations)
        self.source = source
        #: M: (n, D), zero until an image is first seen; made with the first batch.
        self.bank = torch.zeros(0, 0)
        #: B of Eq. 4 and 5.
        self.label_memory = PseudoLabelMemoryBank(n, settings.layout, settings.capacity)
        #: No clusters are refined.
        self.drafted: None = None
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

        Args:
            embeddings: (B, D) with gradient, of the images at `rows`, of any length; (2B, D) with a source.
            rows: (B,) int64, or (2B,).

        Raises:
            TrainingError: The features, or the memory, are not finite. On a GPU the loss is then NaN instead.
        """
        if self.source is None:
            return self.target_loss(embeddings, rows)
        (target, source), (target_rows, source_rows) = embeddings.chunk(2), rows.chunk(2)
        loss: Tensor = self.source(source, source_rows - self.n, self.target_loss(target, target_rows))
        return loss

    def target_loss(self, embeddings: Tensor, rows: Tensor) -> Tensor:
        """Eq. 2 for images of the target, mean over them: L = L_C + lambda^n L_N.

        Args:
            embeddings: (B, D) with gradient, of the images at `rows`, of any length.
            rows: (B,) int64.

        Raises:
            TrainingError: The features, or the memory, are not finite. On a GPU the loss is then NaN instead.
        """
        features = F.normalize(embeddings)
        self._make_memories(features)
        try:
            if not self.predicts:
                return self._mmcl(features, _own_labels(rows))
            labels = self.predict(rows)
            self.label_memory.update(rows, *labels)
            loss = self._mmcl(features, labels)
            for neighbour in self.neighbours(features.detach(), rows).unbind(1):
                loss = loss + self.settings.lambda_n * self._mmcl(features, self.label_memory.lookup_bits(neighbour))
            return loss
        except NotFiniteError as error:
            raise TrainingError(
                f"the training diverged ({error}); lower --optimizer.lr and resume from the last checkpoint"
            ) from None

    def predict(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """MPLP: the multi-class labels of images (B,) as CSR lists, from the memory alone."""
        return label_prediction(self.bank, rows, threshold=self.settings.threshold, at_least=self.settings.at_least)

    def neighbours(self, features: Tensor, rows: Tensor) -> Tensor:
        """NNR: the k images (B, k) most similar to features (B, D) in the memory, each image itself left out."""
        if self.neighbours_k == 0:
            return rows.new_zeros(len(rows), 0)
        # Without a proof of candidates the host does not wait, and a batch is too small for the proof to pay.
        return similarity_topk(features, self.bank, self.neighbours_k, normalize=False, exclude=rows, precision="ieee")[
            1
        ]

    def _mmcl(self, features: Tensor, labels: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        """Eq. 3 and 6 in MMCL's form: the similarities s of Eq. 1 against one set of labels each."""
        s = self.settings
        return multilabel_bank_loss(features, self.bank, labels, delta=s.delta, hard_ratio=s.hard_ratio)

    def update(self, embeddings: Tensor, rows: Tensor) -> None:
        """Move the memory towards the batch's features, after the step."""
        if self.source is not None:
            embeddings, rows = embeddings.chunk(2)[0], rows.chunk(2)[0]
        update_bank_(self.bank, F.normalize(embeddings), rows, self.momentum)

    def label_lists(self) -> tuple[Tensor, Tensor]:
        """The latest labels of all images as CSR lists, ascending, on the CPU: 8 bytes a label."""
        indptr, indices = self.label_memory.lookup(torch.arange(self.n, device=self.label_memory.device))
        return indptr.cpu(), indices.cpu()

    def review(self, identities: Tensor | None) -> dict[str, float]:
        """What the log says of the labels.

        Labels of an image, itself left aside; those that short lists had no room for, in the run so far; precision and recall
        of the labels, where the identities are known.
        """
        indptr, indices = self.label_lists()
        facts: dict[str, float] = {"labels_per_image": len(indices) / self.n - 1}
        if self.label_memory.layout == "sparse":
            facts["labels_dropped"] = self.label_memory.dropped
        if identities is not None:
            facts |= {f"label_{k}": v for k, v in list_scores(indptr, indices, identities)._asdict().items()}
        return facts

    def _make_memories(self, features: Tensor) -> None:
        """The width and the place of the memories are those of the first features."""
        if self.bank.shape[1] == 0:
            self.bank = features.new_zeros(self.n, features.shape[1])
            self.label_memory.to(features.device)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on."""
        return {
            "bank": self.bank,
            "label_memory": self.label_memory.state_dict(),
            "predicts": self.predicts,
            "momentum": self.momentum,
            "layers": self.layers().state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            ValueError: It is that of other images, or of another layout of the PLMB.
        """
        bank = state["bank"]
        if len(bank) not in (0, self.n):
            raise ValueError(f"the feature memory is of {len(bank):,} images, the set has {self.n:,}")
        self.label_memory.to(bank.device).load_state_dict(state["label_memory"])
        self.bank, self.predicts, self.momentum = bank, state["predicts"], state["momentum"]
        self.layers().load_state_dict(state.get("layers", {}))


def _own_labels(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Each image is its own only label."""
    return torch.arange(len(rows) + 1, device=rows.device), rows
