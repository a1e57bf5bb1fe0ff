"""Features with a known structure: a planted partition of unit rows into identities, for tests, benchmarks and trials.

The values are the same on every machine: random numbers are the raw words of PCG64, and arrays see only integers and exactly
rounded operations (+ - * / and square roots), in sums that lose nothing.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]

#: Centres of identities lie in so many dimensions: they crowd each other as people do.
_CENTRE_DIMENSIONS = 32
#: Coordinates before the rows are brought to length one, and of exact rows, are multiples of these.
_FINE, _GRID = np.float32(2**-16), np.float32(2**-11)
#: Standard deviation of an odd number drawn from -255 to 255.
_BYTE_DEVIATION = math.sqrt((2**16 - 1) / 3)
#: Values that are made at a time.
_BLOCK = 2**22


class PlantedPartition(NamedTuple):
    """Features (n, dim) float32; identities (n,) and cameras (n,) int64, both numbered from 0."""

    features: Tensor
    identities: Tensor
    cameras: Tensor


def planted_partition(
    n: int,
    dim: int,
    *,
    sizes: tuple[int, int] = (4, 300),
    cameras: int = 6,
    spread: float = 1.5,
    camera_shift: float = 0.4,
    outliers: float = 0.1,
    exact: bool = False,
    seed: int = 0,
) -> PlantedPartition:
    """Draw images of identities whose number of images has a heavy tail, seen by several cameras each, in random order.

    A row is its identity's centre, a shift that all images of its camera share and noise, lengths 1 : camera_shift : spread,
    brought to length one. Who is who, and seen by which camera, hangs on n, sizes, cameras, outliers and seed alone.

    Args:
        n: Images.
        dim: Width of the features; meant for some tens to thousands.
        sizes: Least and greatest number of images of an identity. A number twice as great is a quarter as frequent: the mean
            of (4, 300) is 17, as in Market-1501. The last identity drawn has what is left.
        cameras: Each identity is seen by 2 of them at least, where there are 2.
        spread: Length of the noise.
        camera_shift: Length of the shift.
        outliers: Share of the images that are the only one of their identity.
        exact: Coordinates become multiples of 2^-11, unit-norm rows up to some 1e-3. A dot product is then exact in
            float32 in whatever order it is summed: implementations that differ see the same similarities and the same ties.
        seed: Of the random numbers.

    Returns:
        The features, 2 GB at 1e6 x 512, made on the CPU in some ten seconds there; besides them 100 MB at most while it runs.

    Raises:
        ValueError: An argument is outside its range.
    """
    least, greatest = sizes
    for name, value, right, wanted in (
        ("n", n, n >= 0, "0 or more"),
        ("dim", dim, dim >= 1, "1 or more"),
        ("sizes", sizes, 1 <= least <= greatest, "1 <= least <= greatest"),
        ("cameras", cameras, cameras >= 1, "1 or more"),
        ("spread", spread, 0 <= spread < 1e3, "a number in [0, 1000)"),
        ("camera_shift", camera_shift, 0 <= camera_shift < 1e3, "a number in [0, 1000)"),
        ("outliers", outliers, 0 <= outliers <= 1, "a number in [0, 1]"),
        ("seed", seed, seed >= 0, "0 or more"),
    ):
        if not right:
            raise ValueError(f"{name}: got {value}, expected {wanted}")
    words = np.random.PCG64(seed)
    identities, count = _identities(words, n, least, greatest, round(outliers * n))
    seen = _seen(words, identities, count, cameras)
    mixing = _bytes(words, _CENTRE_DIMENSIONS, dim)
    centres = _bytes(words, count, _CENTRE_DIMENSIONS)
    # The length of a centre from whole numbers: z M M' z' for its coordinates z and the mixing M.
    gram = mixing.astype(np.int64) @ mixing.astype(np.int64).T
    lengths = np.sqrt(np.maximum(((centres.astype(np.int64) @ gram) * centres).sum(1), 1)).astype(
        np.float32
    )
    shifts = _bytes(words, cameras, dim)
    shifts *= np.float32(camera_shift / (_BYTE_DEVIATION * math.sqrt(dim)))
    scale = np.float32(spread / (_BYTE_DEVIATION * math.sqrt(dim)))

    features = np.empty((n, dim), dtype=np.float32)
    rows = max(1, _BLOCK // dim)
    for start in range(0, n, rows):
        block = slice(start, start + rows)
        who = identities[block]
        # Whole numbers below 2^24: the product is exact in whatever order it is summed.
        part = np.matmul(centres[who], mixing, out=features[block])
        part /= lengths[who, None]
        part += shifts[seen[block]]
        noise = _bytes(words, len(who), dim)
        noise *= scale
        part += noise
        _to_unit(part, exact)
    return PlantedPartition(
        torch.from_numpy(features), torch.from_numpy(identities), torch.from_numpy(seen)
    )


def _identities(
    words: np.random.PCG64, n: int, least: int, greatest: int, outliers: int
) -> tuple[Array, int]:
    """The identity of each image, in random order, and the number of identities."""
    share = (words.random_raw((n - outliers) // least + 1) >> np.uint64(11)) * 2.0**-53
    sizes = (least / (1 - share * (1 - least / (greatest + 1)))).astype(np.int64)
    sizes = sizes[: int(np.searchsorted(np.cumsum(sizes), n - outliers)) + 1]
    together = np.repeat(np.arange(len(sizes)), sizes)[: n - outliers]
    several = int(together[-1]) + 1 if len(together) else 0
    identities = np.concatenate([together, several + np.arange(outliers)])
    return identities[np.argsort(words.random_raw(n), kind="stable")], several + outliers


def _seen(words: np.random.PCG64, identities: Array, count: int, cameras: int) -> Array:
    """The camera of each image: an identity passes some that stand side by side."""
    first = words.random_raw(count) % np.uint64(cameras)
    least = min(2, cameras)
    passed = least + words.random_raw(count) % np.uint64(cameras - least + 1)
    step = words.random_raw(len(identities)) % passed[identities]
    return ((first[identities] + step) % np.uint64(cameras)).astype(np.int64)


def _bytes(words: np.random.PCG64, rows: int, columns: int) -> Array:
    """Odd numbers from -255 to 255, (rows, columns) float32; each row takes whole words, so blocks of rows do not show."""
    whole = -(-columns // 8)
    drawn = (
        words.random_raw(rows * whole)
        .astype("<u8", copy=False)
        .view(np.uint8)
        .reshape(rows, 8 * whole)
    )
    values = drawn[:, :columns].astype(np.float32)
    values *= 2
    values -= 255
    return values


def _to_unit(rows: Array, exact: bool) -> None:
    """Bring rows to length one, in place."""
    # Whole numbers have a sum of squares without rounding.
    rows /= _FINE
    np.rint(rows, out=rows)
    squares = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
    rows /= np.sqrt(np.maximum(squares, 1)).astype(np.float32)[:, None]
    if exact:
        rows /= _GRID
        np.rint(rows, out=rows)
        rows *= _GRID
