"""The ranking of a gallery on CUDA equals that of the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastreid_al.metrics import rank_gallery
from tests.support.cuda_features import on_grid

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DEVICE = "cuda"


@pytest.mark.parametrize("ids_on_cuda", [True, False])
def test_ranking_equals_that_of_the_cpu(ids_on_cuda: bool) -> None:
    random = np.random.default_rng(0)
    query, gallery = on_grid(200, 30), on_grid(1200, 30)
    query_ids, gallery_ids = (torch.from_numpy(random.integers(-1, 40, n)) for n in (200, 1200))
    query_cameras, gallery_cameras = (
        torch.from_numpy(random.integers(-1, 4, n)) for n in (200, 1200)
    )
    here = rank_gallery(query, query_ids, query_cameras, gallery, gallery_ids, gallery_cameras)
    facts = [query_ids, query_cameras, gallery_ids, gallery_cameras]
    qi, qc, gi, gc = (t.to(DEVICE) for t in facts) if ids_on_cuda else facts
    there = rank_gallery(query.to(DEVICE), qi, qc, gallery.to(DEVICE), gi, gc)
    assert here.queries > 100
    assert (there.queries, there.skipped) == (here.queries, here.skipped)
    assert there.mAP == pytest.approx(here.mAP, abs=1e-12)
    assert there.mINP == pytest.approx(here.mINP, abs=1e-12)
    assert torch.equal(there.cmc, here.cmc)
