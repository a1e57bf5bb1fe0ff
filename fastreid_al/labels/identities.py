"""From clusters and the answers of a ledger to identities, as an epoch does without asking."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..active import QuestionRounds, refine
from ..answers import Answer, Asker, Closure, Ledger, Question, Verdict
from ..answers.posterior import UNKNOWN_RATE
from ..config import QuestionConfig

#: Clusters features (n, D): takes cannot-links (m, 2) int64 or None, and must-links (n,) int64 as
#: `QuestionRounds.must_links` returns them or None. Returns the clusters (n,) int64, -1 outside
#: every cluster, and the features (n, D) that were clustered.
Cluster = Callable[[Tensor | None, Tensor | None], tuple[Tensor, Tensor]]


class Identities(NamedTuple):
    """The identities of n images, and the answers that led to them.

    Args:
        clusters: (n,) int64 cluster of each image before the answers, -1 outside every cluster.
        identities: (n,) int64, identities of two or more images numbered by their lowest image; -1
            for every other image.
        features: (n, D) float32, unit-norm: the features that were clustered.
        closure: The believed answers, and what follows from them.
        doubted: Answers that are not believed, with `questions.expected_error`.
        error: Share of the believed answers that are expected to be wrong.
    """

    clusters: Tensor
    identities: Tensor
    features: Tensor
    closure: Closure
    doubted: list[Answer]
    error: float


class _NoOne:
    """An annotator who is never asked."""

    name = "nobody"

    def answer(self, question: Question) -> Verdict:
        """Refuse to answer."""
        raise AssertionError("nothing is asked")


def identities_by_answers(
    features: Tensor,
    cluster: Cluster,
    ledger: Ledger | None,
    config: QuestionConfig,
    links: bool = False,
    tracks: Tensor | None = None,
) -> Identities:
    """Cluster images, and change the clusters so that they agree with every answer of a ledger.

    This is what an epoch does with the answers of earlier epochs (`active.refine`), without
    questions: the images of a must-link component have one identity, and those of two components
    with a cannot-link between them have two, or none. With `config.expected_error` answers are
    weighed first.

    Args:
        features: (n, D) float32, unit-norm.
        cluster: Clusters them.
        ledger: The answers, about rows of the features; None where there are none.
        config: How answers are taken.
        links: Whether the clustering takes cannot-links.
        tracks: (n,) int64 track of each image, whose images are the same, -1 for none; None where
            there are no tracks.

    Returns:
        The identities. In addition to the clustering, time and memory are those of `active.refine`:
        linear in the answers and in the images of the clusters that they change; with
        `config.expected_error` a Jaccard graph of the images as well.

    Raises:
        ValueError: The features cannot be clustered.
    """
    if ledger is None or not ledger.answers():
        clusters, clustered = cluster(None, tracks)
        return Identities(clusters, clusters, clustered, Closure(), [], 0.0)
    asker = Asker(
        _NoOne(),
        ledger,
        closure=config.closure,
        expected_error=config.expected_error,
        tracks=tracks,
    )
    rounds = QuestionRounds(asker, _ask_nothing, config)
    cannot_links = None
    if links:
        pairs = rounds.cannot_links(0, features)
        cannot_links = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    clusters, clustered = cluster(cannot_links, rounds.must_links(0, features))
    identities = refine(clustered, clusters, asker, _ask_nothing, config).labels
    believed = {answer.event for answer in asker.closure.answers()}
    doubted = [a for a in asker.deciding_answers() if a.event not in believed]
    error = UNKNOWN_RATE if config.expected_error is None else config.expected_error
    return Identities(clusters, identities, clustered, asker.constraints(), doubted, error)


def _ask_nothing(features: Tensor, labels: Tensor, asker: Asker, config: QuestionConfig) -> None:
    """Ask nothing: a strategy that leaves everything to the earlier answers."""


def component_sizes(closure: Closure, n: int) -> Tensor:
    """Images of the must-link component of each image, itself included: (n,) int64."""
    sizes = torch.ones(n, dtype=torch.int64)
    for images in closure.components().values():
        sizes[images] = len(images)
    return sizes


def answered_images(closure: Closure, n: int) -> Tensor:
    """Whether each image is in a pair that was answered "same" and is known to be: (n,) bool."""
    answered = torch.zeros(n, dtype=torch.bool)
    for answer in closure.answers():
        pair = answer.left, answer.right
        if answer.verdict is Verdict.SAME and closure.verdict(*pair) is Verdict.SAME:
            answered[list(pair)] = True
    return answered


def changed_images(clusters: Tensor, identities: Tensor) -> Tensor:
    """Whether each image shares its identity with other images than its cluster: (n,) bool.

    Args:
        clusters: (n,) int64, -1 outside every cluster.
        identities: (n,) int64, -1 for none.
    """
    before = _with_singles(clusters)
    after = _with_singles(identities)
    _, joint, counts = torch.stack([before, after]).unique(
        dim=1, return_inverse=True, return_counts=True
    )
    both = counts[joint]
    return (both != before.bincount()[before]) | (both != after.bincount()[after])


def _with_singles(labels: Tensor) -> Tensor:
    """Groups (n,) where each image outside every cluster is one, numbered after the others."""
    alone = labels < 0
    first = int(labels.max()) + 1 if len(labels) else 0
    return torch.where(alone, first + alone.cumsum(0) - 1, labels)
