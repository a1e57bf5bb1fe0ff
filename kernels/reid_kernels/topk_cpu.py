"""`similarity_topk` by blocks of queries in PyTorch: float32 products, or bfloat16 candidates that are proven complete.

Works on any device; the bfloat16 form is for CPUs with bfloat16 units.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from ._ops import check_finite
from .numerics import accumulator, has_bf16_units, select_topk

#: Bytes of similarities that exist at a time: in float32, and in bfloat16.
_BLOCK = 2**24
_LOW_BLOCK = 2**23
#: Candidates that exist at a time, some 40 bytes each.
_CANDIDATES = 2**18
#: Below any length whose square float32 can hold, so that no bound is zero because squares were.
_SHORTEST = 1e-17
#: A product with fewer rows takes other routes, which may sum equal rows in different orders.
_FEWEST = 16
_LARGEST_GROUP = 16
_SMALLEST_NORM = 1e-12


def topk_blocked(
    query: Tensor, bank: Tensor, k: int, normalize: bool, exclude: Tensor | None, precision: str
) -> tuple[Tensor, Tensor]:
    """`similarity_topk` on checked arguments."""
    kind = accumulator(query.dtype)
    values = query.new_full((len(query), k), -torch.inf, dtype=kind)
    indices = torch.full((len(query), k), -1, dtype=torch.int64, device=query.device)
    most = min(k, len(bank))
    if not most or not len(query):
        return values, indices
    same = query is bank or (
        query.data_ptr() == bank.data_ptr()
        and query.shape == bank.shape
        and query.stride() == bank.stride()
    )
    bank = bank.to(kind)
    query = bank if same else query.to(kind)
    bank_scale = _inverse_norms(bank) if normalize else None
    query_scale = bank_scale if same else _inverse_norms(query) if normalize else None
    worthwhile = precision != "ieee" and has_bf16_units() and query.is_cpu and kind == torch.float32
    if (
        worthwhile
        and bank.shape[1] >= 64
        and len(bank) >= max(1024, 8 * k)
        and len(query) >= _FEWEST
    ):
        _certified(query, bank, query_scale, bank_scale, exclude, values, indices, same)
    else:
        rows = max(1, _BLOCK // (kind.itemsize * len(bank)))
        room = bank.new_empty(min(rows, len(query)), len(bank))
        for start in range(0, len(query), rows):
            now = slice(start, start + rows)
            scale = None if query_scale is None else query_scale[now]
            block = _similarity(query[now], bank, scale, bank_scale, room)
            own = None if exclude is None else exclude[now]
            _drop(block, own)
            values[now, :most], indices[now, :most] = select_topk(block, most)
            if own is not None:
                indices[now][_dropped(indices[now], own)] = -1
    if query.is_cpu and not bool((values < torch.inf).all()):
        check_finite(query=query, bank=bank)
    return values, indices


def _certified(
    query: Tensor,
    bank: Tensor,
    query_scale: Tensor | None,
    bank_scale: Tensor | None,
    exclude: Tensor | None,
    values: Tensor,
    indices: Tensor,
    same: bool,
) -> None:
    """Fill values and indices (B, k), k <= n, from bfloat16 products with an error bound.

    The similarities of a block are rounded three times: the query, the bank, the product. The lengths of the first two
    roundings bound their effect on the product (Cauchy-Schwarz). At least k rows reach the k-th largest of the maxima of groups
    of columns, so before its own rounding the product of each was no less than the midpoint below that value; one of the first
    k is then no less than the midpoint less twice the bound, and, since rounding keeps the order, no less than that when
    rounded. What reaches this is computed in float32. A query that keeps too many is computed in float32 whole.
    """
    n, k = len(bank), values.shape[1]
    group = max(1, min(_LARGEST_GROUP, n // (8 * k)))
    padded = -(-n // group) * group
    low_bank, bank_error, bank_length = _rounded(bank, bank_scale, padded)
    longest, worst = float(bank_length.max()), float(bank_error.max())
    # What is kept stays a small part of the block.
    most = min(n, max(4 * k, k + 256))
    rows = max(_FEWEST, min(_LOW_BLOCK // (2 * padded), _CANDIDATES // most))
    block = torch.empty(min(rows, len(query)), padded, dtype=torch.bfloat16)
    left = []
    for start in range(0, len(query), rows):
        now = slice(start, min(start + rows, len(query)))
        q = query[now]
        scale = None if query_scale is None else query_scale[now]
        if same:
            low, error, length = low_bank[now], bank_error[now], bank_length[now]
        else:
            low, error, length = _rounded(q, scale, len(q))
        similarity = torch.mm(low, low_bank.T, out=block[: len(q)])
        similarity[:, n:] = -torch.inf
        own = None if exclude is None else exclude[now]
        _drop(similarity, own)
        # Twice the sums' own rounding: bfloat16 products here, float32 ones when they are computed again.
        slack = bank.shape[1] * 2.0**-22 * length * longest
        bound = (error * longest + length * worst + error * worst + slack) * 1.001
        grouped = similarity.view(len(q), group, padded // group)
        maxima = grouped.amax(1) if group > 1 else grouped[:, 0]
        kth = maxima.topk(k, dim=1).values[:, -1]
        below = torch.nextafter(kth, torch.full_like(kth, -torch.inf))
        lowest = (kth.float() + below.float()) / 2 - 2 * bound
        threshold = lowest.nextafter(torch.full_like(lowest, -torch.inf)).bfloat16()
        # NaN compares as false: such a query goes the long way, and is named there.
        near = maxima >= threshold[:, None]
        groups = near.sum(1)
        kept = groups <= most
        near &= kept[:, None]
        row, column = _members(grouped, near, threshold)
        counts = torch.bincount(row, minlength=len(q))
        kept &= (counts <= most) & (counts >= k) & torch.isfinite(kth)
        inside = kept[row]
        _rescore(
            q, bank, scale, bank_scale, row[inside], column[inside], values[now], indices[now], kept
        )
        left.append((~kept).nonzero()[:, 0] + start)
    again = torch.cat(left)
    for some in again.split(max(1, _BLOCK // (4 * n))) if len(again) else ():
        exact = _similarity(
            query[some], bank, None if query_scale is None else query_scale[some], bank_scale, None
        )
        _drop(exact, None if exclude is None else exclude[some])
        values[some], indices[some] = select_topk(exact, k)
    if exclude is not None:
        indices[_dropped(indices, exclude)] = -1


def _members(grouped: Tensor, near: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of each similarity at its row's threshold or above, in the groups marked, sorted by row."""
    row, place = near.nonzero(as_tuple=True)
    members = grouped.shape[1]
    offsets = torch.arange(members) * grouped.shape[2]
    flat = (row * (members * grouped.shape[2]) + place)[:, None] + offsets
    inside = grouped.reshape(-1)[flat] >= threshold[row, None]
    pair, member = inside.nonzero(as_tuple=True)
    return row[pair], place[pair] + offsets[member]


def _rescore(
    query: Tensor,
    bank: Tensor,
    query_scale: Tensor | None,
    bank_scale: Tensor | None,
    row: Tensor,
    column: Tensor,
    values: Tensor,
    indices: Tensor,
    kept: Tensor,
) -> None:
    """Write the first k of each kept row's candidates, by similarities in float32."""
    k = values.shape[1]
    similarity = pair_products(query, bank, row, column)
    if query_scale is not None and bank_scale is not None:
        similarity *= query_scale[row] * bank_scale[column]
    keys = pack(similarity, column)
    counts = torch.bincount(row, minlength=len(query))
    place = torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]
    table = torch.full(
        (len(query), max(k, int(counts.max()) if len(row) else k)), torch.iinfo(torch.int64).min
    )
    table[row, place] = keys
    best = table[kept].topk(k, dim=1).values
    values[kept], indices[kept] = unpack(best)


def pair_products(query: Tensor, bank: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """The dot products of single pairs, rows ascending, without a gathered copy of the rows."""
    starts = torch.zeros(len(query) + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(row, minlength=len(query)), 0, out=starts[1:])
    with warnings.catch_warnings():
        # PyTorch calls its CSR tensors beta, once a process.
        warnings.simplefilter("ignore", UserWarning)
        pattern = torch.sparse_csr_tensor(
            starts,
            column,
            query.new_zeros(len(column)),
            (len(query), len(bank)),
            check_invariants=False,
        )
        return torch.sparse.sampled_addmm(pattern, query, bank.T, beta=0.0).values()


def pack(similarity: Tensor, column: Tensor) -> Tensor:
    """One int64 that sorts by float32 similarity, and where that is equal the lower column as the greater."""
    bits = (similarity + 0.0).view(torch.int32)
    ordered = torch.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)
    return (ordered.long() << 32) | (0xFFFFFFFF - column)


def unpack(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Similarity and column of each key; -inf and -1 for the lowest int64, which is no key."""
    ordered = (keys >> 32).int()
    values = torch.where(ordered >= 0, ordered, ordered ^ 0x7FFFFFFF).view(torch.float32)
    absent = keys == torch.iinfo(torch.int64).min
    return values.masked_fill(absent, -torch.inf), (0xFFFFFFFF - (keys & 0xFFFFFFFF)).masked_fill(
        absent, -1
    )


def _rounded(rows: Tensor, scale: Tensor | None, padded: int) -> tuple[Tensor, Tensor, Tensor]:
    """bfloat16 copy of the rows, scaled, with rows of zeros behind; the length of each row's rounding, and of each row."""
    copy = torch.zeros(padded, rows.shape[1], dtype=torch.bfloat16)
    error, length = (torch.empty(len(rows), dtype=torch.float32) for _ in range(2))
    step = max(1, _LOW_BLOCK // (8 * rows.shape[1]))
    for start in range(0, len(rows), step):
        now = slice(start, start + step)
        exact = rows[now] if scale is None else rows[now] * scale[now, None]
        copy[start : start + len(exact)] = exact
        torch.linalg.vector_norm(exact, dim=1, out=length[now])
        torch.linalg.vector_norm(
            exact - copy[start : start + len(exact)].float(), dim=1, out=error[now]
        )
    # Of the scaling's own rounding, and of the norms'.
    return copy, error * 1.001 + length * 2.0**-22 + _SHORTEST, length * 1.001 + _SHORTEST


def _similarity(
    query: Tensor,
    bank: Tensor,
    query_scale: Tensor | None,
    bank_scale: Tensor | None,
    room: Tensor | None,
) -> Tensor:
    """Similarities of some queries, written to the first rows of `room` where it is given."""
    if len(query) < _FEWEST:
        block = torch.mm(torch.nn.functional.pad(query, (0, 0, 0, _FEWEST - len(query))), bank.T)[
            : len(query)
        ]
    else:
        block = torch.mm(query, bank.T, out=None if room is None else room[: len(query)])
    if query_scale is not None and bank_scale is not None:
        block.mul_(query_scale[:, None]).mul_(bank_scale)
    return block


def _inverse_norms(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1).clamp_(min=_SMALLEST_NORM).reciprocal_()


def _drop(similarity: Tensor, exclude: Tensor | None) -> None:
    """-inf at the excluded column."""
    if exclude is not None:
        inside = ((exclude >= 0) & (exclude < similarity.shape[1])).nonzero()[:, 0]
        similarity[inside, exclude[inside]] = -torch.inf


def _dropped(indices: Tensor, exclude: Tensor) -> Tensor:
    return indices == exclude[:, None]
