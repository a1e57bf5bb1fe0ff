"""The compiled neighbour search and Jaccard graph: the same as PyTorch's, for any number of threads and on any CPU."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastreid_al import native
from fastreid_al.clustering import Graph, jaccard_graph, nearest_neighbours, neighbours
from tests.support.features import clustered_features, unit
from tests.support.references import reference_jaccard, reference_neighbours

pytestmark = pytest.mark.skipif(
    native.extension() is None, reason="the extension is not built here"
)


@pytest.fixture(params=["bfloat16", "float32"])
def product(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The product that candidates come from: on a CPU with bfloat16 units, and on one without."""
    monkeypatch.setattr(neighbours, "has_bf16_units", lambda: request.param == "bfloat16")
    return request.param


def rows(seed: int, n: int, dim: int, spread: float = 0.3, count: int = 12) -> Tensor:
    return torch.from_numpy(clustered_features(n, count, dim=dim, spread=spread, seed=seed)).float()


def signs(seed: int, n: int, dim: int) -> Tensor:
    """Rows of equal entries of both signs: similarities are few whole multiples of 2 / dim, ties everywhere."""
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.choice([-1.0, 1.0], (n, dim)) / math.sqrt(dim)).float()


def exact_ranks(features: Tensor, k: int) -> np.ndarray:
    """By similarities that are rounded once, from float64."""
    x = features.double().numpy()
    similarity = (x @ x.T).astype(np.float32).astype(np.float64)
    np.fill_diagonal(similarity, np.inf)
    return np.argsort(-similarity, axis=1, kind="stable")[:, :k]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 400),
    dim=st.sampled_from([1, 3, 16, 64, 256]),
    k=st.integers(1, 60),
    kind=st.sampled_from(["clustered", "signs"]),
    low=st.booleans(),
)
def test_lists_are_those_of_exact_similarities(
    seed: int, n: int, dim: int, k: int, kind: str, low: bool
) -> None:
    features = rows(seed, n, dim) if kind == "clustered" else signs(seed, n, dim)
    if kind == "signs" and dim not in (1, 16, 64, 256):
        features = signs(seed, n, 16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "has_bf16_units", lambda: low)
        found = nearest_neighbours(features, k)
    assert np.array_equal(found.numpy(), exact_ranks(features, min(k, n)))


@pytest.mark.parametrize("spread", [1e-4, 1e-3, 1e-2, 0.5])
def test_rows_too_close_to_tell_apart_in_tiles_are_searched_for_exactly(
    product: str, spread: float
) -> None:
    features = rows(1, 1500, 128, spread, count=2)
    assert np.array_equal(nearest_neighbours(features, 30).numpy(), exact_ranks(features, 30))


def test_many_equal_rows_go_by_their_index(product: str) -> None:
    features = rows(2, 1000, 96)
    features[200:900] = features[100].clone()
    found = nearest_neighbours(features, 30)
    assert np.array_equal(found.numpy(), reference_neighbours(features.double().numpy(), 30))
    assert found[500].tolist() == [500, 100, *range(200, 228)]


@pytest.mark.parametrize(("tile", "high"), [(2**12, 64), (2**14, 100), (2**22, 1024)])
def test_lists_depend_neither_on_tiles_nor_on_threads(
    product: str, tile: int, high: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = rows(3, 1700, 80)
    monkeypatch.setattr(neighbours, "_TILE", tile)
    monkeypatch.setattr(neighbours, "_ROWS", high)
    expected = exact_ranks(features, 20)
    for threads in (1, 2, 5):
        monkeypatch.setattr(native, "threads", lambda threads=threads: threads)
        assert np.array_equal(nearest_neighbours(features, 20).numpy(), expected)


def test_rows_of_other_lengths_and_zero_rows_keep_their_order(product: str) -> None:
    features = rows(4, 600, 64) * torch.linspace(1e-3, 1e3, 600)[:, None]
    features[17] = 0
    assert np.array_equal(nearest_neighbours(features, 12).numpy(), exact_ranks(features, 12))


def test_features_that_are_not_finite_are_named(product: str) -> None:
    features = rows(5, 300, 64)
    features[41, 3] = torch.nan
    features[77, 3] = torch.inf
    with pytest.raises(ValueError, match=r"row 41 is not finite.*\(2 such rows\)"):
        nearest_neighbours(features, 5)


def test_rows_too_long_for_products_are_named(product: str) -> None:
    features = rows(5, 300, 64)
    features[7] *= 1.9e19
    with pytest.raises(ValueError, match="row 7 is not finite or far too long"):
        nearest_neighbours(features, 5)


def test_callers_settings_of_precision_dtype_and_device_do_not_matter(product: str) -> None:
    features = rows(9, 400, 80)
    expected = nearest_neighbours(features, 10)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        torch.set_default_dtype(torch.float64)
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta"):
            assert torch.equal(nearest_neighbours(features, 10), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision(before)


GRAPHS = {
    "clustered": rows(6, 900, 48, 0.35, 30),
    "ties": signs(7, 500, 16),
    "one point, many times": torch.tensor([[1.0, 0.0]]).repeat(300, 1),
    "fewer than k1": rows(8, 9, 16),
    "one": torch.ones(1, 1),
    "none": torch.ones(0, 8),
}


def same(a: Graph, b: Graph) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a[:3], b[:3], strict=True))


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
    assert all(same(found, plain) for found in compiled)


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


def test_float32_distances_are_within_rounding_of_the_reference() -> None:
    features = GRAPHS["clustered"]
    graph = jaccard_graph(features, max_distance=0.9)
    expected = reference_jaccard(features.double().numpy(), 30, 6)
    i = torch.arange(graph.n).repeat_interleave(graph.indptr.diff())
    assert len(i) > 5000
    assert np.allclose(
        graph.distances.double(), expected[i.numpy(), graph.indices.numpy()], rtol=0, atol=3e-7
    )


def test_given_lists_are_used_as_they_are() -> None:
    features = GRAPHS["clustered"]
    neighbours = nearest_neighbours(features, 30)
    assert same(jaccard_graph(features, neighbours=neighbours), jaccard_graph(features))
    shifted = (torch.arange(900)[:, None] + torch.arange(30)) % 900
    assert not same(jaccard_graph(features, neighbours=shifted), jaccard_graph(features))
