"""Ranking and re-ranking on CUDA against the CPU, and their memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fastreid_al.metrics import Ranking, rank_gallery, ranking, rerank_gallery, reranking
from tests.support.features import clustered_features

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
Case = tuple[Tensor, ...]


def case(rows: Tensor, queries: int, identities: int) -> Case:
    random = np.random.default_rng(0)
    ids, cameras = (
        torch.from_numpy(random.integers(-1, most, len(rows))) for most in (identities, 4)
    )
    return tuple(
        x[side] for side in (slice(queries), slice(queries, None)) for x in (rows, ids, cameras)
    )


def coarse(n: int) -> Tensor:
    """Unit-norm rows whose products are exact and often equal."""
    return torch.from_numpy(np.random.default_rng(0).choice([-0.25, 0.25], (n, 16))).float()


def on_gpu(given: Case) -> Case:
    return tuple(x.cuda() for x in given)


def assert_same(got: Ranking, expected: Ranking) -> None:
    assert (got.queries, got.skipped) == (expected.queries, expected.skipped)
    assert got.mAP == pytest.approx(expected.mAP, abs=1e-12)
    assert got.mINP == pytest.approx(expected.mINP, abs=1e-12)
    assert torch.equal(got.cmc, expected.cmc)


@pytest.mark.parametrize("few", [1, 128])
@pytest.mark.parametrize("identities", [1, 5, 300])
def test_counted_positions_are_those_of_the_cpu_including_ties(
    few: int, identities: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = case(coarse(9_000), 700, identities)
    expected = rank_gallery(*given)
    for name, value in (
        ("_FEW", few),
        ("_BLOCK_GPU", 2**20),
        ("_COUNTED_GPU", 2**16),
        ("_TILE", 1_000),
    ):
        monkeypatch.setattr(ranking, name, value)
    assert_same(rank_gallery(*on_gpu(given)), expected)


def test_products_do_not_use_tf32() -> None:
    given = on_gpu(case(torch.from_numpy(clustered_features(3_000, 60, dim=128)).float(), 400, 60))
    expected = rank_gallery(*given)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert_same(rank_gallery(*given), expected)
    finally:
        torch.set_float32_matmul_precision(before)


def test_reranking_equals_that_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    given = case(torch.from_numpy(clustered_features(2_500, 90, spread=1.2)), 300, 90)
    expected = rerank_gallery(*given)
    monkeypatch.setattr(reranking, "_BLOCK_GPU", 2**18)
    got = rerank_gallery(*on_gpu(given))
    assert (got.queries, got.skipped) == (expected.queries, expected.skipped)
    # Weights and products are summed in a different order, so their last bits differ.
    assert got.mAP == pytest.approx(expected.mAP, abs=1e-4)
    assert got.mINP == pytest.approx(expected.mINP, abs=1e-4)


def test_a_gallery_of_msmt17_takes_less_than_two_gigabytes() -> None:
    queries, gallery, identities = 11_659, 82_161, 3_060
    rows = torch.nn.functional.normalize(torch.randn(queries + gallery, 64, device="cuda"))
    ids = torch.randint(identities, (len(rows),), device="cuda")
    cameras = torch.randint(15, (len(rows),), device="cuda")
    given = tuple(
        x[side].clone()
        for side in (slice(queries), slice(queries, None))
        for x in (rows, ids, cameras)
    )
    del rows, ids, cameras
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    got = rank_gallery(*given)
    assert got.queries > 11_000
    assert torch.cuda.max_memory_allocated() - before < 2e9
