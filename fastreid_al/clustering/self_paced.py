"""Self-paced selection of reliable clusters (SpCL, Ge et al., NeurIPS 2020, Sec. 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..distributed.world import SINGLE_PROCESS, World
from .backends import Backend
from .dbscan import dbscan
from .jaccard import Graph

#: Share of the clusters that the first clustering takes for independent enough.
_INDEPENDENT_SHARE = 0.9


def self_paced_labels(
    graph: Graph,
    eps: float = 0.60,
    eps_gap: float = 0.02,
    min_samples: int = 4,
    threshold: float | None = None,
    backend: Backend = "auto",
    world: World = SINGLE_PROCESS,
) -> tuple[Tensor, float | None]:
    """Clusters whose members stay together when the radius shrinks and stay alone when it grows.

    For image i with cluster C, tighter cluster and looser cluster: R_indep(i) = 1 - IoU(C, loose), R_comp(i) =
    1 - IoU(C, tight); a cluster's indep and comp are the least over its members. Image i stays when indep <= threshold and
    R_comp(i) <= comp.

    Args:
        graph: Jaccard distances up to eps + eps_gap at least, on the CPU or a GPU.
        eps: Radius of the clustering.
        eps_gap: The tight radius is eps - eps_gap, the loose one eps + eps_gap.
        min_samples: Points within the radius that make a core point, itself counted.
        threshold: Independence threshold of the first clustering; None at the first clustering.
        backend: What runs DBSCAN, see `dbscan`.
        world: Each gives its rows of the graph; all get the same labels, of all images.

    Returns:
        Labels (n,) int64 on the device of the graph, clusters of two images and more numbered by their lowest member, -1 for
        every other image; and the threshold, None when there was no cluster to take it from. Besides DBSCAN O(n), but for a
        sort of n numbers: some 150 bytes an image, 5 MB at n = 32,621 and 150 MB at 1e6.

    Raises:
        ValueError: eps_gap is negative, the radii are outside [0, 1) or above the graph's max_distance, or what `dbscan`
            refuses.
    """
    if eps_gap < 0:
        raise ValueError(f"eps_gap: got {eps_gap}, expected 0 or more")
    labels, tight, loose = map(
        _with_singletons,
        dbscan(graph, (eps, eps - eps_gap, eps + eps_gap), min_samples, backend, world),
    )
    sizes = torch.bincount(labels)
    independence, compactness = 1 - _overlap(labels, loose), 1 - _overlap(labels, tight)
    least_independence, least_compactness = (
        _least(r, labels, len(sizes)) for r in (independence, compactness)
    )
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
    """Noise points become clusters of one, numbered after the others."""
    noise = labels < 0
    clusters = labels.amax() + 1 if len(labels) else 0
    return torch.where(noise, clusters + noise.cumsum(0) - 1, labels)


def _overlap(a: Tensor, b: Tensor) -> Tensor:
    """IoU of each point's cluster in a with its cluster in b, from counts of label pairs."""
    if len(a) == 0:
        return a.double()
    _, which, counts = torch.unique(a * (b.max() + 1) + b, return_inverse=True, return_counts=True)
    common = counts[which]
    union = torch.bincount(a)[a] + torch.bincount(b)[b] - common
    return common.double() / union


def _least(values: Tensor, labels: Tensor, clusters: int) -> Tensor:
    return values.new_full((clusters,), torch.inf).scatter_reduce_(0, labels, values, "amin")


def _first_threshold(independence: Tensor) -> float | None:
    if len(independence) == 0:
        return None
    place = min(len(independence) - 1, round(_INDEPENDENT_SHARE * len(independence)))
    return float(independence.sort().values[place])


def _renumber(labels: Tensor, kept: Tensor, clusters: int) -> Tensor:
    """Labels of the kept images, numbered by the lowest of them; a cluster of which one image is left is none."""
    n, nodes = len(labels), torch.arange(len(labels), device=labels.device)
    left = torch.zeros(clusters, dtype=torch.int64, device=labels.device).scatter_add_(
        0, labels, kept.long()
    )
    kept = kept & (left[labels] > 1)
    lowest = torch.full_like(left, n).scatter_reduce_(
        0, labels, torch.where(kept, nodes, n), "amin"
    )
    leads = lowest[labels]
    numbers = (leads == nodes).cumsum(0) - 1
    return torch.where(kept, numbers[leads.clamp(max=n - 1)], -1)
