"""k-medoids on CUDA against the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fastreid_al import native
from fastreid_al.clustering import kmedoids_many
from tests.support.features import clustered_features

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DEVICE = "cuda"


def on_grid(n: int, clusters: int, dim: int = 64) -> Tensor:
    """float32 rows whose dot products are exact in any order; many of them are equal."""
    return torch.from_numpy(np.round(clustered_features(n, clusters, dim) * 32) / 32).float()


def rows_of(sizes: list[int], n: int) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(0)
    return torch.tensor([0, *np.cumsum(sizes)]), torch.from_numpy(rng.integers(0, n, sum(sizes)))


@pytest.mark.parametrize("extension", [True, False], ids=["CUDA part", "Python"])
@pytest.mark.parametrize(
    "sizes", [[1], [74, 9, 30], [300, 5, 40, 1, 2, 64, 64, 165, 170], [700, 20, 20, 20]], ids=str
)
def test_groupings_equal_those_of_the_cpu(
    sizes: list[int], extension: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if extension and native.cuda_extension() is None:
        pytest.skip("the extension has no CUDA part")
    features = on_grid(500, 30)
    indptr, members = rows_of(sizes, 500)
    k_max = torch.tensor([max(1, int((size / 2) ** 0.5)) for size in sizes])
    expected = kmedoids_many(features, indptr, members, k_max, 1)
    if not extension:
        monkeypatch.setattr(native, "extension", lambda: None)
    got = kmedoids_many(
        features.to(DEVICE), indptr.to(DEVICE), members.to(DEVICE), k_max.to(DEVICE), 1
    )
    for name in expected._fields:
        a, b = getattr(expected, name), getattr(got, name)
        assert b.device.type == "cpu"
        torch.testing.assert_close(b, a, rtol=0, atol=1e-9 if a.is_floating_point() else 0)


def test_groupings_repeat_to_the_bit() -> None:
    features = torch.from_numpy(clustered_features(600, 30, 128, spread=0.7)).float().to(DEVICE)
    indptr, members = rows_of([200, 30, 31, 90, 8, 8, 8], 600)
    first = kmedoids_many(features, indptr, members, 2)
    for _ in range(5):
        again = kmedoids_many(features, indptr, members, 2)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_clusters_that_are_too_large_for_the_device_are_grouped_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = native.cuda_extension()
    if module is None:
        pytest.skip("the extension has no CUDA part")
    assert module.kmedoids_cuda_max_points(12) > 1000
    features = on_grid(80, 6)
    indptr, members = rows_of([60, 20], 80)
    expected = kmedoids_many(features.to(DEVICE), indptr, members, 4)
    monkeypatch.setattr(module, "kmedoids_cuda_max_points", lambda k: 30)
    got = kmedoids_many(features.to(DEVICE), indptr, members, 4)
    assert torch.equal(expected.labels, got.labels)
    assert torch.equal(expected.medoids, got.medoids)


def test_a_row_that_is_not_finite_is_named_on_the_device() -> None:
    features = torch.eye(6, device=DEVICE)
    features[4, 1] = torch.nan
    with pytest.raises(ValueError, match="row 4 that is not finite"):
        kmedoids_many(features, torch.tensor([0, 6]), torch.arange(6), 2)


@pytest.mark.parametrize("rule", ["paper", "root"])
def test_the_same_splits_are_proposed_as_on_the_cpu(rule: str) -> None:
    pytest.importorskip("sqlalchemy")
    from fastreid_al.active import propose_splits

    features = on_grid(900, 20)
    labels = torch.from_numpy(np.random.default_rng(1).integers(-1, 12, 900))
    expected, got = (
        propose_splits(features, labels, rule),
        propose_splits(features.to(DEVICE), labels.to(DEVICE), rule),
    )
    assert len(expected) == len(got) > 0
    for a, b in zip(expected, got, strict=True):
        assert a.images == b.images
        assert all(torch.equal(x, y) for x, y in zip(a.groups, b.groups, strict=True))
