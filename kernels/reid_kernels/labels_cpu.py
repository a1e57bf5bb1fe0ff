"""`label_prediction` by blocks of rows in PyTorch, on any device; and the walk, whatever computes neighbours and ranks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ._ops import check_finite
from .multilabel_cpu import count_rows, row_blocks, similarities
from .numerics import accumulator

#: Candidates that are judged first, and those after them; from then on four times as many each time.
_FIRST, _NEXT = 10, 32


def labels_blocked(
    bank: Tensor, rows: Tensor, threshold: float, at_least: int
) -> tuple[Tensor, Tensor]:
    """`label_prediction` on checked arguments."""
    kind = accumulator(bank.dtype)
    if bank.is_cpu and not bool(
        torch.isfinite(torch.linalg.vector_norm(bank, dim=1, dtype=kind)).all()
    ):
        check_finite(bank=bank)

    def similar(some: Tensor) -> Tensor:
        return similarities(bank[some], bank, kind)

    def closer(candidates: Tensor, own: Tensor) -> Tensor:
        return closer_blocked(len(bank), candidates, own, kind, similar)

    near = neighbours_above(rows, threshold, row_blocks(len(rows), len(bank), kind), similar)
    return walk(len(bank), rows, at_least, *near, closer)


def neighbours_above(
    rows: Tensor, threshold: float, blocks: list[slice], similar: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """How many similarities of each row lie above the threshold, and their columns, descending, row after row.

    Args:
        rows: (B,) int64.
        threshold: Least similarity of a positive, itself left out.
        blocks: Parts of the batch whose similarities may exist together.
        similar: Similarities (some, n) of rows (some,).
    """
    parts = [_above(similar(rows[now]), threshold) for now in blocks]
    above = torch.cat([part[0] for part in parts] or [rows[:0]])
    return above, torch.cat([part[1] for part in parts] or [rows[:0]])


def walk(
    n: int,
    rows: Tensor,
    at_least: int,
    above: Tensor,
    neighbours: Tensor,
    closer: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Positives of rows. What `closer` is asked, and how often, depends on the arguments alone.

    Args:
        n: Rows of the bank.
        rows: (B,) int64.
        at_least: The least bound on a rank.
        above: (B,) int64, how many neighbours each row has.
        neighbours: Those above the threshold, most similar first, row after row.
        closer: For pairs of a candidate and a row (P,), how many rows are more similar to the candidate than that row is.
    """
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
        bad[exists] = closer(candidates, rows[active][row]) > bound[active][row]
        good[active] = torch.where(bad, place, start + size).amin(1).minimum(above[active])
        start, size = start + size, _NEXT if start == 0 else 4 * size
        active = active[(good[active] == start) & (above[active] > start)]
    return _lists(rows, neighbours, starts, above, good.clamp(min=2).minimum(above))


def _above(similarity: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """`neighbours_above` of one block."""
    near = similarity > threshold
    row, column = near.nonzero(as_tuple=True)
    order = similarity[row, column].argsort(descending=True, stable=True)
    order = order[row[order].argsort(stable=True)]
    return count_rows(near), column[order]


def _lists(
    rows: Tensor, neighbours: Tensor, starts: Tensor, above: Tensor, taken: Tensor
) -> tuple[Tensor, Tensor]:
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


def closer_blocked(
    n: int,
    candidates: Tensor,
    own: Tensor,
    kind: torch.dtype,
    similar: Callable[[Tensor], Tensor],
    pair: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """`closer` for `walk`, with the similarities of each candidate computed once, however many pairs it is in.

    Args:
        n: Most columns of a block of similarities.
        candidates: (P,) int64.
        own: (P,) int64.
        kind: The dtype of similarities.
        similar: Similarities (some, n) of rows (some,).
        pair: Of similarities (some, n), places in them and rows `own`: that of each pair, where it is not simply there.
    """
    candidate, inverse = candidates.unique(return_inverse=True)
    inverse, order = inverse.sort(stable=True)
    own = own[order]
    counts = torch.empty_like(own)
    for now in row_blocks(len(candidate), n, kind):
        ends = torch.tensor([now.start, now.stop], device=own.device)
        first, last = torch.searchsorted(inverse, ends).tolist()
        similarity, place, some = (
            similar(candidate[now]),
            inverse[first:last] - now.start,
            own[first:last],
        )
        bound = similarity[place, some] if pair is None else pair(similarity, place, some)
        counts[order[first:last]] = _closer(similarity, place, bound)
    return counts


def _closer(similarity: Tensor, candidate: Tensor, bound: Tensor) -> Tensor:
    """How many similarities of its candidate's row are greater than each pair's own one."""
    counts = torch.empty_like(candidate)
    for some in torch.arange(len(bound), device=bound.device).split(max(1, len(similarity) // 4)):
        counts[some] = count_rows(similarity[candidate[some]] > bound[some, None])
    return counts
