"""What is said of each identity: its size, how sure it is, what decided it, what to look at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..answers.posterior import decides
from .confidence import (
    Examples,
    examples_of_answers,
    examples_of_identities,
    probabilities,
    with_answers,
)
from .identities import Identities, answered_images, changed_images, component_sizes
from .margins import Margins
from .review import UNSURE, close_to_another, contradicted_images, weakly_joined
from .table import ANSWERED, GIVEN, IMPLIED, MODEL


class Judged(NamedTuple):
    """What is said of the identities of n images.

    Args:
        sizes: (n,) int64 images of the identity, 1 for an image without one.
        confidence: (n,) float64 in [0, 1], 0 without identity.
        margins: (n,) float64, NaN where undefined.
        sources: (n,) uint8, index in `table.SOURCES`.
        review: (n,) bool by reason, whether a person should check it.
        examples: What the confidence was learnt from.
    """

    sizes: Tensor
    confidence: Tensor
    margins: Tensor
    sources: Tensor
    review: Mapping[str, Tensor]
    examples: Examples

    @property
    def marked(self) -> Tensor:
        """Whether to review an image for any reason: (n,) bool."""
        return torch.stack(list(self.review.values())).any(0)


def judge(identities: Identities, truth: Tensor, temperature: float, given: bool) -> Judged:
    """Judge the identities of images.

    Args:
        identities: The identities, and the answers that led to them.
        truth: (n,) int64 identities that the image set knows, -1 for none.
        temperature: tau of the loss.
        given: Whether the identities are those of the set.

    Returns:
        What is said of them. Memory is that of `Margins` once, or twice where answers changed the
        clusters, and so is time.
    """
    labels = identities.identities
    margins = Margins(identities.features, labels)
    clusters = margins
    if not torch.equal(labels, identities.clusters):
        clusters = Margins(identities.features, identities.clusters)
    n = len(labels)
    inside = labels >= 0
    sizes = torch.ones(n, dtype=torch.int64)
    sizes[inside] = margins.sizes[margins.identities[inside]]
    examples = _examples(identities, clusters, truth, given)
    confidence = inside.double()
    if not given:
        known = component_sizes(identities.closure, n)
        by_margin = probabilities(margins.margin.numpy(), examples, temperature)
        by_answers = with_answers(by_margin, sizes.numpy(), known.numpy(), identities.error)
        confidence = torch.from_numpy(np.where(inside.numpy(), by_answers, 0.0))
    answered = answered_images(identities.closure, n)
    said = _said_of_answers(identities, clusters, examples, temperature)
    review = {
        "low confidence": inside & (confidence < UNSURE),
        "close to another identity": inside & ~answered & close_to_another(margins.margin),
        "in a contradicted answer": contradicted_images(identities.closure, identities.doubted, n),
        "joined by one unlikely answer": weakly_joined(
            identities.clusters, identities.closure, said
        ),
    }
    sources = torch.full((n,), GIVEN if given else MODEL, dtype=torch.uint8)
    sources[changed_images(identities.clusters, labels)] = IMPLIED
    sources[answered] = ANSWERED
    return Judged(sizes, confidence, margins.margin, sources, review, examples)


def _examples(identities: Identities, clusters: Margins, truth: Tensor, given: bool) -> Examples:
    """What is known of images and clusters: the answers, or else the identities of the set."""
    answers = [a for a in identities.closure.answers() if decides(a)]
    examples = examples_of_answers(clusters, [*answers, *identities.doubted])
    return examples if examples.usable or given else examples_of_identities(clusters, truth)


def _said_of_answers(
    identities: Identities, clusters: Margins, examples: Examples, temperature: float
) -> dict[tuple[int, int], float]:
    """What the features say of each answered pair: the larger of both images' probabilities."""
    pairs = [(a.left, a.right) for a in identities.closure.answers() if decides(a)]
    pairs = [pair for pair in pairs if min(clusters.identities[list(pair)]) >= 0]
    if not pairs:
        return {}
    left, right = torch.tensor(pairs).T
    both = [clusters.towards(left, right), clusters.towards(right, left)]
    best = torch.stack(both).amax(0).numpy()
    return dict(zip(pairs, probabilities(best, examples, temperature).tolist(), strict=True))
