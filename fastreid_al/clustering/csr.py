"""Lists of lists in CSR form: where they begin, their places, and a graph of both directions of edges."""

from __future__ import annotations

import torch
from torch import Tensor


def indptr_of(counts: Tensor) -> Tensor:
    """Where each of some lists begins that are so long, and where the last ends: (m,) -> (m + 1,)."""
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))


def ranges(first: Tensor, counts: Tensor, total: int | None = None) -> Tensor:
    """first[0], first[0] + 1, ... (counts[0] of them), first[1], ...; with their `total` a GPU is not waited for."""
    total = int(counts.sum()) if total is None else total
    before = counts.cumsum(0) - counts
    places = (first - before).repeat_interleave(counts, output_size=total)
    places += torch.arange(total, device=first.device)
    return places


def both_directions(
    i: Tensor, j: Tensor, distance: Tensor, n: int
) -> tuple[Tensor, Tensor, Tensor]:
    """indptr, indices and distances of edges i < j in the order of (i, j): in each row the lower neighbours come first.

    Placed by hand: a distance of zero is an edge, which sparse sums would drop.
    """
    higher, lower = torch.bincount(i, minlength=n), torch.bincount(j, minlength=n)
    indptr = indptr_of(higher + lower)
    indices, distances = j.new_empty(2 * len(i)), distance.new_empty(2 * len(i))
    # What a row's first entry on this side must be moved by to stand in its place.
    shift = indptr[:-1] + lower - (higher.cumsum(0) - higher)
    places = torch.arange(len(i), device=i.device) + shift[i]
    indices[places], distances[places] = j, distance
    order = j.argsort(stable=True)
    shift = indptr[:-1] - (lower.cumsum(0) - lower)
    places = torch.arange(len(i), device=i.device) + shift[j[order]]
    indices[places], distances[places] = i[order], distance[order]
    return indptr, indices, distances
