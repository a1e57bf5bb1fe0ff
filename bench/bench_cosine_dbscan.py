"""DBSCAN on cosine distance: ours, scikit-learn on a CPU and cuML on a GPU.

The peers cluster unit-norm rows by Euclidean distance, whose square is twice the cosine distance.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import harness
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from fastreid_al import clustering
from fastreid_al.metrics import pair_scores
from fastreid_al.synthetic import planted_partition

SIZES = {
    "tiny": [(60, 16)],
    "small": [(2_000, 512), (5_000, 512)],
    "market": [(12_936, 512)],
    "msmt17": [(32_668, 512), (32_621, 2_048)],
    "million": [(200_000, 256), (1_000_000, 512)],
}
#: The most images on a CPU; a million take too long.
ON_CPU_UP_TO = 200_000
EPS, MIN_SAMPLES = 0.35, 4
#: Least F1 over pairs of images between two forms: a distance may round to either side of the
#: radius.
AGREEMENT = 0.999

cosine_dbscan: Callable[..., Tensor] | None = getattr(clustering, "cosine_dbscan", None)


def make(device: str, n: int, dim: int) -> tuple[Tensor]:
    features = planted_partition(n, dim, spread=0.7, camera_shift=0.2).features.to(device)
    ours(features[:2_000])
    return (features,)


def ours(features: Tensor) -> Tensor:
    assert cosine_dbscan is not None
    return cosine_dbscan(features, EPS)


def scikit_learn(features: Tensor) -> Tensor:
    from sklearn.cluster import DBSCAN

    cluster = DBSCAN(
        eps=math.sqrt(2 * EPS),
        min_samples=MIN_SAMPLES,
        algorithm="brute",
        n_jobs=torch.get_num_threads(),
    )
    return torch.from_numpy(cluster.fit_predict(features.numpy()))


def cuml(features: Tensor) -> Tensor:
    import cupy
    from cuml.cluster import DBSCAN

    cluster = DBSCAN(eps=math.sqrt(2 * EPS), min_samples=MIN_SAMPLES, metric="euclidean")
    return torch.as_tensor(cupy.asnumpy(cluster.fit_predict(cupy.asarray(features))))


FORMS = {"ours": ours, "scikit-learn": scikit_learn, "cuml": cuml}
PACKAGES = {"scikit-learn": "sklearn", "cuml": "cuml"}


@functools.lru_cache(maxsize=1)
def expected(device: str, n: int, dim: int) -> Tensor:
    """Our labels, with each noise image as a class of its own."""
    labels = ours(*make(device, n, dim)).cpu()
    return torch.where(labels < 0, n + torch.arange(n), labels)


@pytest.mark.skipif(cosine_dbscan is None, reason="there is no cosine_dbscan here")
@pytest.mark.parametrize("form", FORMS)
def test_cosine_dbscan(
    benchmark: BenchmarkFixture, size: tuple[int, int], form: str, device: str, rounds: int
) -> None:
    n, dim = size
    if form != "ours":
        pytest.importorskip(PACKAGES[form], reason=f"{form} is not installed")
        if device != ("cuda" if form == "cuml" else "cpu"):
            pytest.skip(f"{form} does not run on {device}")
    if device == "cpu" and n > ON_CPU_UP_TO:
        pytest.skip(f"distances of {n:,} images take too long on a CPU")
    benchmark.group = f"cosine_dbscan, {n:,} x {dim:,}"
    labels = harness.measure(
        benchmark, FORMS[form], harness.Inputs(make, size), device, n=n, dim=dim, rounds=rounds
    )
    benchmark.extra_info["clusters"] = int(labels.max()) + 1
    assert pair_scores(labels.cpu().long(), expected(device, n, dim)).f1 > AGREEMENT
