"""The gain strategy asks until nothing is left, and completes confirmations."""

from __future__ import annotations

import torch

from fastreid_al.active import refine
from fastreid_al.annotators import Oracle
from fastreid_al.answers import (
    Asker,
)
from fastreid_al.config import QuestionConfig
from fastreid_al.metrics import pair_scores
from tests.support.asking import crowded


def test_gain_goes_on_with_a_confirmation_that_the_budget_broke_off() -> None:
    features = torch.nn.functional.normalize(
        torch.tensor([[1.0, 0.1], [1, 0.12], [1, 0.14], [1, -0.1], [1, -0.12]]), dim=1
    )
    labels, identities = torch.tensor([0, 0, 0, 1, 1]), torch.zeros(5, dtype=torch.int64)
    asker = Asker(Oracle(identities), confirm_merges=1)
    assert refine(features, labels, asker, "gain", QuestionConfig(per_epoch=1)).labels.tolist() == [
        0,
        0,
        0,
        1,
        1,
    ]
    assert (
        refine(features, labels, asker, "gain", QuestionConfig(per_epoch=1)).labels.tolist()
        == [0] * 5
    )


def test_gain_asks_until_no_merge_is_left() -> None:
    features, identities, labels = crowded(seed=5)
    asker = Asker(Oracle(identities))
    refined = refine(features, labels, asker, "gain", QuestionConfig()).labels
    assert pair_scores(refined, identities).recall > 0.99
