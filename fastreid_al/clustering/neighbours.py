"""Exact nearest neighbours among unit vectors."""

from __future__ import annotations

import torch
from reid_kernels import similarity_topk
from torch import Tensor


def nearest_neighbours(features: Tensor, k: int) -> Tensor:
    """The k nearest rows of every row by dot product, itself at place 0.

    The others follow by descending similarity, ties to the lowest index.

    Args:
        features: (n, D) float32 or float64, unit rows, on any device.
        k: Neighbours wanted, itself counted, 1,025 at most; n when there are fewer rows.

    Returns:
        (n, min(k, n)) int64, on the device of the features. 7.8 MB at n = 32,621 and 240 MB at 1e6 for k = 30; while it runs as
        much again, and what `reid_kernels.similarity_topk` takes.

    Raises:
        ValueError: k above 1,025, or, on a CPU, features that are not finite.
    """
    own = torch.arange(len(features), device=features.device)
    k = min(k, len(features))
    if k <= 1:
        return own[:, None][:, :k]
    others = similarity_topk(features, features, k - 1, normalize=False, exclude=own)[1]
    return torch.cat([own[:, None], others], dim=1)
