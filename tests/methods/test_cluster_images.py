"""Must-links enter average linkage as one cluster, and are joined after DBSCAN."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from fastreid_al.active.partition import join_images
from fastreid_al.clustering import average_linkage, jaccard_graph, self_paced_labels
from fastreid_al.config import ClusterConfig
from fastreid_al.distributed.world import World
from fastreid_al.methods.cluster_images import cluster_images
from fastreid_al.metrics import pair_scores
from fastreid_al.synthetic.features import planted_partition
from tests.support.process_pool import Pool

Algorithm = Literal["dbscan", "linkage"]
PLANTED = planted_partition(240, 24, sizes=(4, 16), spread=1.2, seed=1)
FEATURES, IDENTITIES, CAMERAS = PLANTED


def tracks() -> Tensor:
    """The images of an identity under a camera, for two of three images."""
    found = IDENTITIES * 10 + CAMERAS
    return torch.where(torch.arange(len(found)) % 3 > 0, found, -1)


def settings(algorithm: Algorithm) -> ClusterConfig:
    return ClusterConfig(algorithm=algorithm, k1=10, k2=3, eps=0.55, join=0.15)


def test_linkage_begins_with_must_linked_images_as_one_cluster() -> None:
    found = cluster_images(FEATURES, CAMERAS, settings("linkage"), must_links=tracks())
    graph = jaccard_graph(FEATURES, 10, 3, max_distance=0.9)
    assert torch.equal(found.labels, average_linkage(graph, 0.15, tracks()).labels)


def test_must_linked_images_are_joined_after_dbscan() -> None:
    found = cluster_images(FEATURES, CAMERAS, settings("dbscan"), must_links=tracks())
    plain, threshold = self_paced_labels(jaccard_graph(FEATURES, 10, 3), 0.55)
    assert torch.equal(found.labels, join_images(FEATURES, plain, tracks()))
    assert found.threshold == threshold


@pytest.mark.parametrize("algorithm", ["dbscan", "linkage"])
def test_true_tracks_make_clusters_better(algorithm: Algorithm) -> None:
    plain = pair_scores(cluster_images(FEATURES, CAMERAS, settings(algorithm)).labels, IDENTITIES)
    labels = cluster_images(FEATURES, CAMERAS, settings(algorithm), must_links=tracks()).labels
    linked = pair_scores(labels, IDENTITIES)
    assert linked.f1 > plain.f1
    assert linked.precision >= 0.97 * plain.precision
    for track in tracks().unique().tolist():
        if track >= 0:
            assert len(labels[tracks() == track].unique()) == 1


def clustered(world: World, algorithm: Algorithm) -> Tensor:
    own = FEATURES[world.local_slice(len(FEATURES))]
    found = cluster_images(own, CAMERAS, settings(algorithm), world=world, must_links=tracks())
    return found.labels


@pytest.mark.parametrize("algorithm", ["dbscan", "linkage"])
def test_ranks_find_the_clusters_of_one_process(pool: Pool, algorithm: Algorithm) -> None:
    expected = cluster_images(FEATURES, CAMERAS, settings(algorithm), must_links=tracks()).labels
    for labels in pool.run(clustered, 2, algorithm):
        assert torch.equal(labels, expected)
