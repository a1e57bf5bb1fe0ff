"""DBSCAN on cosine distances of unit rows, without the matrix of distances."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from reid_kernels.numerics import full_precision
from torch import Tensor

from .backends import Backend, check_backend, cuml_labels, sklearn_labels
from .csr import both_directions
from .dbscan import dbscan
from .jaccard import Graph

#: Rows and columns of a tile of similarities: 32 MiB in float32.
_ROWS, _COLUMNS = 2048, 4096
#: Greatest difference of a row's length from one.
_UNIT = 1e-4
#: Edges of a graph, each pair counted twice, unless more are asked for.
MOST_EDGES = 2**28


def cosine_dbscan(
    features: Tensor, eps: float | Sequence[float], min_samples: int = 4, backend: Backend = "auto"
) -> Tensor:
    """DBSCAN by cosine distance 1 - x·y, for features that are clustered as they are, without Jaccard distances.

    Args:
        features: (n, D) float32 or float64, unit-norm rows within 1e-4, on any device.
        eps: Radius in cosine distance, in [0, 1); or several.
        min_samples: Points within eps that make a core point, itself counted.
        backend: "graph" makes the exact `radius_graph` for the greatest radius and clusters that. "sklearn" and "cuml" are
            given Euclidean distances, which order unit rows alike: |x - y|² = 2 (1 - x·y), so their radius is sqrt(2 eps).
            cuML's own metric "cosine" is never used: as reported (and open when this was written) it divides columns, not
            rows, by the rows' norms, reads past these norms where D > n, and finds no core points on unit rows. "auto" is
            "graph".

    Returns:
        (n,) int64, or (len(eps), n), on the device of the features; see `dbscan`. The labels of all backends are the same, up
        to rounding of pairs that lie at the radius. Memory: "graph" as `radius_graph` and `dbscan`; scikit-learn some
        8 bytes an edge, cuML tiles of n rows (max_mbytes_per_batch, its own choice).

    Raises:
        ValueError: Wrong shape or dtype, a row that is not finite or not of length one, what `dbscan` refuses, or more than
            2^28 edges within the greatest radius.
    """
    radii = [float(e) for e in np.atleast_1d(eps)]
    for e in radii:
        if not 0 <= e < 1:
            raise ValueError(f"eps: got {e}, expected a number in [0, 1)")
    if min_samples < 1:
        raise ValueError(f"min_samples: got {min_samples}, expected at least 1")
    check_backend(backend)
    check_unit_rows(features)
    euclidean = [math.sqrt(2 * e) for e in radii]
    if backend == "sklearn":
        found = sklearn_labels(features.detach().cpu().numpy(), euclidean, min_samples, "euclidean")
        labels = torch.from_numpy(found).to(features.device)
    elif backend == "cuml":
        rows = features.detach().to(features.device if features.is_cuda else "cuda").contiguous()
        labels = cuml_labels(rows, euclidean, min_samples, "euclidean").to(features.device)
    else:
        labels = dbscan(radius_graph(features, max(radii, default=0.0)), radii, min_samples)
    return labels[0] if np.ndim(eps) == 0 else labels


def radius_graph(features: Tensor, max_distance: float, most_edges: int = MOST_EDGES) -> Graph:
    """All pairs of unit rows within a cosine distance, exactly.

    Args:
        features: (n, D) float32 or float64, unit-norm rows within 1e-4, on any device.
        max_distance: Greatest distance max(0, 1 - x·y) kept, in [0, 1), rounded to the dtype of the features.
        most_edges: Edges at which it gives up.

    Returns:
        The graph, on the device of the features. Every similarity is computed once, in full precision, in tiles of 32 MiB in
        float32; a pair's distance is the same in both directions. A float32 edge takes 12 bytes, and some 40 while the graph
        is made: at 40 edges a row 52 MB at n = 32,621 and 1.6 GB at 1e6, and 11 GB at the most edges that it makes unless more
        are asked for. Time grows with n².

    Raises:
        ValueError: Wrong shape or dtype, a row that is not finite or not of length one, max_distance outside [0, 1), or more
            edges than `most_edges`.
    """
    if not 0 <= max_distance < 1:
        raise ValueError(f"max_distance: got {max_distance}, expected a number in [0, 1)")
    check_unit_rows(features)
    n, features = len(features), features.detach()
    reach = torch.tensor(max_distance, dtype=features.dtype, device=features.device)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    edges = 0
    with full_precision(features):
        for start in range(0, n, _ROWS):
            tiles = []
            for tile in _upper_tiles(features, start, reach):
                tiles.append(tile)
                edges += 2 * len(tile[0])
                if edges > most_edges:
                    raise ValueError(
                        f"max_distance: within {max_distance} the first {min(n, start + _ROWS)} of {n} rows have more than "
                        f"{most_edges} edges; take a smaller one"
                    )
            parts.append(_sorted_rows(tiles))
    i, j, d = (torch.cat(x) for x in zip(*parts, strict=True)) if parts else _no_edges(features)
    parts.clear()
    return Graph(*both_directions(i, j, d, n), max_distance)


def check_unit_rows(features: Tensor) -> None:
    """Refuse what is not (n, D) unit rows.

    Raises:
        ValueError: Wrong shape or dtype; or a row that is not finite or not of length one, by its index.
    """
    if features.ndim != 2:
        raise ValueError(f"features: got shape {tuple(features.shape)}, expected (n, D)")
    if features.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"features: got {features.dtype}, expected float32 or float64")
    lengths = torch.linalg.vector_norm(features.detach(), dim=1)
    # A NaN compares as false, so that it is bad.
    bad = (~((lengths - 1).abs() <= _UNIT)).nonzero()[:, 0]
    if len(bad):
        first = int(bad[0])
        raise ValueError(
            f"features: {len(bad)} of {len(features)} rows are not finite or not of length one, the first is row {first} of "
            f"length {float(lengths[first]):.6g}; torch.nn.functional.normalize makes them so"
        )


def _upper_tiles(
    features: Tensor, start: int, reach: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Pairs (i, j, distance) within reach, with i in a block of rows and j > i."""
    rows = features[start : start + _ROWS]
    for left in range(start, len(features), _COLUMNS):
        distance = (1 - rows @ features[left : left + _COLUMNS].T).clamp_(min=0)
        hits = distance <= reach
        if left < start + len(rows):
            hits = hits.triu(start - left + 1)
        i, j = hits.nonzero(as_tuple=True)
        yield i + start, j + left, distance[i, j]


def _sorted_rows(tiles: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Tiles from left to right as one list, in the order of rows, then columns."""
    i, j, d = (torch.cat(x) for x in zip(*tiles, strict=True))
    i, order = i.sort(stable=True)
    return i, j[order], d[order]


def _no_edges(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    none = torch.zeros(0, dtype=torch.int64, device=features.device)
    return none, none, features.new_zeros(0)
