"""Coherence, and suspects that are found where a wrong cluster is planted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fastreid_al.reports.clusters import (
    Clusters,
    divided_clusters,
    gather_clusters,
    near_clusters,
)


def people(count: int, images: int, spread: float = 0.2, seed: int = 0) -> Tensor:
    """Unit-norm features of some people, one after the other."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(count, 32))
    rows = centres.repeat(images, 0) + spread * random.normal(size=(count * images, 32))
    return torch.nn.functional.normalize(torch.from_numpy(rows).float(), dim=1)


def test_clusters_are_gathered_from_the_most_central_image_on() -> None:
    features = people(4, 5)
    labels = torch.tensor([7] * 5 + [2] * 5 + [-1] * 5 + [3] + [9] * 4)
    found = gather_clusters(features, labels)
    assert found.labels.tolist() == [2, 7, 9]
    assert found.sizes.tolist() == [5, 5, 4]
    for cluster, rows in enumerate((range(5, 10), range(5), range(16, 20))):
        own = features[list(rows)]
        centre = torch.nn.functional.normalize(own.sum(0), dim=0)
        expected = (own @ centre).sort(descending=True)
        assert found.images(cluster).tolist() == (expected.indices + rows[0]).tolist()
        torch.testing.assert_close(found.similarities(cluster), expected.values)
        assert float(found.coherence()[cluster]) == pytest.approx(float(expected.values.mean()))


def test_blocks_of_images_give_the_same_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = people(6, 4), torch.arange(24) // 3
    expected = gather_clusters(features, labels)
    monkeypatch.setattr("fastreid_al.reports.clusters._ROWS", 5)
    for got, part in zip(gather_clusters(features, labels), expected, strict=True):
        torch.testing.assert_close(got, part)


def test_a_set_without_clusters_has_no_suspects() -> None:
    found = gather_clusters(people(2, 2), torch.full((4,), -1))
    assert len(found) == 0
    assert divided_clusters(people(2, 2), found, 5) == near_clusters(found, (), 5) == []


def planted() -> tuple[Tensor, Clusters]:
    """Cluster 0 holds person 0 and four images of person 1, whose other images are cluster 1."""
    features = people(8, 10)
    labels = torch.arange(80) // 10
    labels[10:14] = 0
    return features, gather_clusters(features, labels)


def test_a_cluster_of_two_people_is_the_first_suspect() -> None:
    features, clusters = planted()
    first, *_ = divided_clusters(features, clusters, 3)
    assert first.cluster == 0
    assert sorted(first.first.tolist()) == list(range(10))
    assert sorted(first.second.tolist()) == [10, 11, 12, 13]
    assert first.other > first.between


def test_images_that_are_all_alike_and_a_single_cluster_can_be_divided() -> None:
    features = torch.nn.functional.normalize(torch.ones(4, 8), dim=1)
    (found,) = divided_clusters(features, gather_clusters(features, torch.zeros(4).long()), 5)
    assert (len(found.first), len(found.second), found.other) == (3, 1, -1.0)


def test_the_parts_of_one_person_are_the_nearest_pair() -> None:
    features = people(6, 10)
    labels = torch.arange(60) // 10
    labels[5:10] = 6
    clusters = gather_clusters(features, labels)
    first, *rest = near_clusters(clusters, (), 4)
    assert (first.first, first.second) == (0, 6)
    assert len(rest) == 3
    similarity = [pair.similarity for pair in (first, *rest)]
    assert similarity == sorted(similarity, reverse=True)
    assert all((p.first, p.second) != (0, 6) for p in near_clusters(clusters, {(0, 6)}, 20))
