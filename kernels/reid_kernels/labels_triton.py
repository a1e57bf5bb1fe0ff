"""`label_prediction` in Triton: closer rows are counted where similarities are computed; those of
candidates are not stored.
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

    def closer(candidates: Tensor, own: Tensor) -> Tensor:
        # Rows with very many neighbours visit the same candidates: then it pays to store the
        # candidates' similarities. There are n candidates at most; to count them the host waits.
        shared = len(candidates) > _SHARED * n
        if not shared and len(candidates) > _MANY * len(rows):
            shared = len(candidates) > _SHARED * len(candidates.unique())
        if shared:
            return closer_blocked(n, candidates, own, torch.float32, similar)
        return count_closer(bank, candidates, own, how, tile).long()

    above, neighbours = neighbours_above(rows, threshold, blocks, similar)
    return walk(n, rows, at_least, above, neighbours, closer)


def count_closer(
    bank: Tensor, candidates: Tensor, own: Tensor, how: Operands, tile: Tile | None = None
) -> Tensor:
    """Count the bank rows that are more similar to a candidate than another row is.

    Args:
        bank: (n, D), stride 1 inside.
        candidates: (P,) int64.
        own: (P,) int64, the other row of each pair.
        how: Precision of the products.
        tile: By default from the table.

    Returns:
        (P,) int32.
    """
    pairs = len(candidates)
    n, dim = bank.shape
    tile = tile or product_tile(how.dtype, how.precision, pairs)
    bank = rounded(bank, how)
    similarity = torch.empty(pairs, dtype=torch.float32, device=bank.device)
    counts = torch.zeros(pairs, dtype=torch.int32, device=bank.device)
    tiles = triton.cdiv(pairs, tile.rows)
    sizes = product_options(how, tile)
    stride = bank.stride(0)
    pair_similarity_kernel[(tiles,)](bank, candidates, own, similarity, pairs, dim, stride, **sizes)
    count_closer_kernel[(tiles * triton.cdiv(n, tile.columns),)](
        bank, candidates, own, similarity, counts, pairs, n, dim, stride, **sizes
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
    """Count the closer rows in one piece of the bank.

    Programs that read the same piece run at the same time.
    """
    tiles = tl.cdiv(pairs, BLOCK_M)
    pair = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    candidate = tl.load(candidates_ptr + pair, mask=pair < pairs, other=0)
    own = tl.load(own_ptr + pair, mask=pair < pairs, other=0)
    similarity = bank_product(
        bank_ptr,
        candidate,
        column,
        pair < pairs,
        column < n,
        dim,
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
