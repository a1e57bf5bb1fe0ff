"""The Jaccard graph in PyTorch is that of the extension, for any blocks and threads."""

from __future__ import annotations

import pytest
import torch

from fastreid_al import native
from fastreid_al.clustering import Graph, jaccard_graph, nearest_neighbours
from tests.support.features import FEATURE_SETS, clustered_rows, sign_rows, unit

needs_extension = pytest.mark.skipif(
    native.extension() is None, reason="the extension is not built here"
)


GRAPHS = {
    "clustered": clustered_rows(6, 900, 48, 0.35, 30),
    "ties": sign_rows(7, 500, 16),
    "one point, many times": torch.tensor([[1.0, 0.0]]).repeat(300, 1),
    "fewer than k1": clustered_rows(8, 9, 16),
    "one": torch.ones(1, 1),
    "none": torch.ones(0, 8),
}


def same(a: Graph, b: Graph) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a[:3], b[:3], strict=True))


@needs_extension
@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize(("k1", "k2"), [(30, 6), (15, 6), (20, 1), (7, 9), (1, 1), (90, 20)])
def test_compiled_and_pytorch_graphs_are_bit_equal(
    name: str, k1: int, k2: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = GRAPHS[name]
    neighbours = nearest_neighbours(features, k1)
    compiled = [jaccard_graph(features, k1, k2, 0.7, neighbours=neighbours)]
    for threads in (1, 3):
        monkeypatch.setattr(native, "threads", lambda threads=threads: threads)
        compiled.append(jaccard_graph(features, k1, k2, 0.7, neighbours=neighbours))
    monkeypatch.setattr(native, "extension", lambda: None)
    plain = jaccard_graph(features, k1, k2, 0.7, neighbours=neighbours)
    assert all(same(got, plain) for got in compiled)


@needs_extension
@pytest.mark.parametrize("name", ["clustered", "ties", "fewer than k1"])
def test_graphs_of_float64_features_agree_to_rounding(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = torch.from_numpy(unit(GRAPHS[name].double().numpy()))
    compiled = jaccard_graph(features)
    monkeypatch.setattr(native, "extension", lambda: None)
    plain = jaccard_graph(features)
    assert compiled.distances.dtype == torch.float64
    assert torch.equal(compiled.indices, plain.indices)
    assert torch.allclose(compiled.distances, plain.distances, rtol=0, atol=1e-13)


def test_graph_does_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastreid_al.native.extension", lambda: None)
    features = torch.from_numpy(FEATURE_SETS["clustered"])
    whole = jaccard_graph(features)
    monkeypatch.setattr("fastreid_al.clustering.jaccard_torch._BLOCK", 13 * 500)
    parts = jaccard_graph(features)
    assert all(torch.equal(a, b) for a, b in zip(whole[:3], parts[:3], strict=True))
