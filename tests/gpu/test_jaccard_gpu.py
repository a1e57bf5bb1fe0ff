"""Neighbours, Jaccard graph and labels on CUDA equal those of the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastreid_al import native
from fastreid_al.clustering import (
    jaccard_cuda,
    jaccard_graph,
    nearest_neighbours,
    self_paced_labels,
)
from tests.support.cuda_features import double, on_grid

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DEVICE = "cuda"


def test_the_extension_has_a_cuda_part_for_this_device() -> None:
    assert native.cuda_extension() is not None


@pytest.mark.parametrize("compiled", [True, False], ids=["extension", "PyTorch"])
@pytest.mark.parametrize(
    "features", [double(1500, 80), on_grid(1500, 80)], ids=["float64", "float32 with ties"]
)
def test_graph_and_labels_equal_those_of_the_cpu(
    features: Tensor, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = jaccard_graph(features)
    labels, threshold = self_paced_labels(here)
    assert int(labels.max()) > 10
    if not compiled:
        monkeypatch.setattr(native, "extension", lambda: None)
    assert torch.equal(
        nearest_neighbours(features.to(DEVICE), 30).cpu(), nearest_neighbours(features, 30)
    )
    there = jaccard_graph(features.to(DEVICE))
    assert all(x.device.type == DEVICE for x in there[:3])
    assert torch.equal(here.indptr, there.indptr.cpu())
    assert torch.equal(here.indices, there.indices.cpu())
    # Whole numbers are summed: only the rounding of single weights may differ, because it follows
    # each device's exponential.
    torch.testing.assert_close(here.distances, there.distances.cpu(), rtol=0, atol=1e-7)
    got, found_threshold = self_paced_labels(there)
    assert torch.equal(labels, got.cpu())
    assert threshold == pytest.approx(found_threshold, abs=1e-12)


def test_rows_whose_partners_overflow_the_table_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features = on_grid(3000, 12)
    expected = jaccard_graph(features)
    monkeypatch.setattr(jaccard_cuda, "_SLOTS", 512)
    monkeypatch.setattr(jaccard_cuda, "_PAIRS_PER_ROW", 1)
    got = jaccard_graph(features.to(DEVICE))
    assert torch.equal(expected.indices, got.indices.cpu())
    torch.testing.assert_close(expected.distances, got.distances.cpu(), rtol=0, atol=1e-7)


def test_features_that_are_not_finite_are_named_on_cuda() -> None:
    features = double(50, 5).to(DEVICE)
    features[7, 0] = torch.nan
    with pytest.raises(ValueError, match="the first is row 7"):
        jaccard_graph(features)
