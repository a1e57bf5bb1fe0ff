"""UCAL, unsupervised clustering active learning (Gao and Li, BMVC 2021).

This file follows the paper's sections and is meant to be read next to it.

| paper | here |
|---|---|
| base clustering (Sec. 3.1): DBSCAN and self-paced selection | `cluster_images` |
| loss over cluster centroids c_k (Sec. 3.1, Eq. 1), tau | `loss`, `memory.temperature` |
| refinement by questions from epoch 15 on (Sec. 3.2, 3.3) | `UCAL.refine`, `questions.start` |
| hard negative pairs, split: SNPS (Sec. 3.2.1, Eq. 2 to 4) | `ask_snps_then_mpps`, `active.snps` |
| hard positive pairs, merge: MPPS (Sec. 3.2.2, Eq. 5, 6) | `ask_snps_then_mpps`, `active.mpps` |
| label memory (Sec. 3.3) | `answers.ledger` and `answers.closure` |
| supervised bound (Table 1) | `methods.supervised` |
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..active.mpps import propose_merges
from ..active.partition import Partition, Split
from ..active.snps import propose_splits
from ..answers.asker import Asker
from ..answers.question import Question, Verdict
from ..arguments import as_ids, as_instance
from ..clustering import check_backend
from ..config import BatchConfig, ClusterConfig, MemoryConfig, QuestionConfig
from ..distributed.world import SINGLE_PROCESS, World
from ..errors import SettingError, TrainingError
from .adaptation import Source
from .cluster_images import Clustered, cluster_images
from .collective_questions import CollectiveQuestions
from .contrastive import ContrastiveMethod, Extract


class UCAL(ContrastiveMethod):
    """The paper's method; without `questions` its unsupervised base, the "Baseline" of its Table 1.

    Args:
        cameras: (n,) int64 camera of each training image, -1 where unknown.
        cluster: Clustering.
        batch: Size and number of the batches.
        memory: Feature memory and temperature.
        seed: Seed of the batches.
        questions: Splits and merges clusters with the answers of an annotator (Sec. 3.2), from its
            first epoch on.
        source: The labelled source to train with in addition; only the target is clustered.
        world: The processes that train together.
        tracks: (n,) int64: training images of one number are the same, -1 for an image without
            track; None where there are no tracks. The asker of the questions has the same.

    Raises:
        SettingError: The clustering reads the memory, but a cluster memory holds no vector per
            image.
        ValueError: The library that runs DBSCAN is not installed, or cannot take so many images.
    """

    def __init__(
        self,
        cameras: Tensor,
        cluster: ClusterConfig,
        batch: BatchConfig,
        memory: MemoryConfig,
        seed: int,
        questions: CollectiveQuestions | None = None,
        source: Source | None = None,
        world: World = SINGLE_PROCESS,
        tracks: Tensor | None = None,
    ) -> None:
        super().__init__(cameras, batch, memory, seed, source, world)
        as_instance("cluster", cluster, ClusterConfig)
        if questions is not None:
            as_instance("questions", questions, CollectiveQuestions)
        if cluster.source == "memory" and memory.kind == "cluster":
            raise SettingError(
                "cluster.source",
                cluster.source,
                "extract",
                "a cluster memory has no vector per image to cluster",
            )
        check_backend(cluster.dbscan, len(self.cameras), "`cluster.dbscan`")
        self.tracks = None
        if tracks is not None:
            self.tracks = as_ids("tracks", tracks, len(self.cameras), low=-1, per="image").cpu()
        self.cluster = cluster
        self.questions = questions or CollectiveQuestions(None)
        #: Threshold of the self-paced selection, fixed at the first clustering.
        self.threshold: float | None = None

    def features(self, epoch: int, extract: Extract) -> Tensor:
        """The features to cluster: of the memory (SpCL), or of a new pass (Cluster Contrast)."""
        if self.cluster.source == "extract" and epoch > 0:
            return extract()
        return super().features(epoch, extract)

    def assign(self, epoch: int, features: Tensor) -> tuple[Tensor, Tensor]:
        """Cluster the images (Sec. 3.1), then refine the clusters with answers (Sec. 3.2)."""
        clustered = self.cluster_features(epoch, features)
        labels = self.refine(epoch, clustered.features, clustered.labels)
        return labels, singleton_classes(labels) if self.cluster.noise == "singleton" else labels

    def cluster_features(self, epoch: int, features: Tensor) -> Clustered:
        """Cluster the images (Sec. 3.1), see `cluster_images`.

        Args:
            epoch: Number of completed epochs.
            features: This process's rows of (n, D), unit-norm.

        Returns:
            The cluster of each image, -1 outside every cluster, and the features that were
            clustered.

        Raises:
            TrainingError: An approximate search of neighbours cannot work on these features.
        """
        # Known differences are cuts in the clustering itself: a cluster that is split afterwards
        # keeps what only the wrong images had brought into it.
        cannot_links = None
        if self.cluster.algorithm == "linkage":
            cannot_links = self.questions.cannot_links(epoch, features)
        must_links = self.questions.must_links(epoch, features, self.tracks)
        try:
            clustered = cluster_images(
                features,
                self.cameras,
                self.cluster,
                self.threshold,
                cannot_links,
                self.world,
                must_links,
            )
        except ValueError as error:
            if self.cluster.neighbours == "exact":
                raise
            raise TrainingError(f"epoch {epoch + 1}: {error}") from error
        self.threshold = clustered.threshold
        recall = clustered.recall
        self.metrics = {} if recall is None else {"neighbours_recall": recall}
        return clustered

    def refine(self, epoch: int, features: Tensor, labels: Tensor) -> Tensor:
        """Split and merge clusters by the answers to this and all earlier epochs (Sec. 3.2).

        Args:
            epoch: Number of completed epochs.
            features: This process's rows of (n, D), unit-norm.
            labels: (n,) int64 cluster of each image, -1 outside every cluster.

        Returns:
            The refined labels, (n,) int64; the same labels in an epoch without questions.
        """
        self.labels_before_questions = None
        if not self.questions.asks_in(epoch):
            return labels
        refined, metrics = self.questions.refine(epoch, features, labels)
        self.labels_before_questions = labels
        self.metrics |= metrics
        return refined

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on."""
        questions = self.questions.state_dict()
        return {**super().state_dict(), "threshold": self.threshold, "questions": questions}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state)
        threshold = state["threshold"]
        if threshold is not None and not isinstance(threshold, int | float):
            raise ValueError(f"threshold: got {threshold!r}, expected a number")
        self.threshold = threshold
        self.questions.load_state_dict(state.get("questions"))

    def _too_few_classes(self, epoch: int, count: int) -> str:
        linkage = self.cluster.algorithm == "linkage"
        if count == 0:
            clusters = "no cluster (every image is noise)"
            more = "a larger `cluster.eps` or a smaller `cluster.min_samples` finds more"
            if linkage:
                more = "a smaller `cluster.join` finds more"
            advice = f"{more}, and `cluster.noise` singleton trains on noise"
        else:
            clusters = "one single cluster"
            setting = "a larger `cluster.join`" if linkage else "a smaller `cluster.eps`"
            advice = f"{setting} or a smaller `cluster.k1` splits it"
        return (
            f"epoch {epoch + 1}: {clusters} among {len(self.labels)} images, nothing to contrast; "
            f"{advice}"
        )


def ask_snps_then_mpps(
    features: Tensor, labels: Tensor, asker: Asker, config: QuestionConfig
) -> None:
    """Ask the questions of Sec. 3.2: split clusters with SNPS, then merge clusters with MPPS.

    SNPS (Sec. 3.2.1, `propose_splits`): k-medoids groups the members of each cluster. The k whose
    groups have the greatest sum of compactness (Eq. 2) times independence (Eq. 3) is taken (Eq. 4),
    and there is one question for every two groups: are their medoids the same identity? Groups
    whose answer is "different" are separated.

    MPPS (Sec. 3.2.2, `propose_merges`): on the clusters that SNPS leaves, each centroid is compared
    with its most similar centroids. The gaps of the sorted similarities (Eq. 5), min-max normalised
    (Eq. 6), say how many of them are asked about. Clusters whose answer is "same" are merged, at
    most `config.merge_share` of all clusters and at least one.

    Both ask in the order of descending score.

    Args:
        features: (n, D) unit-norm.
        labels: (n,) int64 cluster of each image, -1 outside every cluster.
        asker: Asks the annotator and records the answers.
        config: k_max_rule of SNPS; l_max, delta and merge_share of MPPS.

    Raises:
        OutOfQuestions: The budget is spent.
    """
    partition = Partition(labels)
    asker.current_labels = partition.labels

    # SNPS
    split_questions = propose_splits(features, labels, config.k_max_rule)
    splits = Split.of_clusters(split_questions)
    for question in split_questions:
        split = splits[question.cluster]
        asker.offer(question, partial(split.answer, question, partition=partition))
    asker.settle()

    # MPPS
    clusters = partition.current()
    merges_left = _most_merges(clusters, config.merge_share)

    def merge(question: Question, verdict: Verdict) -> None:
        nonlocal merges_left
        first, second = (partition.label_of(image) for image in question.images)
        if verdict is Verdict.SAME and first != second and merges_left > 0:
            partition.merge(first, second)
            merges_left -= 1

    for question in propose_merges(features, clusters, config.l_max, config.delta):
        asker.make_room()
        if merges_left == 0:
            break
        asker.offer(question, partial(merge, question))
    asker.settle()


def _most_merges(clusters: Tensor, share: float) -> int:
    """Return how many clusters may be merged.

    A share of them, at least one unless the share is 0.
    """
    if share == 0:
        return 0
    count = len(clusters[clusters >= 0].unique())
    return max(1, math.floor(share * count))


def singleton_classes(labels: Tensor) -> Tensor:
    """Give each image outside every cluster a class of its own, numbered after the clusters.

    Labels are (n,) int64.
    """
    classes = labels.clone()
    unclustered = labels < 0
    classes[unclustered] = int(labels.max()) + 1 + torch.arange(int(unclustered.sum()))
    return classes
