"""Unsupervised domain adaptation: a labelled source is trained with beside the unlabelled target.

Rows 0 to n - 1 are the target's images, rows n to n + m - 1 the source's. A batch holds as many images of the source as of the
target, behind them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: The source's batches are drawn from a stream of their own: past the words that seed and epoch fill in NumPy's seed sequence.
_STREAM = 2**96


class Source:
    """What is known of the source's training images.

    Args:
        identities: (m,) int64 identity of each image.
        cameras: (m,) int64 camera of each image, -1 where unknown.

    Raises:
        ValueError: An identity is unknown, or there are fewer than two.
    """

    def __init__(self, identities: Tensor, cameras: Tensor) -> None:
        unknown = int((identities < 0).sum())
        if unknown:
            raise ValueError(
                f"{unknown} of {len(identities)} training images of the source have no identity; --source takes a labelled set"
            )
        # Unreadable images may have taken a whole identity with them, and classes have no gaps.
        found, self.identities = identities.unique(return_inverse=True)
        self.cameras, self.count = cameras, len(found)
        if self.count < 2:
            raise ValueError(
                f"the source has {self.count} identities in {len(identities)} training images, two are needed at least"
            )

    def __len__(self) -> int:
        return len(self.identities)


class SourceClassifier(nn.Module):
    """Cross-entropy of the source's identities, the source's share of NNCT's loss.

    Args:
        source: The source's images.
        features: D.
        weight: w: the loss is (1 - w) x the source's + w x the target's.
        seed: Seed of the first weights, whose standard deviation is 0.001.
    """

    def __init__(self, source: Source, features: int, weight: float, seed: int) -> None:
        super().__init__()
        self.weight = weight
        self.linear = nn.utils.skip_init(nn.Linear, features, source.count, bias=False)
        nn.init.normal_(self.linear.weight, std=1e-3, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("identities", source.identities, persistent=False)

    def __len__(self) -> int:
        return len(self.get_buffer("identities"))

    def forward(self, embeddings: Tensor, rows: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch of both: embeddings (B, D) of the source's images (B,), numbered from 0, loss of the target's."""
        identities = self.get_buffer("identities")[rows]
        return (1 - self.weight) * F.cross_entropy(
            self.linear(embeddings), identities
        ) + self.weight * target


def both_batches(target: Iterator[Tensor], source: Iterator[Tensor], n: int) -> Iterator[Tensor]:
    """Batches (B,) of the target's n images, and behind each one of the source's, numbered after them: (2B,)."""
    for own, other in zip(target, source, strict=True):
        yield torch.cat([own, n + other])


def source_seed(seed: int) -> int:
    """Seed of the source's batches, whose stream is that of no run and epoch."""
    return seed + _STREAM
