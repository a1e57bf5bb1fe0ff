"""DBSCAN on a sparse graph of distances."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .. import native
from ..arguments import as_instance, as_integer, as_numbers, as_world
from ..distributed.world import SINGLE_PROCESS, World
from .backends import Backend, check_backend, cuml_labels
from .jaccard import Graph
from .sharding import rows_of_all


def dbscan(
    graph: Graph,
    eps: float | Sequence[float],
    min_samples: int = 4,
    backend: Backend = "auto",
    world: World = SINGLE_PROCESS,
) -> Tensor:
    """Cluster by density (DBSCAN, Ester et al., KDD 1996), with scikit-learn's numbering.

    Args:
        graph: Distances, on the CPU or a GPU; pairs that are not in it are farther apart than eps.
        eps: Radius, below 1 and at most the graph's max_distance, rounded to the dtype of the
            distances; or several radii, which share one call.
        min_samples: Points within eps that make a core point, itself counted.
        backend: "graph" is this package's implementation: union-find over the edges, in C++ with
            threads for a graph on the CPU, in PyTorch on a GPU or without the extension. "cuml" is
            cuML, which takes no sparse graph: distances become a dense n x n array on a GPU, so it
            is for comparisons, up to n = 40,000. "auto" is "graph". All return the same labels.
        world: The ranks, each with its rows of the graph as `jaccard_graph` returned them. Each
            rank gets the labels of all nodes, the same as in a single process. Several ranks
            require the backend "graph" and use PyTorch.

    Returns:
        (n,) int64, or (len(eps), n) for several radii, on the device of the graph: clusters
        numbered by their lowest core index, a border point in the lowest-numbered cluster of its
        core neighbours, -1 for noise. The result does not depend on the number of threads. Time is
        linear in the edges. In addition to the labels (8 bytes a node and radius), C++ needs one
        byte a node: 33 kB at n = 32,621 and 1 MB at 1e6. PyTorch needs about 40 bytes an edge: 52
        MB at n = 32,621 with 40 edges a node, 1.6 GB at 1e6. On several ranks it needs that for the
        edges of each rank, and about 60 bytes for every node: 2 MB and 60 MB.

    Raises:
        ValueError: eps is outside [0, 1) or above the graph's max_distance, min_samples is below 1,
            the backend is unknown, not installed or given too many nodes, or the graph is
            malformed.
    """
    as_world(world)
    as_instance("graph", graph, Graph)
    radii = as_numbers("eps", eps, 0, 1, below=True)
    for e in radii:
        if not e <= graph.max_distance:
            raise ValueError(
                f"eps: got {e}, expected at most {graph.max_distance}, the graph's max_distance"
            )
    min_samples = as_integer("min_samples", min_samples, 1)
    if world.size > 1 and backend not in ("auto", "graph"):
        raise ValueError(f"backend: got {backend!r}, expected 'graph' on {world.size} ranks")
    check_backend(backend, max(0, graph.n))
    n = nodes_of_all(graph, world)
    world.raise_together(lambda: check_graph(graph, n))
    # Every backend compares in the dtype of the graph.
    rounded = torch.tensor(radii, dtype=graph.distances.dtype)
    if backend == "cuml":
        labels = _by_cuml(graph, rounded, min_samples)
    elif world.size == 1 and graph.distances.is_cpu and native.extension() is not None:
        labels = _by_extension(graph, rounded, min_samples)
    else:
        labels = _by_pointer_jumping(graph, rounded, min_samples, n, world)
    return labels[0] if np.ndim(eps) == 0 else labels


def nodes_of_all(graph: Graph, world: World) -> int:
    """Count the nodes of a graph whose rows are sharded over the ranks.

    Raises:
        ValueError: On every rank, if indptr has a wrong shape on one, or if the ranks' numbers of
            rows are not those of `World.local_slice`.
    """
    if world.size == 1:
        return graph.n
    return rows_of_all(world.raise_together(lambda: _indptr(graph))[1:], world)


def check_graph(graph: Graph, n: int | None = None) -> None:
    """Refuse malformed arrays before an index of them is used.

    Args:
        graph: The graph, or some rows of one.
        n: Number of nodes; the number of rows by default.

    Raises:
        ValueError: Wrong shape, dtype or device; indptr that does not ascend from 0 to the number
            of indices; an index outside [0, n).
    """
    indptr, indices, distances = graph[:3]
    n = graph.n if n is None else n
    if any(x.ndim != 1 for x in graph[:3]) or len(indptr) == 0 or len(indices) != len(distances):
        shapes = ", ".join(str(tuple(x.shape)) for x in graph[:3])
        raise ValueError(
            f"graph: got shapes {shapes}, expected indptr (n + 1,), indices (edges,) and "
            "distances (edges,)"
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
            f"graph: indptr goes from {int(indptr[0])} to {int(indptr[-1])}, "
            f"expected 0 to {len(indices)}, the number of indices"
        )
    falls = (indptr[1:] < indptr[:-1]).nonzero()
    if len(falls):
        raise ValueError(f"graph: indptr decreases after node {int(falls[0])}")
    if len(indices):
        low, high = (int(x) for x in torch.aminmax(indices))
        if low < 0 or high >= n:
            raise ValueError(
                f"graph: got an index {low if low < 0 else high}, expected 0 to {n - 1}"
            )


def _by_extension(graph: Graph, eps: Tensor, min_samples: int) -> Tensor:
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


def _by_pointer_jumping(
    graph: Graph, eps: Tensor, min_samples: int, n: int, world: World
) -> Tensor:
    """Labels (len(eps), n) in PyTorch; `graph` holds this rank's rows of n."""
    device = graph.distances.device
    local = world.local_slice(n)
    nodes = torch.arange(n, device=device)
    own_nodes = nodes[local]
    all_rows = own_nodes.repeat_interleave(graph.indptr.diff(), output_size=len(graph.indices))
    found = torch.empty(len(eps), n, dtype=torch.int64, device=device)
    for e, labels in zip(eps.to(device), found, strict=True):
        near = graph.distances <= e
        rows = all_rows[near]
        columns = graph.indices[near]
        counts = torch.bincount(rows - local.start, minlength=len(own_nodes)) + 1
        core = world.all_gather_rows(counts >= min_samples)  # (n,)
        # Each edge once, from the higher node to the lower.
        both = core[rows] & core[columns] & (rows > columns)
        roots = lowest_nodes(rows[both], columns[both], nodes.clone())
        if world.size > 1:
            roots = _merge_components(roots, nodes, world)
        numbers = (core & (roots == nodes)).cumsum(0) - 1
        clusters = torch.where(core, numbers[roots], -1)  # (n,)
        # Border points take the lowest-numbered cluster among their core neighbours.
        to_core = core[columns] & ~core[rows]
        border_rows = rows[to_core] - local.start
        lowest = torch.full_like(own_nodes, n)
        lowest.scatter_reduce_(0, border_rows, clusters[columns[to_core]], "amin")
        own_labels = torch.where(lowest < n, lowest, clusters[local])
        labels.copy_(world.all_gather_rows(own_labels))
    return found


def _merge_components(roots: Tensor, nodes: Tensor, world: World) -> Tensor:
    """Merge the components that each rank found by its own edges.

    Args:
        roots: (n,) int64, the lowest node of each node's component on this rank.
        nodes: (n,) int64, 0 to n - 1.
        world: The ranks.

    Returns:
        (n,) int64, the lowest node of each node's component over the edges of all ranks.
    """
    parents = nodes.clone()
    # In W parts, so that n values are gathered at a time, not n of every rank.
    for part in nodes.chunk(world.size):
        gathered = world.all_gather_rows(roots[part])
        part_nodes = part.repeat(world.size)
        joins = gathered != part_nodes
        a = parents[part_nodes[joins]]
        b = parents[gathered[joins]]
        parents = lowest_nodes(a, b, parents)
    return parents


def lowest_nodes(a: Tensor, b: Tensor, parents: Tensor) -> Tensor:
    """Join components by edges; returns the lowest node of each node's component.

    Each round hooks every root to the lowest root that it has an edge to, then jumps until every
    node points to a root. It takes O(log² n) steps (Liu and Tarjan, SOSA 2019), a few in practice.

    Args:
        a: (edges,) int64, roots.
        b: (edges,) int64, roots.
        parents: (n,) int64, the root of each node; written to.
    """
    while len(a):
        parents.scatter_reduce_(0, torch.maximum(a, b), torch.minimum(a, b), "amin")
        while not torch.equal(above := parents[parents], parents):
            parents = above
        a = parents[a]
        b = parents[b]
        # Edges inside a component are done.
        apart = a != b
        a = a[apart]
        b = b[apart]
    return parents


def _indptr(graph: Graph) -> Tensor:
    if graph.indptr.ndim != 1 or len(graph.indptr) == 0:
        raise ValueError(
            f"graph: got indptr of shape {tuple(graph.indptr.shape)}, expected (n + 1,)"
        )
    return graph.indptr


def _by_cuml(graph: Graph, eps: Tensor, min_samples: int) -> Tensor:
    n = graph.n
    distances = graph.distances
    device = distances.device if distances.is_cuda else torch.device("cuda")
    rows = torch.repeat_interleave(torch.arange(n, device=distances.device), graph.indptr.diff())
    # 2 is farther than every valid radius.
    dense = torch.full((n, n), 2, dtype=distances.dtype, device=device)
    dense[rows.to(device), graph.indices.to(device)] = distances.to(device)
    dense.fill_diagonal_(0)
    return cuml_labels(dense, eps.tolist(), min_samples, "precomputed").to(distances.device)
