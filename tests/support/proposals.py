"""Clusters with exact ties, and the pairs that questions are about.

The features are short binary fractions, so that every dot product and every sum of them is exact in
float64 in any order, and a tie is a tie in the library and in the reference.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastreid_al.active import propose_splits
from fastreid_al.answers import Question
from tests.support.references_active import reference_splits

Asked = set[frozenset[tuple[int, frozenset[int]]]]


def sign_vectors(rng: np.random.Generator, n: int, prototypes: int, flips: int) -> np.ndarray:
    """Unit vectors of 16 entries of +-1/4 near a few prototypes: full of exact ties and of
    duplicates.
    """
    signs = rng.choice([-1.0, 1.0], size=(prototypes, 16))[rng.integers(0, prototypes, n)]
    for row in signs:
        row[rng.integers(0, 16, rng.integers(0, flips + 1))] *= -1
    return signs / 4


def quantised(features: np.ndarray) -> np.ndarray:
    """Unit to about four digits, in steps of 2^-14.

    Two sums of dot products are equal or differ by 2^-28 at least, which is more than the 1e-9
    within which the library takes sums for equal.
    """
    return np.round(features / np.linalg.norm(features, axis=1, keepdims=True) * 2**14) / 2**14


def cloud(
    rng: np.random.Generator, n: int, centres: int, noise: float, dim: int = 12
) -> np.ndarray:
    """Points near centres that are near each other, as the features of persons are."""
    means = rng.normal(size=(1, dim)) + rng.normal(size=(centres, dim))
    return quantised(means[rng.integers(0, centres, n)] + noise * rng.normal(size=(n, dim)))


def labels_of_sizes(rng: np.random.Generator, sizes: list[int], noise: int) -> np.ndarray:
    """Shuffled labels of clusters of these sizes, with some images in none."""
    return rng.permutation(np.repeat([*range(len(sizes)), -1], [*sizes, noise]))


def asked(questions: list[Question]) -> Asked:
    """The pairs of (image shown, rows of its group), in no order; each once, with the image the
    first of its group.
    """
    pairs = []
    for question in questions:
        sides = []
        for image, group in zip(question.images, question.groups, strict=True):
            rows = group.tolist()
            assert group.dtype == torch.int64
            assert rows[0] == image
            assert len(set(rows)) == len(rows)
            sides.append((int(image), frozenset(rows)))
        pairs.append(frozenset(sides))
    assert len(set(pairs)) == len(pairs)
    assert all(len(pair) == 2 for pair in pairs)
    return set(pairs)


def assert_falling(similarities: np.ndarray) -> None:
    """Most central first."""
    assert np.all(similarities[:-1] >= similarities[1:])


def assert_same_splits(features: np.ndarray, labels: np.ndarray, rule: str) -> list[Question]:
    questions = propose_splits(
        torch.from_numpy(features), torch.from_numpy(labels), k_max_rule=rule
    )
    splits = reference_splits(features, labels, rule)
    assert asked(questions) == set().union(*(split.questions() for split in splits))
    for question in questions:
        left, right = question.images
        assert question.reason == "split"
        assert question.cluster == labels[left] == labels[right]
        for image, group in zip(question.images, question.groups, strict=True):
            assert_falling(features[group.numpy()[1:]] @ features[image])
        assert question.similarity == pytest.approx(
            float(features[left] @ features[right]), abs=1e-5
        )
        assert math.isfinite(question.score)
    return questions
