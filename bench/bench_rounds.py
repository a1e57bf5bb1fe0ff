"""A round of 20 questions of each strategy: seconds a question, with the set-up of the round.

The features hold groups of people that look alike, and about a third of the images lie outside
every cluster, as in a first clustering of MSMT17.
"""

from __future__ import annotations

import harness
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from fastreid_al.active import refine
from fastreid_al.annotators import Oracle
from fastreid_al.answers import Asker
from fastreid_al.config import QuestionConfig

SIZES = {
    "tiny": [(600, 16)],
    "small": [(3_000, 512)],
    "market": [(12_936, 2_048)],
    "msmt17": [(32_621, 2_048)],
}
QUESTIONS = 20


def make(device: str, n: int, dim: int, strategy: str) -> tuple[Tensor, Tensor, Tensor, str]:
    """Features, clusters that split each identity in two, identities, and the strategy."""
    features, identities = harness.planted_features(n, dim)
    generator = torch.Generator().manual_seed(0)
    labels = 2 * identities + torch.randint(2, (n,), generator=generator)
    labels[torch.rand(n, generator=generator) < 0.3] = -1
    return features.to(device), labels, identities, strategy


def ask(features: Tensor, labels: Tensor, identities: Tensor, strategy: str) -> int:
    asker = Asker(Oracle(identities), budget=QUESTIONS)
    refine(features, labels, asker, strategy, QuestionConfig(k_max_rule="root"))
    asker.ledger.close()
    return asker.asked


@pytest.mark.parametrize("strategy", ["ucal", "gain"])
def test_rounds(
    benchmark: BenchmarkFixture, size: tuple[int, int], strategy: str, device: str, rounds: int
) -> None:
    n, dim = size
    benchmark.group = f"{QUESTIONS} questions, {n:,} x {dim}"
    inputs = harness.Inputs(make, (*size, strategy))
    found = harness.measure(benchmark, ask, inputs, device, n=n, dim=dim, rounds=rounds)
    assert found == QUESTIONS
