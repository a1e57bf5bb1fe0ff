"""Pseudo-labels of one epoch: neighbours, Jaccard distance, three times DBSCAN, self-paced selection.

The sparse form of the library beside the dense form in which re-id code bases publish it (n x n arrays in float32, loops over
images, scikit-learn's DBSCAN on the precomputed distances, the reliability test on n x n label similarities).
"""

from __future__ import annotations

import harness
import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from fastreid_al.clustering import jaccard_graph, self_paced_labels

try:
    from sklearn.cluster import DBSCAN
except ImportError:
    DBSCAN = None

SIZES = {"small": [(2_000, 512), (5_000, 512)], "market": [(12_936, 512)], "msmt17": [(32_621, 2_048)]}
#: Past this many images the dense form is left out: at MSMT17 size its reliability test alone holds five arrays n x n,
#: which is 21 GB.
DENSE_UP_TO = 13_000
#: Up to this many images the two forms must agree; there the comparison costs next to nothing.
COMPARE_UP_TO = 5_000

K1, K2, MIN_SAMPLES = 30, 6, 4
EPS, TIGHT, LOOSE = 0.60, 0.60 - 0.02, 0.60 + 0.02


def make(device: str, n: int, dim: int) -> tuple[Tensor]:
    features = harness.planted_features(n, dim)[0].to(device)
    if device == "cuda":
        features[:64] @ features[:64].T  # starts cuBLAS, which is no part of the work
    return (features,)


def sparse(features: Tensor) -> Tensor:
    return self_paced_labels(jaccard_graph(features, K1, K2, LOOSE))[0]


def dense(features: Tensor) -> Tensor:
    distance = dense_jaccard(features)
    usual, tight, loose = (
        DBSCAN(eps=eps, min_samples=MIN_SAMPLES, metric="precomputed", n_jobs=-1).fit_predict(distance)
        for eps in (EPS, TIGHT, LOOSE)
    )
    del distance
    return dense_selection(*(with_singletons(labels) for labels in (usual, tight, loose)))


def dense_jaccard(features: Tensor) -> np.ndarray:
    """The k-reciprocal Jaccard distance, (n, n) float32."""
    similarity = (features @ features.T).cpu()
    n = len(similarity)
    ranks = dense_ranks(similarity)
    full = [reciprocal(ranks, i, K1) for i in range(n)]
    halves = [reciprocal(ranks, i, round(K1 / 2) + 1) for i in range(n)]

    weights = np.zeros((n, n), dtype=np.float32)
    for i in range(n):
        expanded = full[i]
        for q in full[i]:
            if 3 * len(np.intersect1d(halves[q], full[i])) > 2 * len(halves[q]):
                expanded = np.append(expanded, halves[q])
        support = np.unique(expanded)
        weights[i, support] = torch.softmax(2 * similarity[i, support] - 2, 0).numpy()
    del similarity
    averaged = np.zeros_like(weights)
    for i in range(n):
        averaged[i] = weights[ranks[i, :K2]].mean(axis=0)
    del weights

    # As published: only the rows that share a column with row i are visited, whole rows of sums are kept.
    having = [np.flatnonzero(averaged[:, t]) for t in range(n)]
    distance = np.zeros((n, n), dtype=np.float32)
    for i in range(n):
        overlap = np.zeros(n, dtype=np.float32)
        for t in np.flatnonzero(averaged[i]):
            overlap[having[t]] += np.minimum(averaged[i, t], averaged[having[t], t])
        distance[i] = 1 - overlap / (2 - overlap)
    return np.maximum(distance, 0, out=distance)


def dense_ranks(similarity: Tensor) -> np.ndarray:
    """The K1 nearest of each image, itself first, ties to the lowest index, (n, K1)."""
    n = len(similarity)
    own = similarity.diagonal().clone()
    similarity.fill_diagonal_(torch.inf)
    # A few more than asked for, so that ties at the end of the list are all seen.
    candidates = similarity.topk(min(K1 + 8, n), dim=1).indices.sort(dim=1).values
    order = similarity.gather(1, candidates).sort(dim=1, descending=True, stable=True).indices
    similarity.diagonal().copy_(own)
    return candidates.gather(1, order)[:, :K1].numpy()


def reciprocal(ranks: np.ndarray, i: int, k: int) -> np.ndarray:
    """R(i, k), ascending."""
    forward = ranks[i, :k]
    return np.sort(forward[(ranks[forward, :k] == i).any(axis=1)])


def with_singletons(labels: np.ndarray) -> Tensor:
    """Noise becomes clusters of one image."""
    noise = labels == -1
    labels[noise] = labels.max() + 1 + np.arange(noise.sum())
    return torch.from_numpy(labels.astype(np.int64))


def dense_selection(usual: Tensor, tight: Tensor, loose: Tensor) -> Tensor:
    """Self-paced selection as published, over n x n label similarities in float32."""
    same, same_tight, same_loose = ((labels[:, None] == labels).float() for labels in (usual, tight, loose))
    r_comp = 1 - torch.min(same, same_tight).sum(-1) / torch.max(same, same_tight).sum(-1)
    r_indep = 1 - torch.min(same, same_loose).sum(-1) / torch.max(same, same_loose).sum(-1)
    members = [(usual == c).nonzero()[:, 0] for c in range(int(usual.max()) + 1)]
    independence = [float(r_indep[m].min()) for m in members]
    several = sorted(value for value, m in zip(independence, members, strict=True) if len(m) > 1)
    labels = torch.full_like(usual, -1)
    if not several:
        return labels
    threshold = several[min(round(0.9 * len(several)), len(several) - 1)]
    clusters = [
        m[r_comp[m] <= r_comp[m].min()] for value, m in zip(independence, members, strict=True) if value <= threshold
    ]
    clusters = sorted((kept for kept in clusters if len(kept) > 1), key=lambda kept: int(kept[0]))
    for number, kept in enumerate(clusters):
        labels[kept] = number
    return labels


@pytest.mark.parametrize("form", ["sparse", "dense"])
def test_pseudo_labels(benchmark: BenchmarkFixture, size: tuple[int, int], form: str, device: str, rounds: int) -> None:
    n, dim = size
    if form == "dense" and DBSCAN is None:
        pytest.skip("scikit-learn is not installed; the dense form needs its DBSCAN")
    if form == "dense" and n > DENSE_UP_TO:
        pytest.skip(f"the dense form needs some {5 * 4 * n * n / 1e9:.0f} GB at n = {n:,}")
    benchmark.group = f"pseudo-labels, {n:,} x {dim}"
    call, inputs = {"sparse": sparse, "dense": dense}[form], harness.Inputs(make, size)
    slow = form == "dense"
    labels = harness.measure(benchmark, call, inputs, device, n=n, dim=dim, rounds=1 if slow else rounds)
    benchmark.extra_info["clusters"] = int(labels.max()) + 1
    if slow and n <= COMPARE_UP_TO:
        assert torch.equal(labels, sparse(*make(device, *size)))
