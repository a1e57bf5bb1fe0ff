"""Lists in CSR form: offsets, index ranges, and a symmetric graph from edges i < j."""

from __future__ import annotations

import torch
from torch import Tensor


def indptr_of(counts: Tensor) -> Tensor:
    """CSR offsets from list lengths: (m,) -> (m + 1,)."""
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))


def ranges(first: Tensor, counts: Tensor, total: int | None = None) -> Tensor:
    """Concatenate the ranges [first[i], first[i] + counts[i]).

    Args:
        first: (m,) int64.
        counts: (m,) int64.
        total: The sum of the counts, if it is known. Without it a GPU is synchronised.

    Returns:
        (total,) int64.
    """
    total = int(counts.sum()) if total is None else total
    before = counts.cumsum(0) - counts
    # An entry is its position in the output plus a constant for each range.
    entries = (first - before).repeat_interleave(counts, output_size=total)
    entries += torch.arange(total, device=first.device)
    return entries


def both_directions(
    i: Tensor, j: Tensor, distance: Tensor, n: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Turn edges i < j into a symmetric graph.

    The arrays are filled by index: a distance of zero is an edge, which a sparse sum would drop.

    Args:
        i: (edges,) int64, lower nodes; the edges are sorted by (i, j).
        j: (edges,) int64, higher nodes.
        distance: (edges,), of any dtype.
        n: Number of nodes.

    Returns:
        indptr (n + 1,), indices and distances (2 * edges,). The indices of each row ascend.
    """
    higher = torch.bincount(i, minlength=n)  # (n,) neighbours above each node
    lower = torch.bincount(j, minlength=n)  # (n,) neighbours below each node
    indptr = indptr_of(higher + lower)
    indices = j.new_empty(2 * len(i))
    distances = distance.new_empty(2 * len(i))
    edge = torch.arange(len(i), device=i.device)
    # Row i: its higher neighbours follow its lower ones. The shift is the difference between where
    # they begin in the output and where they begin in the edges.
    shift = indptr[:-1] + lower - (higher.cumsum(0) - higher)  # (n,)
    slots = edge + shift[i]
    indices[slots] = j
    distances[slots] = distance
    # Row j: a stable sort by j keeps i ascending.
    order = j.argsort(stable=True)
    shift = indptr[:-1] - (lower.cumsum(0) - lower)
    slots = edge + shift[j[order]]
    indices[slots] = i[order]
    distances[slots] = distance[order]
    return indptr, indices, distances
