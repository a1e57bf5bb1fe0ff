"""Training with the true identities."""

from __future__ import annotations

import pytest
import torch

from fastreid_al.config import BatchConfig, MemoryConfig
from fastreid_al.methods import Supervised
from tests.support.features import clustered_features

FEATURES = torch.from_numpy(clustered_features(200, 15, spread=1.2)).float()
BATCH = BatchConfig(size=16, per_identity=4, iterations=3)


def test_supervised_trains_on_true_identities_without_gaps() -> None:
    identities = torch.tensor([7, 3, 7, 9, 3])
    method = Supervised(
        identities, torch.zeros(5, dtype=torch.int64), BATCH, MemoryConfig(), seed=0
    )
    method.label_images(0, lambda: FEATURES[:5])
    assert method.labels.tolist() == [1, 0, 1, 2, 0]
    with pytest.raises(ValueError, match="1 of 2 images have no identity"):
        Supervised(
            torch.tensor([0, -1]), torch.zeros(2, dtype=torch.int64), BATCH, MemoryConfig(), seed=0
        )
