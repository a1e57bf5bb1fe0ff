"""Self-paced selection against a reference of sets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastreid_al.clustering import dbscan, jaccard_graph, self_paced_labels
from tests.support.features import FEATURE_SETS, clustered_features
from tests.support.graphs import dense_distances
from tests.support.references import reference_self_paced


@pytest.mark.parametrize("name", FEATURE_SETS)
@pytest.mark.parametrize(("eps", "gap"), [(0.6, 0.02), (0.5, 0.1)])
def test_self_paced_labels_equal_the_reference(name: str, eps: float, gap: float) -> None:
    graph = jaccard_graph(torch.from_numpy(FEATURE_SETS[name]), k1=20)
    labels, threshold = self_paced_labels(graph, eps, gap)
    expected, expected_threshold = reference_self_paced(dense_distances(graph), eps, gap)
    assert threshold == expected_threshold
    assert np.array_equal(labels.numpy(), expected)
    again, kept = self_paced_labels(graph, eps, gap, threshold=0.05)
    assert kept == 0.05
    assert np.array_equal(
        again.numpy(), reference_self_paced(dense_distances(graph), eps, gap, threshold=0.05)[0]
    )


def test_self_paced_selection_leaves_out_unreliable_clusters() -> None:
    graph = jaccard_graph(torch.from_numpy(clustered_features(500, 40, spread=0.9)), k1=20)
    plain = dbscan(graph, 0.6)
    labels, _ = self_paced_labels(graph)
    assert (labels >= 0).sum() < (plain >= 0).sum()
    assert labels.max() >= 1


def test_a_negative_gap_is_refused() -> None:
    with pytest.raises(ValueError, match=r"eps_gap: got -0\.1"):
        self_paced_labels(jaccard_graph(torch.eye(4)), 0.4, -0.1)
