"""`similarity_topk` by blocks of queries in PyTorch: float32 products, or bfloat16 candidates with
proof.

It works on any device. The bfloat16 form is for CPUs with bfloat16 units.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_finite, check_lengths
from .numerics import accumulator, has_bf16_units, select_topk

#: Bytes of similarities that exist at a time: in float32, and in bfloat16.
_BLOCK = 2**24
_LOW_BLOCK = 2**23
#: Queries of a block of float32 similarities, at least: the bank is read once for each block.
_AT_ONCE = 64
#: Candidates that exist at a time, some 40 bytes each.
_CANDIDATES = 2**18
#: Smaller than any length whose square float32 can represent. It is added to each length, so that
#: an error bound is not zero only because squares underflowed.
_SHORTEST = 1e-17
#: A product with fewer rows uses other kernels, which may sum equal rows in different orders.
_FEWEST = 16
#: Columns that share one maximum in the bfloat16 form, at most.
_LARGEST_GROUP = 16
_SMALLEST_NORM = 1e-12


def topk_blocked(
    query: Tensor,
    bank: Tensor,
    k: int,
    normalize: bool,
    exclude: Tensor | None,
    precision: str,
    parts: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute `similarity_topk` on checked arguments.

    Args:
        query: (B, D).
        bank: (n, D).
        k: Number of rows.
        normalize: Whether rows are divided by their norm.
        exclude: (B,) int64.
        precision: As in `similarity_topk`.
        parts: What `index_blocked` returned for the bank; None to compute it.
    """
    kind = accumulator(query.dtype)
    values = query.new_full((len(query), k), -torch.inf, dtype=kind)
    indices = torch.full((len(query), k), -1, dtype=torch.int64, device=query.device)
    available = min(k, len(bank))
    if not available or not len(query):
        return values, indices
    same = _share_memory(query, bank)
    bank = bank.to(kind)
    query = bank if same else query.to(kind)
    if parts is not None:
        bank_scale = parts[2] if normalize else None  # (n,)
    else:
        bank_scale = _inverse_norms("bank", bank) if normalize else None
    query_scale = bank_scale
    if normalize and not same:
        query_scale = _inverse_norms("query", query)  # (B,)
    if precision != "ieee" and _has_fast_candidates(query, bank, k):
        low = _rounded(bank, bank_scale) if parts is None else _Rounded(parts[0], *parts[3:])
        _certified(query, bank, low, query_scale, bank_scale, exclude, values, indices, same)
    else:
        found = values[:, :available], indices[:, :available]
        _exact(query, bank, query_scale, bank_scale, exclude, *found)
        if exclude is not None:
            indices[_equals_excluded(indices, exclude)] = -1
    if query.is_cpu and not bool((values < torch.inf).all()):
        check_finite(query=query, bank=bank)
    return values, indices


def index_blocked(bank: Tensor, normalize: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What a search needs of a bank (n, D) besides its rows.

    Returns:
        A copy in bfloat16, its rows padded to a multiple of 16; an empty tensor; (n,) inverse
        norms; and (n,) errors and lengths of the copy. What is not needed is empty.
    """
    kind = accumulator(bank.dtype)
    rows = bank.to(kind)
    # The outputs of an operator share no memory.
    empty, copy, factor, error, length = (bank.new_empty(0, dtype=kind) for _ in range(5))
    scale = _inverse_norms("bank", rows) if normalize else None
    if kind == torch.float32 and bank.is_cpu and has_bf16_units():
        copy, error, length = _rounded(rows, scale)
    return copy, empty, factor if scale is None else scale, error, length


def _share_memory(query: Tensor, bank: Tensor) -> bool:
    """Whether both are the same rows in the same memory, so that each is converted and normalised
    once.
    """
    return query is bank or (
        query.data_ptr() == bank.data_ptr()
        and query.shape == bank.shape
        and query.stride() == bank.stride()
    )


def _has_fast_candidates(query: Tensor, bank: Tensor, k: int) -> bool:
    """Whether bfloat16 candidates are faster than float32 products: on such units, in problems that
    are not too small.
    """
    if not (has_bf16_units() and query.is_cpu and query.dtype == torch.float32):
        return False
    wide = bank.shape[1] >= 64
    return wide and len(bank) >= max(1024, 8 * k) and len(query) >= _FEWEST


def _exact(
    query: Tensor,
    bank: Tensor,
    query_scale: Tensor | None,
    bank_scale: Tensor | None,
    exclude: Tensor | None,
    values: Tensor,
    indices: Tensor,
) -> None:
    """Fill values and indices (B, k), k <= n, from products in the dtype of the rows, block by
    block.
    """
    rows = max(_AT_ONCE, _BLOCK // (query.dtype.itemsize * len(bank)))
    buffer = bank.new_empty(min(rows, len(query)), len(bank))
    for start in range(0, len(query), rows):
        block = slice(start, start + rows)
        scale = None if query_scale is None else query_scale[block]
        similarity = _similarity(query[block], bank, scale, bank_scale, buffer)
        _drop(similarity, None if exclude is None else exclude[block])
        values[block], indices[block] = select_topk(similarity, values.shape[1])


def _certified(
    query: Tensor,
    bank: Tensor,
    low_bank: _Rounded,
    query_scale: Tensor | None,
    bank_scale: Tensor | None,
    exclude: Tensor | None,
    values: Tensor,
    indices: Tensor,
    same: bool,
) -> None:
    """Fill values and indices (B, k), k <= n, from bfloat16 products with an error bound.

    The similarities of a block are rounded three times: the query, the bank, the product. The
    lengths of the first two roundings bound their effect on the product (Cauchy-Schwarz). Columns
    are divided into groups, and the maximum of each group is taken. At least k columns reach the
    k-th largest maximum, so before the rounding of the product each of these was at least the
    midpoint between that value and the next lower bfloat16. A column among the true first k is
    therefore at least that midpoint minus twice the bound, and since rounding keeps the order, its
    rounded product is at least this value rounded. All columns that reach this threshold are
    computed again in float32. A query with too many of them is computed in float32 as a whole.
    """
    n = len(bank)
    k = values.shape[1]
    padded = len(low_bank.rows)
    # A power of two divides the padded number of rows.
    group = 1 << max(0, min(_LARGEST_GROUP, n // (8 * k)).bit_length() - 1)
    longest = float(low_bank.length.max())
    worst = float(low_bank.error.max())
    # Candidates of a query, at most: so many that they stay a small part of the block.
    most = min(n, max(4 * k, k + 256))
    rows = max(_FEWEST, min(_LOW_BLOCK // (2 * padded), _CANDIDATES // most))
    buffer = torch.empty(min(rows, len(query)), padded, dtype=torch.bfloat16)
    undecided = []
    for start in range(0, len(query), rows):
        block = slice(start, min(start + rows, len(query)))
        q = query[block]
        scale = None if query_scale is None else query_scale[block]
        if same:
            low, error, length = (x[block] for x in low_bank)
        else:
            low, error, length = _rounded(q, scale)
            low = low[: len(q)]
        similarity = torch.mm(low, low_bank.rows.T, out=buffer[: len(q)])  # (b, padded)
        similarity[:, n:] = -torch.inf
        _drop(similarity, None if exclude is None else exclude[block])
        # Twice the rounding of the sums: of bfloat16 products here, of float32 products when they
        # are computed again.
        slack = bank.shape[1] * 2.0**-22 * length * longest
        bound = (error * longest + length * worst + error * worst + slack) * 1.001
        candidates = _candidates(similarity.view(len(q), group, padded // group), bound, k, most)
        kept = candidates.kept
        inside = kept[candidates.row]
        row = candidates.row[inside]
        column = candidates.column[inside]
        found = values[block], indices[block]
        _rescore(q, bank, scale, bank_scale, row, column, *found, kept)
        undecided.append((~kept).nonzero()[:, 0] + start)
    again = torch.cat(undecided)
    for part in again.split(max(_AT_ONCE, _BLOCK // (4 * n))) if len(again) else ():
        scale = None if query_scale is None else query_scale[part]
        exact = _similarity(query[part], bank, scale, bank_scale, None)
        _drop(exact, None if exclude is None else exclude[part])
        values[part], indices[part] = select_topk(exact, k)
    if exclude is not None:
        indices[_equals_excluded(indices, exclude)] = -1


class _Candidates(NamedTuple):
    """Columns of some queries that may be among the first k.

    Args:
        row: (entries,) int64, ascending.
        column: (entries,) int64.
        kept: (b,) bool, queries whose candidates are complete and not too many.
    """

    row: Tensor
    column: Tensor
    kept: Tensor


def _candidates(grouped: Tensor, bound: Tensor, k: int, most: int) -> _Candidates:
    """Find the columns that reach the threshold of `_certified`.

    Args:
        grouped: (b, group, groups) bfloat16 similarities; column c is in group c % groups.
        bound: (b,) error bound of a similarity.
        k: Number of rows asked for.
        most: Largest number of candidates of a query.
    """
    maxima = grouped.amax(1) if grouped.shape[1] > 1 else grouped[:, 0]  # (b, groups)
    kth = maxima.topk(k, dim=1).values[:, -1]  # (b,)
    below = torch.nextafter(kth, torch.full_like(kth, -torch.inf))
    lowest = (kth.float() + below.float()) / 2 - 2 * bound
    threshold = lowest.nextafter(torch.full_like(lowest, -torch.inf)).bfloat16()
    # A comparison with NaN is false: such a query is computed in float32, where the NaN is
    # reported.
    near = maxima >= threshold[:, None]
    groups = near.sum(1)
    kept = groups <= most
    near &= kept[:, None]
    row, column = _members(grouped, near, threshold)
    counts = torch.bincount(row, minlength=len(grouped))
    kept &= (counts <= most) & (counts >= k) & torch.isfinite(kth)
    return _Candidates(row, column, kept)


def _members(grouped: Tensor, near: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of each similarity that reaches its row's threshold, in the groups marked in
    `near`, sorted by row.
    """
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
    """Write the first k candidates of each kept row, by similarities in float32.

    Args:
        query: (b, D).
        bank: (n, D).
        query_scale: (b,) inverse norms; None if rows are not normalised.
        bank_scale: (n,) inverse norms.
        row: (entries,) int64, ascending.
        column: (entries,) int64.
        values: (b, k), written.
        indices: (b, k), written.
        kept: (b,) bool.
    """
    k = values.shape[1]
    similarity = pair_products(query, bank, row, column)
    if query_scale is not None and bank_scale is not None:
        similarity *= query_scale[row] * bank_scale[column]
    keys = pack(similarity, column)
    counts = torch.bincount(row, minlength=len(query))
    place = torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]
    width = max(k, int(counts.max()) if len(row) else k)
    table = torch.full((len(query), width), torch.iinfo(torch.int64).min)
    table[row, place] = keys
    best = table[kept].topk(k, dim=1).values
    values[kept], indices[kept] = unpack(best)


def pair_products(query: Tensor, bank: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Dot products of single pairs, without a gathered copy of the rows.

    Args:
        query: (B, D).
        bank: (n, D).
        row: (entries,) int64, ascending.
        column: (entries,) int64.

    Returns:
        (entries,).
    """
    starts = torch.zeros(len(query) + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(row, minlength=len(query)), 0, out=starts[1:])
    with warnings.catch_warnings():
        # PyTorch warns once per process that its CSR tensors are in beta state.
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
    """Pack similarities (float32) and columns into int64 keys.

    They sort by similarity; of equal ones the lower column is larger.
    """
    bits = (similarity + 0.0).view(torch.int32)
    ordered = torch.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)
    return (ordered.long() << 32) | (0xFFFFFFFF - column)


def unpack(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Similarity and column of each key; -inf and -1 for the lowest int64, which means that there
    is no column.
    """
    ordered = (keys >> 32).int()
    values = torch.where(ordered >= 0, ordered, ordered ^ 0x7FFFFFFF).view(torch.float32)
    absent = keys == torch.iinfo(torch.int64).min
    column = 0xFFFFFFFF - (keys & 0xFFFFFFFF)
    return values.masked_fill(absent, -torch.inf), column.masked_fill(absent, -1)


class _Rounded(NamedTuple):
    """Rows rounded to bfloat16.

    Args:
        rows: (padded, D) bfloat16, zeros after the n-th row; `padded` is a multiple of 16.
        error: (n,) upper bound of the length of each row's rounding error.
        length: (n,) upper bound of the length of each row.
    """

    rows: Tensor
    error: Tensor
    length: Tensor


def _rounded(rows: Tensor, scale: Tensor | None) -> _Rounded:
    """Multiply rows (n, D) by a scale (n,) and round them to bfloat16, with zero rows up to a
    multiple of 16.
    """
    n, dim = rows.shape
    padded = -(-n // _LARGEST_GROUP) * _LARGEST_GROUP
    copy = torch.zeros(padded, dim, dtype=torch.bfloat16)
    error = torch.empty(n, dtype=torch.float32)
    length = torch.empty(n, dtype=torch.float32)
    step = max(1, _LOW_BLOCK // (8 * max(1, dim)))
    for start in range(0, n, step):
        block = slice(start, min(start + step, n))
        exact = rows[block] if scale is None else rows[block] * scale[block, None]
        copy[block] = exact
        torch.linalg.vector_norm(exact, dim=1, out=length[block])
        torch.linalg.vector_norm(exact - copy[block].float(), dim=1, out=error[block])
    # The factors and summands cover the rounding of the scaling and of the norms themselves.
    error = error * 1.001 + length * 2.0**-22 + _SHORTEST
    return _Rounded(copy, error, length * 1.001 + _SHORTEST)


def _similarity(
    query: Tensor,
    bank: Tensor,
    query_scale: Tensor | None,
    bank_scale: Tensor | None,
    buffer: Tensor | None,
) -> Tensor:
    """Similarities (b, n) of some queries.

    Args:
        query: (b, D).
        bank: (n, D).
        query_scale: (b,) inverse norms; None if rows are not normalised.
        bank_scale: (n,) inverse norms.
        buffer: (at least b, n); the result is written to its first rows.
    """
    count = len(query)
    if count < _FEWEST:
        padded = F.pad(query, (0, 0, 0, _FEWEST - count))
        similarity = torch.mm(padded, bank.T)[:count]
    else:
        similarity = torch.mm(query, bank.T, out=None if buffer is None else buffer[:count])
    if query_scale is not None and bank_scale is not None:
        similarity.mul_(query_scale[:, None]).mul_(bank_scale)
    return similarity


def _inverse_norms(name: str, rows: Tensor) -> Tensor:
    """Inverse of the norm of each row, (n,).

    Raises:
        NotFiniteError: On a CPU, a norm is not finite; the row is named as one of the argument.
    """
    norms = torch.linalg.vector_norm(rows, dim=1)
    if rows.is_cpu:
        check_lengths(name, rows, norms)
    return norms.clamp_(min=_SMALLEST_NORM).reciprocal_()


def _drop(similarity: Tensor, exclude: Tensor | None) -> None:
    """Write -inf to the excluded column of each row of similarities (b, n)."""
    if exclude is not None:
        inside = ((exclude >= 0) & (exclude < similarity.shape[1])).nonzero()[:, 0]
        similarity[inside, exclude[inside]] = -torch.inf


def _equals_excluded(indices: Tensor, exclude: Tensor) -> Tensor:
    """Whether each index (b, k) is the excluded row of its query."""
    return indices == exclude[:, None]
