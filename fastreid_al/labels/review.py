"""Which images to review: those whose identity may be wrong."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from ..answers import Answer, Closure, Verdict

#: An image is marked for review below this confidence.
UNSURE = 0.5
#: An image is marked for review where its margin is below this share of the median margin.
CLOSE = 0.3
#: The only answer between two clusters is weak where the features give "same" less than this.
WEAK = 0.25


def close_to_another(margins: Tensor) -> Tensor:
    """Whether the margin of each image is small against those of the others: (n,) bool.

    Args:
        margins: (n,) float64, NaN where undefined.
    """
    median = margins.nanmedian()
    return margins < CLOSE * median.clamp_min(0)


def contradicted_images(closure: Closure, answers: Sequence[Answer], n: int) -> Tensor:
    """Whether each image is in an answer that another contradicts, or that is doubted: (n,) bool.

    Args:
        closure: The believed answers.
        answers: The doubted answers.
        n: Number of images.
    """
    events: set[int] = set()
    for contradiction in closure.contradictions:
        events |= {contradiction.event, *contradiction.against, *contradiction.set_aside}
    contradicting = [answer for answer in closure.answers() if answer.event in events]
    marked = torch.zeros(n, dtype=torch.bool)
    for answer in (*answers, *contradicting):
        marked[[answer.left, answer.right]] = True
    return marked


def weakly_joined(
    clusters: Tensor, closure: Closure, probability_same: dict[tuple[int, int], float]
) -> Tensor:
    """Whether each image is in the only answer that joins two clusters, against the features.

    Args:
        clusters: (n,) int64 clusters before the answers, -1 outside every cluster.
        closure: The believed answers.
        probability_same: What the features say of each pair of images (left, right) of an answer.

    Returns:
        (n,) bool.
    """
    cluster_of = clusters.tolist()
    joins: dict[tuple[int, int], list[Answer]] = defaultdict(list)
    for answer in closure.answers():
        a, b = cluster_of[answer.left], cluster_of[answer.right]
        joined = closure.verdict(answer.left, answer.right) is Verdict.SAME
        if answer.verdict is Verdict.SAME and joined and a != b and min(a, b) >= 0:
            joins[min(a, b), max(a, b)].append(answer)
    marked = torch.zeros(len(clusters), dtype=torch.bool)
    for answers in joins.values():
        pair = answers[0].left, answers[0].right
        if len(answers) == 1 and probability_same.get(pair, 1.0) < WEAK:
            marked[list(pair)] = True
    return marked
