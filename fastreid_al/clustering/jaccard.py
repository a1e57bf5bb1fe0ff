"""The k-reciprocal Jaccard distance as a sparse graph.

Re-ranking with k-reciprocal encoding (Zhong et al., CVPR 2017), in the form with which SpCL and
Cluster Contrast cluster. Pairs whose weights share no column have distance 1 exactly, so the pairs
below any max_distance < 1 are few, and no array is n x n.

Weights are rounded to fixed point, in units of 2^-31 (2^-52 for float64 features). Their sums are
exact, so the graph depends neither on the order of a sum nor on the number of threads. For float32
features the C++, CUDA and PyTorch implementations return the same edges; their exponentials can
differ only in the last unit of a rare weight. In float64 that unit shows in the last digits of
distances.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Literal, NamedTuple

import numpy as np
import torch
from reid_kernels.topk import MAX_K
from torch import Tensor

from .. import native
from ..arguments import (
    SINGLE_AND_DOUBLE,
    as_features,
    as_ids,
    as_integer,
    as_number,
    as_tensor,
    as_world,
    described,
)
from ..distributed.world import SINGLE_PROCESS, World
from . import jaccard_cuda, jaccard_sharded, jaccard_torch
from .neighbours import nearest_neighbours
from .sharding import rows_of_all

#: The compiled implementations number rows with 31 bits.
_MOST_ROWS = 2**31 - 1
#: Distances that rounding alone can make: they become 0, so that copies are at distance 0.
_ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-12}
#: How far the norm of a row may be from 1: half floats and quantised features are a little off.
_UNIT_TOLERANCE = 1e-2


class _Fields(NamedTuple):
    """The fields of a graph."""

    indptr: Tensor
    indices: Tensor
    distances: Tensor
    max_distance: float


class Graph(_Fields):
    """A sparse symmetric graph of distances, in CSR form, without loops.

    On several ranks it holds this rank's rows.

    Args:
        indptr: (n + 1,) int64.
        indices: (edges,) int64, ascending in each row.
        distances: (edges,) float32 or float64, the dtype of the features. Every pair at most
            `max_distance` apart is an edge.
        max_distance: The greatest distance that is kept.

    Raises:
        ValueError: An argument that is no tensor or NumPy array, or of another number of dimensions
            or dtype. The values are checked when the graph is clustered.
    """

    __slots__ = ()

    def __new__(  # noqa: D102
        cls, indptr: Tensor, indices: Tensor, distances: Tensor, max_distance: float
    ) -> Graph:
        indptr = as_ids("indptr", indptr, per="node, and the end")
        if not len(indptr):
            raise ValueError("indptr: got shape (0,), expected (n + 1,)")
        indices = as_ids("indices", indices, per="edge")
        distances = as_tensor("distances", distances, 1, "(edges,)")
        if len(distances) != len(indices):
            raise ValueError(
                f"distances: got {len(distances)} values, expected {len(indices)}, one for each "
                "edge of indices"
            )
        if distances.dtype not in SINGLE_AND_DOUBLE:
            raise ValueError(f"distances: got dtype {distances.dtype}, expected float32 or float64")
        as_number("max_distance", max_distance, 0)
        return super().__new__(cls, indptr, indices, distances, max_distance)

    @property
    def n(self) -> int:
        """Number of nodes; on several ranks of this rank's nodes."""
        return len(self.indptr) - 1


def jaccard_graph(
    features: Tensor,
    k1: int = 30,
    k2: int = 6,
    max_distance: float = 0.62,
    *,
    neighbours: Tensor | Literal["exact"] = "exact",
    world: World = SINGLE_PROCESS,
) -> Graph:
    """Jaccard distances between images, from their k-reciprocal neighbours.

    The distance is that of Zhong et al., CVPR 2017, as SpCL uses it.

    Args:
        features: (n, D) float32 or float64, unit-norm rows, on any device.
        k1: Length of a neighbour list, with the image itself as its first entry.
        k2: The weights of an image are averaged over the first k2 entries of its list; over all of
            it if k2 is greater.
        max_distance: Pairs farther apart are left out; below 1. Distances up to 1e-6 (1e-12 for
            float64), which rounding alone can make, are 0.
        neighbours: "exact", or (n, min(k1, n)) int64 lists to use instead, such as those of
            `ivf_neighbours`. Each starts with its own index and names no row twice.
        world: The ranks, each with its rows of the features (and of the lists, which name rows of
            all ranks). Each gets its rows of the graph: all their edges, to nodes numbered over all
            ranks. The edges are the same as in a single process.

    Returns:
        The graph, on the device of the features: 12 bytes an edge (16 for float64), some tens of
        edges an image. If a large part of the features are equal, all pairs of these are edges.

    Memory:
        In addition to the features and the neighbour lists, with the extension about 2.8 kB an
        image, so 90 MB at n = 32,621 and 2.8 GB at 1e6; on a CPU also 8 bytes an image and thread.
        Without the extension, also blocks of 64 MiB on a CPU and of 1 GiB on a GPU. On several
        ranks each rank needs this for its own rows, in addition the features of one other rank,
        some arrays of 8 bytes for every image, and blocks of about 100 MiB.

    Raises:
        ValueError: Wrong shape or dtype, k1 or k2 below 1, k1 above 1,025, max_distance outside
            [0, 1), features that are not finite or far from unit norm (the row is named), or
            malformed `neighbours`. If it is so on one rank, all ranks raise.
    """
    as_world(world)
    features = world.raise_together(
        lambda: as_features("features", features, SINGLE_AND_DOUBLE, finite=False)
    )
    n = rows_of_all(features, world)
    k1 = as_integer("k1", k1, 1)
    k2 = as_integer("k2", k2, 1)
    if min(k1, n) > MAX_K + 1:
        raise ValueError(f"k1: got {k1}, expected {MAX_K + 1} at most")
    max_distance = float(as_number("max_distance", max_distance, 0, 1, below=True))
    _check_norms(features, n, world)
    features = features.contiguous()
    lists = _neighbour_lists(features, neighbours, k1, n, world)
    half = min(round(k1 / 2) + 1, k1, lists.shape[1])
    k2 = min(k2, k1)
    rounding = _ROUNDING[features.dtype]
    farthest = max(max_distance, rounding)
    if world.size > 1:
        edges = jaccard_sharded.jaccard_edges(features, lists, half, k2, farthest, n, world)
    else:
        edges = _edges(features, lists, half, k2, farthest)
    indptr, indices, distances = edges
    return Graph(indptr, indices, distances.masked_fill_(distances <= rounding, 0), max_distance)


def _neighbour_lists(
    features: Tensor, neighbours: Tensor | str, k1: int, n: int, world: World
) -> Tensor:
    """The given lists, checked, or the exact ones: (own rows, min(k1, n)) int64."""
    if isinstance(neighbours, Tensor | np.ndarray):
        given = neighbours
        own = world.local_slice(n)
        return world.raise_together(
            lambda: _checked_lists(given, features, min(k1, n), n, own).contiguous()
        )
    if isinstance(neighbours, str) and neighbours == "exact":
        return nearest_neighbours(features, k1, world)
    raise ValueError(
        f"neighbours: got {described(neighbours)}, expected 'exact' or a tensor of lists, such as "
        "ivf_neighbours(...).neighbours"
    )


def _edges(
    features: Tensor, lists: Tensor, half: int, k2: int, max_distance: float
) -> tuple[Tensor, Tensor, Tensor]:
    """indptr, indices and distances in a single process, by the fastest implementation here."""
    n = len(features)
    if 0 < n <= _MOST_ROWS:
        if features.is_cpu and (extension := native.extension()) is not None:
            return _edges_compiled(extension, features, lists, half, k2, max_distance)
        # The CUDA kernels exist for float32 only.
        takes_kernels = features.is_cuda and features.dtype == torch.float32
        if takes_kernels and (extension := native.cuda_extension()) is not None:
            with torch.cuda.device(features.device):
                stream = torch.cuda.current_stream().cuda_stream
                return jaccard_cuda.jaccard_edges(
                    extension, features, lists, half, k2, max_distance, stream
                )
    return jaccard_torch.jaccard_edges(features, lists, half, k2, max_distance)


def _edges_compiled(
    extension: ModuleType,
    features: Tensor,
    lists: Tensor,
    half: int,
    k2: int,
    max_distance: float,
) -> tuple[Tensor, Tensor, Tensor]:
    doubles = features.dtype == torch.float64
    form = extension.jaccard_edges_float64 if doubles else extension.jaccard_edges_float32
    edges = form(
        neighbours=native.address(lists),
        n=len(features),
        k1=lists.shape[1],
        half=half,
        k2=k2,
        features=native.address(features),
        width=features.shape[1],
        max_distance=max_distance,
        threads=native.threads(),
    )
    indptr = torch.empty(len(features) + 1, dtype=torch.int64)
    # The extension keeps edges i < j; both directions are written.
    indices = torch.empty(2 * edges.count, dtype=torch.int64)
    distances = features.new_empty(2 * edges.count)
    edges.write(native.address(indptr), native.address(indices), native.address(distances))
    return indptr, indices, distances


def _check_norms(features: Tensor, n: int, world: World) -> None:
    norm = torch.linalg.vector_norm(features, dim=1)
    for bad in (~torch.isfinite(norm), (norm - 1).abs() > _UNIT_TOLERANCE):
        rows = bad.nonzero()[:, 0]
        first = None
        if len(rows):
            first = (int(rows[0]) + world.local_slice(n).start, float(norm[rows[0]]))
        found = world.all_gather_objects((len(rows), first))
        count = sum(rows_of_rank for rows_of_rank, _ in found)
        if not count:
            continue
        row, value = next(example for _, example in found if example is not None)
        if not math.isfinite(value):
            raise ValueError(
                f"features: {count} of {n} rows are not finite, the first is row {row}"
            )
        raise ValueError(
            f"features: {count} of {n} rows are not unit-norm, the first is row {row} of "
            f"length {value:.4g}; normalise them (torch.nn.functional.normalize)"
        )


def _checked_lists(
    lists: Tensor | np.ndarray, features: Tensor, k: int, n: int, own: slice
) -> Tensor:
    rows = len(features)
    lists = as_tensor("neighbours", lists, 2, f"({rows}, {k})")
    if lists.shape != (rows, k) or lists.dtype != torch.int64 or lists.device != features.device:
        raise ValueError(
            f"neighbours: got shape {tuple(lists.shape)}, {lists.dtype}, on {lists.device}, "
            f"expected ({rows}, {k}), torch.int64, on {features.device}"
        )
    if rows == 0:
        return lists
    not_first = lists[:, 0] != torch.arange(own.start, own.stop, device=lists.device)
    outside = ((lists < 0) | (lists >= n)).any(1)
    ordered = lists.sort(1).values
    repeated = (ordered[:, 1:] == ordered[:, :-1]).any(1)
    bad = (not_first | outside | repeated).nonzero()[:, 0]
    if len(bad):
        raise ValueError(
            f"neighbours: row {own.start + int(bad[0])} ({len(bad)} such rows) does not begin with "
            f"its own index and name others of 0 to {n - 1} once each, expected neighbour lists"
        )
    return lists
