"""The Jaccard graph by the CUDA kernels, emulated on the CPU, is the same graph to the bit."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from fastreid_al.clustering import jaccard_cuda, jaccard_graph, nearest_neighbours
from tests.support.features import clustered_features


@pytest.mark.slow
@pytest.mark.parametrize(("slots", "pairs"), [(2048, 64), (512, 1)])
def test_cuda_kernels_build_the_same_graph_as_the_cpu(
    emulated: ModuleType, slots: int, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if rows do not fit the table, and if pairs fit only after a second count."""
    monkeypatch.setattr(jaccard_cuda, "_SLOTS", slots)
    monkeypatch.setattr(jaccard_cuda, "_PAIRS_PER_ROW", pairs)
    features = torch.from_numpy(clustered_features(800, 20, spread=0.5)).float()
    neighbours = nearest_neighbours(features, 30)
    indptr, indices, distances = jaccard_cuda.jaccard_edges(
        emulated, features, neighbours, 16, 6, 0.62, 0
    )
    expected = jaccard_graph(features, max_distance=0.62)
    assert len(indices) > 10_000
    assert torch.equal(indptr, expected.indptr)
    assert torch.equal(indices, expected.indices)
    assert torch.equal(distances, expected.distances)
