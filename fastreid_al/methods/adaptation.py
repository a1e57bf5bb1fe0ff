"""Unsupervised domain adaptation: training with a labelled source and the unlabelled target.

Rows 0 to n - 1 are the target's images, rows n to n + m - 1 the source's. The second half of a
batch holds as many images of the source as the first half holds of the target.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arguments import as_ids, as_instance, as_integer, as_number
from ..errors import counted

#: Added to the seed for the source's batches. Seed and epoch fill the lower 96 bits of NumPy's seed
#: sequence, so the source has a random stream that no run and epoch of the target has.
_SOURCE_STREAM = 2**96


class Source:
    """The identities and cameras of the source's training images.

    Args:
        identities: (m,) int64 identity of each image.
        cameras: (m,) int64 camera of each image, -1 where unknown.

    Raises:
        ValueError: An identity is unknown, or there are fewer than two.
    """

    def __init__(self, identities: Tensor, cameras: Tensor) -> None:
        identities = as_ids("identities", identities, low=-1, per="image of the source")
        cameras = as_ids("cameras", cameras, len(identities), low=-1, per="image of the source")
        unknown = int((identities < 0).sum())
        if unknown:
            raise ValueError(
                f"{unknown} of {len(identities)} training images of the source have no identity; "
                "`source` takes a labelled set"
            )
        # Unreadable images may have removed a whole identity, and classes are numbered
        # without gaps.
        values, self.identities = identities.unique(return_inverse=True)
        self.cameras = cameras
        #: Number of identities.
        self.count = len(values)
        if self.count < 2:
            raise ValueError(
                f"the source has {counted(self.count, 'identity', 'identities')} in "
                f"{len(identities)} training images, at least two are needed"
            )

    def __len__(self) -> int:
        return len(self.identities)


class SourceClassifier(nn.Module):
    """Cross-entropy over the source's identities, the supervised part of NNCT's loss with a source.

    Args:
        source: The source's images.
        features: D, the width of the features.
        weight: w: the loss is (1 - w) x the source's + w x the target's.
        seed: Seed of the initial weights, whose standard deviation is 0.001.
    """

    def __init__(self, source: Source, features: int, weight: float, seed: int) -> None:
        super().__init__()
        as_instance("source", source, Source)
        features = as_integer("features", features, 1)
        seed = as_integer("seed", seed)
        self.weight = as_number("weight", weight, 0, 1)
        self.linear = nn.utils.skip_init(nn.Linear, features, source.count, bias=False)
        nn.init.normal_(self.linear.weight, std=1e-3, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("identities", source.identities, persistent=False)

    def __len__(self) -> int:
        return len(self.get_buffer("identities"))

    def forward(self, embeddings: Tensor, rows: Tensor, target_loss: Tensor) -> Tensor:
        """The loss of a batch of both domains.

        Args:
            embeddings: (B, D) of the source's images, not normalised.
            rows: (B,) int64, the source's images, numbered from 0.
            target_loss: () the loss of the target's images.
        """
        identities = self.get_buffer("identities")[rows]
        source_loss = F.cross_entropy(self.linear(embeddings), identities)
        return (1 - self.weight) * source_loss + self.weight * target_loss


def joint_batches(target: Iterator[Tensor], source: Iterator[Tensor], n: int) -> Iterator[Tensor]:
    """Join batches of the target's images with batches of the source's.

    Args:
        target: Batches (B,) int64 of the target's images.
        source: Batches (B,) int64 of the source's images, numbered from 0.
        n: Number of the target's images.

    Yields:
        (2B,) int64, in which the source's images are numbered from n.
    """
    for target_rows, source_rows in zip(target, source, strict=True):
        yield torch.cat([target_rows, n + source_rows])


def source_seed(seed: int) -> int:
    """The seed of the source's batches for a run's seed; no run uses it for the target."""
    return seed + _SOURCE_STREAM
