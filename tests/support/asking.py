"""Questions, clusters that mix identities, and an oracle that counts what it is asked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastreid_al.annotators import Oracle
from fastreid_al.answers import Question, Verdict
from tests.support.features import clustered_features


def question(
    a: int,
    b: int,
    first: Sequence[int] | None = None,
    second: Sequence[int] | None = None,
    reason: str = "merge",
) -> Question:
    groups = torch.tensor(first or [a]), torch.tensor(second or [b])
    return Question((a, b), groups, reason, 0.71, 1.0)


def crowded(n: int = 400, people: int = 20, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Features of people seen in two clouds each, their identities, and clusters that split and mix
    them.
    """
    random = np.random.default_rng(seed)
    clouds = clustered_features(2 * people, 2 * people, 16, 0.0, seed)
    identities = random.integers(people, size=n)
    cloud = 2 * identities + random.integers(2, size=n)
    # The two clouds of a person lie near each other, those of neighbours nearly as near.
    centres = (
        clouds[cloud] + 1.2 * clustered_features(people, people, 16, 0.0, seed + 1)[identities]
    )
    features = centres + 0.5 * random.normal(size=(n, 16)) / 4
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    labels = cloud.copy()
    mixed = random.random(n) < 0.15
    labels[mixed] = (labels[mixed] + 2) % (2 * people)
    labels[random.random(n) < 0.1] = -1
    return (
        torch.from_numpy(features).float(),
        torch.from_numpy(identities),
        torch.from_numpy(labels),
    )


class Counting:
    """An oracle that remembers what it was asked."""

    name = "counting"

    def __init__(self, identities: Tensor, **rates: float) -> None:
        self.oracle, self.asked = Oracle(identities, **rates), []

    def answer(self, question: Question) -> Verdict:
        self.asked.append(tuple(sorted(question.images)))
        return self.oracle.answer(question)
