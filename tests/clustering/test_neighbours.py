"""Exact neighbours against stable sorts, for any tiles, threads, products and number of ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastreid_al import native
from fastreid_al.clustering import nearest_neighbours, neighbours
from fastreid_al.distributed.world import World
from tests.support.features import (
    FEATURE_SETS,
    clustered_features,
    clustered_rows,
    feature_set,
    sign_rows,
    tied_features,
)
from tests.support.process_pool import Pool
from tests.support.references import reference_neighbours

needs_extension = pytest.mark.skipif(
    native.extension() is None, reason="the extension is not built here"
)


@pytest.fixture(params=["bfloat16", "float32"])
def product(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The dtype of tiles: on a CPU with bfloat16 units, and on one without."""
    monkeypatch.setattr(neighbours, "has_bf16_units", lambda: request.param == "bfloat16")
    return request.param


def exact_neighbours(features: torch.Tensor, k: int) -> np.ndarray:
    """Neighbours by similarities that are rounded once, from float64."""
    x = features.double().numpy()
    similarity = (x @ x.T).astype(np.float32).astype(np.float64)
    np.fill_diagonal(similarity, np.inf)
    return np.argsort(-similarity, axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("name", FEATURE_SETS)
@pytest.mark.parametrize("k", [1, 6, 30])
def test_neighbours_equal_a_stable_sort_with_the_image_itself_first(name: str, k: int) -> None:
    features = feature_set(name)
    got = nearest_neighbours(torch.from_numpy(features), k)
    assert np.array_equal(got.numpy(), reference_neighbours(features, k))


def test_dimensions_of_a_trained_network_that_died_do_not_change_the_neighbours(
    product: str,
) -> None:
    # Channels that weight decay has shrunk to denormal numbers, or nearly.
    alive = torch.from_numpy(clustered_features(300, 20, dim=32, spread=0.9)).float()
    for scale in (1e-41, 1e-30, 1e-18):
        dead = scale * torch.randn(300, 16)
        got = nearest_neighbours(torch.cat([alive, dead], 1), 10)
        expected = nearest_neighbours(torch.cat([alive, torch.zeros(300, 16)], 1), 10)
        assert torch.equal(got, expected)


def test_neighbours_do_not_depend_on_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.from_numpy(tied_features(200))
    whole = nearest_neighbours(features, 12)
    monkeypatch.setattr("reid_kernels.topk_cpu._BLOCK", 7 * 4 * 200)
    assert torch.equal(whole, nearest_neighbours(features, 12))


@pytest.mark.parametrize(
    ("features", "k", "message"),
    [
        (torch.eye(4), 0, "k: got 0, expected 1 or more"),
        (torch.ones(4), 2, r"features: got shape \(4,\), expected \(n, D\)"),
        (torch.eye(4).half(), 2, "float16"),
        (torch.eye(4).tolist(), 2, "features: got a list"),
    ],
)
def test_arguments_out_of_range_are_named(features: object, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nearest_neighbours(features, k)


ANY_ROWS = {
    "seed": st.integers(0, 2**32 - 1),
    "n": st.integers(1, 400),
    "dim": st.sampled_from([1, 3, 16, 64, 256]),
    "k": st.integers(1, 60),
    "kind": st.sampled_from(["clustered", "signs"]),
    "low": st.booleans(),
}


def check_lists(seed: int, n: int, dim: int, k: int, kind: str, low: bool) -> None:
    features = clustered_rows(seed, n, dim) if kind == "clustered" else sign_rows(seed, n, dim)
    if kind == "signs" and dim not in (1, 16, 64, 256):
        features = sign_rows(seed, n, 16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "has_bf16_units", lambda: low)
        got = nearest_neighbours(features, k)
    assert np.array_equal(got.numpy(), exact_neighbours(features, min(k, n)))


@needs_extension
@settings(max_examples=10, deadline=None)
@given(**ANY_ROWS)
def test_lists_are_those_of_exact_similarities(
    seed: int, n: int, dim: int, k: int, kind: str, low: bool
) -> None:
    check_lists(seed, n, dim, k, kind, low)


@pytest.mark.slow
@needs_extension
@settings(max_examples=40, deadline=None)
@given(**ANY_ROWS)
def test_lists_are_those_of_exact_similarities_in_many_cases(
    seed: int, n: int, dim: int, k: int, kind: str, low: bool
) -> None:
    check_lists(seed, n, dim, k, kind, low)


@needs_extension
@pytest.mark.parametrize("spread", [1e-4, 1e-3, 1e-2, 0.5])
def test_nearly_equal_rows_are_searched_exactly(product: str, spread: float) -> None:
    features = clustered_rows(1, 1500, 128, spread, clusters=2)
    assert np.array_equal(nearest_neighbours(features, 30).numpy(), exact_neighbours(features, 30))


@needs_extension
def test_many_equal_rows_go_by_their_index(product: str) -> None:
    features = clustered_rows(2, 1000, 96)
    features[200:900] = features[100].clone()
    got = nearest_neighbours(features, 30)
    assert np.array_equal(got.numpy(), reference_neighbours(features.double().numpy(), 30))
    assert got[500].tolist() == [500, 100, *range(200, 228)]


@needs_extension
@pytest.mark.parametrize(("tile", "high"), [(2**12, 64), (2**14, 100), (2**22, 1024)])
def test_lists_depend_neither_on_tiles_nor_on_threads(
    product: str, tile: int, high: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = clustered_rows(3, 1700, 80)
    monkeypatch.setattr(neighbours, "_TILE", tile)
    monkeypatch.setattr(neighbours, "_ROWS", high)
    expected = exact_neighbours(features, 20)
    for threads in (1, 2, 5):
        monkeypatch.setattr(native, "threads", lambda threads=threads: threads)
        assert np.array_equal(nearest_neighbours(features, 20).numpy(), expected)


@needs_extension
def test_rows_of_other_lengths_and_zero_rows_keep_their_order(product: str) -> None:
    features = clustered_rows(4, 600, 64) * torch.linspace(1e-3, 1e3, 600)[:, None]
    features[17] = 0
    assert np.array_equal(nearest_neighbours(features, 12).numpy(), exact_neighbours(features, 12))


@needs_extension
def test_features_that_are_not_finite_are_named(product: str) -> None:
    features = clustered_rows(5, 300, 64)
    features[41, 3] = torch.nan
    features[77, 3] = torch.inf
    with pytest.raises(ValueError, match=r"row 41 is not finite.*\(2 such rows\)"):
        nearest_neighbours(features, 5)


@needs_extension
def test_rows_too_long_for_products_are_named(product: str) -> None:
    features = clustered_rows(5, 300, 64)
    features[7] *= 1.9e19
    with pytest.raises(ValueError, match="row 7 is not finite or far too long"):
        nearest_neighbours(features, 5)


@needs_extension
def test_callers_settings_of_precision_dtype_and_device_do_not_matter(product: str) -> None:
    features = clustered_rows(9, 400, 80)
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


def wrong_neighbours(world: World) -> str:
    features = torch.from_numpy(clustered_features(20, 1, dim=16, seed=20)).float()[
        world.local_slice(20)
    ]
    if world.rank == 1:
        features[2, 0] = torch.nan
    with pytest.raises(ValueError, match="row 9 is not finite") as raised:
        nearest_neighbours(features, 4, world)
    return str(raised.value)


def test_a_row_that_is_not_finite_is_named_by_its_number_over_all_ranks(pool: Pool) -> None:
    assert len(set(pool.run(wrong_neighbours, 3))) == 1
