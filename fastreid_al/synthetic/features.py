"""Features with a known structure, for tests and benchmarks: a planted partition into identities.

The values are the same on every machine: random numbers are the raw words of PCG64, and arrays see
only integers and exactly rounded operations (+ - * / and square roots), in sums without rounding.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..arguments import as_flag, as_integer, as_integers, as_number

Array = npt.NDArray[Any]

#: Dimensions of the space of centres: in so few, identities crowd each other as people do.
_CENTRE_DIMENSIONS = 32
#: Coordinates are multiples of this before the rows are normalised.
_FINE = np.float32(2**-16)
#: Coordinates of exact rows are multiples of this.
_GRID = np.float32(2**-11)
#: Standard deviation of a random odd number from -255 to 255.
_ODD_DEVIATION = math.sqrt((2**16 - 1) / 3)
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
    """Make unit-norm features of identities that several cameras see, in random order.

    A row is the sum of its identity's centre, a shift that all images of its camera share, and
    noise, of lengths 1 : camera_shift : spread; then it is normalised. The number of images of an
    identity has a heavy tail. Identities and cameras depend on n, sizes, cameras, outliers and seed
    alone.

    Args:
        n: Images.
        dim: Width of the features; meant for some tens to thousands.
        sizes: Least and greatest number of images of an identity. A number twice as great is a
            quarter as frequent: the mean of (4, 300) is 17, as in Market-1501. The last identity
            has what is left.
        cameras: Number of cameras. Each identity is seen by 2 of them at least, where there are 2.
        spread: Length of the noise.
        camera_shift: Length of the camera's shift.
        outliers: Share of the images that are the only one of their identity, in [0, 1].
        exact: Round coordinates to multiples of 2^-11; rows are then unit-norm up to some 1e-3. A
            dot product is exact in float32 in whatever order it is summed, so that different
            implementations see the same similarities and the same ties.
        seed: Seed of the random numbers.

    Returns:
        The features, on the CPU: 2 GB at 1e6 x 512, made in some ten seconds there. It takes 100 MB
        more while it runs.

    Raises:
        ValueError: An argument is outside its range.
    """
    n = as_integer("n", n, 0)
    dim = as_integer("dim", dim, 1)
    sizes = _as_sizes(sizes)
    cameras = as_integer("cameras", cameras, 1)
    spread = as_number("spread", spread, 0, 1e3, below=True)
    camera_shift = as_number("camera_shift", camera_shift, 0, 1e3, below=True)
    outliers = as_number("outliers", outliers, 0, 1)
    exact = as_flag("exact", exact)
    seed = as_integer("seed", seed, 0)
    # The order of the calls below is the order of the random numbers.
    words = np.random.PCG64(seed)
    identities, count = _identities(words, n, sizes, round(outliers * n))
    seen = _cameras(words, identities, count, cameras)
    mixing = _odd_numbers(words, _CENTRE_DIMENSIONS, dim)
    centres = _odd_numbers(words, count, _CENTRE_DIMENSIONS)
    lengths = _lengths(centres, mixing)
    unit = _ODD_DEVIATION * math.sqrt(dim)  # length of a row of odd numbers
    shifts = _odd_numbers(words, cameras, dim)
    shifts *= np.float32(camera_shift / unit)
    scale = np.float32(spread / unit)

    features = np.empty((n, dim), dtype=np.float32)
    rows = max(1, _BLOCK // dim)
    for start in range(0, n, rows):
        block = slice(start, start + rows)
        identity = identities[block]
        # Whole numbers below 2^24: the product is exact in whatever order it is summed.
        part = np.matmul(centres[identity], mixing, out=features[block])
        part /= lengths[identity, None]
        part += shifts[seen[block]]
        noise = _odd_numbers(words, len(identity), dim)
        noise *= scale
        part += noise
        _normalise(part, exact)
    return PlantedPartition(
        torch.from_numpy(features), torch.from_numpy(identities), torch.from_numpy(seen)
    )


def _as_sizes(sizes: tuple[int, int]) -> tuple[int, int]:
    """The least and the greatest number of images of an identity."""
    least, greatest = as_integers("sizes", sizes, 2, 1)
    if least > greatest:
        raise ValueError(f"sizes: got {sizes}, expected 1 <= least <= greatest")
    return least, greatest


def _identities(
    words: np.random.PCG64, n: int, sizes: tuple[int, int], outliers: int
) -> tuple[Array, int]:
    """The identity of each image, in random order, and the number of identities."""
    least, greatest = sizes
    uniform = (words.random_raw((n - outliers) // least + 1) >> np.uint64(11)) * 2.0**-53
    counts = (least / (1 - uniform * (1 - least / (greatest + 1)))).astype(np.int64)
    counts = counts[: int(np.searchsorted(np.cumsum(counts), n - outliers)) + 1]
    clustered = np.repeat(np.arange(len(counts)), counts)[: n - outliers]
    clusters = int(clustered[-1]) + 1 if len(clustered) else 0
    identities = np.concatenate([clustered, clusters + np.arange(outliers)])
    return identities[np.argsort(words.random_raw(n), kind="stable")], clusters + outliers


def _cameras(words: np.random.PCG64, identities: Array, count: int, cameras: int) -> Array:
    """The camera of each image: an identity passes several neighbouring cameras."""
    first = words.random_raw(count) % np.uint64(cameras)
    least = min(2, cameras)
    passed = least + words.random_raw(count) % np.uint64(cameras - least + 1)
    step = words.random_raw(len(identities)) % passed[identities]
    return ((first[identities] + step) % np.uint64(cameras)).astype(np.int64)


def _lengths(centres: Array, mixing: Array) -> Array:
    """Lengths of the mixed centres, (count,) float32.

    They come from whole numbers: z M M' z' for a centre's coordinates z and the mixing matrix M.
    """
    whole_mixing = mixing.astype(np.int64)
    gram = whole_mixing @ whole_mixing.T
    squares = ((centres.astype(np.int64) @ gram) * centres).sum(1)
    return np.sqrt(np.maximum(squares, 1)).astype(np.float32)


def _odd_numbers(words: np.random.PCG64, rows: int, columns: int) -> Array:
    """Random odd numbers from -255 to 255: (rows, columns) float32.

    Each row takes whole words, so that the values do not depend on how rows are divided into
    blocks.
    """
    per_row = -(-columns // 8)
    raw = words.random_raw(rows * per_row).astype("<u8", copy=False)
    octets = raw.view(np.uint8).reshape(rows, 8 * per_row)
    values = octets[:, :columns].astype(np.float32)
    values *= 2
    values -= 255
    return values


def _normalise(rows: Array, exact: bool) -> None:
    """Bring rows to unit norm, in place."""
    # Whole numbers have a sum of squares without rounding.
    rows /= _FINE
    np.rint(rows, out=rows)
    squares = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
    rows /= np.sqrt(np.maximum(squares, 1)).astype(np.float32)[:, None]
    if exact:
        rows /= _GRID
        np.rint(rows, out=rows)
        rows *= _GRID
