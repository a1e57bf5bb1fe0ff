"""UCAL's base clustering (Sec. 3.1): from features to clusters, as configured."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..active.partition import join_images
from ..clustering import (
    average_linkage,
    dbscan,
    ivf_neighbours,
    jaccard_graph,
    self_paced_labels,
    standardise_by_camera,
    whiten_within_clusters,
)
from ..clustering.jaccard import Graph
from ..config import ClusterConfig
from ..distributed.world import SINGLE_PROCESS, World

#: Largest Jaccard distance of a pair that average linkage counts. Pairs beyond it are as good as
#: unrelated, and many.
_FARTHEST = 0.9


class Clustered(NamedTuple):
    """Clusters of the images of an epoch.

    Args:
        labels: (n,) int64 on the CPU, the cluster of each image, -1 outside every cluster.
        features: This rank's rows of (n, D), unit-norm: the features that were clustered.
        threshold: Threshold of the self-paced selection; None if there is none yet.
        recall: Share of the true neighbours that an approximate search found; None for an exact
            one.
    """

    labels: Tensor
    features: Tensor
    threshold: float | None
    recall: float | None


def cluster_images(
    features: Tensor,
    cameras: Tensor,
    config: ClusterConfig,
    threshold: float | None = None,
    cannot_links: Tensor | None = None,
    world: World = SINGLE_PROCESS,
    must_links: Tensor | None = None,
) -> Clustered:
    """Cluster images by their features (Sec. 3.1).

    The features are standardised by camera and whitened, as configured. Clusters are made on their
    k-reciprocal Jaccard distance: by average linkage, or by DBSCAN, of which the self-paced
    selection of SpCL then keeps only the reliable images of each cluster.

    Args:
        features: This rank's rows of (n, D), unit-norm.
        cameras: (n,) int64 camera of each image of all ranks, -1 where unknown.
        config: What is done, and its constants.
        threshold: Threshold of the self-paced selection, from the first clustering of a run; None
            for the first clustering.
        cannot_links: (m, 2) int64 pairs of images that average linkage never joins.
        world: The ranks that the features are sharded over.
        must_links: (n,) int64: images of one number are the same, -1 for any other image. Average
            linkage begins with them as one cluster. After DBSCAN they are brought together
            (`active.partition.join_images`): at distance 0 they would join all images that are
            near to one of them. The same on all ranks, and no cannot-link joins two of them.

    Returns:
        The clusters, and the features that they were made of.

    Raises:
        ValueError: The features cannot be clustered, or a library is not installed.
    """
    if config.camera_norm != "none":
        scale = config.camera_norm == "standardise"
        features = standardise_by_camera(features, cameras, scale, world)
    for _ in range(config.whiten):
        graph, _ = _graph(features, config, world)
        draft = _draft(graph, config, cannot_links, must_links, world)
        features = whiten_within_clusters(features, draft, world=world)
    graph, recall = _graph(features, config, world)
    if config.algorithm == "linkage":
        labels = _linked(graph, config, cannot_links, must_links, world)
    else:
        labels, threshold = self_paced_labels(
            graph, config.eps, config.eps_gap, config.min_samples, threshold, config.dbscan, world
        )
        if must_links is not None:
            labels = _joined(features, labels, must_links, world)
    return Clustered(labels.cpu(), features, threshold, recall)


def _graph(features: Tensor, config: ClusterConfig, world: World) -> tuple[Graph, float | None]:
    """The Jaccard graph of the features, and the recall of approximate neighbours."""
    recall = None
    neighbours: Tensor | Literal["exact"] = "exact"
    if config.neighbours == "ivf":
        neighbours, recall = ivf_neighbours(features, config.k1, world=world)
    # The self-paced selection clusters at eps - eps_gap, eps and eps + eps_gap; no pair beyond
    # these is ever read.
    farthest = _FARTHEST if config.algorithm == "linkage" else config.eps + config.eps_gap
    graph = jaccard_graph(
        features, config.k1, config.k2, max_distance=farthest, neighbours=neighbours, world=world
    )
    return graph, recall


def _linked(
    graph: Graph,
    config: ClusterConfig,
    cannot_links: Tensor | None,
    must_links: Tensor | None,
    world: World,
) -> Tensor:
    """Clusters of average linkage, (n,) int64."""
    return average_linkage(graph, config.join, must_links, cannot_links, world).labels


def _joined(features: Tensor, labels: Tensor, must_links: Tensor, world: World) -> Tensor:
    """Labels (n,) int64 on the CPU whose must-linked images are together; the first rank joins."""
    features = world.gather_rows_to_first(features)
    joined = world.compute_on_first(lambda: join_images(features, labels.cpu(), must_links.cpu()))
    return torch.as_tensor(joined)


def _draft(
    graph: Graph,
    config: ClusterConfig,
    cannot_links: Tensor | None,
    must_links: Tensor | None,
    world: World,
) -> Tensor:
    """Clusters to whiten by, (n,) int64 on the CPU: without a selection of images."""
    if config.algorithm == "linkage":
        return _linked(graph, config, cannot_links, must_links, world).cpu()
    (labels,) = dbscan(graph, (config.eps,), config.min_samples, config.dbscan, world)
    return labels.cpu()
