"""`label_prediction` in Triton: closer rows are counted where similarities are computed; those of
candidates are not stored.

Whether a candidate is good is decided by a count and a bound. Float16 products with a proven error
say which rows are certainly closer and which may be. Only candidates for which the two counts lie
on both sides of the bound are counted in float32.
"""

# Kernels are not typed Python.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._ops import unit_stride
from ._triton import Operands, operands, product, product_options, rounded
from .labels_cpu import closer_blocked, neighbours_above, walk
from .multilabel_triton import BLOCK, similarities
from .tiles import Tile, product_tile
from .topk_triton import Rounded, error_bound

#: Mean number of pairs per candidate from which on its similarities are computed once and stored.
_SHARED = 4
#: Candidates of each row from which on it is looked whether they are the same.
_MANY = 64


def labels_triton(
    bank: Tensor,
    rows: Tensor,
    threshold: float,
    at_least: int,
    *,
    tile: Tile | None = None,
    block: int = BLOCK,
) -> tuple[Tensor, Tensor]:
    """Compute `label_prediction` on checked arguments, none of them empty.

    Args:
        bank: (n, D).
        rows: (B,) int64.
        threshold: Similarities above it count.
        at_least: The smallest K.
        tile: Tile of the products, by default from the table.
        block: Bytes of similarities that exist at a time.
    """
    bank = unit_stride(bank)
    how = operands(bank.dtype, "ieee")
    n = len(bank)
    step = max(1, block // (4 * n))
    blocks = [slice(start, start + step) for start in range(0, len(rows), step)]

    def similar(numbers: Tensor) -> Tensor:
        return similarities(bank[numbers], bank, how, tile)

    # Half floats are multiplied at the speed of candidates already.
    low = Low(bank) if bank.dtype == torch.float32 else None

    def exceeds(candidates: Tensor, own: Tensor, bound: Tensor) -> Tensor:
        # Rows with very many neighbours visit the same candidates: then it pays to store the
        # candidates' similarities. There are n candidates at most; to count them the host waits.
        shared = len(candidates) > min(_SHARED * n, most_pairs(n))
        if not shared and len(candidates) > _MANY * len(rows):
            shared = len(candidates) > _SHARED * len(candidates.unique())
        if shared:
            return closer_blocked(n, candidates, own, torch.float32, similar) > bound
        similarity = pair_similarities(bank, candidates, own, how, tile)
        if low is None:
            return count_closer(bank, candidates, own, similarity, how, tile) > bound
        return _exceeds_proven(bank, low, candidates, own, similarity, bound, tile)

    above, neighbours = neighbours_above(rows, threshold, blocks, similar)
    return walk(n, rows, at_least, above, neighbours, exceeds)


def most_pairs(n: int) -> int:
    """Pairs whose tiles of counts, of at least 32 x 64, one launch can have."""
    return (2**31 - 1) // triton.cdiv(n, 64) * 32


class Low:
    """A float16 copy of the bank, whose products have a known error.

    Args:
        bank: (n, D) float32, stride 1 inside.

    Attributes:
        how: The product's operands.
        rows: The copy.
        errors: (n,) float32, largest error of a product of each row with any other.
    """

    def __init__(self, bank: Tensor) -> None:
        self.how = operands(bank.dtype, "fp16")
        self.rows = Rounded(bank, self.how, normalize=False, lengths=True)
        # Not subnormal: a product of rows of zeros differs from 0 by less.
        self.errors = error_bound(self.rows, self.rows, bank.shape[1]) + 1e-30


def _exceeds_proven(
    bank: Tensor,
    low: Low,
    candidates: Tensor,
    own: Tensor,
    similarity: Tensor,
    bound: Tensor,
    tile: Tile | None,
) -> Tensor:
    """Whether more rows than `bound` are closer to a candidate than another row, (P,) bool.

    Products in float16 decide most pairs. The others are counted again in float32, without waiting
    for their number: they are sorted to the front, and tiles after them compute nothing.

    Args:
        bank: (n, D) float32, stride 1 inside.
        low: Its copy.
        candidates: (P,) int64.
        own: (P,) int64, the other row of each pair.
        similarity: (P,) float32, similarity of each pair.
        bound: (P,) int64.
        tile: Tile of the products, by default from the table.
    """
    certain, possible = count_near(low, candidates, similarity, tile)
    undecided = (certain <= bound) & (possible > bound)
    order = undecided.argsort(descending=True, stable=True)
    counts = count_closer(
        bank,
        candidates[order],
        own[order],
        similarity[order],
        operands(bank.dtype, "ieee"),
        tile,
        undecided.sum(),
    )
    again = torch.empty_like(counts).scatter_(0, order, counts)
    return torch.where(undecided, again, certain) > bound


def count_near(
    low: Low, candidates: Tensor, similarity: Tensor, tile: Tile | None = None
) -> tuple[Tensor, Tensor]:
    """Bounds of the number of rows that are closer to a candidate than another row is.

    Args:
        low: The copy of the bank.
        candidates: (P,) int64.
        similarity: (P,) float32, similarity of each candidate and the other row.
        tile: By default from the table.

    Returns:
        (P,) int32: rows that are certainly closer, and rows that may be.
    """
    pairs = len(candidates)
    rows = low.rows
    n, dim = rows.low.shape
    tile = tile or product_tile(low.how.dtype, low.how.precision, pairs)
    counts = torch.zeros(2, pairs, dtype=torch.int32, device=similarity.device)
    count_near_kernel[(triton.cdiv(pairs, tile.rows) * triton.cdiv(n, tile.columns),)](
        rows.low,
        rows.scale,
        candidates,
        similarity,
        low.errors[candidates],
        counts[0],
        counts[1],
        pairs,
        n,
        dim,
        rows.low.stride(0),
        **product_options(low.how, tile),
    )
    # The other row is never certainly closer than itself, and always counted as one that may be.
    return counts[0], counts[1] - 1


def pair_similarities(
    bank: Tensor, candidates: Tensor, own: Tensor, how: Operands, tile: Tile | None = None
) -> Tensor:
    """Dot product of each pair of bank rows, (P,) float32, summed as in `count_closer`.

    Args:
        bank: (n, D), stride 1 inside.
        candidates: (P,) int64.
        own: (P,) int64.
        how: Precision of the products.
        tile: By default from the table.
    """
    pairs = len(candidates)
    bank = rounded(bank, how)
    tile = tile or product_tile(how.dtype, how.precision, pairs)
    similarity = torch.empty(pairs, dtype=torch.float32, device=bank.device)
    pair_similarity_kernel[(triton.cdiv(pairs, tile.rows),)](
        bank,
        candidates,
        own,
        similarity,
        pairs,
        bank.shape[1],
        bank.stride(0),
        **product_options(how, tile),
    )
    return similarity


def count_closer(
    bank: Tensor,
    candidates: Tensor,
    own: Tensor,
    similarity: Tensor,
    how: Operands,
    tile: Tile | None = None,
    used: Tensor | None = None,
) -> Tensor:
    """Count the bank rows that are more similar to a candidate than another row is.

    Args:
        bank: (n, D), stride 1 inside.
        candidates: (P,) int64.
        own: (P,) int64, the other row of each pair.
        similarity: (P,) float32, similarity of each pair.
        how: Precision of the products.
        tile: By default from the table.
        used: () int64, number of pairs from the first on that are counted; None for all.

    Returns:
        (P,) int32; any number for pairs that are not counted.
    """
    pairs = len(candidates)
    n, dim = bank.shape
    tile = tile or product_tile(how.dtype, how.precision, pairs)
    bank = rounded(bank, how)
    counts = torch.zeros(pairs, dtype=torch.int32, device=bank.device)
    count_closer_kernel[(triton.cdiv(pairs, tile.rows) * triton.cdiv(n, tile.columns),)](
        bank,
        candidates,
        own,
        similarity,
        counts,
        counts if used is None else used,
        pairs,
        n,
        dim,
        bank.stride(0),
        SOME=used is not None,
        **product_options(how, tile),
    )
    return counts


@triton.jit
def bank_product(
    bank_ptr,  # (n, D)
    rows,  # (BLOCK_M,) int64
    columns,  # (BLOCK_N,) int64
    rows_mask,
    columns_mask,
    dim,
    stride,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Dot products of bank rows with bank rows, (BLOCK_M, BLOCK_N).

    Both kernels use it, so that both round alike.
    """
    return product(
        bank_ptr,
        bank_ptr,
        rows,
        columns,
        rows_mask,
        columns_mask,
        dim,
        stride,
        stride,
        OPERAND,
        PRECISION,
        BLOCK_M,
        BLOCK_N,
        BLOCK_D,
    )


@triton.jit
def pair_similarity_kernel(
    bank_ptr,  # (n, D)
    candidates_ptr,  # (pairs,)
    own_ptr,  # (pairs,)
    similarity_ptr,  # (pairs,)
    pairs,
    dim,
    stride,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Compute the dot product of each pair: the diagonal of a tile of the kind that the count
    computes.
    """
    place = tl.arange(0, BLOCK_M)
    first = tl.program_id(0).to(tl.int64) * BLOCK_M
    pair = first + place
    candidate = tl.load(candidates_ptr + pair, mask=pair < pairs, other=0)
    for start in range(0, BLOCK_M, BLOCK_N):
        other = first + start + tl.arange(0, BLOCK_N)
        own = tl.load(own_ptr + other, mask=other < pairs, other=0)
        tile = bank_product(
            bank_ptr,
            candidate,
            own,
            pair < pairs,
            other < pairs,
            dim,
            stride,
            OPERAND,
            PRECISION,
            BLOCK_M,
            BLOCK_N,
            BLOCK_D,
        )
        diagonal = tl.sum(tl.where(pair[:, None] == other[None, :], tile, 0.0), axis=1)
        inside = (place >= start) & (place < start + BLOCK_N) & (pair < pairs)
        tl.store(similarity_ptr + pair, diagonal, mask=inside)


@triton.jit
def count_closer_kernel(
    bank_ptr,  # (n, D)
    candidates_ptr,  # (pairs,)
    own_ptr,  # (pairs,)
    similarity_ptr,  # (pairs,)
    counts_ptr,  # (pairs,) zeros
    used_ptr,  # ()
    pairs,
    n,
    dim,
    stride,
    SOME: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Count the closer rows in one piece of the bank.

    Programs that read the same piece run at the same time.
    """
    tiles = tl.cdiv(pairs, BLOCK_M)
    pair = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = dim
    if SOME:
        # A tile without a pair that counts needs no product: its depth is 0.
        depth = tl.where((tl.program_id(0) % tiles) * BLOCK_M < tl.load(used_ptr), dim, 0)
    candidate = tl.load(candidates_ptr + pair, mask=pair < pairs, other=0)
    own = tl.load(own_ptr + pair, mask=pair < pairs, other=0)
    similarity = bank_product(
        bank_ptr,
        candidate,
        column,
        pair < pairs,
        column < n,
        depth,
        stride,
        OPERAND,
        PRECISION,
        BLOCK_M,
        BLOCK_N,
        BLOCK_D,
    )
    bound = tl.load(similarity_ptr + pair, mask=pair < pairs, other=0.0)
    other = (column < n)[None, :] & (column[None, :] != own[:, None])
    closer = (similarity > bound[:, None]) & other
    tl.atomic_add(counts_ptr + pair, tl.sum(closer.to(tl.int32), axis=1), mask=pair < pairs)


@triton.jit
def count_near_kernel(
    low_ptr,  # (n, D)
    scale_ptr,  # (n,)
    candidates_ptr,  # (pairs,)
    similarity_ptr,  # (pairs,)
    errors_ptr,  # (pairs,)
    certain_ptr,  # (pairs,) zeros
    possible_ptr,  # (pairs,) zeros
    pairs,
    n,
    dim,
    stride,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Count the rows of one piece of the bank that are certainly closer, and those that may be, to
    which the pair's own row belongs.

    Programs that read the same piece run at the same time.
    """
    tiles = tl.cdiv(pairs, BLOCK_M)
    pair = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    first = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_N
    local = tl.arange(0, BLOCK_N)
    candidate = tl.load(candidates_ptr + pair, mask=pair < pairs, other=0)
    similarity = bank_product(
        low_ptr,
        candidate,
        first + local,
        pair < pairs,
        first + local < n,
        dim,
        stride,
        OPERAND,
        PRECISION,
        BLOCK_M,
        BLOCK_N,
        BLOCK_D,
    )
    similarity *= tl.load(scale_ptr + candidate, mask=pair < pairs, other=0.0)[:, None]
    similarity *= tl.load(scale_ptr + first + local, mask=first + local < n, other=0.0)[None, :]
    bound = tl.load(similarity_ptr + pair, mask=pair < pairs, other=0.0)
    error = tl.load(errors_ptr + pair, mask=pair < pairs, other=0.0)
    exists = (local < n - first)[None, :]
    certain = (similarity > (bound + error)[:, None]) & exists
    # Written so that a NaN may be closer.
    possible = ~(similarity <= (bound - error)[:, None]) & exists
    tl.atomic_add(certain_ptr + pair, tl.sum(certain.to(tl.int32), axis=1), mask=pair < pairs)
    tl.atomic_add(possible_ptr + pair, tl.sum(possible.to(tl.int32), axis=1), mask=pair < pairs)
