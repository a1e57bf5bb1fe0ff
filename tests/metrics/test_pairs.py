"""Pair scores against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastreid_al.metrics import pair_scores
from tests.support.references import reference_pairs


@pytest.mark.parametrize("seed", range(10))
def test_pair_scores_equal_brute_force(seed: int) -> None:
    random = np.random.default_rng(seed)
    labels, identities = random.integers(-1, 1 + seed * 2, 60), random.integers(0, 8, 60)
    got = pair_scores(torch.from_numpy(labels), torch.from_numpy(identities))
    assert got == pytest.approx(reference_pairs(labels, identities), abs=1e-12)


def test_pair_scores_of_no_pairs() -> None:
    assert pair_scores(torch.tensor([-1, -1]), torch.tensor([0, 1])) == (1, 1, 1)
