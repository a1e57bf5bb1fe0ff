"""The approximate search: what it finds, what it says of itself, and what it refuses."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from fastreid_al.clustering import ivf_neighbours, nearest_neighbours
from tests.support.features import clustered_features

FEATURES = torch.from_numpy(clustered_features(3000, 200)).float()

try:
    import faiss
except ImportError:
    faiss = None

needs_faiss = pytest.mark.skipif(faiss is None, reason="FAISS is not installed")


@needs_faiss
def test_neighbours_are_those_of_the_exact_search_but_for_the_share_that_is_named() -> None:
    got, exact = ivf_neighbours(FEATURES, 30), nearest_neighbours(FEATURES, 30)
    assert got.neighbours.shape == exact.shape
    assert got.neighbours.dtype == torch.int64
    assert torch.equal(got.neighbours[:, 0], torch.arange(3000))
    assert all(len(set(row)) == 30 for row in got.neighbours.tolist())
    share = np.mean(
        [np.isin(a, b).mean() for a, b in zip(exact[:, 1:], got.neighbours[:, 1:], strict=True)]
    )
    assert 0.98 <= got.recall <= 1
    assert got.recall == pytest.approx(share, abs=0.01)
    assert ivf_neighbours(FEATURES, 30, sample=10**6).recall == pytest.approx(share, abs=1e-4)
    similarity = (FEATURES[:, None] * FEATURES[got.neighbours[:, 1:]]).sum(-1)
    assert (similarity.diff(dim=1) <= 1e-6).all()


@needs_faiss
def test_recall_says_when_too_few_lists_are_probed() -> None:
    recalls = [
        ivf_neighbours(FEATURES, 30, lists=30, probes=probes).recall for probes in (1, 3, 30)
    ]
    assert recalls[0] < recalls[1] < recalls[2] == 1
    exact = nearest_neighbours(FEATURES, 30)
    everywhere = ivf_neighbours(FEATURES, 30, lists=50, probes=50).neighbours
    assert (everywhere == exact).float().mean() > 0.999


@needs_faiss
def test_rows_whose_lists_are_too_short_are_searched_exactly() -> None:
    # A list a row: one probe finds the row alone.
    features = FEATURES[:60]
    got = ivf_neighbours(features, 12, lists=60, probes=1)
    assert got.neighbours.min() >= 0
    assert got.neighbours.max() < 60
    assert got.recall > 0.5
    assert all(len(set(row)) == 12 for row in got.neighbours.tolist())


@needs_faiss
def test_equal_rows_are_neighbours_by_lowest_index_and_count_as_found() -> None:
    features = torch.nn.functional.normalize(torch.eye(4).repeat_interleave(40, 0))
    got = ivf_neighbours(features, 6, lists=4)
    assert got.recall == 1
    assert got.neighbours[0].tolist() == [0, 1, 2, 3, 4, 5]
    for row, neighbours in enumerate(got.neighbours.tolist()):
        assert neighbours[0] == row
        assert neighbours[1:] == sorted(neighbours[1:])
        assert {r // 40 for r in neighbours} == {row // 40}


@needs_faiss
def test_the_same_rows_give_the_same_neighbours_at_any_number_of_threads() -> None:
    before = torch.get_num_threads()
    try:
        got = []
        for threads in (1, 3, 1):
            torch.set_num_threads(threads)
            outside = faiss.omp_get_max_threads()
            got.append(ivf_neighbours(FEATURES[:1000], 10, probes=2))
            assert faiss.omp_get_max_threads() == outside
    finally:
        torch.set_num_threads(before)
    assert torch.equal(got[0].neighbours, got[1].neighbours)
    assert torch.equal(got[0].neighbours, got[2].neighbours)
    assert got[0].recall == got[1].recall == got[2].recall


@needs_faiss
@pytest.mark.parametrize(
    ("n", "k", "width"), [(0, 5, 0), (1, 5, 1), (2, 5, 2), (7, 1, 1), (7, 30, 7)]
)
def test_few_rows_have_short_lists(n: int, k: int, width: int) -> None:
    got = ivf_neighbours(FEATURES[:n].double(), k)
    assert got.neighbours.shape == (n, width)
    assert got.recall == 1
    assert torch.equal(got.neighbours, nearest_neighbours(FEATURES[:n], k))


@needs_faiss
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k: got 0, expected 1 to 1025"),
        ({"k": 1026}, "k: got 1026, expected 1 to 1025"),
        ({"lists": 0}, "lists: got 0"),
        ({"probes": 0}, "probes: got 0"),
        ({"sample": 0}, "sample: got 0"),
        ({"features": torch.ones(4)}, "features: got shape"),
        ({"features": torch.ones(4, 2).half()}, r"expected float32 or float64"),
        ({"features": torch.tensor([[1.0], [torch.inf]])}, "features: row 1 is not finite"),
    ],
)
def test_arguments_out_of_range_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ivf_neighbours(**{"features": FEATURES[:9], "k": 3, **arguments})


def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"needs FAISS; pip install 'fastreid_al\[ivf\]', or search exactly"
    ):
        ivf_neighbours(FEATURES, 30)
