"""Average linkage of a graph on CUDA: computed on the CPU, returned on the GPU."""

from __future__ import annotations

import pytest
import torch

from fastreid_al.clustering import Graph, average_linkage, jaccard_graph
from tests.support.features import clustered_features

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_a_graph_on_a_gpu_gives_the_result_of_the_cpu() -> None:
    graph = jaccard_graph(torch.from_numpy(clustered_features(1000, 60)), k1=20, max_distance=0.9)
    groups = torch.full((1000,), -1)
    groups[::100] = 0
    links = torch.tensor([[0, 1], [2, 3]])
    expected = average_linkage(graph, 0.3, groups, links)
    there = Graph(*(x.cuda() for x in graph[:3]), graph.max_distance)
    got = average_linkage(there, 0.3, groups.cuda(), links.cuda())
    pairs = zip(
        (got.labels, got.start, *got.merges),
        (expected.labels, expected.start, *expected.merges),
        strict=True,
    )
    assert all(x.is_cuda and torch.equal(x.cpu(), y) for x, y in pairs)
    assert torch.equal(got.labels_at(0.5).cpu(), expected.labels_at(0.5))
