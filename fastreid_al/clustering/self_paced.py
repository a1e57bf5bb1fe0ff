"""Self-paced selection of reliable clusters (SpCL, Ge et al., NeurIPS 2020, Sec. 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..arguments import as_number
from ..distributed.world import SINGLE_PROCESS, World
from .backends import Backend
from .dbscan import dbscan
from .jaccard import Graph

#: Fraction of the clusters of the first clustering that are independent enough.
_INDEPENDENT_FRACTION = 0.9


def self_paced_labels(
    graph: Graph,
    eps: float = 0.60,
    eps_gap: float = 0.02,
    min_samples: int = 4,
    threshold: float | None = None,
    backend: Backend = "auto",
    world: World = SINGLE_PROCESS,
) -> tuple[Tensor, float | None]:
    """Select clusters that change little when the radius shrinks or grows.

    For image i with cluster C, its cluster at the tight radius and its cluster at the loose one:
    R_indep(i) = 1 - IoU(C, loose), R_comp(i) = 1 - IoU(C, tight). The indep and comp of a cluster
    are the least over its members. Image i stays if indep <= threshold and R_comp(i) <= comp.

    Args:
        graph: Jaccard distances up to at least eps + eps_gap, on the CPU or a GPU.
        eps: Radius of the clustering.
        eps_gap: The tight radius is eps - eps_gap, the loose one eps + eps_gap.
        min_samples: Points within the radius that make a core point, itself counted.
        threshold: Independence threshold of the first clustering; None for the first clustering.
        backend: The implementation of DBSCAN, see `dbscan`.
        world: The ranks, each with its rows of the graph; all get the same labels, of all images.

    Returns:
        Labels (n,) int64 on the device of the graph: clusters of two or more images, numbered by
        their lowest member, and -1 for every other image. The threshold, or None if there was no
        cluster to compute it from. In addition to DBSCAN, time is O(n) and a sort of n numbers,
        memory about 150 bytes an image: 5 MB at n = 32,621 and 150 MB at 1e6.

    Raises:
        ValueError: eps_gap is negative, the radii are outside [0, 1) or above the graph's
            max_distance, or `dbscan` refuses an argument.
    """
    eps = as_number("eps", eps)
    eps_gap = as_number("eps_gap", eps_gap, 0)
    threshold = None if threshold is None else float(as_number("threshold", threshold))
    radii = (eps, eps - eps_gap, eps + eps_gap)
    clusterings = dbscan(graph, radii, min_samples, backend, world)  # (3, n)
    labels, tight, loose = map(_with_singletons, clusterings)
    sizes = torch.bincount(labels)  # (clusters,)
    independence = 1 - _overlap(labels, loose)  # (n,) R_indep
    compactness = 1 - _overlap(labels, tight)  # (n,) R_comp
    least_independence = _least(independence, labels, len(sizes))  # (clusters,)
    least_compactness = _least(compactness, labels, len(sizes))  # (clusters,)
    if threshold is None:
        threshold = _first_threshold(least_independence[sizes > 1])
    if threshold is None:
        return torch.full_like(labels, -1), None
    kept = (
        (sizes[labels] > 1)
        & (least_independence[labels] <= threshold)
        & (compactness <= least_compactness[labels])
    )
    return _renumber(labels, kept, len(sizes)), threshold


def _with_singletons(labels: Tensor) -> Tensor:
    """Make each noise point a cluster of its own, numbered after the others."""
    noise = labels < 0
    clusters = labels.amax() + 1 if len(labels) else 0
    return torch.where(noise, clusters + noise.cumsum(0) - 1, labels)


def _overlap(a: Tensor, b: Tensor) -> Tensor:
    """IoU of each point's cluster in a with its cluster in b, from counts of label pairs: (n,)."""
    if len(a) == 0:
        return a.double()
    _, which, counts = torch.unique(a * (b.max() + 1) + b, return_inverse=True, return_counts=True)
    common = counts[which]
    union = torch.bincount(a)[a] + torch.bincount(b)[b] - common
    return common.double() / union


def _least(values: Tensor, labels: Tensor, clusters: int) -> Tensor:
    """The least value of each cluster's members: (clusters,)."""
    return values.new_full((clusters,), torch.inf).scatter_reduce_(0, labels, values, "amin")


def _first_threshold(independence: Tensor) -> float | None:
    if len(independence) == 0:
        return None
    index = min(len(independence) - 1, round(_INDEPENDENT_FRACTION * len(independence)))
    return float(independence.sort().values[index])


def _renumber(labels: Tensor, kept: Tensor, clusters: int) -> Tensor:
    """Labels of the kept images, with clusters numbered by their lowest kept image.

    A cluster with a single kept image is dropped.
    """
    n = len(labels)
    nodes = torch.arange(n, device=labels.device)
    remaining = torch.zeros(clusters, dtype=torch.int64, device=labels.device)
    remaining.scatter_add_(0, labels, kept.long())
    kept = kept & (remaining[labels] > 1)
    kept_nodes = torch.where(kept, nodes, n)
    lowest = torch.full_like(remaining, n).scatter_reduce_(0, labels, kept_nodes, "amin")
    leader = lowest[labels]  # (n,) lowest kept image of each image's cluster, n if there is none
    numbers = (leader == nodes).cumsum(0) - 1
    return torch.where(kept, numbers[leader.clamp(max=n - 1)], -1)
