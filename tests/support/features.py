"""Features that tests make."""

from __future__ import annotations

import numpy as np


def unit(features: np.ndarray) -> np.ndarray:
    """Unit-norm rows."""
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def clustered_features(
    n: int, clusters: int, dim: int = 24, spread: float = 0.35, seed: int = 0
) -> np.ndarray:
    """Unit rows around random centres, float64."""
    random = np.random.default_rng(seed)
    centres = unit(random.normal(size=(clusters, dim)))
    return unit(
        centres[random.integers(clusters, size=n)]
        + spread * random.normal(size=(n, dim)) / np.sqrt(dim)
    )
