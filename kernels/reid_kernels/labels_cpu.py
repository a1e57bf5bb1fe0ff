"""`label_prediction` by blocks of rows in PyTorch, on any device; and the visit of candidates,
shared by all implementations.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .checks import check_finite
from .multilabel_cpu import count_rows, row_blocks, similarities
from .numerics import accumulator

#: Candidates that are judged first, and those judged after them; from then on four times as many
#: each time.
_FIRST = 10
_NEXT = 32


def labels_blocked(
    bank: Tensor, rows: Tensor, threshold: float, at_least: int
) -> tuple[Tensor, Tensor]:
    """Compute `label_prediction` on checked arguments."""
    kind = accumulator(bank.dtype)
    if bank.is_cpu:
        norms = torch.linalg.vector_norm(bank, dim=1, dtype=kind)
        if not bool(torch.isfinite(norms).all()):
            check_finite(bank=bank)

    def similar(numbers: Tensor) -> Tensor:
        return similarities(bank[numbers], bank, kind)

    def exceeds(candidates: Tensor, own: Tensor, bound: Tensor) -> Tensor:
        return closer_blocked(len(bank), candidates, own, kind, similar) > bound

    blocks = row_blocks(len(rows), len(bank), kind)
    above, neighbours = neighbours_above(rows, threshold, blocks, similar)
    return walk(len(bank), rows, at_least, above, neighbours, exceeds)


def neighbours_above(
    rows: Tensor, threshold: float, blocks: list[slice], similar: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Find the neighbours of each row above the threshold.

    Args:
        rows: (B,) int64.
        threshold: Similarities must be above it.
        blocks: Parts of the batch whose similarities exist at the same time.
        similar: Returns the similarities (R, n) of bank rows (R,).

    Returns:
        Their number (B,) int64, and the neighbours, most similar first, row after row.
    """
    counts = [rows[:0]]
    columns = [rows[:0]]
    for block in blocks:
        count, column = _above(similar(rows[block]), threshold)
        counts.append(count)
        columns.append(column)
    return torch.cat(counts), torch.cat(columns)


def walk(
    n: int,
    rows: Tensor,
    at_least: int,
    above: Tensor,
    neighbours: Tensor,
    exceeds: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Visit the candidates of rows and return the rows' positives.

    `exceeds` is called with the same arguments and equally often on every process that has the same
    arguments.

    Args:
        n: Rows of the bank.
        rows: (B,) int64.
        at_least: The smallest bound K.
        above: (B,) int64, number of neighbours of each row.
        neighbours: The neighbours above the threshold, most similar first, row after row.
        exceeds: Returns, for pairs (P,) of a candidate and a row and a bound of each, whether more
            rows than the bound are more similar to the candidate than that row.

    Returns:
        `indptr` (B + 1,) and `indices`, see `label_prediction`.
    """
    starts = above.cumsum(0) - above
    bound = above.clamp(min=at_least)
    # `good` counts the good candidates of each row from the first on. The first two are taken
    # whatever is closer to them, and at most n - 1 rows can be closer, so rows with few neighbours
    # or a large bound need no visit.
    visited = bound < n - 1
    good = torch.where(visited, 0, above)
    every = torch.arange(len(rows), device=rows.device)
    start = 0
    size = _FIRST
    while True:
        goes_on = visited & (good == start) & (above > max(start, 2))
        counts = torch.where(goes_on, (above - start).clamp(max=size), 0)
        # The only wait for the device in a round.
        total = int(counts.sum())
        if total == 0:
            break
        row = every.repeat_interleave(counts, output_size=total)
        place = start + torch.arange(total, device=rows.device) - (counts.cumsum(0) - counts)[row]
        candidates = neighbours[starts[row] + place]
        bad = exceeds(candidates, rows[row], bound[row])
        end = start + size
        first_bad = torch.full_like(good, end)
        first_bad.scatter_reduce_(0, row, torch.where(bad, place, end), "amin")
        good = torch.where(goes_on, first_bad.minimum(above), good)
        size = _NEXT if start == 0 else 4 * size
        start = end
    return _lists(rows, neighbours, starts, above, good.clamp(min=2).minimum(above))


def _above(similarity: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Number (R,) and columns of the similarities (R, n) above the threshold, in descending order,
    row after row.
    """
    near = similarity > threshold
    row, column = near.nonzero(as_tuple=True)
    order = similarity[row, column].argsort(descending=True, stable=True)
    order = order[row[order].argsort(stable=True)]
    return count_rows(near), column[order]


def _lists(
    rows: Tensor, neighbours: Tensor, starts: Tensor, above: Tensor, taken: Tensor
) -> tuple[Tensor, Tensor]:
    """Build CSR lists of the first `taken` neighbours of each row, with the row itself appended if
    it is not one of them.
    """
    every = torch.arange(len(rows), device=rows.device)
    row = every.repeat_interleave(above, output_size=len(neighbours))
    place = torch.arange(len(neighbours), device=rows.device) - starts[row]
    itself = (neighbours == rows[row]) & (place < taken[row])
    missing = torch.ones_like(rows).scatter_reduce_(0, row, (~itself).long(), "amin")
    counts = taken + missing
    indptr = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    # The size of the result: one wait for the device.
    total = int(indptr[-1])
    row = every.repeat_interleave(counts, output_size=total)
    place = torch.arange(total, device=rows.device) - indptr[row]
    listed = place < taken[row]
    # Where the row itself is appended, any neighbour is read.
    found = torch.cat([neighbours, rows[:1]])[torch.where(listed, starts[row] + place, 0)]
    return indptr, torch.where(listed, found, rows[row])


def closer_blocked(
    n: int,
    candidates: Tensor,
    own: Tensor,
    kind: torch.dtype,
    similar: Callable[[Tensor], Tensor],
    pair: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Count the rows that are closer to a candidate than another row, for `walk`.

    The similarities of a candidate are computed once, even if it is in several pairs.

    Args:
        n: Largest number of columns of a block of similarities.
        candidates: (P,) int64.
        own: (P,) int64, the row of each pair.
        kind: The dtype of the similarities.
        similar: Returns the similarities (R, n) of bank rows (R,).
        pair: Returns the similarity of each pair from similarities (R, n), row numbers in them and
            bank rows `own`; None where all columns of the bank are present.

    Returns:
        (P,) int64, how many rows are more similar to the candidate than `own`.
    """
    candidate, inverse = candidates.unique(return_inverse=True)
    inverse, order = inverse.sort(stable=True)
    own = own[order]
    counts = torch.empty_like(own)
    for block in row_blocks(len(candidate), n, kind):
        first, last = _within(inverse, block, len(candidate))
        similarity = similar(candidate[block])  # (R, n)
        row = inverse[first:last] - block.start
        column = own[first:last]
        bound = similarity[row, column] if pair is None else pair(similarity, row, column)
        counts[order[first:last]] = _closer(similarity, row, bound)
    return counts


def _within(ascending: Tensor, block: slice, stop: int) -> tuple[int, int]:
    """The range of values (P,) in [0, stop) that are in a block. No wait if all are."""
    if block.start == 0 and block.stop >= stop:
        return 0, len(ascending)
    edges = torch.arange(2, device=ascending.device) * (block.stop - block.start) + block.start
    first, last = torch.searchsorted(ascending, edges).tolist()
    return first, last


def _closer(similarity: Tensor, candidate: Tensor, bound: Tensor) -> Tensor:
    """Number of similarities in each pair's row `candidate` of (R, n) that are greater than its
    bound, (P,).
    """
    counts = torch.empty_like(candidate)
    # A quarter as many pairs at a time as there are rows of similarities: their copy stays small in
    # comparison.
    pairs = torch.arange(len(bound), device=bound.device)
    for part in pairs.split(max(1, len(similarity) // 4)):
        counts[part] = count_rows(similarity[candidate[part]] > bound[part, None])
    return counts
