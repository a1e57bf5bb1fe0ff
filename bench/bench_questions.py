"""One round of UCAL's questions on clusters that mix two identities: SNPS and MPPS.

SNPS is also measured with FasterPAM of the `kmedoids` package, which a user would choose for
k-medoids. FasterPAM starts at random and ends in another local optimum, so only its time is
compared.
"""

from __future__ import annotations

import math

import harness
import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from fastreid_al.active import propose_merges, propose_splits
from fastreid_al.active.snps import rows_by_cluster

try:
    import kmedoids
except ImportError:
    kmedoids = None

SIZES = {
    "tiny": [(200, 16)],
    "small": [(3_000, 512)],
    "market": [(12_936, 2_048)],
    "msmt17": [(32_621, 2_048)],
}


def make(device: str, n: int, dim: int) -> tuple[Tensor, Tensor]:
    features, identities = harness.planted_features(n, dim)
    return features.to(device), identities // 2


def splits(features: Tensor, labels: Tensor) -> int:
    return len(propose_splits(features, labels, "root"))


def merges(features: Tensor, labels: Tensor) -> int:
    return len(propose_merges(features, labels))


def splits_with_fasterpam(features: Tensor, labels: Tensor) -> int:
    questions = 0
    for members in rows_by_cluster(labels):
        k_max = math.floor(math.sqrt(len(members) / 2))
        if k_max < 2:
            continue
        rows = features[members.to(features.device)].cpu().double()
        similarity = (rows @ rows.T).numpy()
        found = [
            np.asarray(kmedoids.fasterpam(1 - similarity, k, random_state=0).labels)
            for k in range(2, k_max + 1)
        ]
        questions += math.comb(
            2 + int(np.argmax([reliability(similarity.clip(0, 1), g) for g in found])), 2
        )
    return questions


def reliability(similarity: np.ndarray, groups: np.ndarray) -> float:
    """Eq. 4: the sum of comp * indep over groups."""
    total = 0.0
    for j in range(groups.max() + 1):
        own = similarity[groups == j]
        inside = own[:, groups == j]
        total += (inside.min() if len(inside) > 1 else 1.0) * (1 - own[:, groups != j].max())
    return total


@pytest.mark.parametrize("form", ["splits", "splits, FasterPAM", "merges"])
def test_questions(
    benchmark: BenchmarkFixture, size: tuple[int, int], form: str, device: str, rounds: int
) -> None:
    n, dim = size
    if form == "splits, FasterPAM" and kmedoids is None:
        pytest.skip("the kmedoids package is not installed; it is the peer here")
    benchmark.group = f"questions, {n:,} x {dim}"
    call = {"splits": splits, "splits, FasterPAM": splits_with_fasterpam, "merges": merges}[form]
    found = harness.measure(
        benchmark, call, harness.Inputs(make, size), device, n=n, dim=dim, rounds=rounds
    )
    benchmark.extra_info["questions"] = found
    assert found > 0
