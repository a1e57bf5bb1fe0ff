"""Batches of P identities x K images, from different cameras where possible; or random batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..arguments import as_ids, as_integer
from .records import UNKNOWN

#: Seeds have 128 bits at most.
_LARGEST_SEED = 2**128 - 1


class IdentitySampler:
    """Draws K images of one class after another, in batches.

    From each class one random image is drawn, and K - 1 more from cameras other than that image's,
    with replacement when there are too few; from the whole class when no other camera saw it or the
    cameras are unknown. A class of a single image contributes that image once. All classes are
    visited in random order before any is visited again.

    Args:
        classes: (n,) int64, the class of each image; images of class -1 are never drawn.
        cameras: (n,) int64, -1 where unknown.
        size: Images in a batch.
        per_class: K.
        iterations: Batches in an epoch.

    Raises:
        ValueError: Wrong shape, dtype or number, or no image has a class.
    """

    def __init__(
        self, classes: Tensor, cameras: Tensor, size: int, per_class: int, iterations: int
    ) -> None:
        given = as_ids("classes", classes, low=-1, per="image").cpu().numpy()
        order = np.argsort(given, kind="stable")
        sorted_classes = given[order]
        labelled = sorted_classes >= 0
        order = order[labelled]
        if len(order) == 0:
            raise ValueError("no image has a class: nothing to draw batches from")
        starts = np.flatnonzero(np.diff(sorted_classes[labelled], prepend=-1))
        self._members = np.split(order, starts[1:])
        self._cameras = as_ids("cameras", cameras, len(given), per="image").cpu().numpy()
        self._size = as_integer("size", size, 1)
        self._per_class = as_integer("per_class", per_class, 1)
        self._iterations = as_integer("iterations", iterations, 0)

    def batches(self, seed: int, epoch: int) -> Iterator[Tensor]:
        """Yield the epoch's batches, (size,) int64 each.

        They depend on seed and epoch alone, so that a resumed run can skip those it has done.

        Args:
            seed: Seed of the run.
            epoch: Number of the epoch.
        """
        random = _generator(seed, epoch)
        rows: list[int] = []
        made = 0
        while made < self._iterations:
            for index in random.permutation(len(self._members)):
                rows += self._draw(random, self._members[index])
                while len(rows) >= self._size and made < self._iterations:
                    yield torch.tensor(rows[: self._size])
                    rows = rows[self._size :]
                    made += 1
                if made == self._iterations:
                    return

    def _draw(self, random: np.random.Generator, members: np.ndarray) -> list[int]:
        """Draw K images of a class, or its only one."""
        first = int(random.choice(members))
        if len(members) == 1 or self._per_class == 1:
            return [first]
        camera = self._cameras[first]
        cameras = self._cameras[members]
        pool = members[(cameras != camera) & (cameras != UNKNOWN)]
        if len(pool) == 0 or camera == UNKNOWN:
            pool = members[members != first]
        more = self._per_class - 1
        drawn = random.choice(pool, more, replace=len(pool) < more)
        return [first, *drawn.tolist()]


class PassSampler:
    """Draws images in random order, each once before any is drawn again.

    The images left at the end of a pass, fewer than a batch, are not used: a new pass begins.

    Args:
        n: Number of images.
        size: Images in a batch, n at most.
        iterations: Batches in an epoch.
    """

    def __init__(self, n: int, size: int, iterations: int) -> None:
        self._n = as_integer("n", n, 1)
        self._size = as_integer("size", size, 1, n)
        self._iterations = as_integer("iterations", iterations, 0)

    def batches(self, seed: int, epoch: int) -> Iterator[Tensor]:
        """Yield the epoch's batches, (size,) int64 each.

        They depend on seed and epoch alone, so that a resumed run can skip those it has done.

        Args:
            seed: Seed of the run.
            epoch: Number of the epoch.
        """
        random = _generator(seed, epoch)
        per_pass = self._n // self._size
        for batch in range(self._iterations):
            if batch % per_pass == 0:
                order = torch.from_numpy(random.permutation(self._n))
            start = batch % per_pass * self._size
            yield order[start : start + self._size]


def _generator(seed: int, epoch: int) -> np.random.Generator:
    """The random numbers of an epoch of a run."""
    # A source's seed is beyond 64 bits.
    return np.random.default_rng(
        [as_integer("seed", seed, 0, _LARGEST_SEED), as_integer("epoch", epoch, 0)]
    )


def iterations_per_epoch(setting: int, n: int, size: int) -> int:
    """Return the number of batches in an epoch.

    Args:
        setting: `batch.iterations`: the number, or 0 for one pass over the images, without the last
            incomplete batch.
        n: Images.
        size: Images in a batch.
    """
    return setting or max(1, n // size)
