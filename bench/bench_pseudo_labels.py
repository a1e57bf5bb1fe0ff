"""Pseudo-labels of one epoch: neighbours, Jaccard distance, DBSCAN three times, selection.

The library is compared with the dense form in which re-id code bases publish these steps: n x n
arrays in float32, loops over images, scikit-learn's DBSCAN on the precomputed distances, the
reliability test on label similarities of every pair. The loops are as published, but values that
they compute repeatedly are computed once. It holds two n x n arrays at a time; its reliability
test, which holds five as published, runs in blocks of rows. If both forms run, their labels must be
equal.
"""

from __future__ import annotations

import functools
import os

import harness
import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from fastreid_al.clustering import jaccard_graph, nearest_neighbours, self_paced_labels
from fastreid_al.metrics import pair_scores
from fastreid_al.synthetic import planted_partition

try:
    from sklearn.cluster import DBSCAN
except ImportError:
    DBSCAN = None

SIZES = {
    "tiny": [(40, 16)],
    "small": [(2_000, 512), (5_000, 512)],
    "market": [(12_936, 512)],
    "msmt17": [(32_668, 512), (32_621, 2_048)],
    "million": [(200_000, 256), (1_000_000, 512)],
}
#: The most images for the dense form, which runs on the CPU for features on any device.
DENSE_UP_TO = {"cpu": 33_000, "cuda": 13_000}
#: n x n float32 arrays that must fit in memory for it: its two, and one for everything else.
DENSE_ARRAYS = 3
#: The most images for exact neighbours on a CPU; a million take too long.
EXACT_ON_CPU_UP_TO = 200_000
#: From this number of images on, one round is enough.
ONE_ROUND_FROM = 100_000
#: Rows of the label similarities that exist at a time.
BLOCK = 1_024

K1, K2, MIN_SAMPLES = 30, 6, 4
HALF = round(K1 / 2) + 1
EPS, TIGHT, LOOSE = 0.60, 0.60 - 0.02, 0.60 + 0.02


def make(device: str, n: int, dim: int) -> tuple[Tensor]:
    """Rows with exact products, so that both forms see the same similarities.

    A small run warms up imports, compilation and threads.
    """
    features = planted_partition(n, dim, exact=True).features.to(device)
    ours(features[:2_000])
    return (features,)


def ours(features: Tensor) -> Tensor:
    return self_paced_labels(jaccard_graph(features, K1, K2, LOOSE))[0]


def parts(features: Tensor) -> dict[str, float]:
    """Seconds of each part of `ours`."""
    neighbours, neighbours_s = harness.clocked(nearest_neighbours, features, K1)
    graph, graph_s = harness.clocked(
        functools.partial(jaccard_graph, neighbours=neighbours), features, K1, K2, LOOSE
    )
    clusters_s = harness.clocked(self_paced_labels, graph)[1]
    return {"neighbours_s": neighbours_s, "graph_s": graph_s, "clusters_s": clusters_s}


def dense(features: Tensor) -> Tensor:
    distance = dense_jaccard(features)
    usual, tight, loose = (
        DBSCAN(
            eps=eps, min_samples=MIN_SAMPLES, metric="precomputed", n_jobs=torch.get_num_threads()
        ).fit_predict(distance)
        for eps in (EPS, TIGHT, LOOSE)
    )
    del distance
    return dense_selection(*(with_singletons(labels) for labels in (usual, tight, loose)))


def dense_jaccard(features: Tensor) -> np.ndarray:
    """The k-reciprocal Jaccard distance, (n, n) float32.

    Single rows are computed in float64, which costs little, so that no label depends on the order
    of a sum.
    """
    similarity = (features @ features.T).cpu()
    neighbours = dense_neighbours(similarity)
    weights = dense_weights(similarity.numpy(), neighbours)
    del similarity
    averaged = np.empty_like(weights)
    for i, first in enumerate(neighbours[:, :K2]):
        averaged[i] = weights[first].mean(axis=0)
    del weights

    # As published: only rows that share a column with row i are visited; whole rows of sums are
    # kept.
    n = len(averaged)
    rows, columns = np.nonzero(averaged)
    order = np.argsort(columns, kind="stable")
    ends = np.cumsum(np.bincount(columns, minlength=n))[:-1]
    having = np.split(rows[order], ends)
    values = np.split(averaged[rows[order], columns[order]], ends)
    supports = np.split(columns, np.cumsum(np.bincount(rows, minlength=n))[:-1])
    del rows, columns, order
    distance = np.empty((n, n), dtype=np.float32)
    for i, support in enumerate(supports):
        overlap = np.zeros(n)
        for t in support:
            overlap[having[t]] += np.minimum(averaged[i, t], values[t])
        distance[i] = 1 - overlap / (2 - overlap)
    return np.maximum(distance, 0, out=distance)


def dense_neighbours(similarity: Tensor) -> np.ndarray:
    """The K1 nearest of each image, itself first, ties to the lowest index, (n, K1)."""
    n = len(similarity)
    own = similarity.diagonal().clone()
    similarity.fill_diagonal_(torch.inf)
    # A few more than K1, so that all ties at the end of the list are included.
    candidates = similarity.topk(min(K1 + 8, n), dim=1).indices.sort(dim=1).values
    order = similarity.gather(1, candidates).sort(dim=1, descending=True, stable=True).indices
    similarity.diagonal().copy_(own)
    return candidates.gather(1, order)[:, :K1].numpy()


def dense_weights(similarity: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    """Softmax over the expanded k-reciprocal neighbours of each image, (n, n) float32."""
    n = len(neighbours)
    full, halves = reciprocal(neighbours, K1), reciprocal(neighbours, HALF)
    inside = np.zeros(n, dtype=bool)
    weights = np.zeros((n, n), dtype=np.float32)
    for i in range(n):
        near = neighbours[i, full[i]]
        theirs, counted = neighbours[near, :HALF], halves[near]
        inside[near] = True
        agree = 3 * (inside[theirs] & counted).sum(axis=1) > 2 * counted.sum(axis=1)
        inside[near] = False
        support = np.union1d(near, theirs[agree][counted[agree]])
        exponential = np.exp(2 * similarity[i, support].astype(np.float64) - 2)
        weights[i, support] = exponential / exponential.sum()
    return weights


def reciprocal(neighbours: np.ndarray, k: int) -> np.ndarray:
    """Which of the first k of each image have the image among their first k, (n, k) bool."""
    return np.stack(
        [(neighbours[first, :k] == i).any(axis=1) for i, first in enumerate(neighbours[:, :k])]
    )


def with_singletons(labels: np.ndarray) -> Tensor:
    """Noise becomes clusters of one image."""
    noise = labels == -1
    labels[noise] = labels.max() + 1 + np.arange(noise.sum())
    return torch.from_numpy(labels.astype(np.int64))


def dense_selection(usual: Tensor, tight: Tensor, loose: Tensor) -> Tensor:
    """Self-paced selection from float32 label similarities of all pairs, by blocks of rows."""
    blocks = range(0, len(usual), BLOCK)
    r_comp, r_indep = (
        torch.cat([1 - overlap(usual, others, slice(start, start + BLOCK)) for start in blocks])
        for others in (tight, loose)
    )
    members = usual.argsort(stable=True).split(usual.bincount().tolist())
    independence = [float(r_indep[m].min()) for m in members]
    several = sorted(value for value, m in zip(independence, members, strict=True) if len(m) > 1)
    labels = torch.full_like(usual, -1)
    if not several:
        return labels
    threshold = several[min(round(0.9 * len(several)), len(several) - 1)]
    clusters = [
        m[r_comp[m] <= r_comp[m].min()]
        for value, m in zip(independence, members, strict=True)
        if value <= threshold
    ]
    clusters = sorted((kept for kept in clusters if len(kept) > 1), key=lambda kept: int(kept[0]))
    for number, kept in enumerate(clusters):
        labels[kept] = number
    return labels


def overlap(labels: Tensor, others: Tensor, rows: slice) -> Tensor:
    """IoU of the clusters of some images in two labellings."""
    same = (labels[rows, None] == labels).float()
    same_others = (others[rows, None] == others).float()
    return torch.min(same, same_others).sum(-1) / torch.max(same, same_others).sum(-1)


def skip_what_cannot_run(form: str, device: str, n: int) -> None:
    if form == "ours":
        if device == "cpu" and n > EXACT_ON_CPU_UP_TO:
            pytest.skip(f"exact neighbours of {n:,} images take too long on a CPU")
        return
    if DBSCAN is None:
        pytest.skip("scikit-learn is not installed; the dense form needs its DBSCAN")
    if n > DENSE_UP_TO[device]:
        pytest.skip(f"the dense form at n = {n:,}: its arrays have {4 * n * n / 1e9:.0f} GB each")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if DENSE_ARRAYS * 4 * n * n > memory:
        pytest.skip(
            f"the dense form needs {DENSE_ARRAYS * 4 * n * n / 1e9:.0f} GB, "
            f"this machine has {memory / 1e9:.0f} GB"
        )


FORMS = {"ours": ours, "dense": dense}


@pytest.mark.parametrize("form", FORMS)
def test_pseudo_labels(
    benchmark: BenchmarkFixture, size: tuple[int, int], form: str, device: str, rounds: int
) -> None:
    n, dim = size
    skip_what_cannot_run(form, device, n)
    benchmark.group = f"pseudo-labels, {n:,} x {dim:,}"
    if form == "dense" or n >= ONE_ROUND_FROM:
        rounds = 1
    labels = harness.measure(
        benchmark, FORMS[form], harness.Inputs(make, size), device, n=n, dim=dim, rounds=rounds
    )
    # The identities do not depend on the width.
    scores = pair_scores(labels.cpu(), planted_partition(n, 1).identities)
    benchmark.extra_info.update(
        step="pseudo-labels", form=form, clusters=int(labels.max()) + 1, **scores._asdict()
    )
    if form == "dense":
        differing = int((labels != ours(*make(device, *size)).cpu()).sum())
        benchmark.extra_info["labels_differing"] = differing
        assert differing == 0, f"{differing} of {n} labels differ from ours"
    elif not benchmark.disabled:
        benchmark.extra_info.update(parts(*make(device, *size)))
