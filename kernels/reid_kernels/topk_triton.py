"""`similarity_topk` in Triton.

A selection for every tile would cost several times the product before it. Instead the product
writes only the maximum of each group of 16 columns. The first k columns lie in the first k groups
by (maximum, lower group first), so these groups are computed again in float32 and sorted. A value
and its column are packed into one int64 key, so that every sort is stable by construction.
"""

# Kernels are not typed Python.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._ops import unit_stride
from ._triton import Operands, operands, packed, product, product_options, rounded, sortable
from .tiles import GROUP, REDUCE, product_tile
from .topk_cpu import unpack

#: Bytes of group keys, and of re-scored keys, that exist at a time.
_BLOCK = 2**28
_LOWEST = torch.iinfo(torch.int64).min
_CHUNK = 32


def topk_triton(
    query: Tensor, bank: Tensor, k: int, normalize: bool, exclude: Tensor | None, precision: str
) -> tuple[Tensor, Tensor]:
    """Compute `similarity_topk` on checked arguments, none of them empty."""
    query = unit_stride(query)
    bank = unit_stride(bank)
    exclude = None if exclude is None else exclude.contiguous()
    if precision != "auto" or query.dtype != torch.float32:
        asked = "ieee" if precision == "auto" else precision
        return _topk(query, bank, k, normalize, exclude, asked)[:2]
    values, indices, certain = _topk(query, bank, k, normalize, exclude, "bf16")
    again = (~certain).nonzero()[:, 0]
    if len(again):
        own = None if exclude is None else exclude[again]
        values[again], indices[again] = _topk(query[again], bank, k, normalize, own, "ieee")[:2]
    return values, indices


def _topk(
    query: Tensor, bank: Tensor, k: int, normalize: bool, exclude: Tensor | None, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Values (B, k), indices (B, k), and whether each query's candidates certainly contain its
    first k, (B,) bool.
    """
    n, dim = bank.shape
    how = operands(query.dtype, precision)
    q = Rounded(query, how, normalize)
    b = Rounded(bank, how, normalize)
    groups = triton.cdiv(n, GROUP)
    # More groups than k: candidates may be rounded, and the second look sums in another order.
    chosen = min(groups, k + max(8, k // 4))
    rows = max(1, min(_BLOCK // (8 * groups), _BLOCK // (8 * chosen * GROUP)))
    values = torch.empty(len(query), k, dtype=torch.float32, device=query.device)
    indices = torch.empty(len(query), k, dtype=torch.int64, device=query.device)
    certain = torch.empty(len(query), dtype=torch.bool, device=query.device)
    longest = b.length.max()
    worst = b.error.max()
    for start in range(0, len(query), rows):
        block = slice(start, start + rows)
        own = None if exclude is None else exclude[block].contiguous()
        best = group_maxima(q[block], b, own, how).topk(chosen, dim=1).values  # (b, chosen) keys
        numbers = 0xFFFFFFFF - (best & 0xFFFFFFFF)
        keys = rescore(query[block], bank, q.scale[block], b.scale, numbers, own)
        first = keys.topk(min(k, keys.shape[1]), dim=1).values
        if first.shape[1] < k:
            first = torch.nn.functional.pad(first, (0, k - first.shape[1]), value=_LOWEST)
        values[block], indices[block] = unpack(first)
        # The rounding of both rows (Cauchy-Schwarz), and twice the rounding of the sums.
        error = q.error[block]
        length = q.length[block]
        bound = error * longest + length * worst + error * worst + dim * 2.0**-22 * length * longest
        # No group outside the chosen ones has a larger maximum than the last chosen one.
        outside = unpack(best[:, -1:])[0][:, 0]
        certain[block] = (outside + bound < values[block][:, -1]) | (chosen == groups)
    return values, indices, certain


class Rounded:
    """Rows as the product reads them: rounded, with the factor that makes them unit-norm.

    Args:
        rows: (n, D), the last stride 1.
        how: The product's operands.
        normalize: Whether `scale` is the inverse norm or 1.

    Attributes:
        low: (n, D) rounded rows.
        scale: (n,) factor of each row.
        error: (n,) upper bound of the scaled length of each row's rounding error.
        length: (n,) upper bound of the scaled length of each row.
    """

    def __init__(self, rows: Tensor, how: Operands, normalize: bool) -> None:
        n, dim = rows.shape
        self.low = rows
        if how.dtype != rows.dtype:
            self.low = torch.empty(n, dim, dtype=how.dtype, device=rows.device)
        per_row = torch.empty(3, n, dtype=torch.float32, device=rows.device)
        self.scale, self.error, self.length = per_row
        grid = (triton.cdiv(n, REDUCE.rows),)
        round_kernel[grid](
            rows,
            self.low,
            self.scale,
            self.error,
            self.length,
            n,
            dim,
            rows.stride(0),
            self.low.stride(0),
            NORMALIZE=normalize,
            COPY=self.low is not rows,
            BLOCK_M=REDUCE.rows,
            BLOCK_D=REDUCE.depth,
            num_warps=REDUCE.warps,
        )
        self.low = rounded(self.low, how)

    def __getitem__(self, rows: slice) -> Rounded:
        part = object.__new__(Rounded)
        part.low = self.low[rows]
        part.scale = self.scale[rows]
        part.error = self.error[rows]
        part.length = self.length[rows]
        return part


def group_maxima(query: Rounded, bank: Rounded, exclude: Tensor | None, how: Operands) -> Tensor:
    """Key of each query's largest similarity in each group of columns.

    Args:
        query: (B, D).
        bank: (n, D).
        exclude: (B,) int64, a column of each query that is left out.
        how: Precision of the products.

    Returns:
        (B, groups) int64; the column in the key is the number of the group.
    """
    m, dim = query.low.shape
    n = len(bank.low)
    tile = product_tile(how.dtype, how.precision, m)
    groups = triton.cdiv(n, GROUP)
    keys = torch.empty(m, groups, dtype=torch.int64, device=query.low.device)
    # The tiles of one piece of the bank run at the same time, so that it is read from memory once.
    group_maxima_kernel[(triton.cdiv(m, tile.rows) * triton.cdiv(n, tile.columns),)](
        query.low,
        bank.low,
        query.scale,
        bank.scale,
        query.scale if exclude is None else exclude,
        keys,
        m,
        n,
        dim,
        groups,
        query.low.stride(0),
        bank.low.stride(0),
        EXCLUDE=exclude is not None,
        GROUP=GROUP,
        **product_options(how, tile),
    )
    return keys


def rescore(
    query: Tensor,
    bank: Tensor,
    query_scale: Tensor,
    bank_scale: Tensor,
    groups: Tensor,
    exclude: Tensor | None,
) -> Tensor:
    """Keys of all columns of some groups, by float32 sums.

    Args:
        query: (B, D).
        bank: (n, D).
        query_scale: (B,) factor of each query.
        bank_scale: (n,) factor of each bank row.
        groups: (B, g) int64, groups of each query.
        exclude: (B,) int64, a column of each query that is left out.

    Returns:
        (B, g * GROUP) int64.
    """
    m, chosen = groups.shape
    keys = torch.empty(m, chosen * GROUP, dtype=torch.int64, device=query.device)
    pieces = triton.cdiv(chosen * GROUP, _CHUNK)
    rescore_kernel[(m * pieces,)](
        query,
        bank,
        query_scale,
        bank_scale,
        groups.contiguous(),
        groups if exclude is None else exclude,
        keys,
        len(bank),
        query.shape[1],
        chosen,
        pieces,
        query.stride(0),
        bank.stride(0),
        EXCLUDE=exclude is not None,
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
    scale_ptr,  # (n,)
    error_ptr,  # (n,)
    length_ptr,  # (n,)
    n,
    dim,
    stride,
    low_stride,
    NORMALIZE: tl.constexpr,
    COPY: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Round rows to the copy's dtype.

    Writes the inverse norm of each row, and upper bounds of the scaled lengths of the row and of
    its rounding error.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    square = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    off = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    for start in range(0, dim, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        mask = (row < n)[:, None] & (d < dim)[None, :]
        values = tl.load(rows_ptr + row[:, None] * stride + d[None, :], mask=mask, other=0.0)
        x = values.to(tl.float32)
        square += x * x
        if COPY:
            low = x.to(low_ptr.dtype.element_ty)
            tl.store(low_ptr + row[:, None] * low_stride + d[None, :], low, mask=mask)
            off += (x - low.to(tl.float32)) * (x - low.to(tl.float32))
    norm = tl.sqrt(tl.sum(square, axis=1))
    scale = tl.full((BLOCK_M,), 1.0, dtype=tl.float32)
    if NORMALIZE:
        scale = 1.0 / tl.maximum(norm, 1e-12)
    tl.store(scale_ptr + row, scale, mask=row < n)
    # 1e-17 is smaller than any length whose square float32 can represent: no bound is zero only
    # because squares underflowed.
    tl.store(length_ptr + row, norm * scale * 1.001 + 1e-17, mask=row < n)
    tl.store(error_ptr + row, tl.sqrt(tl.sum(off, axis=1)) * scale * 1.001 + 1e-17, mask=row < n)


@triton.jit
def group_maxima_kernel(
    query_ptr,  # (m, D)
    bank_ptr,  # (n, D)
    query_scale_ptr,  # (m,)
    bank_scale_ptr,  # (n,)
    exclude_ptr,  # (m,)
    keys_ptr,  # (m, groups)
    m,
    n,
    dim,
    groups,
    query_stride,
    bank_stride,
    EXCLUDE: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Multiply a tile of queries and a tile of the bank; write the key of the maximum of each group
    of columns.
    """
    tiles = tl.cdiv(m, BLOCK_M)
    row = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    piece = (tl.program_id(0) // tiles).to(tl.int64)
    column = piece * BLOCK_N + tl.arange(0, BLOCK_N)
    similarity = product(
        query_ptr,
        bank_ptr,
        row,
        column,
        row < m,
        column < n,
        dim,
        query_stride,
        bank_stride,
        OPERAND,
        PRECISION,
        BLOCK_M,
        BLOCK_N,
        BLOCK_D,
    )
    similarity *= tl.load(query_scale_ptr + row, mask=row < m, other=0.0)[:, None]
    similarity *= tl.load(bank_scale_ptr + column, mask=column < n, other=0.0)[None, :]
    order = sortable(similarity)
    order = tl.where((column < n)[None, :], order, -0x80000000)
    if EXCLUDE:
        own = tl.load(exclude_ptr + row, mask=row < m, other=-1)
        order = tl.where(column[None, :] == own[:, None], -0x80000000, order)
    best = tl.max(tl.reshape(order, (BLOCK_M, BLOCK_N // GROUP, GROUP)), axis=2)
    group = piece * (BLOCK_N // GROUP) + tl.arange(0, BLOCK_N // GROUP)
    tl.store(
        keys_ptr + row[:, None] * groups + group[None, :],
        packed(best, group[None, :]),
        mask=(row < m)[:, None] & (group < groups)[None, :],
    )


@triton.jit
def rescore_kernel(
    query_ptr,  # (m, D)
    bank_ptr,  # (n, D)
    query_scale_ptr,  # (m,)
    bank_scale_ptr,  # (n,)
    groups_ptr,  # (m, chosen)
    exclude_ptr,  # (m,)
    keys_ptr,  # (m, chosen * GROUP)
    n,
    dim,
    chosen,
    pieces,
    query_stride,
    bank_stride,
    EXCLUDE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Compute the keys of one query with the columns of some of its groups, in float32.

    Where there is no column the key is the lowest int64.
    """
    row = (tl.program_id(0) // pieces).to(tl.int64)
    place = (tl.program_id(0) % pieces) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = place < chosen * GROUP
    group = tl.load(groups_ptr + row * chosen + place // GROUP, mask=inside, other=0)
    column = group * GROUP + place % GROUP
    real = inside & (column < n)
    if EXCLUDE:
        real = real & (column != tl.load(exclude_ptr + row))
    total = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
    for start in range(0, dim, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        q = tl.load(query_ptr + row * query_stride + d, mask=d < dim, other=0.0).to(tl.float32)
        mask = real[:, None] & (d < dim)[None, :]
        b = tl.load(bank_ptr + column[:, None] * bank_stride + d[None, :], mask=mask, other=0.0)
        total += b.to(tl.float32) * q[None, :]
    similarity = tl.sum(total, axis=1) * tl.load(query_scale_ptr + row)
    similarity *= tl.load(bank_scale_ptr + column, mask=real, other=0.0)
    key = tl.where(real, packed(sortable(similarity), column), -0x8000000000000000)
    tl.store(keys_ptr + row * (chosen * GROUP) + place, key, mask=inside)
