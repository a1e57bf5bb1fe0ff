"""`label_prediction` in Triton: ranks are counted where similarities arise, and none of a candidate's is stored."""

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

#: Pairs a candidate from which its similarities are stored.
_SHARED = 4


def labels_triton(
    bank: Tensor,
    rows: Tensor,
    threshold: float,
    at_least: int,
    *,
    tile: Tile | None = None,
    block: int = BLOCK,
) -> tuple[Tensor, Tensor]:
    """`label_prediction` on checked arguments, none of them empty."""
    bank = unit_stride(bank)
    how = operands(bank.dtype, "ieee")
    n, step = len(bank), max(1, block // (4 * len(bank)))
    blocks = [slice(start, start + step) for start in range(0, len(rows), step)]

    def similar(some: Tensor) -> Tensor:
        return similarities(bank[some], bank, how, tile)

    def closer(candidates: Tensor, own: Tensor) -> Tensor:
        # Many rows that walk far walk the same candidates: then their similarities are worth keeping.
        if _SHARED * len(candidates.unique()) < len(candidates):
            return closer_blocked(n, candidates, own, torch.float32, similar)
        return count_closer(bank, candidates, own, how, tile).long()

    return walk(n, rows, at_least, *neighbours_above(rows, threshold, blocks, similar), closer)


def count_closer(
    bank: Tensor, candidates: Tensor, own: Tensor, how: Operands, tile: Tile | None = None
) -> Tensor:
    """For pairs (P,) of rows, how many rows of the bank are more similar to the candidate than `own` is, (P,) int32."""
    pairs, (n, dim) = len(candidates), bank.shape
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
    """Dot products of pairs of rows: the diagonal of the tile that the count computes, so that both round alike."""
    place = tl.arange(0, BLOCK_M)
    first = tl.program_id(0).to(tl.int64) * BLOCK_M
    pair = first + place
    candidate = tl.load(candidates_ptr + pair, mask=pair < pairs, other=0)
    for start in range(0, BLOCK_M, BLOCK_N):
        other = first + start + tl.arange(0, BLOCK_N)
        own = tl.load(own_ptr + other, mask=other < pairs, other=0)
        tile = product(
            bank_ptr,
            bank_ptr,
            candidate,
            own,
            pair < pairs,
            other < pairs,
            dim,
            stride,
            stride,
            OPERAND,
            PRECISION,
            BLOCK_M,
            BLOCK_N,
            BLOCK_D,
        )
        diagonal = tl.sum(tl.where(pair[:, None] == other[None, :], tile, 0.0), axis=1)
        tl.store(
            similarity_ptr + pair,
            diagonal,
            mask=(place >= start) & (place < start + BLOCK_N) & (pair < pairs),
        )


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
    """Count one piece of the bank. Programs that read the same piece run side by side."""
    tiles = tl.cdiv(pairs, BLOCK_M)
    pair = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    candidate = tl.load(candidates_ptr + pair, mask=pair < pairs, other=0)
    own = tl.load(own_ptr + pair, mask=pair < pairs, other=0)
    similarity = product(
        bank_ptr,
        bank_ptr,
        candidate,
        column,
        pair < pairs,
        column < n,
        dim,
        stride,
        stride,
        OPERAND,
        PRECISION,
        BLOCK_M,
        BLOCK_N,
        BLOCK_D,
    )
    bound = tl.load(similarity_ptr + pair, mask=pair < pairs, other=0.0)
    closer = (
        (similarity > bound[:, None]) & (column < n)[None, :] & (column[None, :] != own[:, None])
    )
    tl.atomic_add(counts_ptr + pair, tl.sum(closer.to(tl.int32), axis=1), mask=pair < pairs)
