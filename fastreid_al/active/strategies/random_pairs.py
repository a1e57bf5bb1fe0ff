"""The `random` strategy: pairs of images drawn uniformly, the baseline of every comparison."""

from __future__ import annotations

import torch
from torch import Tensor

from ...answers.asker import Asker
from ...config import QuestionConfig

#: Pairs that a round draws when no budget limits it.
_UNLIMITED = 1000


def ask_random_pairs(
    features: Tensor, labels: Tensor, asker: Asker, config: QuestionConfig
) -> None:
    """Ask about as many random pairs of images as the round may ask questions, or 1,000 without a
    limit.

    Args:
        features: (n, D) unit-norm.
        labels: (n,) int64, -1 for an image outside every cluster.
        asker: Asks the annotator and records the answers; its seed and epoch seed the draw.
        config: Not used; this strategy has no constants.
    """
    allowed = asker.questions_allowed()
    count = _UNLIMITED if allowed is None else allowed
    for i, j in random_pairs(len(features), count, 1_000_003 * asker.seed + asker.epoch):
        asker.offer_pair(i, j)


def random_pairs(n: int, count: int, seed: int) -> list[tuple[int, int]]:
    """Draw pairs of different images uniformly.

    Args:
        n: Number of images.
        count: Number of pairs that are drawn; a pair that is drawn twice is returned once.
        seed: Seed of the draw.

    Returns:
        Pairs (i, j) with i < j, in the order in which they were drawn.
    """
    if n < 2:
        return []
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(n, (count,), generator=generator)  # (count,)
    # An offset of 1 to n - 1, so that no image is paired with itself.
    second = (first + torch.randint(1, n, (count,), generator=generator)) % n  # (count,)
    low = torch.minimum(first, second).tolist()
    high = torch.maximum(first, second).tolist()
    return list(dict.fromkeys(zip(low, high, strict=True)))
