"""Nearest neighbours of all images: ours, exact FAISS, and an inverted file with its recall."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import harness
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from fastreid_al.clustering import nearest_neighbours
from fastreid_al.synthetic import planted_partition

SIZES = {
    "tiny": [(40, 16)],
    "small": [(5_000, 512)],
    "market": [(12_936, 512)],
    "msmt17": [(32_668, 512), (32_621, 2_048)],
    "million": [(200_000, 256), (1_000_000, 512)],
}
K = 30
#: The most images for exact neighbours on a CPU; a million take too long.
EXACT_ON_CPU_UP_TO = 200_000
#: Images whose neighbours are compared with the exact ones.
COMPARED = 256


def make(device: str, n: int, dim: int) -> tuple[Tensor]:
    """Rows with exact products: every exact search finds the same similarities to the bit."""
    features = planted_partition(n, dim, exact=True).features.to(device)
    nearest_neighbours(features[:2_000], K)
    return (features,)


def ours(features: Tensor) -> tuple[Tensor]:
    return (nearest_neighbours(features, K),)


def faiss_flat(features: Tensor) -> tuple[Tensor]:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(features.shape[1])
    index.add(features.numpy())
    return (torch.from_numpy(index.search(features.numpy(), K)[1]),)


def inverted_file(features: Tensor) -> tuple[Tensor, float]:
    approximate = importlib.import_module("fastreid_al.clustering.ivf")
    neighbours, recall = approximate.ivf_neighbours(features, K)
    return neighbours, recall


FORMS = {"ours": ours, "faiss flat": faiss_flat, "ivf": inverted_file}


@functools.lru_cache(maxsize=1)
def expected(n: int, dim: int) -> tuple[Tensor, Tensor]:
    """Similarities of some images to all, and their K nearest, the image itself first.

    Ties go to the lowest index.
    """
    features = planted_partition(n, dim, exact=True).features
    rows = torch.arange(COMPARED) * (n // COMPARED)
    similarity = features[rows] @ features.T
    similarity[torch.arange(COMPARED), rows] = 2
    return similarity, similarity.sort(dim=1, descending=True, stable=True).indices[:, :K]


@pytest.mark.parametrize("form", FORMS)
def test_neighbours(
    benchmark: BenchmarkFixture, size: tuple[int, int], form: str, device: str, rounds: int
) -> None:
    n, dim = size
    if form != "ours":
        pytest.importorskip("faiss", reason="FAISS is not installed")
        if device == "cuda":
            pytest.skip("faiss-cpu runs on a CPU only")
    if form == "ivf":
        pytest.importorskip("fastreid_al.clustering.ivf", reason="this version has no ivf")
    elif device == "cpu" and n > EXACT_ON_CPU_UP_TO:
        pytest.skip(f"exact neighbours of {n:,} images take too long on a CPU")
    benchmark.group = f"neighbours, {n:,} x {dim:,}, k = {K}"
    found: tuple[Any, ...] = harness.measure(
        benchmark, FORMS[form], harness.Inputs(make, size), device, n=n, dim=dim, rounds=rounds
    )
    similarity, nearest = expected(*size)
    neighbours = found[0].cpu()[torch.arange(COMPARED) * (n // COMPARED)].long()
    if form == "ours":
        assert torch.equal(neighbours, nearest)
    elif form == "faiss flat":
        # FAISS does not specify the order of ties.
        assert torch.equal(
            similarity.gather(1, neighbours).sort(dim=1, descending=True).values,
            similarity.gather(1, nearest),
        )
    else:
        common = (neighbours[:, :, None] == nearest[:, None, :]).any(2)
        benchmark.extra_info.update(
            recall=found[1], recall_of_compared=float(common.double().mean())
        )
        assert torch.equal(neighbours[:, 0], nearest[:, 0])
