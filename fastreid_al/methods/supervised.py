"""The supervised bound of UCAL's Table 1: the loss, memory and batches of UCAL, true labels."""

from __future__ import annotations

from torch import Tensor

from ..arguments import as_ids
from ..config import BatchConfig, MemoryConfig
from ..distributed.world import SINGLE_PROCESS, World
from .contrastive import ContrastiveMethod


class Supervised(ContrastiveMethod):
    """Train with the true identities.

    Args:
        identities: (n,) int64 true identity of each training image.
        cameras: (n,) int64 camera of each training image, -1 where unknown.
        batch: Size and number of the batches.
        memory: Feature memory and temperature.
        seed: Seed of the batches.
        world: The ranks that train together.

    Raises:
        ValueError: An image's identity is unknown.
    """

    def __init__(
        self,
        identities: Tensor,
        cameras: Tensor,
        batch: BatchConfig,
        memory: MemoryConfig,
        seed: int,
        world: World = SINGLE_PROCESS,
    ) -> None:
        super().__init__(cameras, batch, memory, seed, world=world)
        count = len(self.cameras)
        identities = as_ids("identities", identities, count, low=-1, per="image").cpu()
        unknown = int((identities < 0).sum())
        if unknown:
            raise ValueError(
                f"{unknown} of {len(identities)} images have no identity; set `method` to ucal, "
                "which trains without labels"
            )
        # Unreadable images may have removed a whole identity, and classes are numbered
        # without gaps.
        self.identities = identities.unique(return_inverse=True)[1]

    def assign(self, epoch: int, features: Tensor) -> tuple[Tensor, Tensor]:
        """The true identities, (n,) int64, as labels and as classes."""
        return self.identities, self.identities
