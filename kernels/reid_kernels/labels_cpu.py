"""`label_prediction` by blocks of rows in PyTorch, on any device; and the walk, whatever computes similarities and ranks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ._ops import accumulator, check_finite
from .multilabel_cpu import count_rows, row_blocks, similarities

#: Candidates that are judged first, and those after them; from then on four times as many each time.
_FIRST, _NEXT = 10, 32


def labels_blocked(bank: Tensor, rows: Tensor, threshold: float, at_least: int) -> tuple[Tensor, Tensor]:
    """`label_prediction` on checked arguments."""
    kind = accumulator(bank.dtype)
    if bank.is_cpu and not bool(torch.isfinite(torch.linalg.vector_norm(bank, dim=1, dtype=kind)).all()):
        check_finite(bank=bank)

    def similar(some: Tensor) -> Tensor:
        return similarities(bank[some], bank, kind)

    def ranks(candidates: Tensor, own: Tensor) -> Tensor:
        return ranks_blocked(len(bank), candidates, own, kind, similar)

    return walk(len(bank), rows, threshold, at_least, row_blocks(len(rows), len(bank), kind), similar, ranks)


def walk(
    n: int,
    rows: Tensor,
    threshold: float,
    at_least: int,
    blocks: list[slice],
    similar: Callable[[Tensor], Tensor],
    ranks: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Positives of rows.

    Args:
        n: Rows of the bank.
        rows: (B,) int64.
        threshold: Least similarity of a positive, itself left out.
        at_least: The least bound on a rank.
        blocks: Parts of the batch whose similarities may exist together.
        similar: Similarities (some, n) of rows (some,).
        ranks: For pairs of a candidate and a row (P,), how many rows are more similar to the candidate than that row is.
    """
    parts = [_above(similar(rows[now]), threshold) for now in blocks]
    above = torch.cat([part[0] for part in parts] or [rows[:0]])
    neighbours = torch.cat([part[1] for part in parts] or [rows[:0]])
    starts = above.cumsum(0) - above
    bound = above.clamp(min=at_least)
    # Two are taken on their similarity alone, and no rank exceeds n - 1.
    good = torch.where(bound < n - 1, 0, above)
    active = ((above > 2) & (bound < n - 1)).nonzero()[:, 0]
    start, size = 0, _FIRST
    while len(active):
        size = min(size, int(above[active].max()) - start)
        place = start + torch.arange(size, device=rows.device)
        exists = place < above[active, None]
        row, _ = exists.nonzero(as_tuple=True)
        candidates = neighbours[(starts[active, None] + place)[exists]]
        bad = torch.zeros_like(exists)
        bad[exists] = ranks(candidates, rows[active][row]) > bound[active][row]
        good[active] = torch.where(bad, place, start + size).amin(1).minimum(above[active])
        start, size = start + size, _NEXT if start == 0 else 4 * size
        active = active[(good[active] == start) & (above[active] > start)]
    return _lists(rows, neighbours, starts, above, good.clamp(min=2).minimum(above))


def _above(similarity: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """How many similarities of each row lie above the threshold, and their columns, descending, row after row."""
    near = similarity > threshold
    row, column = near.nonzero(as_tuple=True)
    order = similarity[row, column].argsort(descending=True, stable=True)
    order = order[row[order].argsort(stable=True)]
    return count_rows(near), column[order]


def _lists(rows: Tensor, neighbours: Tensor, starts: Tensor, above: Tensor, taken: Tensor) -> tuple[Tensor, Tensor]:
    """The first `taken` neighbours of each row, and the row itself behind them where it is not one of them."""
    row = torch.arange(len(rows), device=rows.device).repeat_interleave(above)
    place = torch.arange(len(neighbours), device=rows.device) - starts[row]
    kept = place < taken[row]
    row, place, neighbours = row[kept], place[kept], neighbours[kept]
    missing = torch.ones_like(rows, dtype=torch.bool)
    missing[row[neighbours == rows[row]]] = False
    indptr = torch.nn.functional.pad((taken + missing).cumsum(0), (1, 0))
    indices = rows.new_empty(int(indptr[-1]))
    indices[indptr[row] + place] = neighbours
    indices[indptr[1:][missing] - 1] = rows[missing]
    return indptr, indices


def ranks_blocked(
    n: int, candidates: Tensor, own: Tensor, kind: torch.dtype, similar: Callable[[Tensor], Tensor]
) -> Tensor:
    """`ranks` for `walk`, with the similarities of each candidate computed once, however many pairs it is in."""
    candidate, inverse = candidates.unique(return_inverse=True)
    inverse, order = inverse.sort(stable=True)
    own = own[order]
    counts = torch.empty_like(own)
    for now in row_blocks(len(candidate), n, kind):
        ends = torch.tensor([now.start, now.stop], device=own.device)
        first, last = torch.searchsorted(inverse, ends).tolist()
        counts[order[first:last]] = _closer(similar(candidate[now]), inverse[first:last] - now.start, own[first:last])
    return counts


def _closer(similarity: Tensor, candidate: Tensor, own: Tensor) -> Tensor:
    """How many similarities of its candidate's row each pair's own one is less than."""
    counts = torch.empty_like(own)
    for some in torch.arange(len(own), device=own.device).split(max(1, len(similarity) // 4)):
        near = similarity[candidate[some]]
        counts[some] = count_rows(near > near.gather(1, own[some, None]))
    return counts
