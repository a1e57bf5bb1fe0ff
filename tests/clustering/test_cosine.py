"""Radius graphs and DBSCAN on cosine distances against dense distances and scikit-learn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from fastreid_al import native
from fastreid_al.clustering import cosine_dbscan, radius_graph
from tests.support.features import clustered_features, unit
from tests.support.graphs import graph_of, scikit_learn_cosine_labels
from tests.support.references import reference_dbscan


@pytest.fixture(params=["extension", "PyTorch"])
def _implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extension, or PyTorch without it."""
    if request.param == "extension" and native.extension() is None:
        pytest.skip("the extension is not built")
    if request.param == "PyTorch":
        monkeypatch.setattr(native, "extension", lambda: None)


def cosine_distances(features: Tensor) -> np.ndarray:
    rows = features.double().numpy()
    return np.maximum(1 - rows @ rows.T, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [0, 1, 5, 300])
def test_radius_graph_holds_every_pair_within_the_radius(
    n: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = torch.from_numpy(clustered_features(n, 12, spread=0.6)).to(dtype)
    features[n // 2 : n // 2 + 2] = features[:1]
    distance = cosine_distances(features)
    for rows, columns in ((2048, 4096), (13, 13), (7, 40)):
        monkeypatch.setattr("fastreid_al.clustering.cosine._ROWS", rows)
        monkeypatch.setattr("fastreid_al.clustering.cosine._COLUMNS", columns)
        graph = radius_graph(features, 0.3)
        expected = graph_of(distance, dtype, 0.3)
        assert torch.equal(graph.indptr, expected.indptr)
        assert torch.equal(graph.indices, expected.indices)
        torch.testing.assert_close(graph.distances, expected.distances, rtol=0, atol=1e-6)
        assert graph.distances.dtype == dtype
        assert graph.max_distance == 0.3
        dense = torch.zeros(n, n, dtype=dtype)
        dense[torch.repeat_interleave(torch.arange(n), graph.indptr.diff()), graph.indices] = (
            graph.distances
        )
        assert torch.equal(dense, dense.T)


@pytest.mark.usefixtures("_implementation")
@pytest.mark.parametrize("seed", range(4))
def test_cosine_labels_equal_the_reference_and_scikit_learn(seed: int) -> None:
    # Entries are +-1/4: similarities are multiples of 1/8, many rows are equal, and the radii lie
    # between the multiples.
    random = np.random.default_rng(seed)
    centres = random.choice([-0.25, 0.25], (20, 16))
    features = centres[random.integers(20, size=150)] * random.choice(
        [-1, 1], (150, 16), p=[0.06, 0.94]
    )
    eps = (0.06, 0.2, 0.3, 0.43)
    for dtype in (torch.float32, torch.float64):
        rows = torch.from_numpy(features).to(dtype)
        got = cosine_dbscan(rows, eps, 3)
        assert np.array_equal(got.numpy(), scikit_learn_cosine_labels(rows.numpy(), eps, 3))
        for e, labels in zip(eps, got, strict=True):
            assert np.array_equal(labels.numpy(), reference_dbscan(cosine_distances(rows), e, 3))
        assert torch.equal(cosine_dbscan(rows, 0.2, 3), got[1])


@pytest.mark.usefixtures("_implementation")
def test_no_features_have_no_labels() -> None:
    assert cosine_dbscan(torch.zeros(0, 8), (0.1, 0.2), 3).shape == (2, 0)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda x: x.index_fill_(0, torch.tensor(3), torch.nan),
            "1 of 20 rows .* the first is row 3 of length nan",
        ),
        (
            lambda x: x.index_fill_(0, torch.tensor(4), torch.inf),
            "the first is row 4 of length inf",
        ),
        (
            lambda x: x.mul_(1.01),
            "20 of 20 rows .* the first is row 0 of length 1.01; normalise them",
        ),
        (lambda x: x.index_fill_(0, torch.tensor(7), 0), "the first is row 7 of length 0"),
        (lambda x: x[0], "got shape"),
        (lambda x: x.half(), "expected float32 or float64"),
    ],
)
def test_rows_that_are_not_unit_rows_are_named(
    spoil: Callable[[Tensor], Tensor], message: str
) -> None:
    features = torch.from_numpy(unit(np.random.default_rng(0).normal(size=(20, 8)))).float()
    for call in (radius_graph, cosine_dbscan):
        with pytest.raises(ValueError, match=message):
            call(spoil(features.clone()), 0.3)


def test_a_radius_that_holds_too_many_pairs_is_refused_on_the_way() -> None:
    features = torch.nn.functional.normalize(torch.ones(100, 4))
    assert len(radius_graph(features, 0.1, most_edges=9900).indices) == 9900
    with pytest.raises(ValueError, match="more than 9899 edges; choose a smaller one"):
        radius_graph(features, 0.1, most_edges=9899)
    with pytest.raises(ValueError, match=r"max_distance: got 1, expected a number in \[0, 1\)"):
        radius_graph(features, 1)
    with pytest.raises(ValueError, match=r"eps: got 1.5, expected a number in \[0, 1\)"):
        cosine_dbscan(features, (0.1, 1.5))


def test_similarities_are_not_rounded_where_lower_precision_is_chosen() -> None:
    features = torch.from_numpy(clustered_features(200, 10)).float()
    expected = radius_graph(features, 0.2)
    chosen = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16):
            got = radius_graph(features, 0.2)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(chosen)
    assert torch.equal(got.indices, expected.indices)
    assert torch.equal(got.distances, expected.distances)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [3, 64, 2048])
@pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-7, 1e-4])
def test_exact_copies_are_one_cluster_at_any_radius(
    dtype: torch.dtype, dim: int, eps: float
) -> None:
    generator = torch.Generator().manual_seed(dim)
    rows = normalize(torch.randn(40, dim, generator=generator, dtype=dtype))
    # Within the tolerance of the norm.
    rows[0] *= 1 - 0.9e-4
    rows = rows[torch.arange(40).repeat_interleave(torch.tensor([6] + [1] * 38 + [4]))]
    several, wide = cosine_dbscan(rows, (eps, 0.999), min_samples=4)
    assert several.tolist() == [0] * 6 + [-1] * 38 + [1] * 4
    assert torch.equal(several, cosine_dbscan(rows, eps, min_samples=4))
    assert (wide >= 0).sum() >= 10
    assert radius_graph(rows, 0.0).distances.tolist() == [0] * (6 * 5 + 4 * 3)
