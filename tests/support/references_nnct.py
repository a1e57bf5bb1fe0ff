"""A slow, plain float64 reference of NNCT, from section 6 of the algorithm notes and the paper.

Nothing here is imported from the library, and nothing is optimised: every function follows its rule
image by image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Settings(NamedTuple):
    """The constants of section 6 of the algorithm notes."""

    threshold: float = 0.6
    at_least: int = 10
    lambda_n: float = 0.5
    delta: float = 5.0
    hard_ratio: float = 0.01
    single_label: int = 6
    momentum: float = 0.5


class Iteration(NamedTuple):
    """One iteration.

    The loss, its gradient with respect to the unit features, and both memories after it.

    `labels` and `neighbours` belong to the places of the batch: what was predicted for the image
    there, and the images whose labels trained it as well.
    """

    loss: float
    gradient: np.ndarray
    memory: np.ndarray
    label_memory: list[set[int]]
    labels: list[set[int]]
    neighbours: list[list[int]]


def similarities(memory: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Dot products (n,) with all rows, each row summed by itself: equal rows have equal ones."""
    return (np.asarray(memory, dtype=np.float64) * np.asarray(vector, dtype=np.float64)).sum(axis=1)


def most_similar_first(s: np.ndarray) -> list[int]:
    """All images by descending similarity, equal ones from the lowest index."""
    values = s.tolist()
    return sorted(range(len(values)), key=lambda j: (-values[j], j))


def count_above(memory: np.ndarray, i: int, threshold: float) -> int:
    """k_t: images, i among them, whose similarity to image i in the memory is above t."""
    return sum(1 for s in similarities(memory, memory[i]).tolist() if s > threshold)


def predict_labels(memory: np.ndarray, i: int, threshold: float, at_least: int) -> set[int]:
    """MPLP: the labels of image i."""
    ordered = most_similar_first(similarities(memory, memory[i]))
    above = count_above(memory, i, threshold)
    candidates = max(above, at_least)
    last_good = 0
    for place, j in enumerate(ordered[:candidates]):
        of_j = similarities(memory, memory[j]).tolist()
        rank = sum(1 for s in of_j if s > of_j[i])
        if rank > candidates:
            break
        last_good = place
    return {*ordered[: min(max(1, last_good) + 1, above)], i}


def _positives_and_hard_negatives(
    s: np.ndarray, positives: set[int], hard_ratio: float
) -> tuple[list[int], list[int]]:
    negatives = [j for j in most_similar_first(s) if j not in positives]
    return sorted(positives), negatives[: max(1, int(hard_ratio * len(negatives)))]


def mmcl(s: np.ndarray, positives: set[int], delta: float, hard_ratio: float) -> float:
    """MMCL of one image's similarities (n,) against a set of labels.

    Without negatives their part is 0.
    """
    good, hard = _positives_and_hard_negatives(s, positives, hard_ratio)
    loss = delta * sum((1 - s[j]) ** 2 for j in good) / len(good)
    if hard:
        loss += sum((1 + s[j]) ** 2 for j in hard) / len(hard)
    return float(loss)


def mmcl_gradient(
    s: np.ndarray, positives: set[int], delta: float, hard_ratio: float
) -> np.ndarray:
    """The derivative of `mmcl` with respect to the similarities, (n,)."""
    good, hard = _positives_and_hard_negatives(s, positives, hard_ratio)
    gradient = np.zeros(len(s))
    for j in good:
        gradient[j] -= 2 * delta * (1 - s[j]) / len(good)
    for j in hard:
        gradient[j] += 2 * (1 + s[j]) / len(hard)
    return gradient


def nearest(s: np.ndarray, i: int, k: int) -> list[int]:
    """NNR: the k images most similar to a feature of image i, which is left out.

    Equal ones from the lowest index.
    """
    return [j for j in most_similar_first(s) if j != i][:k]


def step(
    memory: np.ndarray,
    label_memory: Sequence[set[int]],
    features: np.ndarray,
    rows: Sequence[int],
    epoch: int,
    epochs: int,
    neighbours_k: int = 1,
    settings: Settings = Settings(),  # noqa: B008
) -> Iteration:
    """One iteration of NNCT on unit features (B, D) of the images `rows`.

    What is passed in stays as it is.
    """
    after = np.array(memory, dtype=np.float64)
    remembered = [set(labels) for labels in label_memory]
    single = epoch < settings.single_label

    labels = [
        {i} if single else predict_labels(memory, i, settings.threshold, settings.at_least)
        for i in rows
    ]
    for i, predicted in zip(rows, labels, strict=True):
        remembered[i] = set(predicted)

    loss, gradient = 0.0, np.zeros_like(features, dtype=np.float64)
    neighbours = []
    for b, i in enumerate(rows):
        s = similarities(memory, features[b])
        neighbours.append([] if single else nearest(s, i, neighbours_k))
        targets = [(1.0, labels[b])] + [(settings.lambda_n, remembered[e]) for e in neighbours[b]]
        for weight, positives in targets:
            loss += weight * mmcl(s, positives, settings.delta, settings.hard_ratio) / len(rows)
            of_s = mmcl_gradient(s, positives, settings.delta, settings.hard_ratio)
            for j in np.flatnonzero(of_s):
                gradient[b] += weight * of_s[j] * memory[j] / len(rows)

    kept = settings.momentum * epoch / epochs
    for b, i in enumerate(rows):
        moved = kept * after[i] + (1 - kept) * features[b]
        after[i] = moved / math.sqrt(sum(x * x for x in moved))
    return Iteration(loss, gradient, after, remembered, labels, neighbours)


def before_normalisation(gradient: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
    """The gradient of embeddings (B, D), from the gradient of their unit vectors."""
    out = np.zeros_like(gradient)
    for b, x in enumerate(embeddings):
        length = math.sqrt(sum(value * value for value in x))
        unit = x / length
        out[b] = (gradient[b] - sum(gradient[b] * unit) * unit) / length
    return out


def cross_entropy(logits: np.ndarray, identities: Sequence[int]) -> float:
    """The mean cross-entropy of logits (B, C) against identities (B,)."""
    total = 0.0
    for row, identity in zip(logits, identities, strict=True):
        greatest = max(row)
        total += greatest + math.log(sum(math.exp(x - greatest) for x in row)) - row[identity]
    return total / len(logits)


def adapted_loss(source: float, target: float, weight: float = 0.3) -> float:
    """The loss of domain adaptation from the source's cross-entropy and the target's NNCT loss."""
    return (1 - weight) * source + weight * target
