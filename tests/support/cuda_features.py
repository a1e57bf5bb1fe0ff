"""Features on which a GPU and a CPU can be compared."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from tests.support.features import clustered_features


def on_grid(n: int, clusters: int, dim: int = 64, seed: int = 0) -> Tensor:
    """Unit-norm float32 rows of +-1 / 8, many of them equal.

    Their dot products are exact in any order of summing, on any device.
    """
    random = np.random.default_rng(seed)
    rows = random.choice([-1.0, 1.0], (clusters, dim))[random.integers(clusters, size=n)]
    rows[random.random((n, dim)) < 0.08] *= -1
    return torch.from_numpy(rows / math.sqrt(dim)).float()


def double(n: int, clusters: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(clustered_features(n, clusters, seed=seed, spread=0.6))
