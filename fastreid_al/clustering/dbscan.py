"""DBSCAN on a sparse graph of distances."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from .. import native
from ..distributed.world import SINGLE_PROCESS, World
from .backends import Backend, check_backend, cuml_labels, sklearn_labels
from .jaccard import Graph
from .sharding import rows_of_all


def dbscan(
    graph: Graph,
    eps: float | Sequence[float],
    min_samples: int = 4,
    backend: Backend = "auto",
    world: World = SINGLE_PROCESS,
) -> Tensor:
    """Density-based clusters (Ester et al., KDD 1996), numbered as scikit-learn numbers them.

    Args:
        graph: Distances, on the CPU or a GPU; pairs that are not in it count as further than eps.
        eps: Radius, below 1 and at most the graph's max_distance, rounded to the dtype of the distances; or several, which
            share one call.
        min_samples: Points within eps that make a core point, itself counted.
        backend: "graph" is this package's own: union-find over the edges, in C++ over threads for a graph on the CPU, in
            PyTorch for one on a GPU or where the extension is not built. "sklearn" is scikit-learn on the same sparse graph.
            "cuml" is cuML, which takes no sparse graph: distances become a dense n x n array on a GPU, so it serves
            comparisons, up to n = 40,000. "auto" is "graph" on every device: all give the same labels, and it alone grows
            with the edges.
        world: Each gives its rows of the graph, as `jaccard_graph` gave them to it, and gets the labels of all nodes, the same
            as a process alone. By the backend "graph" alone, in PyTorch.

    Returns:
        (n,) int64, or (len(eps), n) for several radii, on the device of the graph: clusters numbered by their lowest core
        index, a border point in the lowest-numbered cluster among its core neighbours, -1 for noise. The same at any number
        of threads. Linear in the edges. Besides the labels (8 bytes a node and radius) C++ takes a byte a node: 33 kB at
        n = 32,621, 1 MB at 1e6. PyTorch takes some 40 bytes an edge: 52 MB at n = 32,621 with 40 edges a node, 1.6 GB at 1e6.
        Over ranks it is so by the edges of each, and some 60 bytes a node of all: 2 MB and 60 MB.

    Raises:
        ValueError: eps is outside [0, 1) or above the graph's max_distance, min_samples is below 1, the backend is unknown, not
            installed or given too many nodes, or the graph is malformed.
    """
    radii = [float(e) for e in np.atleast_1d(eps)]
    for e in radii:
        if not 0 <= e < 1:
            raise ValueError(f"eps: got {e}, expected a number in [0, 1)")
        if not e <= graph.max_distance:
            raise ValueError(
                f"eps: got {e}, expected {graph.max_distance} at most, the reach of the graph"
            )
    if min_samples < 1:
        raise ValueError(f"min_samples: got {min_samples}, expected at least 1")
    if world.size > 1 and backend not in ("auto", "graph"):
        raise ValueError(f"backend: got {backend!r}, expected 'graph' on {world.size} ranks")
    check_backend(backend, graph.n)
    n = (
        graph.n
        if world.size == 1
        else rows_of_all(world.raise_together(lambda: _indptr(graph))[1:], world)
    )
    world.raise_together(lambda: check_graph(graph, n))
    # Every backend compares in the dtype of the graph.
    rounded = torch.tensor(radii, dtype=graph.distances.dtype)
    if world.size > 1:
        labels = _over_ranks(graph, rounded, min_samples, n, world)
    elif backend == "sklearn":
        labels = _by_sklearn(graph, rounded, min_samples)
    elif backend == "cuml":
        labels = _by_cuml(graph, rounded, min_samples)
    elif graph.distances.is_cpu and native.extension() is not None:
        labels = _by_union_find(graph, rounded, min_samples)
    else:
        labels = _by_pointer_jumping(graph, rounded, min_samples)
    return labels[0] if np.ndim(eps) == 0 else labels


def check_graph(graph: Graph, n: int | None = None) -> None:
    """Refuse arrays that are no graph, before anything follows them out of bounds.

    Args:
        graph: The graph, or rows of one.
        n: Its nodes; as many as rows when not given.

    Raises:
        ValueError: Wrong shape, dtype or device; indptr that does not rise from 0 to the number of indices; an index outside
            [0, n).
    """
    indptr, indices, distances = graph[:3]
    n = graph.n if n is None else n
    if any(x.ndim != 1 for x in graph[:3]) or len(indptr) == 0 or len(indices) != len(distances):
        shapes = ", ".join(str(tuple(x.shape)) for x in graph[:3])
        raise ValueError(
            f"graph: got shapes {shapes}, expected indptr (n + 1,), indices (edges,) and distances (edges,)"
        )
    if (
        indptr.dtype != torch.int64
        or indices.dtype != torch.int64
        or distances.dtype not in (torch.float32, torch.float64)
    ):
        dtypes = ", ".join(str(x.dtype).removeprefix("torch.") for x in graph[:3])
        raise ValueError(f"graph: got {dtypes}, expected int64, int64 and float32 or float64")
    if len({x.device for x in graph[:3]}) != 1:
        raise ValueError(
            f"graph: got {', '.join(str(x.device) for x in graph[:3])}, expected one device"
        )
    if int(indptr[0]) != 0 or int(indptr[-1]) != len(indices):
        raise ValueError(
            f"graph: indptr goes from {int(indptr[0])} to {int(indptr[-1])}, expected 0 to {len(indices)}, the indices"
        )
    falls = (indptr[1:] < indptr[:-1]).nonzero()
    if len(falls):
        raise ValueError(f"graph: indptr falls behind node {int(falls[0])}")
    if len(indices):
        low, high = (int(x) for x in torch.aminmax(indices))
        if low < 0 or high >= n:
            raise ValueError(
                f"graph: got an index {low if low < 0 else high}, expected 0 to {n - 1}"
            )


def _by_union_find(graph: Graph, eps: Tensor, min_samples: int) -> Tensor:
    module = native.extension()
    assert module is not None
    indptr, indices, distances = (x.contiguous() for x in graph[:3])
    labels = torch.empty(len(eps), graph.n, dtype=torch.int64)
    doubles = distances.dtype == torch.float64
    form = module.dbscan_float64 if doubles else module.dbscan_float32
    form(
        *map(native.address, (indptr, indices, distances)),
        graph.n,
        native.address(eps),
        len(eps),
        min(min_samples, len(indices) + 2),
        native.address(labels),
        native.threads(),
    )
    return labels


def _by_pointer_jumping(graph: Graph, eps: Tensor, min_samples: int) -> Tensor:
    return _over_ranks(graph, eps, min_samples, graph.n, SINGLE_PROCESS)


def _over_ranks(graph: Graph, eps: Tensor, min_samples: int, n: int, world: World) -> Tensor:
    device, where = graph.distances.device, world.local_slice(n)
    nodes = torch.arange(n, device=device)
    own = nodes[where]
    all_rows = torch.repeat_interleave(own, graph.indptr.diff(), output_size=len(graph.indices))
    found = torch.empty(len(eps), n, dtype=torch.int64, device=device)
    for e, labels in zip(eps.to(device), found, strict=True):
        near = graph.distances <= e
        rows, columns = all_rows[near], graph.indices[near]
        core = world.all_gather_rows(
            torch.bincount(rows - where.start, minlength=len(own)) + 1 >= min_samples
        )
        # Each edge once, from the higher node to the lower.
        both = core[rows] & core[columns] & (rows > columns)
        roots = _lowest_nodes(rows[both], columns[both], nodes.clone())
        if world.size > 1:
            roots = _united(roots, nodes, world)
        numbers = (core & (roots == nodes)).cumsum(0) - 1
        clusters = torch.where(core, numbers[roots], -1)
        to_core = core[columns] & ~core[rows]
        lowest = torch.full_like(own, n)
        lowest.scatter_reduce_(0, rows[to_core] - where.start, clusters[columns[to_core]], "amin")
        labels.copy_(world.all_gather_rows(torch.where(lowest < n, lowest, clusters[where])))
    return found


def _united(roots: Tensor, nodes: Tensor, world: World) -> Tensor:
    """The lowest nodes of components of which each rank knows a part: by its own edges each node's lowest.

    Part after part, each of all ranks: n nodes of those of others are here at a time, not n of every rank.
    """
    parents = nodes.clone()
    for part in nodes.chunk(world.size):
        theirs = world.all_gather_rows(roots[part])
        some = part.repeat(world.size)
        joins = theirs != some
        parents = _lowest_nodes(parents[some[joins]], parents[theirs[joins]], parents)
    return parents


def _lowest_nodes(a: Tensor, b: Tensor, parents: Tensor) -> Tensor:
    """The lowest node of each node's component, where it is `parents` and edges between such nodes (a, b) join them.

    Each round hooks every root to the lowest root next to it and jumps until every node points to a root; O(log² n) steps
    (Liu and Tarjan, SOSA 2019), a few in practice. An edge inside a component is dropped. `parents` is written to.
    """
    while len(a):
        parents.scatter_reduce_(0, torch.maximum(a, b), torch.minimum(a, b), "amin")
        while not torch.equal(above := parents[parents], parents):
            parents = above
        a, b = parents[a], parents[b]
        apart = a != b
        a, b = a[apart], b[apart]
    return parents


def _indptr(graph: Graph) -> Tensor:
    if graph.indptr.ndim != 1 or len(graph.indptr) == 0:
        raise ValueError(
            f"graph: got indptr of shape {tuple(graph.indptr.shape)}, expected (n + 1,)"
        )
    return graph.indptr


def _by_sklearn(graph: Graph, eps: Tensor, min_samples: int) -> Tensor:
    indptr, indices, distances = (x.cpu().numpy() for x in graph[:3])
    matrix = sp.csr_matrix((distances, indices, indptr), shape=(graph.n, graph.n))
    labels = sklearn_labels(matrix, eps.tolist(), min_samples, "precomputed")
    return torch.from_numpy(labels).to(graph.distances.device)


def _by_cuml(graph: Graph, eps: Tensor, min_samples: int) -> Tensor:
    n, distances = graph.n, graph.distances
    device = distances.device if distances.is_cuda else torch.device("cuda")
    rows = torch.repeat_interleave(torch.arange(n, device=distances.device), graph.indptr.diff())
    # Further apart than any radius that is taken.
    dense = torch.full((n, n), 2, dtype=distances.dtype, device=device)
    dense[rows.to(device), graph.indices.to(device)] = distances.to(device)
    dense.fill_diagonal_(0)
    return cuml_labels(dense, eps.tolist(), min_samples, "precomputed").to(distances.device)
