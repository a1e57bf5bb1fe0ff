"""Whether two programs compute the same features of the same images."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..arguments import as_features

#: Lowest cosine of two features of one image that count as the same.
LOWEST_COSINE = 0.9999
#: Similarities that differ by less than this share of their standard deviation, and rounding, are
#: ties: their order says nothing.
_TIE = 0.01
_ROUNDING = 1e-6


class Parity(NamedTuple):
    """How far the features of another program are from ours.

    Args:
        images: Images that were compared.
        finite: Whether all features of the other program are finite.
        cosine: Lowest cosine between the two features of an image; NaN where not finite.
        difference: Largest absolute difference of an element, of unit-norm features.
        same_lists: Images whose lists of nearest other images are the same, up to ties.
        length: Images in a list.
    """

    images: int
    finite: bool
    cosine: float
    difference: float
    same_lists: int
    length: int

    @property
    def holds(self) -> bool:
        """Whether the features are the same: cosines of 0.9999 or more, and the same lists."""
        return self.finite and self.cosine >= LOWEST_COSINE and self.same_lists == self.images

    def __str__(self) -> str:
        if not self.finite:
            return "features that are not finite"
        return (
            f"lowest cosine {self.cosine:.6f}, largest difference {self.difference:.1e}, "
            f"the same {self.length} nearest images for {self.same_lists} of {self.images}"
        )


def compare_features(own: Tensor, other: Tensor, length: int = 10) -> Parity:
    """Compare features of the same images from two programs.

    Args:
        own: (m, D) float32, m of 2 or more; n x n similarities are computed, so m is some hundreds.
        other: (m, D) float, of the other program; they need not be unit-norm.
        length: Nearest other images of each image that must be the same; m - 1 if that is less.

    Raises:
        ValueError: The arguments do not fit each other.
    """
    as_features("own", own)
    if len(own) < 2:
        raise ValueError(f"own: got {len(own)} rows, expected 2 or more")
    if other.shape != own.shape:
        raise ValueError(f"other: got shape {tuple(other.shape)}, expected {tuple(own.shape)}")
    length = min(length, len(own) - 1)
    own = torch.nn.functional.normalize(own.double().cpu())
    other = torch.nn.functional.normalize(other.double().cpu())
    if not bool(torch.isfinite(other).all()):
        return Parity(len(own), False, float("nan"), float("inf"), 0, length)
    similarities = _similarities(own)  # (m, m)
    others = similarities[~torch.eye(len(own), dtype=torch.bool)]
    tie = _TIE * float(others.std(correction=0)) + _ROUNDING
    wanted = similarities.topk(length).values  # (m, length)
    found = similarities.gather(1, _similarities(other).topk(length).indices)  # (m, length)
    same = ((wanted - found).abs() < tie).all(1)
    return Parity(
        len(own),
        True,
        float((own * other).sum(1).min()),
        float((own - other).abs().max()),
        int(same.sum()),
        length,
    )


def _similarities(features: Tensor) -> Tensor:
    """Cosines (m, m) of every two images; below all others with itself."""
    similarities = features @ features.T
    return similarities.fill_diagonal_(-2.0)
