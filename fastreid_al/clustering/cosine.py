"""DBSCAN on cosine distances of unit-norm rows, without the n x n matrix of distances."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from reid_kernels.numerics import full_precision
from torch import Tensor

from ..arguments import SINGLE_AND_DOUBLE, as_features, as_integer, as_number, as_numbers
from .backends import Backend, check_backend, cuml_labels
from .csr import both_directions
from .dbscan import dbscan
from .jaccard import Graph

#: Rows and columns of a tile of similarities: 32 MiB in float32.
_ROWS = 2048
_COLUMNS = 4096
#: How far the norm of a row may be from 1.
_UNIT = 1e-4
#: Distances that are computed without the rounding of 1 - x·y: those that the tolerance of the
#: norm could make, and more. That many elements of pairs are copied at a time.
_NEAR = 1e-3
_NEAR_ELEMENTS = 2**22
#: Default limit of the edges of a graph; each pair counts twice.
MOST_EDGES = 2**28


def cosine_dbscan(
    features: Tensor, eps: float | Sequence[float], min_samples: int = 4, backend: Backend = "auto"
) -> Tensor:
    """DBSCAN by cosine distance 1 - x·y, for features that are clustered without Jaccard distances.

    Args:
        features: (n, D) float32 or float64, unit-norm rows within 1e-4, on any device.
        eps: Radius in cosine distance, in [0, 1); or several radii.
        min_samples: Points within eps that make a core point, itself counted.
        backend: "graph" computes the exact `radius_graph` of the greatest radius and clusters it.
            "cuml" gets Euclidean distances, which order unit-norm rows in the same way:
            |x - y|² = 2 (1 - x·y), so the radius is sqrt(2 eps). cuML's own metric "cosine" is
            never used. As reported (and open when this was written) it divides columns, not rows,
            by the norms of the rows, reads past the norms if D > n, and finds no core points on
            unit-norm rows. "auto" is "graph".

    Returns:
        (n,) int64, or (len(eps), n), on the device of the features; see `dbscan`. The backends
        return the same labels, except for rounding of pairs that lie at the radius. Memory: "graph"
        as `radius_graph` and `dbscan`; cuML tiles of n rows (max_mbytes_per_batch, its own choice).

    Raises:
        ValueError: Wrong shape or dtype, a row that is not finite or not unit-norm, what `dbscan`
            refuses, or more than 2^28 edges within the greatest radius.
    """
    radii = as_numbers("eps", eps, 0, 1, below=True)
    min_samples = as_integer("min_samples", min_samples, 1)
    check_backend(backend)
    features = unit_rows(features)
    euclidean = [math.sqrt(2 * e) for e in radii]
    if backend == "cuml":
        rows = features.to(features.device if features.is_cuda else "cuda").contiguous()
        labels = cuml_labels(rows, euclidean, min_samples, "euclidean").to(features.device)
    else:
        labels = dbscan(radius_graph(features, max(radii, default=0.0)), radii, min_samples)
    return labels[0] if np.ndim(eps) == 0 else labels


def radius_graph(features: Tensor, max_distance: float, most_edges: int = MOST_EDGES) -> Graph:
    """All pairs of unit-norm rows within a cosine distance, exactly.

    Args:
        features: (n, D) float32 or float64, unit-norm rows within 1e-4, on any device.
        max_distance: Greatest distance 1 - x·y to keep, in [0, 1), rounded to the dtype of the
            features. Distances up to 1e-3 are computed as |x - y|² / 2, so that exact copies are at
            distance 0.
        most_edges: Limit of the number of edges.

    Returns:
        The graph, on the device of the features. Every similarity is computed once, in full
        precision, in tiles of 32 MiB in float32; a pair has the same distance in both directions. A
        float32 edge takes 12 bytes, and about 40 during construction: with 40 edges a row, 52 MB at
        n = 32,621 and 1.6 GB at 1e6; 11 GB at the default limit of edges. Time grows with n².

    Raises:
        ValueError: Wrong shape or dtype, a row that is not finite or not unit-norm, max_distance
            outside [0, 1), or more edges than `most_edges`.
    """
    max_distance = float(as_number("max_distance", max_distance, 0, 1, below=True))
    most_edges = as_integer("most_edges", most_edges, 0)
    features = unit_rows(features)
    n = len(features)
    limit = torch.tensor(max_distance, dtype=features.dtype, device=features.device)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    edges = 0
    with full_precision(features):
        for start in range(0, n, _ROWS):
            tiles = []
            for tile in _upper_tiles(features, start, limit):
                tiles.append(tile)
                edges += 2 * len(tile[0])
                if edges > most_edges:
                    raise ValueError(
                        f"max_distance: within {max_distance} the first {min(n, start + _ROWS)} of "
                        f"{n} rows have more than {most_edges} edges; choose a smaller one"
                    )
            parts.append(_sorted_rows(tiles))
    i, j, d = (torch.cat(x) for x in zip(*parts, strict=True)) if parts else _no_edges(features)
    # Free the parts before the graph doubles the edges.
    parts.clear()
    return Graph(*both_directions(i, j, d, n), max_distance)


def unit_rows(features: Tensor) -> Tensor:
    """Return features (n, D) of unit-norm rows, detached.

    Raises:
        ValueError: Wrong shape or dtype; or the index of a row that is not finite or not unit-norm.
    """
    features = as_features("features", features, SINGLE_AND_DOUBLE, finite=False)
    lengths = torch.linalg.vector_norm(features, dim=1)
    # Written so that NaN counts as bad: every comparison with NaN is false.
    bad = (~((lengths - 1).abs() <= _UNIT)).nonzero()[:, 0]
    if len(bad):
        first = int(bad[0])
        raise ValueError(
            f"features: {len(bad)} of {len(features)} rows are not finite or not unit-norm, "
            f"the first is row {first} of length {float(lengths[first]):.6g}; normalise them "
            "(torch.nn.functional.normalize)"
        )
    return features


def _upper_tiles(
    features: Tensor, start: int, limit: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Pairs (i, j, distance) within the limit, with i in a block of rows and j > i."""
    rows = features[start : start + _ROWS]
    candidates = limit.clamp(min=_NEAR)
    for left in range(start, len(features), _COLUMNS):
        distance = (1 - rows @ features[left : left + _COLUMNS].T).clamp_(min=0)  # (B, C)
        hits = distance <= candidates
        # Only a tile that the diagonal crosses has pairs with j <= i.
        if left < start + len(rows):
            hits = hits.triu(start - left + 1)
        i, j = hits.nonzero(as_tuple=True)
        yield _without_rounding(features, i + start, j + left, distance[i, j], limit)


def _without_rounding(
    features: Tensor, i: Tensor, j: Tensor, distance: Tensor, limit: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the distances of pairs that are nearly copies again, as half of |x - y|².

    1 - x·y is the difference of two numbers that are nearly equal, so that copies would have a
    distance of some 1e-7 instead of 0. Of unit-norm rows both are the same.
    """
    near = (distance <= _NEAR).nonzero()[:, 0]
    for pairs in near.split(max(1, _NEAR_ELEMENTS // max(1, features.shape[1]))):
        apart = features[i[pairs]].double() - features[j[pairs]].double()  # (pairs, D)
        distance[pairs] = (apart.square_().sum(1) / 2).to(distance.dtype)
    inside = distance <= limit
    return (i, j, distance) if bool(inside.all()) else (i[inside], j[inside], distance[inside])


def _sorted_rows(tiles: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of tiles, ordered from left to right, as one list sorted by row, then column."""
    i, j, d = (torch.cat(x) for x in zip(*tiles, strict=True))
    i, order = i.sort(stable=True)
    return i, j[order], d[order]


def _no_edges(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    none = torch.zeros(0, dtype=torch.int64, device=features.device)
    return none, none, features.new_zeros(0)
