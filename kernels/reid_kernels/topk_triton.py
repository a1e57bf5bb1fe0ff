"""`similarity_topk` in Triton.

A selection for every tile would cost several times the product before it. Instead the product
writes only the maximum of each group of 16 columns. The first k columns lie in the first k groups
by (maximum, lower column first), so these groups are computed again in float32 and sorted. A value
and its column are packed into one int64 key, so that every sort is stable by construction. With G
groups column c is in group c modulo G: neighbouring rows of a bank are often images of one
identity, and each of them gets a group of its own.

Float32 rows are scaled to unit length and rounded to float16 for the product, whose error is at
most 0.0009 then. A bound of it proves that no other group has one of the first k columns. Queries
without proof get more groups, and in the end float32 products. With the proof groups need no order
among equal maxima, so that float32 maxima suffice, half the size of keys. Their last four bits say
which column of the group has the maximum, and the second maximum of each group is written as well.
A column that is computed again must come within twice the bound of the k-th maximum: in most groups
only the column of the maximum does, or none.
"""

# Kernels are not typed Python.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._ops import unit_stride
from ._triton import (
    Operands,
    operands,
    packed,
    product,
    product_options,
    rounded,
    sortable,
    sortable_bits,
    unsorted,
)
from .tiles import GROUP, REDUCE, Tile, candidate_tile, product_tile
from .topk_cpu import unpack

#: Bytes of group maxima, and of re-scored keys, that exist at a time.
_BLOCK = 2**28
#: Most queries of a pass: their float16 copies stay in the L2 cache beside a piece of the bank.
_QUERIES = 4096
_LOWEST = torch.iinfo(torch.int64).min
#: The least float32 that is not -inf, as `sortable` maps it.
_LOWEST_FINITE = tl.constexpr(-0x7F800000)
_CHUNK = 32
#: Similarities past this may overflow before they are rounded. Nothing is proven of them.
_LARGEST = 1e38
#: How many times more groups a query without proof gets before its products are float32.
_MORE_GROUPS = 4


def topk_triton(
    query: Tensor, bank: Tensor, k: int, normalize: bool, exclude: Tensor | None, precision: str
) -> tuple[Tensor, Tensor]:
    """Compute `similarity_topk` on checked arguments, none of them empty."""
    query = unit_stride(query)
    bank = unit_stride(bank)
    exclude = None if exclude is None else exclude.contiguous()
    if precision != "auto" or query.dtype != torch.float32:
        how = operands(query.dtype, "ieee" if precision == "auto" else precision)
        rows = Rounded(bank, how, normalize)
        return _topk(query, rows, k, exclude, how, _group_count(k), proven=False)[:2]
    half = operands(query.dtype, "fp16")
    return _proven(query, Rounded(bank, half, normalize, lengths=True), k, exclude)


def index_triton(bank: Tensor, normalize: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What `search_triton` needs of a bank (n, D) besides its rows.

    Returns:
        A copy (n, D) in float16, empty for half floats, and (n,) float32 norms, inverse norms,
        errors and lengths of the rows; empty where they are not needed.
    """
    bank = unit_stride(bank)
    wide = bank.dtype == torch.float32
    how = operands(bank.dtype, "fp16")
    made = Rounded(bank, how, normalize, lengths=wide)
    low, norm, inverse, error, length = made.parts()
    # The interpreter reads float32 copies, which are not kept.
    return low.to(how.dtype) if low.numel() else low, norm, inverse, error, length


def search_triton(
    query: Tensor,
    bank: Tensor,
    parts: Sequence[Tensor],
    k: int,
    normalize: bool,
    exclude: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`topk_triton` at "auto" precision, with what `index_triton` returned for the bank."""
    query = unit_stride(query)
    how = operands(query.dtype, "fp16")
    low = Rounded(unit_stride(bank), how, normalize, parts=parts)
    exclude = None if exclude is None else exclude.contiguous()
    if query.dtype == torch.float32:
        return _proven(query, low, k, exclude)
    return _topk(query, low, k, exclude, how, _group_count(k), proven=False)[:2]


def _proven(query: Tensor, low: Rounded, k: int, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
    """Find the k most similar rows of a rounded bank, with proof.

    Args:
        query: (B, D) float32, stride 1 inside.
        low: The bank in float16, with lengths.
        k: Number of rows.
        exclude: (B,) int64, contiguous; a row that is left out for each query.
    """
    half = operands(query.dtype, "fp16")
    groups = _group_count(k)
    values, indices, certain = _topk(query, low, k, exclude, half, groups, proven=True)
    again = (~certain).nonzero()[:, 0]
    if len(again) and bool(torch.isfinite(low.length.max())):
        # More groups prove nothing of a query that is zero or not finite.
        largest = query[again].abs().amax(1)
        hopeful = (largest > 0) & (largest < torch.inf)
        some = again[hopeful]
        if len(some):
            own = None if exclude is None else exclude[some]
            more = groups * _MORE_GROUPS
            found = _topk(query[some], low, k, own, half, more, proven=True)
            values[some], indices[some] = found[:2]
            certain[some] = found[2]
            again = (~certain).nonzero()[:, 0]
    if len(again):
        own = None if exclude is None else exclude[again]
        full = operands(query.dtype, "ieee")
        rows = Rounded(low.rows, full, low.normalize)
        found = _topk(query[again], rows, k, own, full, groups, proven=False)
        values[again], indices[again] = found[:2]
    return values, indices


def _group_count(k: int) -> int:
    """Groups that are looked at again for the first k columns.

    More than k: candidates may be rounded, and the second look sums in another order.
    """
    return k + max(8, k // 4)


def _topk(
    query: Tensor,
    bank: Rounded,
    k: int,
    exclude: Tensor | None,
    how: Operands,
    chosen: int,
    proven: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Values (B, k), indices (B, k), and whether each query's candidates certainly contain its
    first k, (B,) bool.

    Args:
        query: (B, D).
        bank: The bank, with lengths if the candidates are to be proven.
        k: Number of columns.
        exclude: (B,) int64, a column of each query that is left out.
        how: The product's operands.
        chosen: Groups that are looked at again.
        proven: Whether to prove the candidates; without, the last result has no meaning.
    """
    n, dim = bank.rows.shape
    q = Rounded(query, how, bank.normalize, lengths=proven)
    groups = triton.cdiv(n, GROUP)
    chosen = min(groups, chosen)
    rows = _pass_rows(len(query), groups, chosen, how)
    values = torch.empty(len(query), k, dtype=torch.float32, device=query.device)
    indices = torch.empty(len(query), k, dtype=torch.int64, device=query.device)
    certain = torch.zeros(len(query), dtype=torch.bool, device=query.device)
    for start in range(0, len(query), rows):
        block = slice(start, start + rows)
        part = q[block]
        own = None if exclude is None else exclude[block].contiguous()
        if proven:
            bound = error_bound(part, bank, dim)
            near = near_columns(part, bank, own, how, k, chosen, bound)
            keys = rescore(part, bank, near.groups, own, near)
        else:
            best = group_maxima(part, bank, own, how).topk(chosen, dim=1).values  # (b, chosen)
            keys = rescore(part, bank, (0xFFFFFFFF - (best & 0xFFFFFFFF)) % groups, own)
        first = keys.topk(min(k, keys.shape[1]), dim=1).values
        if first.shape[1] < k:
            first = torch.nn.functional.pad(first, (0, k - first.shape[1]), value=_LOWEST)
        values[block], indices[block] = unpack(first)
        if proven:
            # No group outside the chosen ones has a larger maximum than the last chosen one.
            below = near.best[:, -1] + bound < values[block][:, -1]
            certain[block] = below | (chosen == groups)
    return values, indices, certain


def _pass_rows(count: int, groups: int, chosen: int, how: Operands) -> int:
    """Queries of a pass: so many that what exists at a time has its size, in whole tiles.

    Args:
        count: Number of queries.
        groups: Groups of columns.
        chosen: Groups that are looked at again.
        how: The product's operands.
    """
    # 8 bytes for each group: a key, or two maxima.
    rows = min(_BLOCK // (8 * groups), _BLOCK // (8 * chosen * GROUP), _QUERIES)
    tile = product_tile(how.dtype, how.precision, count).rows
    return max(1, rows // tile * tile if rows > tile else rows)


def error_bound(query: Rounded, bank: Rounded, dim: int) -> Tensor:
    """Largest error of a product of each query, (B,) float32.

    The rounding of both rows (Cauchy-Schwarz), twice the rounding of the sums, and the four bits of
    a maximum that hold its column.
    """
    longest = bank.length.max()
    worst = bank.error.max()
    bound = query.error * longest + query.length * worst + query.error * worst
    largest = query.length * longest
    bound += (dim * 2.0**-22 + 2.0**-18) * largest
    # Subnormal similarities lose more of themselves to the four bits, and products may overflow.
    return torch.where(largest < _LARGEST, bound * 1.001 + 1e-43, torch.inf)


class Near(NamedTuple):
    """Groups of columns that may have one of the first k columns of a query.

    Args:
        groups: (b, chosen) int64, numbers of the groups.
        best: (b, chosen) float32, descending: largest product of each group, whose last four bits
            say which column has it.
        second: (b, chosen) float32: second largest product of each group.
        lowest: (b,) float32: no column with a smaller product is among the first k.
    """

    groups: Tensor
    best: Tensor
    second: Tensor
    lowest: Tensor


def near_columns(
    query: Rounded,
    bank: Rounded,
    exclude: Tensor | None,
    how: Operands,
    k: int,
    chosen: int,
    bound: Tensor,
) -> Near:
    """Find the groups of columns with the largest products.

    At least k columns have a product of at least the k-th largest maximum of a group. The exact
    similarity of each is at most `bound` below its product, so the product of a column among the
    first k is at most twice the bound below that maximum.

    Args:
        query: (b, D).
        bank: (n, D).
        exclude: (b,) int64, a column of each query that is left out.
        how: The product's operands.
        k: Number of columns.
        chosen: Number of groups, at most all.
        bound: (b,) float32, largest error of a product of each query.
    """
    maxima, seconds = two_maxima(query, bank, exclude, how)
    best, groups = maxima.topk(chosen, dim=1)
    lowest = best[:, k - 1] - 2.001 * bound if k <= chosen else torch.full_like(bound, -torch.inf)
    return Near(groups, best, seconds.gather(1, groups), lowest)


class Rounded:
    """Rows as the product reads them, with the factors that make similarities of products.

    Float32 rows for float16 products are scaled to unit length before they are rounded, so that no
    value leaves the range of float16.

    Args:
        rows: (n, D), the last stride 1.
        how: The product's operands.
        normalize: Whether similarities are those of normalised rows.
        lengths: Whether `error` and `length` are needed.
        parts: What `parts` returned for these rows earlier.

    Attributes:
        rows: (n, D) the rows.
        normalize: Whether similarities are those of normalised rows.
        low: (n, D) rows of the product.
        norm: (n,) norm of each row.
        inverse: (n,) inverse norm of each row.
        scale: (n,) factor of the products of each row; None where all are 1.
        factor: (n,) inverse norm of each row; None if rows are not normalised.
        error: (n,) upper bound of the scaled length of each row's rounding error.
        length: (n,) upper bound of the scaled length of each row.
    """

    def __init__(
        self,
        rows: Tensor,
        how: Operands,
        normalize: bool,
        lengths: bool = False,
        parts: Sequence[Tensor] | None = None,
    ) -> None:
        self.rows = rows
        self.normalize = normalize
        copied = how.dtype != rows.dtype
        # bfloat16 has the range of float32: its copies keep their length.
        unit = copied and how.dtype == torch.float16
        self.low = rows
        self.norm, self.inverse, self.error, self.length = (
            torch.empty(0, dtype=torch.float32, device=rows.device) for _ in range(4)
        )
        if parts is not None:
            low, self.norm, self.inverse, self.error, self.length = parts
            self.low = low if copied else rows
        elif copied or normalize or lengths:
            self._measure(how.dtype, copied, unit)
        self.factor = self.inverse if normalize else None
        self.scale: Tensor | None = None
        if unit != normalize:
            self.scale = self.norm if unit else self.inverse
        self.low = rounded(self.low, how)

    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What takes time to compute; the copy is empty where the rows themselves are read."""
        low = self.rows.new_empty(0) if self.low is self.rows else self.low
        return low, self.norm, self.inverse, self.error, self.length

    def _measure(self, dtype: torch.dtype, copied: bool, unit: bool) -> None:
        """Round the rows and compute norms and bounds."""
        n, dim = self.rows.shape
        if copied:
            self.low = torch.empty(n, dim, dtype=dtype, device=self.rows.device)
        self.norm, self.inverse, self.error, self.length = (
            torch.empty(n, dtype=torch.float32, device=self.rows.device) for _ in range(4)
        )
        round_kernel[(triton.cdiv(n, REDUCE.rows),)](
            self.rows,
            self.low,
            self.norm,
            self.inverse,
            self.error,
            self.length,
            n,
            dim,
            self.rows.stride(0),
            self.low.stride(0),
            NORMALIZE=self.normalize,
            COPY=copied,
            UNIT=unit,
            BLOCK_M=REDUCE.rows,
            BLOCK_D=REDUCE.depth,
            num_warps=REDUCE.warps,
        )

    def __getitem__(self, rows: slice) -> Rounded:
        part = object.__new__(Rounded)
        for name, value in vars(self).items():
            whole = isinstance(value, Tensor) and len(value) == len(self.rows)
            setattr(part, name, value[rows] if whole else value)
        return part


def group_maxima(
    query: Rounded,
    bank: Rounded,
    exclude: Tensor | None,
    how: Operands,
    tile: Tile | None = None,
) -> Tensor:
    """Each query's largest similarity in each group of columns, (B, groups) int64 keys.

    A key names the lowest column that has the maximum.

    Args:
        query: (B, D).
        bank: (n, D).
        exclude: (B,) int64, a column of each query that is left out.
        how: Precision of the products.
        tile: Tile of the products, by default from the table.
    """
    groups = triton.cdiv(len(bank.low), GROUP)
    maxima = torch.empty(len(query.low), groups, dtype=torch.int64, device=query.low.device)
    _launch_maxima(query, bank, exclude, how, maxima, maxima, tile)
    return maxima


def two_maxima(
    query: Rounded,
    bank: Rounded,
    exclude: Tensor | None,
    how: Operands,
    tile: Tile | None = None,
) -> Tensor:
    """Each query's two largest similarities in each group of columns, (2, B, groups) float32.

    The last four bits of a similarity are replaced: they say which column of the group has it. So
    inf may become a NaN, and -inf becomes finite; a column that does not exist has -inf.

    Args:
        query: (B, D).
        bank: (n, D).
        exclude: (B,) int64, a column of each query that is left out.
        how: Precision of the products.
        tile: Tile of the products, by default from the table.
    """
    groups = triton.cdiv(len(bank.low), GROUP)
    maxima = torch.empty(2, len(query.low), groups, dtype=torch.float32, device=query.low.device)
    _launch_maxima(query, bank, exclude, how, maxima[0], maxima[1], tile)
    return maxima


def _launch_maxima(
    query: Rounded,
    bank: Rounded,
    exclude: Tensor | None,
    how: Operands,
    maxima: Tensor,
    seconds: Tensor,
    tile: Tile | None = None,
) -> None:
    """Write the maxima (B, groups) of the groups of columns, int64 keys or float32."""
    m, dim = query.low.shape
    n = len(bank.low)
    groups = maxima.shape[1]
    tile = tile or candidate_tile(how.dtype, how.precision, m, n)
    if exclude is not None:
        # Numbered group by group.
        place = exclude % groups * GROUP + exclude // groups
        exclude = torch.where((exclude >= 0) & (exclude < n), place, -1)
    # The tiles of one piece of the bank run at the same time, so that it is read from memory once.
    group_maxima_kernel[(triton.cdiv(m, tile.rows) * triton.cdiv(n, tile.columns),)](
        query.low,
        bank.low,
        query.low if query.scale is None else query.scale,
        bank.low if bank.scale is None else bank.scale,
        query.low if exclude is None else exclude,
        maxima,
        seconds,
        m,
        n,
        dim,
        groups,
        query.low.stride(0),
        bank.low.stride(0),
        SCALE=query.scale is not None,
        EXCLUDE=exclude is not None,
        KEYS=maxima.dtype == torch.int64,
        GROUP=GROUP,
        **product_options(how, tile),
    )


def rescore(
    query: Rounded,
    bank: Rounded,
    groups: Tensor,
    exclude: Tensor | None,
    near: Near | None = None,
) -> Tensor:
    """Keys of the columns of some groups, by float32 sums.

    Args:
        query: (B, D).
        bank: (n, D).
        groups: (B, g) int64, groups of each query.
        exclude: (B,) int64, a column of each query that is left out.
        near: What says which columns are needed; None for all columns of the groups.

    Returns:
        (B, g * GROUP) int64; the lowest int64 where there is no column, or none that is needed.
    """
    m, chosen = groups.shape
    keys = torch.empty(m, chosen * GROUP, dtype=torch.int64, device=groups.device)
    pieces = triton.cdiv(chosen * GROUP, _CHUNK)
    n, dim = bank.rows.shape
    rescore_kernel[(m * pieces,)](
        query.rows,
        bank.rows,
        query.rows if query.factor is None else query.factor,
        bank.rows if bank.factor is None else bank.factor,
        groups.contiguous(),
        *((groups, groups, groups) if near is None else (near.best, near.second, near.lowest)),
        groups if exclude is None else exclude,
        keys,
        n,
        triton.cdiv(n, GROUP),
        dim,
        chosen,
        pieces,
        query.rows.stride(0),
        bank.rows.stride(0),
        NORMALIZE=query.factor is not None,
        EXCLUDE=exclude is not None,
        NEAR=near is not None,
        BLOCK_N=_CHUNK,
        BLOCK_D=REDUCE.depth,
        GROUP=GROUP,
        num_warps=REDUCE.warps,
    )
    return keys


@triton.jit
def round_kernel(
    rows_ptr,  # (n, D)
    low_ptr,  # (n, D)
    norm_ptr,  # (n,)
    inverse_ptr,  # (n,)
    error_ptr,  # (n,)
    length_ptr,  # (n,)
    n,
    dim,
    stride,
    low_stride,
    NORMALIZE: tl.constexpr,
    COPY: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Round rows to the copy's dtype, with UNIT after they were scaled to unit length.

    Writes the norm of each row, clamped at 1e-12, its inverse, and upper bounds of the lengths of
    the row and of its rounding error. The bounds are those of the rows that similarities are about:
    of unit length with NORMALIZE, of the given length without.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    square = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    for start in range(0, dim, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        mask = (row < n)[:, None] & (d < dim)[None, :]
        values = tl.load(rows_ptr + row[:, None] * stride + d[None, :], mask=mask, other=0.0)
        square += values.to(tl.float32) * values.to(tl.float32)
    exact = tl.sqrt(tl.sum(square, axis=1))
    # `tl.maximum` would drop a NaN.
    norm = tl.where(exact == exact, tl.maximum(exact, 1e-12), exact)
    inverse = 1.0 / norm
    # 1e-17 is larger than any length whose square underflows in float32: no bound is too small
    # because squares did.
    length = (exact * 1.001 + 1e-17) * inverse
    error = tl.zeros((BLOCK_M,), dtype=tl.float32)
    if COPY:
        off = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
        for start in range(0, dim, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            mask = (row < n)[:, None] & (d < dim)[None, :]
            values = tl.load(rows_ptr + row[:, None] * stride + d[None, :], mask=mask, other=0.0)
            x = values.to(tl.float32)
            if UNIT:
                x *= inverse[:, None]
            low = x.to(low_ptr.dtype.element_ty)
            if UNIT:
                # Some matrix units take subnormal float16 for 0: so does the copy.
                low = tl.where(tl.abs(low.to(tl.float32)) < 6.103515625e-05, 0.0, low)
                low = low.to(low_ptr.dtype.element_ty)
            tl.store(low_ptr + row[:, None] * low_stride + d[None, :], low, mask=mask)
            off += (x - low.to(tl.float32)) * (x - low.to(tl.float32))
        # The second term, 2^-21, covers the rounding of the scaling.
        error = tl.sqrt(tl.sum(off, axis=1)) * 1.001 + length * 4.76837158203125e-07 + 1e-17
    if not NORMALIZE:
        length = length * norm
        error = error * norm
    tl.store(norm_ptr + row, norm, mask=row < n)
    tl.store(inverse_ptr + row, inverse, mask=row < n)
    tl.store(length_ptr + row, length, mask=row < n)
    tl.store(error_ptr + row, error, mask=row < n)


@triton.jit
def group_maxima_kernel(
    query_ptr,  # (m, D)
    bank_ptr,  # (n, D)
    query_scale_ptr,  # (m,)
    bank_scale_ptr,  # (n,)
    exclude_ptr,  # (m,), GROUP times the group of the column, and its place in the group
    maxima_ptr,  # (m, groups)
    seconds_ptr,  # (m, groups)
    m,
    n,
    dim,
    groups,
    query_stride,
    bank_stride,
    SCALE: tl.constexpr,
    EXCLUDE: tl.constexpr,
    KEYS: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Multiply a tile of queries and a tile of the bank; write the two largest values of each group
    of columns, or with KEYS the key of the largest.
    """
    tiles = tl.cdiv(m, BLOCK_M)
    row = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    # A tile has all columns of `width` groups. The columns of a group lie far apart in the bank,
    # whose neighbouring rows are often alike, and in one thread of a matrix unit's result.
    width: tl.constexpr = BLOCK_N // GROUP
    begin = (tl.program_id(0) // tiles).to(tl.int64) * width
    local = tl.arange(0, BLOCK_N)
    member = local // width
    column = begin + local % width + member.to(tl.int64) * groups
    exists = (column < n) & (begin + local % width < groups)
    similarity = product(
        query_ptr,
        bank_ptr,
        row,
        column,
        row < m,
        exists,
        dim,
        query_stride,
        bank_stride,
        OPERAND,
        PRECISION,
        BLOCK_M,
        BLOCK_N,
        BLOCK_D,
    )
    if SCALE:
        similarity *= tl.load(query_scale_ptr + row, mask=row < m, other=0.0)[:, None]
        similarity *= tl.load(bank_scale_ptr + column, mask=exists, other=0.0)[None, :]
    absent = ~exists[None, :]
    if EXCLUDE:
        # Columns are numbered within the tile: int64 columns would not fit the registers.
        own = tl.load(exclude_ptr + row, mask=row < m, other=-1) - begin * GROUP
        own = tl.where((own >= 0) & (own < BLOCK_N), own, -1).to(tl.int32)
        own = tl.where(own < 0, -1, own % GROUP * width + own // GROUP)
        absent = absent | (local[None, :] == own[:, None])
    # Integers, because their maximum does not drop a NaN.
    order = sortable(similarity)
    if not KEYS:
        # The last bits say which column it is: the lowest of equal ones is the largest.
        order = tl.maximum(order, _LOWEST_FINITE) & -GROUP | (GROUP - 1 - member)[None, :]
    order = tl.reshape(tl.where(absent, -0x80000000, order), (BLOCK_M, GROUP, width))
    best = tl.max(order, axis=1)
    group = tl.arange(0, width)
    place = (row * groups + begin)[:, None] + group[None, :]
    mask = (row < m)[:, None] & (group < groups - begin)[None, :]
    if KEYS:
        members = tl.arange(0, GROUP)[None, :, None]
        first = tl.min(tl.where(order == best[:, None, :], members, GROUP - 1), axis=1)
        lowest = (begin + group)[None, :] + first.to(tl.int64) * groups
        tl.store(maxima_ptr + place, packed(best, lowest), mask=mask)
    else:
        second = tl.max(tl.where(order == best[:, None, :], -0x80000000, order), axis=1)
        tl.store(maxima_ptr + place, unsorted(best), mask=mask)
        tl.store(seconds_ptr + place, unsorted(second), mask=mask)


@triton.jit
def rescore_kernel(
    query_ptr,  # (m, D)
    bank_ptr,  # (n, D)
    query_factor_ptr,  # (m,)
    bank_factor_ptr,  # (n,)
    groups_ptr,  # (m, chosen)
    best_ptr,  # (m, chosen)
    second_ptr,  # (m, chosen)
    lowest_ptr,  # (m,)
    exclude_ptr,  # (m,)
    keys_ptr,  # (m, chosen * GROUP)
    n,
    groups,
    dim,
    chosen,
    pieces,
    query_stride,
    bank_stride,
    NORMALIZE: tl.constexpr,
    EXCLUDE: tl.constexpr,
    NEAR: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Compute the keys of one query with the columns of some of its groups, in float32.

    Where there is no column, or with NEAR none that is needed, the key is the lowest int64.
    """
    row = (tl.program_id(0) // pieces).to(tl.int64)
    place = (tl.program_id(0) % pieces) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = place < chosen * GROUP
    group = tl.load(groups_ptr + row * chosen + place // GROUP, mask=inside, other=0)
    column = group + (place % GROUP).to(tl.int64) * groups
    real = inside & (column < n)
    if EXCLUDE:
        real = real & (column != tl.load(exclude_ptr + row))
    if NEAR:
        lowest = tl.load(lowest_ptr + row)
        best = tl.load(best_ptr + row * chosen + place // GROUP, mask=inside, other=0.0)
        second = tl.load(second_ptr + row * chosen + place // GROUP, mask=inside, other=0.0)
        first = GROUP - 1 - (sortable_bits(best) & (GROUP - 1))
        # Written so that a NaN needs every column.
        alone = (second < lowest) & ((best < lowest) | (place % GROUP != first))
        real = real & ~alone
    total = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
    for start in range(0, dim, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        q = tl.load(query_ptr + row * query_stride + d, mask=d < dim, other=0.0).to(tl.float32)
        mask = real[:, None] & (d < dim)[None, :]
        b = tl.load(bank_ptr + column[:, None] * bank_stride + d[None, :], mask=mask, other=0.0)
        total += b.to(tl.float32) * q[None, :]
    similarity = tl.sum(total, axis=1)
    if NORMALIZE:
        similarity *= tl.load(query_factor_ptr + row)
        similarity *= tl.load(bank_factor_ptr + column, mask=real, other=0.0)
    key = tl.where(real, packed(sortable(similarity), column), -0x8000000000000000)
    tl.store(keys_ptr + row * (chosen * GROUP) + place, key, mask=inside)
