"""Ranking a gallery: the library's blocks of queries beside the whole similarity matrix and a sort per query in NumPy."""

from __future__ import annotations

import harness
import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from fastreid_al.metrics import rank_gallery

#: Queries, gallery images, width, cameras.
SIZES = {
    "small": [(500, 3_000, 512, 6)],
    "market": [(3_368, 15_913, 512, 6)],
    "msmt17": [(11_659, 82_161, 512, 15)],
}


def make(device: str, queries: int, gallery: int, dim: int, cameras: int) -> tuple[Tensor, ...]:
    features, identities = harness.planted_features(queries + gallery, dim)
    seen_by = torch.randint(cameras, (queries + gallery,), generator=torch.Generator().manual_seed(0))
    features = features.to(device)
    if device == "cuda":
        features[:64] @ features[:64].T  # starts cuBLAS, which is no part of the work
    # Copies, because slices would keep the other side's memory out of the count or in it.
    split = (slice(None, queries), slice(queries, None))
    return tuple(part[side].clone() for side in split for part in (features, identities, seen_by))


def blocks(qf: Tensor, qi: Tensor, qc: Tensor, gf: Tensor, gi: Tensor, gc: Tensor) -> float:
    return rank_gallery(qf, qi, qc, gf, gi, gc).mAP


def full_matrix(qf: Tensor, qi: Tensor, qc: Tensor, gf: Tensor, gi: Tensor, gc: Tensor) -> float:
    similarity = (qf @ gf.T).cpu().numpy()
    query_ids, query_cameras, gallery_ids, gallery_cameras = (t.numpy() for t in (qi, qc, gi, gc))
    precisions = []
    for q in range(len(similarity)):
        order = np.argsort(-similarity[q], kind="stable")
        match = gallery_ids[order] == query_ids[q]
        hits = np.flatnonzero(match[~(match & (gallery_cameras[order] == query_cameras[q]))])
        if len(hits):
            precisions.append((np.arange(1, len(hits) + 1) / (hits + 1)).mean())
    return float(np.mean(precisions))


@pytest.mark.parametrize("form", ["blocks", "full matrix"])
def test_ranking(
    benchmark: BenchmarkFixture, size: tuple[int, int, int, int], form: str, device: str, rounds: int
) -> None:
    queries, gallery, dim, _ = size
    benchmark.group = f"ranking, {queries:,} x {gallery:,} x {dim}"
    call, inputs = {"blocks": blocks, "full matrix": full_matrix}[form], harness.Inputs(make, size)
    slow = form == "full matrix" and gallery > 10_000
    found = harness.measure(benchmark, call, inputs, device, n=gallery, dim=dim, rounds=1 if slow else rounds)
    benchmark.extra_info.update(queries=queries, mAP=found)
    if form == "full matrix":
        assert abs(found - blocks(*make(device, *size))) < 1e-6
