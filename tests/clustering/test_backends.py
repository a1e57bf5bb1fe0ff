"""The backend cuML: when it is refused, and how its clusters are numbered."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastreid_al.clustering import Graph, cosine_dbscan, dbscan
from fastreid_al.clustering.backends import numbered_by_core
from tests.support.graphs import graph_of, random_distances


def test_cuml_that_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for call in (
        lambda: dbscan(graph_of(random_distances(5, 0)), 0.5, backend="cuml"),
        lambda: cosine_dbscan(torch.eye(4), 0.5, backend="cuml"),
    ):
        with pytest.raises(ValueError, match="'cuml' is not installed; pip install cuml"):
            call()


def test_cuml_is_refused_where_its_dense_array_would_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    n = 50_000
    graph = Graph(
        torch.zeros(n + 1, dtype=torch.int64),
        torch.zeros(0, dtype=torch.int64),
        torch.zeros(0),
        0.62,
    )
    with pytest.raises(
        ValueError,
        match="dense array, 10 GB in float32 for 50000 nodes, and is refused past 40000; use ",
    ):
        dbscan(graph, 0.5, backend="cuml")


@pytest.mark.parametrize("seed", range(5))
def test_clusters_of_another_library_are_numbered_by_their_lowest_core(seed: int) -> None:
    distance = random_distances(80, seed, density=0.02)
    expected = dbscan(graph_of(distance), 0.5, 2)
    core = torch.from_numpy(np.flatnonzero((distance <= 0.5).sum(1) >= 2))
    shuffled = torch.randperm(int(expected.max()) + 1)
    assert len(shuffled) > 2
    given = torch.where(expected < 0, expected, shuffled[expected])
    filled_up = torch.cat([core[torch.randperm(len(core))], torch.tensor([-1, -1])])
    assert torch.equal(numbered_by_core(given, filled_up), expected)
    noise = torch.full((4,), -1)
    assert torch.equal(numbered_by_core(noise, noise), noise)
