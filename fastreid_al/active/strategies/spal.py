"""The `spal` strategy: the least similar pair inside and the most similar pair across clusters."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...answers.asker import Asker
from ...answers.question import Question
from ...config import QuestionConfig
from ..snps import by_score

#: Elements of the block of similarities that exists at a time: 64 MiB of float32.
_BLOCK = 2**24


def ask_farthest_and_nearest(
    features: Tensor, labels: Tensor, asker: Asker, config: QuestionConfig
) -> None:
    """Ask about the farthest image inside and the nearest image outside each image's cluster.

    Args:
        features: (n, D) unit-norm.
        labels: (n,) int64, -1 for an image outside every cluster.
        asker: Asks the annotator and records the answers.
        config: Not used; this strategy has no constants.
    """
    for question in farthest_and_nearest_pairs(features, labels):
        asker.offer(question)


def farthest_and_nearest_pairs(features: Tensor, labels: Tensor) -> list[Question]:
    """Return at most 2 n questions about single images, best first.

    For each image there is one question about the farthest image of its cluster, with the score 1 -
    s, and one about the nearest image outside, with the score s, where s is the similarity of the
    two images.

    Args:
        features: (n, D) unit-norm.
        labels: (n,) int64, -1 for an image outside every cluster.

    Returns:
        The questions, each pair once. A question takes about 1,700 bytes: 113 MB at n = 32,621, 3.4
        GB at 1e6. Similarities are computed in blocks of at most 64 MiB.
    """
    n = len(features)
    labels = labels.to(features.device)
    questions: dict[tuple[int, int], Question] = {}
    for rows in torch.arange(n, device=features.device).split(max(1, _BLOCK // max(n, 1))):
        similarity = features[rows] @ features.T  # (b, n)
        inside = (labels[rows][:, None] == labels) & (labels[rows][:, None] >= 0)  # (b, n)
        outside = ~inside
        itself = torch.arange(len(rows)), rows
        inside[itself] = False
        outside[itself] = False
        farthest = similarity.masked_fill(~inside, torch.inf).min(1)
        nearest = similarity.masked_fill(~outside, -torch.inf).max(1)
        for reason, (values, others) in (("split", farthest), ("merge", nearest)):
            for row, s, other in zip(rows.tolist(), values.tolist(), others.tolist(), strict=True):
                # Infinite where the cluster has no other image, or no image is outside.
                if math.isfinite(s):
                    score = 1 - s if reason == "split" else s
                    question = Question.about_images(row, other, reason, s, score)
                    questions.setdefault(question.images, question)
    return sorted(questions.values(), key=by_score)
