"""SNPS on clusters of uneven sizes: k-medoids for every k, scores of the groupings, questions.

"groupings" is compared with FasterPAM of the `kmedoids` package in the loop that a user would
write: the same float64 similarities and scores, no questions. FasterPAM starts at random, so its
groupings differ; tests/clustering compares their losses. "splits" includes the questions.
"""

from __future__ import annotations

import itertools
import math

import harness
import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from fastreid_al.active import propose_splits
from fastreid_al.active.snps import rows_by_cluster
from fastreid_al.clustering import kmedoids_many

try:
    import kmedoids
except ImportError:
    kmedoids = None

#: Clusters, images in them, dimensions.
SIZES = {
    "tiny": [(4, 200, 16)],
    "small": [(150, 3_000, 512)],
    "market": [(600, 12_936, 2_048)],
    "msmt17": [(1_500, 32_621, 2_048)],
}
LEAST, MOST = 4, 300


def make(device: str, count: int, n: int, dim: int, rule: str) -> tuple[Tensor, Tensor, str]:
    """Clusters of 4 to 300 images, half of them with fewer than 14.

    A cluster holds neighbouring identities, some of them only in part.
    """
    features, identities = harness.planted_features(n, dim)
    random = np.random.default_rng(0)
    sizes = np.clip(
        np.round(random.lognormal(math.log(n / count) - 0.5, 1.0, count)), LEAST, MOST
    ).astype(np.int64)
    while excess := int(sizes.sum()) - n:
        free = np.flatnonzero((sizes > LEAST) & (sizes < MOST))
        sizes[random.choice(free, min(abs(excess), len(free)), replace=False)] -= int(
            np.sign(excess)
        )
    labels = torch.empty(n, dtype=torch.int64)
    labels[identities.argsort(stable=True)] = torch.arange(count).repeat_interleave(
        torch.from_numpy(sizes)
    )
    return features.to(device), labels.to(device), rule


def splits(features: Tensor, labels: Tensor, rule: str) -> int:
    return len(propose_splits(features, labels, "root" if rule == "root" else "paper"))


def groupings(features: Tensor, labels: Tensor, rule: str) -> int:
    parts = [
        (m, math.floor(math.sqrt(len(m) / 2) / (1 if rule == "root" else 2)))
        for m in rows_by_cluster(labels)
    ]
    parts = [(m, k_max) for m, k_max in parts if k_max >= 2]
    members, k_max = [m for m, _ in parts], torch.tensor([k for _, k in parts])
    indptr = torch.tensor([0, *itertools.accumulate(map(len, members))])
    found = kmedoids_many(features, indptr, torch.cat(members), k_max)
    return sum(math.comb(k, 2) for k in found.k.tolist())


def groupings_with_fasterpam(features: Tensor, labels: Tensor, rule: str) -> int:
    questions = 0
    for members in rows_by_cluster(labels):
        k_max = math.floor(math.sqrt(len(members) / 2) / (1 if rule == "root" else 2))
        if k_max < 2:
            continue
        rows = features[members.to(features.device)].double()
        similarity = (rows @ rows.T).cpu().numpy()
        distances, clamped = 1 - similarity, similarity.clip(0, 1)
        found = [
            kmedoids.fasterpam(distances, k, random_state=0).labels for k in range(2, k_max + 1)
        ]
        scores = [score(clamped, labels, k) for k, labels in enumerate(found, 2)]
        questions += math.comb(2 + int(np.argmax(scores)), 2)
    return questions


def score(similarity: np.ndarray, labels: np.ndarray, k: int) -> float:
    """UCAL, Eq. 4; the images are sorted by group, so that extremes are reduced by ranges."""
    sizes = np.bincount(labels, minlength=k)
    order = np.argsort(labels, kind="stable")
    starts = np.cumsum(sizes) - sizes
    rows = similarity[order]
    inside = np.minimum.reduceat(
        np.minimum.reduceat(rows[:, order], starts, axis=0), starts, axis=1
    ).diagonal()
    outside = np.maximum.reduceat(
        np.maximum.reduceat(rows[:, order], starts, axis=0), starts, axis=1
    )
    np.fill_diagonal(outside, 0)
    return float((np.where(sizes > 1, inside, 1) * (1 - outside.max(1))).sum())


@pytest.mark.parametrize("rule", ["root", "paper"])
@pytest.mark.parametrize("form", ["splits", "groupings", "groupings, FasterPAM"])
def test_kmedoids(
    benchmark: BenchmarkFixture,
    size: tuple[int, int, int],
    form: str,
    rule: str,
    device: str,
    rounds: int,
) -> None:
    if form == "groupings, FasterPAM" and kmedoids is None:
        pytest.skip("the kmedoids package is not installed")
    count, n, dim = size
    benchmark.group = f"SNPS, {count:,} clusters of {n:,} x {dim}, k_max_rule {rule}"
    call = {"splits": splits, "groupings": groupings}.get(form, groupings_with_fasterpam)
    inputs = harness.Inputs(make, (*size, rule))
    found = harness.measure(
        benchmark, call, inputs, device, n=n, dim=dim, rounds=max(rounds, 5), warmup=1
    )
    benchmark.extra_info.update(step="SNPS", form=form, rule=rule, questions=found)
    assert found > 0
