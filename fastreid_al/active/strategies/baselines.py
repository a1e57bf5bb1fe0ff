"""The strategies that `gain` is measured against: UCAL's two rules, farthest-inside / nearest-outside pairs, random pairs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...answers.asker import Asker
from ...answers.question import Question, Verdict
from ...config import QuestionConfig
from ..mpps import propose_merges
from ..partition import Partition, Split, apply_memory
from ..snps import by_score, propose_splits

#: Similarities that exist at a time, in elements: 64 MiB of float32.
_BLOCK = 2**24


def ask_ucal(features: Tensor, labels: Tensor, asker: Asker, config: QuestionConfig) -> None:
    """UCAL's Sec. 3.2: SNPS, then MPPS on the clusters that it leaves.

    Each rule's questions are asked by descending score. Merging stops at `config.merge_share` of the clusters, one at least.

    Raises:
        OutOfQuestions: The budget is spent.
    """
    partition = Partition(labels)
    asker.current = partition.labels
    questions = propose_splits(features, labels, config.k_max_rule)
    splits = Split.of_clusters(questions)
    for question in questions:
        splits[question.cluster].answer(question, asker.ask(question), partition)
    left = _merge_cap(partition.current(), config.merge_share)
    for question in propose_merges(features, partition.current(), config.l_max, config.delta):
        if left == 0:
            return
        if asker.ask(question) is Verdict.SAME:
            a, b = (partition.label_of(image) for image in question.images)
            left -= a != b
            partition.merge(a, b)


def _merge_cap(labels: Tensor, share: float) -> int:
    clusters = len(labels[labels >= 0].unique())
    return max(1, math.floor(share * clusters)) if share > 0 else 0


def ask_pairs(features: Tensor, labels: Tensor, asker: Asker, questions: list[Question]) -> None:
    """Ask about single images, and let the label memory alone change the labels.

    Raises:
        OutOfQuestions: The budget is spent.
    """
    asker.current = lambda: apply_memory(features, labels, asker.constraints())
    for question in questions:
        asker.ask(question)


def spal_pairs(features: Tensor, labels: Tensor) -> list[Question]:
    """For each image the farthest of its cluster and the nearest outside: 2 n questions.

    A question about the farthest scores 1 - s, one about the nearest s, with s their similarity; the best are asked first.

    Args:
        features: (n, D) unit rows.
        labels: (n,) int64, -1 for an image outside every cluster.

    Returns:
        The questions, each pair once; some 1,700 bytes a question: 113 MB at n = 32,621, 3.4 GB at 1e6. A block of at most
        64 MiB of similarities while it runs.
    """
    n = len(features)
    labels = labels.to(features.device)
    found: dict[tuple[int, int], Question] = {}
    for rows in torch.arange(n, device=features.device).split(max(1, _BLOCK // max(n, 1))):
        similarity = features[rows] @ features.T
        inside = (labels[rows][:, None] == labels) & (labels[rows][:, None] >= 0)
        inside[torch.arange(len(rows)), rows] = False
        farthest = similarity.masked_fill(~inside, torch.inf).min(1)
        outside = ~inside
        outside[torch.arange(len(rows)), rows] = False
        nearest = similarity.masked_fill(~outside, -torch.inf).max(1)
        for reason, (values, others) in (("split", farthest), ("merge", nearest)):
            for row, s, other in zip(rows.tolist(), values.tolist(), others.tolist(), strict=True):
                if math.isfinite(s):
                    pair = (min(row, other), max(row, other))
                    found.setdefault(
                        pair, _single(pair, reason, s, 1 - s if reason == "split" else s)
                    )
    return sorted(found.values(), key=by_score)


def random_pairs(features: Tensor, labels: Tensor, count: int, seed: int) -> list[Question]:
    """Pairs of images drawn uniformly, in the order in which they are asked.

    Args:
        features: (n, D) unit rows.
        labels: (n,) int64, -1 for an image outside every cluster.
        count: Number of pairs.
        seed: Seed of the draw.
    """
    n = len(features)
    if n < 2:
        return []
    draw = torch.Generator().manual_seed(seed)
    first = torch.randint(n, (count,), generator=draw)
    second = (first + torch.randint(1, n, (count,), generator=draw)) % n
    questions = {}
    for a, b in zip(first.tolist(), second.tolist(), strict=True):
        inside = int(labels[a]) >= 0 and int(labels[a]) == int(labels[b])
        pair = (min(a, b), max(a, b))
        questions[pair] = _single(
            pair, "split" if inside else "merge", float(features[a] @ features[b]), 0.0
        )
    return list(questions.values())


def _single(pair: tuple[int, int], reason: str, similarity: float, score: float) -> Question:
    return Question(
        pair, (torch.tensor(pair[:1]), torch.tensor(pair[1:])), reason, similarity, score
    )
