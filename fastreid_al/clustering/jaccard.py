"""The k-reciprocal Jaccard distance as a sparse graph.

Re-ranking with k-reciprocal encoding (Zhong et al., CVPR 2017) in the form that SpCL and Cluster Contrast cluster with. Pairs
whose weights share no support have distance 1 exactly, so the pairs below any max_distance < 1 are few and nothing here is
n x n.

Weights are rounded to whole numbers (shares of one in units of 2^-31, 2^-52 for float64 features). Sums of these are exact, so
neither the order of a sum nor the number of threads can be seen in the graph, and for float32 features the C++ form, the CUDA
form and the PyTorch form give the same edges: all that their exponentials can change is the last unit of a rare share. In
float64 that unit shows, in the last digits of distances.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from reid_kernels.topk import MAX_K
from torch import Tensor

from .. import native
from ..distributed.world import SINGLE_PROCESS, World
from . import jaccard_cuda, jaccard_sharded, jaccard_torch
from .neighbours import nearest_neighbours
from .sharding import rows_of_all

#: The largest set whose rows the compiled forms count in 32 bits.
_MOST_ROWS = 2**31 - 1
#: Rows may be off length one by so much: half floats and grids of features are.
_UNIT_TOLERANCE = 1e-2


class Graph(NamedTuple):
    """A sparse symmetric graph of distances, in CSR form, without loops; over ranks this rank's rows of it.

    Args:
        indptr: (n + 1,) int64.
        indices: (edges,) int64, ascending in each row.
        distances: (edges,) float32 or float64, the dtype of the features; every pair at most `max_distance` apart is here.
        max_distance: The greatest distance kept.
    """

    indptr: Tensor
    indices: Tensor
    distances: Tensor
    max_distance: float

    @property
    def n(self) -> int:
        """Number of nodes; over ranks of this rank's."""
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
    """Jaccard distances between images, from their k-reciprocal neighbours (Zhong et al., CVPR 2017, as SpCL uses it).

    Args:
        features: (n, D) float32 or float64, unit rows, on any device.
        k1: Length of a neighbour list, the image itself at place 0.
        k2: The weights of an image are averaged over the first k2 of its list, all of it where k2 is greater.
        max_distance: Pairs further apart are left out; below 1.
        neighbours: "exact", or (n, min(k1, n)) int64 lists in place of the exact ones, such as `ivf_neighbours` gives; each
            begins with its own index and names no row twice.
        world: Each gives its rows of the features (and of the lists, which name rows of all) and gets its rows of the graph:
            all their edges, to nodes numbered among all. The edges are those that a process alone finds.

    Returns:
        The graph, on the device of the features: 12 bytes an edge (16 for float64), some tens of edges an image. Where a large
        part of the features are equal the edges are every pair of these.

    Memory:
        Over the features, while it runs with the extension: some 2.8 kB an image besides the neighbour lists, so 90 MB at
        n = 32,621 and 2.8 GB at 1e6, on a CPU also 8 bytes an image and thread. Without it, blocks of 64 MiB on a CPU and of
        1 GiB on a GPU come on top. Over ranks each holds its share, the features of one rank more, some arrays of 8 bytes an
        image of all, and blocks of some 100 MiB.

    Raises:
        ValueError: Wrong shape or dtype, k1 or k2 below 1, k1 above 1,025, max_distance outside [0, 1), features that are not
            finite or far from unit length (the row is named), or `neighbours` that are no such lists; on all ranks where it is
            so on one.
    """
    world.raise_together(lambda: _check(features))
    n, half = rows_of_all(features, world), min(round(k1 / 2) + 1, k1)
    _check_numbers(n, k1, k2, max_distance)
    _check_lengths(features, n, world)
    features = features.detach().contiguous()
    if isinstance(neighbours, Tensor):
        given = neighbours
        world.raise_together(
            lambda: _check_lists(given, features, min(k1, n), n, world.local_slice(n))
        )
        lists = neighbours.contiguous()
    elif isinstance(neighbours, str) and neighbours == "exact":
        lists = nearest_neighbours(features, k1, world)
    else:
        found = (
            repr(neighbours) if isinstance(neighbours, str) else f"a {type(neighbours).__name__}"
        )
        raise ValueError(
            f"neighbours: got {found}, expected 'exact' or a tensor of lists, such as ivf_neighbours(...).neighbours"
        )
    half, k2 = min(half, lists.shape[1]), min(k2, k1)
    if world.size > 1:
        return Graph(
            *jaccard_sharded.jaccard_edges(features, lists, half, k2, max_distance, n, world),
            max_distance,
        )
    extension = (
        native.extension()
        if features.is_cpu
        else native.cuda_extension()
        if features.is_cuda
        else None
    )
    if (
        n == 0
        or n > _MOST_ROWS
        or extension is None
        or (features.is_cuda and features.dtype == torch.float64)
    ):
        return Graph(
            *jaccard_torch.jaccard_edges(features, lists, half, k2, max_distance), max_distance
        )
    if features.is_cuda:
        with torch.cuda.device(features.device):
            stream = torch.cuda.current_stream().cuda_stream
            return Graph(
                *jaccard_cuda.jaccard_edges(
                    extension, features, lists, half, k2, max_distance, stream
                ),
                max_distance,
            )
    form = (
        extension.jaccard_edges_float64
        if features.dtype == torch.float64
        else extension.jaccard_edges_float32
    )
    edges = form(
        neighbours=native.address(lists),
        n=n,
        k1=lists.shape[1],
        half=half,
        k2=k2,
        features=native.address(features),
        width=features.shape[1],
        max_distance=max_distance,
        threads=native.threads(),
    )
    indptr = torch.empty(n + 1, dtype=torch.int64)
    indices = torch.empty(2 * edges.count, dtype=torch.int64)
    distances = features.new_empty(2 * edges.count)
    edges.write(*(native.address(x) for x in (indptr, indices, distances)))
    return Graph(indptr, indices, distances, max_distance)


def _check(features: Tensor) -> None:
    if not isinstance(features, Tensor):
        raise ValueError(f"features: got a {type(features).__name__}, expected a torch.Tensor")
    if features.ndim != 2:
        raise ValueError(f"features: got shape {tuple(features.shape)}, expected (n, D)")
    if features.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"features: got dtype {features.dtype}, expected float32 or float64")


def _check_numbers(n: int, k1: int, k2: int, max_distance: float) -> None:
    if k1 < 1 or k2 < 1:
        raise ValueError(f"k1 and k2: got {k1} and {k2}, expected at least 1")
    if min(k1, n) > MAX_K + 1:
        raise ValueError(f"k1: got {k1}, expected {MAX_K + 1} at most")
    if not 0 <= max_distance < 1:
        raise ValueError(f"max_distance: got {max_distance}, expected a number in [0, 1)")


def _check_lengths(features: Tensor, n: int, world: World) -> None:
    length = torch.linalg.vector_norm(features, dim=1)
    for bad in (~torch.isfinite(length), (length - 1).abs() > _UNIT_TOLERANCE):
        rows = bad.nonzero()[:, 0]
        first = (
            (int(rows[0]) + world.local_slice(n).start, float(length[rows[0]]))
            if len(rows)
            else None
        )
        found = world.all_gather_objects((len(rows), first))
        row, value = next((named for _, named in found if named is not None), (0, 1.0))
        count = sum(count for count, _ in found)
        if count and not math.isfinite(value):
            raise ValueError(
                f"features: {count} of {n} rows are not finite, the first is row {row}"
            )
        if count:
            raise ValueError(
                f"features: {count} of {n} rows are not of length one, the first is row {row} of length {value:.4g}; "
                "normalise them (torch.nn.functional.normalize)"
            )


def _check_lists(lists: Tensor, features: Tensor, k: int, n: int, where: slice) -> None:
    rows = len(features)
    if lists.shape != (rows, k) or lists.dtype != torch.int64 or lists.device != features.device:
        raise ValueError(
            f"neighbours: got shape {tuple(lists.shape)}, {lists.dtype}, on {lists.device}, "
            f"expected ({rows}, {k}), torch.int64, on {features.device}"
        )
    if rows == 0:
        return
    own = lists[:, 0] != torch.arange(where.start, where.stop, device=lists.device)
    outside = ((lists < 0) | (lists >= n)).any(1)
    ordered = lists.sort(1).values
    twice = (ordered[:, 1:] == ordered[:, :-1]).any(1)
    bad = (own | outside | twice).nonzero()[:, 0]
    if len(bad):
        raise ValueError(
            f"neighbours: row {where.start + int(bad[0])} ({len(bad)} such rows) does not begin with its own index "
            f"and name others of 0 to {n - 1} once each, expected neighbour lists"
        )
