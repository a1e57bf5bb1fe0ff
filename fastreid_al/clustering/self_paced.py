"""Self-paced selection of reliable clusters (SpCL, Ge et al., NeurIPS 2020, Sec. 3.3)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .dbscan import dbscan, numbered_by_first
from .jaccard import Graph

#: Share of the clusters that the first clustering takes for independent enough.
_INDEPENDENT_SHARE = 0.9


def self_paced_labels(
    graph: Graph, eps: float = 0.60, eps_gap: float = 0.02, min_samples: int = 4, threshold: float | None = None
) -> tuple[Tensor, float | None]:
    """Clusters whose members stay together when the radius shrinks and stay alone when it grows.

    For image i with cluster C, tighter cluster and looser cluster: R_indep(i) = 1 - IoU(C, loose), R_comp(i) =
    1 - IoU(C, tight); a cluster's indep and comp are the least over its members. Image i stays when indep <= threshold and
    R_comp(i) <= comp.

    Args:
        graph: Jaccard distances up to eps + eps_gap at least.
        eps: Radius of the clustering.
        eps_gap: The tight radius is eps - eps_gap, the loose one eps + eps_gap.
        min_samples: Points within the radius that make a core point, itself counted.
        threshold: Independence threshold of the first clustering; None at the first clustering.

    Returns:
        Labels (n,) int64, clusters of two images and more numbered by their lowest member, -1 for every other image; and the
        threshold, None when there was no cluster to take it from. O(n) besides DBSCAN: some 100 bytes an image.

    Raises:
        ValueError: The radii are outside [0, the graph's max_distance].
    """
    labels, tight, loose = (
        _with_singletons(dbscan(graph, e, min_samples)) for e in (eps, eps - eps_gap, eps + eps_gap)
    )
    sizes = np.bincount(labels, minlength=1)
    independence, compactness = 1 - _overlap(labels, loose), 1 - _overlap(labels, tight)
    least_independence, least_compactness = _least(independence, labels), _least(compactness, labels)
    if threshold is None:
        threshold = _first_threshold(least_independence[sizes > 1])
    if threshold is None:
        return torch.full((graph.n,), -1, dtype=torch.int64), None
    kept = (sizes[labels] > 1) & (least_independence[labels] <= threshold) & (compactness <= least_compactness[labels])
    return torch.from_numpy(_renumber(labels, kept)), threshold


def _with_singletons(labels: Tensor) -> np.ndarray:
    """Noise points become clusters of one."""
    out = labels.numpy().copy()
    noise = np.flatnonzero(out < 0)
    out[noise] = out.max(initial=-1) + 1 + np.arange(len(noise))
    return out


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of each point's cluster in a with its cluster in b, from counts of label pairs."""
    pairs, which = np.unique(a * (b.max(initial=0) + 1) + b, return_inverse=True)
    common = np.bincount(which, minlength=len(pairs))[which]
    union = np.bincount(a)[a] + np.bincount(b)[b] - common
    return common / union


def _least(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    least = np.full(labels.max(initial=-1) + 1, np.inf)
    np.minimum.at(least, labels, values)
    return least


def _first_threshold(independence: np.ndarray) -> float | None:
    if len(independence) == 0:
        return None
    place = min(len(independence) - 1, round(_INDEPENDENT_SHARE * len(independence)))
    return float(np.sort(independence)[place])


def _renumber(labels: np.ndarray, kept: np.ndarray) -> np.ndarray:
    kept = kept & (np.bincount(labels[kept], minlength=labels.max(initial=-1) + 1)[labels] > 1)
    out = np.full(len(labels), -1, dtype=np.int64)
    out[kept] = numbered_by_first(labels[kept])
    return out
