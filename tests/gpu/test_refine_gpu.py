"""Questions and refined labels on CUDA equal those of the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.cuda_features import on_grid

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DEVICE = "cuda"


@pytest.mark.parametrize("strategy", ["ucal", "gain", "spal", "random"])
def test_questions_and_refined_labels_equal_those_of_the_cpu(strategy: str) -> None:
    pytest.importorskip("sqlalchemy")
    from fastreid_al.active import propose_merges, propose_splits, refine
    from fastreid_al.annotators import Oracle
    from fastreid_al.answers import Asker
    from fastreid_al.config import QuestionConfig

    features = on_grid(1200, 60)
    identities = torch.arange(1200) % 60
    labels = torch.from_numpy(np.random.default_rng(0).integers(-1, 30, 1200))
    for propose in (propose_splits, propose_merges):
        here, there = propose(features, labels), propose(features.to(DEVICE), labels)
        assert here
        assert [q.images for q in here] == [q.images for q in there]
    config = QuestionConfig(per_epoch=100, k_max_rule="root")
    here, there = (
        refine(f, labels, Asker(Oracle(identities)), strategy, config)
        for f in (features, features.to(DEVICE))
    )
    assert there.spent.questions == here.spent.questions > 0
    assert torch.equal(here.labels, there.labels)
