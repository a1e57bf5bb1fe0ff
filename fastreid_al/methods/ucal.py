"""UCAL, unsupervised clustering active learning (Gao and Li, BMVC 2021), to be read beside the paper.

Sec. 3.1, the base, is here: at each epoch cluster the features with DBSCAN on the k-reciprocal Jaccard distance, keep the
reliable part of each cluster (self-paced selection), and train against the cluster centroids with Eq. 1.

Sec. 3.2, the questions, is `ask_snps_then_mpps`: between clustering and training, clusters are split (SNPS) and merged (MPPS)
according to the answers of a person.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from ..active import Questions
from ..active.mpps import propose_merges
from ..active.partition import Partition, Split
from ..active.snps import propose_splits
from ..answers.asker import Asker
from ..answers.question import Verdict
from ..clustering import check_backend, ivf_neighbours, jaccard_graph, self_paced_labels
from ..config import BatchConfig, ClusterConfig, MemoryConfig, QuestionConfig
from ..distributed.world import SINGLE_PROCESS, World
from ..errors import TrainingError
from .adaptation import Source
from .contrastive import ContrastiveMethod, Extract


class UCAL(ContrastiveMethod):
    """The paper's method; without `questions` its unsupervised base, the "Baseline" of its Table 1.

    Args:
        cameras: (n,) int64 camera of each training image, -1 where unknown.
        cluster: Clustering.
        batch: Batches.
        memory: Feature memory and temperature.
        seed: Seed of the batches.
        questions: Splits and merges clusters with the answers of an annotator (Sec. 3.2), from its first epoch on. Of several
            ranks the first asks, and the others need have none.
        source: The labelled source to train with as well; only the target is clustered.
        world: The ranks that train together.
        watch: Called once a second on the ranks that wait while the first asks; what it raises ends the waiting.

    Raises:
        ValueError: A cluster memory is asked to be clustered: it holds no vector per image. Or what shall run DBSCAN is not
            installed, or cannot take so many images.
    """

    def __init__(
        self,
        cameras: Tensor,
        cluster: ClusterConfig,
        batch: BatchConfig,
        memory: MemoryConfig,
        seed: int,
        questions: Questions | None = None,
        source: Source | None = None,
        world: World = SINGLE_PROCESS,
        watch: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(cameras, batch, memory, seed, source, world)
        if cluster.source == "memory" and memory.kind == "cluster":
            raise ValueError(
                "a cluster memory has no vector per image to cluster: use --cluster.source extract with it"
            )
        check_backend(cluster.dbscan, len(cameras), "--cluster.dbscan")
        self.cluster, self.questions, self._watch = cluster, questions, watch
        #: State of the questions, kept for when a run that is resumed without them asks again.
        self._asked: dict[str, Any] | None = None
        #: Threshold of the self-paced selection, fixed at the first clustering.
        self.threshold: float | None = None

    def features(self, epoch: int, extract: Extract) -> Tensor:
        """The memory (SpCL) or a fresh pass (Cluster Contrast)."""
        if self.cluster.source == "extract" and epoch > 0:
            return extract()
        return super().features(epoch, extract)

    def assign(self, epoch: int, features: Tensor) -> tuple[Tensor, Tensor]:
        """Sec. 3.1 and 3.2: cluster, select, refine."""
        c = self.cluster
        neighbours, self.metrics = self._neighbours(epoch, features)
        far = c.eps + c.eps_gap
        graph = jaccard_graph(
            features, c.k1, c.k2, max_distance=far, neighbours=neighbours, world=self.world
        )
        found, self.threshold = self_paced_labels(
            graph, c.eps, c.eps_gap, c.min_samples, self.threshold, c.dbscan, self.world
        )
        labels = self._refined(epoch, features, found.cpu())
        return labels, singleton_classes(labels) if c.noise == "singleton" else labels

    def _refined(self, epoch: int, features: Tensor, labels: Tensor) -> Tensor:
        """The clusters (n,) after the epoch's questions. They are asked on the first rank, which then has all features."""
        questions = self.questions if self.world.is_first else None
        self.labels_before_questions = None
        if not self.world.any_true(questions is not None and epoch >= questions.config.start):
            return labels
        start = time.perf_counter()
        features = self.world.gather_rows_to_first(features)

        def ask() -> tuple[Tensor, dict[str, float]]:
            assert questions is not None
            return questions.refine(epoch, features, labels)

        refined, asked = self.world.compute_on_first(ask, self._watch)
        self.labels_before_questions = labels
        self.metrics |= asked | {"seconds_questions": time.perf_counter() - start}
        return refined

    def _neighbours(
        self, epoch: int, features: Tensor
    ) -> tuple[Tensor | Literal["exact"], dict[str, float]]:
        """What `jaccard_graph` takes for neighbours, and what the log says of them."""
        if self.cluster.neighbours == "exact":
            return "exact", {}
        try:
            lists, recall = ivf_neighbours(features, self.cluster.k1, world=self.world)
        except ValueError as error:
            raise TrainingError(f"epoch {epoch + 1}: {error}") from error
        return lists, {"neighbours_recall": recall}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on; what was asked, the first rank knows."""
        asked = self._asked if self.questions is None else self.questions.state_dict()
        return {**super().state_dict(), "threshold": self.threshold, "questions": asked}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        super().load_state_dict(state)
        self.threshold = state["threshold"]
        self._asked = state.get("questions")
        if self.questions is not None and self._asked is not None:
            self.questions.load_state_dict(self._asked)

    def _nothing_to_contrast(self, epoch: int, count: int) -> str:
        found = "no cluster (every image is noise)" if count == 0 else "one single cluster"
        advice = (
            "a larger --cluster.eps or a smaller --cluster.min-samples finds more, --cluster.noise singleton trains on noise"
            if count == 0
            else "a smaller --cluster.eps or --cluster.k1 splits it"
        )
        return f"epoch {epoch + 1}: {found} among {len(self.labels)} images, nothing to contrast; {advice}"


def ask_snps_then_mpps(
    features: Tensor, labels: Tensor, asker: Asker, config: QuestionConfig
) -> None:
    """Ask the questions of Sec. 3.2: split clusters with SNPS, then merge clusters with MPPS.

    SNPS (Sec. 3.2.1, `propose_splits`): k-medoids groups the members of each cluster. The k whose groups have the greatest
    sum of compactness (Eq. 2) times independence (Eq. 3) is taken (Eq. 4), and there is one question for every two groups:
    are their medoids the same identity? Groups whose answer is "different" are separated.

    MPPS (Sec. 3.2.2, `propose_merges`): on the clusters that SNPS leaves, each centroid is compared with its most similar
    centroids. The gaps of the sorted similarities (Eq. 5), min-max normalised (Eq. 6), say how many of them are asked about.
    Clusters whose answer is "same" are merged, at most `config.merge_share` of all clusters and at least one.

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
        verdict = asker.ask(question)
        splits[question.cluster].answer(question, verdict, partition)

    # MPPS
    clusters = partition.current()
    merges_left = _most_merges(clusters, config.merge_share)
    for question in propose_merges(features, clusters, config.l_max, config.delta):
        if merges_left == 0:
            return
        if asker.ask(question) is Verdict.SAME:
            first, second = (partition.label_of(image) for image in question.images)
            if first != second:
                partition.merge(first, second)
                merges_left -= 1


def _most_merges(clusters: Tensor, share: float) -> int:
    """Return how many clusters may be merged: a share of them, at least one unless the share is 0."""
    if share == 0:
        return 0
    count = len(clusters[clusters >= 0].unique())
    return max(1, math.floor(share * count))


def singleton_classes(labels: Tensor) -> Tensor:
    """Give each image outside every cluster a class of its own, numbered after the clusters."""
    classes = labels.clone()
    alone = labels < 0
    classes[alone] = int(labels.max()) + 1 + torch.arange(int(alone.sum()))
    return classes
