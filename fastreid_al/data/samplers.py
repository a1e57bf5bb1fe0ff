"""Batches: P identities x K images, other cameras first; or images at random."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .records import UNKNOWN


class IdentitySampler:
    """Draw K images of one class after the other, in batches.

    Of each class one random image is drawn, and K - 1 more from cameras other than that image's, with replacement when there
    are too few; from the same class whatever the camera when no other camera saw it or cameras are unknown; a class of a
    single image gives that image once. All classes are visited in random order before any is visited again.

    Args:
        classes: (n,) int64, the class of each image; images of class -1 are never drawn.
        cameras: (n,) int64, -1 where unknown.
        size: Images in a batch.
        per_class: K.
        iterations: Batches in an epoch.

    Raises:
        ValueError: No image has a class.
    """

    def __init__(
        self, classes: Tensor, cameras: Tensor, size: int, per_class: int, iterations: int
    ) -> None:
        order = np.argsort(classes.numpy(), kind="stable")
        sorted_classes = classes.numpy()[order]
        order = order[sorted_classes >= 0]
        if len(order) == 0:
            raise ValueError("no image has a class: nothing to draw batches from")
        starts = np.flatnonzero(np.diff(sorted_classes[sorted_classes >= 0], prepend=-1))
        self._members = np.split(order, starts[1:])
        self._cameras = cameras.numpy()
        self._size, self._per_class, self._iterations = size, per_class, iterations

    def batches(self, seed: int, epoch: int) -> Iterator[Tensor]:
        """The epoch's batches, (size,) int64 each: a function of seed and epoch alone, so that resuming can skip."""
        random = np.random.default_rng([seed, epoch])
        rows: list[int] = []
        made = 0
        while made < self._iterations:
            for which in random.permutation(len(self._members)):
                rows += self._draw(random, self._members[which])
                while len(rows) >= self._size and made < self._iterations:
                    yield torch.tensor(rows[: self._size])
                    rows, made = rows[self._size :], made + 1
                if made == self._iterations:
                    return

    def _draw(self, random: np.random.Generator, members: np.ndarray) -> list[int]:
        first = int(random.choice(members))
        if len(members) == 1 or self._per_class == 1:
            return [first]
        pool = members[
            (self._cameras[members] != self._cameras[first]) & (self._cameras[members] != UNKNOWN)
        ]
        if len(pool) == 0 or self._cameras[first] == UNKNOWN:
            pool = members[members != first]
        wanted = self._per_class - 1
        return [first, *random.choice(pool, wanted, replace=len(pool) < wanted).tolist()]


class PassSampler:
    """Draw images in random order, each once before any is drawn again.

    The images left over at the end of a pass, fewer than a batch, open no batch of their own: a new pass begins.

    Args:
        n: Number of images.
        size: Images in a batch, n at most.
        iterations: Batches in an epoch.
    """

    def __init__(self, n: int, size: int, iterations: int) -> None:
        self._n, self._size, self._iterations = n, size, iterations

    def batches(self, seed: int, epoch: int) -> Iterator[Tensor]:
        """The epoch's batches, (size,) int64 each: a function of seed and epoch alone, so that resuming can skip."""
        random = np.random.default_rng([seed, epoch])
        in_pass = self._n // self._size
        for batch in range(self._iterations):
            if batch % in_pass == 0:
                order = torch.from_numpy(random.permutation(self._n))
            start = batch % in_pass * self._size
            yield order[start : start + self._size]


def iterations_of(wanted: int, n: int, size: int) -> int:
    """Batches in an epoch: as many as wanted or, for 0, one pass over n images, the last incomplete batch left out."""
    return wanted or max(1, n // size)
