"""k-medoids by PAM: BUILD, then SWAP (Kaufman and Rousseeuw 1990)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

#: Sums that differ by less are ties: they are rounding, and ties go to the lowest index on every machine.
_DECIMALS = 9


class KMedoids(NamedTuple):
    """Medoids (k,) int64, in the order in which they were found, and the place of each point's medoid among them (m,) int64."""

    medoids: Tensor
    labels: Tensor


def kmedoids(similarity: Tensor, k: int, start: Sequence[int] | None = None) -> KMedoids:
    """Choose k points such that the sum of each point's similarity to its nearest of them is a local maximum.

    BUILD adds one medoid after the other, each the one that lifts the sum most; SWAP exchanges a medoid for another point, the
    best exchange first, until none helps. Ties go to the lowest index.

    Args:
        similarity: (m, m), symmetric, of any floating type; computed in float64.
        k: Number of medoids, 1 to m.
        start: k medoids to begin SWAP from; BUILD's when not given.

    Returns:
        The medoids, and each point's most similar one (ties to the first found; a medoid is its own).
        Four arrays (m, m) in float64 while it runs: 32 MB at m = 1,000. O(k m²) time for BUILD and O(m²) for a swap.

    Raises:
        ValueError: k is outside [1, m], the matrix is not square, or `start` does not name k different points.
    """
    s = similarity.detach().cpu().numpy().astype(np.float64)
    if s.ndim != 2 or s.shape[0] != s.shape[1]:
        raise ValueError(f"similarity: found shape {s.shape}, wanted (m, m)")
    if not 1 <= k <= len(s):
        raise ValueError(f"k: found {k}, wanted 1 to {len(s)}, the number of points")
    if start is not None and (len(set(start)) != k or not all(0 <= i < len(s) for i in start)):
        raise ValueError(f"start: found {list(start)}, wanted {k} different points")
    medoids = _swap(s, list(build(s, k) if start is None else start))
    return KMedoids(torch.tensor(medoids), torch.from_numpy(_assign(s, medoids)))


def build(s: np.ndarray, k: int) -> list[int]:
    """BUILD for k medoids; its first j are BUILD for j."""
    medoids = [_first_max(s.sum(1))]
    best = s[medoids[0]].copy()
    for _ in range(1, k):
        gain = np.maximum(s - best, 0).sum(1)
        gain[medoids] = -1
        medoids.append(_first_max(gain))
        best = np.maximum(best, s[medoids[-1]])
    return medoids


def _swap(s: np.ndarray, medoids: list[int]) -> list[int]:
    while True:
        to_medoids = s[medoids]
        nearest = to_medoids.argmax(0)
        best = to_medoids.max(0)
        # Without its nearest medoid a point falls back to the second.
        second = np.partition(to_medoids, -2, axis=0)[-2] if len(medoids) > 1 else np.full(len(s), -np.inf)
        kept = np.maximum(s, best)
        lost = np.maximum(s, second) - kept
        # total[i, p]: the sum when the medoid at place p is exchanged for point i (FastPAM's decomposition).
        total = kept.sum(1)[:, None] + lost @ np.eye(len(medoids))[nearest]
        total[medoids] = -np.inf
        point, place = divmod(_first_max(total.ravel()), len(medoids))
        if not total[point, place] > best.sum() + 10.0**-_DECIMALS:
            return medoids
        medoids[place] = point


def _assign(s: np.ndarray, medoids: list[int]) -> np.ndarray:
    labels = s[medoids].argmax(0)
    labels[medoids] = np.arange(len(medoids))
    return labels


def _first_max(values: np.ndarray) -> int:
    return int(np.round(values, _DECIMALS).argmax())
