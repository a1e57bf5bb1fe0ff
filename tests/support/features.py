"""Features for tests."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def unit(features: np.ndarray) -> np.ndarray:
    """Unit-norm rows."""
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def clustered_features(
    n: int, clusters: int, dim: int = 24, spread: float = 0.35, seed: int = 0
) -> np.ndarray:
    """Unit-norm rows around random centres, float64."""
    random = np.random.default_rng(seed)
    centres = unit(random.normal(size=(clusters, dim)))
    return unit(
        centres[random.integers(clusters, size=n)]
        + spread * random.normal(size=(n, dim)) / np.sqrt(dim)
    )


def random_features(n: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    """Unit-norm rows in random directions, float64."""
    return unit(np.random.default_rng(seed).normal(size=(n, dim)))


def tied_features(n: int, seed: int = 0) -> np.ndarray:
    """Unit-norm rows of four entries +-1/2.

    Every similarity is exactly a multiple of 1/4, and many rows are equal.
    """
    random = np.random.default_rng(seed)
    features = np.zeros((n, 6))
    for row in features:
        row[random.choice(6, 4, replace=False)] = random.choice([-0.5, 0.5], 4)
    return features


def clustered_rows(seed: int, n: int, dim: int, spread: float = 0.3, clusters: int = 12) -> Tensor:
    """`clustered_features` as a float32 tensor."""
    features = clustered_features(n, clusters, dim=dim, spread=spread, seed=seed)
    return torch.from_numpy(features).float()


def sign_rows(seed: int, n: int, dim: int) -> Tensor:
    """Rows of equal entries of both signs, float32.

    Similarities are a few multiples of 2 / dim, so that there are many ties.
    """
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.choice([-1.0, 1.0], (n, dim)) / math.sqrt(dim)).float()


#: Sets of different structure for neighbours, graphs and clusters.
FEATURE_SETS = {
    "random": random_features(300),
    "clustered": clustered_features(500, 40),
    "tight": clustered_features(240, 12, spread=0.1, seed=3),
    "tied and duplicate rows": tied_features(200),
    "one point, many times": np.tile(random_features(1), (50, 1)),
    "fewer than k1": random_features(11, seed=5),
    "one": random_features(1),
}


def feature_set(name: str) -> np.ndarray:
    """A set whose products are exact where rows are equal, so that exact ties stay ties."""
    if name == "one point, many times":
        return np.tile([[1.0, 0.0]], (50, 1))
    return FEATURE_SETS[name]
