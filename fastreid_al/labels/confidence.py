"""How sure it is that an image has the identity of the other images that it was given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..active.calibration import Calibration, probability
from ..answers import Answer, Verdict
from .margins import Margins

#: Examples from which on the probability is learnt.
LEAST_EXAMPLES = 20
#: Examples that it is learnt from, at most.
_MOST_EXAMPLES = 10_000
#: Calibration takes no smaller standard deviation.
_LEAST_SCALE = 0.01


class Examples(NamedTuple):
    """Images of which it is known whether they are of an identity.

    Args:
        margins: (m,) float64 margin of each image towards the identity.
        same: (m,) float64, whether another image of the identity shows the same, or the probability
            of it.
        origin: What is known: "answers", "identities" or "" for nothing.
    """

    margins: np.ndarray
    same: np.ndarray
    origin: Literal["answers", "identities", ""]

    @property
    def usable(self) -> bool:
        """Whether there are enough examples."""
        return len(self.same) >= LEAST_EXAMPLES


NO_EXAMPLES = Examples(np.zeros(0), np.zeros(0), "")


def examples_of_answers(clusters: Margins, answers: Sequence[Answer]) -> Examples:
    """Take answers as examples: is image i of the cluster of image j, and j of the cluster of i?

    Args:
        clusters: Margins in the clusters before the answers: those after them agree with all.
        answers: Answers that say "same" or "different" of two of the images.
    """
    pairs = [(a.left, a.right, a.verdict is Verdict.SAME) for a in answers]
    if not pairs:
        return NO_EXAMPLES
    left, right, same = (torch.tensor(side) for side in zip(*pairs, strict=True))
    images = torch.cat([left, right])
    targets = torch.cat([right, left])
    has_cluster = clusters.identities[targets] >= 0
    images, targets = images[has_cluster], targets[has_cluster]
    margins = clusters.towards(images, targets).numpy()
    known = torch.cat([same, same])[has_cluster].double().numpy()
    return Examples(margins, known, "answers")


def examples_of_identities(clusters: Margins, identities: Tensor) -> Examples:
    """Take known identities as examples: which share of an image's cluster has its identity?

    Only other images with a known identity are counted, and at most 10,000 images, evenly spaced.

    Args:
        clusters: Margins in the clusters.
        identities: (n,) int64 true identities, -1 where unknown.
    """
    rows = ((clusters.identities >= 0) & (identities >= 0)).nonzero()[:, 0]
    cluster = clusters.identities[rows]
    _, cell, counts = torch.stack([cluster, identities[rows]]).unique(
        dim=1, return_inverse=True, return_counts=True
    )
    others = cluster.bincount()[cluster] - 1
    shares = (counts[cell] - 1).double() / others.clamp_min(1)
    rows, shares = rows[others > 0], shares[others > 0]
    step = max(1, len(rows) // _MOST_EXAMPLES)
    margins = clusters.margin[rows[::step]].numpy()
    return Examples(margins, shares[::step].numpy(), "identities")


def probabilities(margins: np.ndarray, examples: Examples, temperature: float) -> np.ndarray:
    """Return the probability that images are of an identity, by their margins.

    Without enough examples it is 1 / (1 + exp(-margin / temperature)), the softmax of the loss
    (UCAL, Eq. 1) over two identities. That is no calibrated probability. With examples the log-odds
    are linear in the margin, learnt by logistic regression with the former as prior.

    Args:
        margins: (n,) float64, of any values; NaN stays NaN.
        examples: What is known.
        temperature: tau of the loss.
    """
    if not examples.usable:
        return probability(margins / temperature)
    inputs = examples.margins[:, None]
    mean = float(inputs.mean())
    scale = max(float(inputs.std()), _LEAST_SCALE)
    calibration = Calibration(mean / temperature, [scale / temperature])
    calibration.scale(inputs)
    calibration.learn_all(inputs, examples.same.tolist())
    return calibration(margins[:, None])


def with_answers(
    by_margin: np.ndarray, sizes: np.ndarray, known: np.ndarray, error: float
) -> np.ndarray:
    """Return the probability that an image and another one of its identity show the same identity.

    The other image is drawn at random. That it is the same is known of the images in one must-link
    component, but for wrong answers, and for the rest it is what the margin says.

    Args:
        by_margin: (n,) probability by the margin.
        sizes: (n,) images of the identity, 1 for none.
        known: (n,) images of the must-link component, 1 for none.
        error: Share of the answers that are expected to be wrong.
    """
    share = np.minimum((known - 1) / np.maximum(sizes - 1, 1), 1.0)
    by_margin = np.where(share >= 1, 0.0, by_margin)
    return share * (1 - error) + (1 - share) * by_margin
