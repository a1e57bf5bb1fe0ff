"""`multilabel_bank_loss` in Triton.

One kernel stores the similarities of a block of rows. One finds each row's threshold among integer
keys, sums the loss and writes the gradient's weights: over the similarities, or beside them where
several sets of labels read these. A product of weights and bank then yields the gradient. The keys
of a row are read four times for the threshold, from the L2 cache; each time a histogram determines
eight bits of it. There is no sort and no atomic float addition.
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
from ._triton import Operands, operands, product, product_options, rounded, sortable
from ._weighted import weighted_rows
from .multilabel import LabelSet, MultilabelProblem
from .tiles import Tile, product_tile

#: Bytes of similarities that exist at a time.
BLOCK = 2**28
#: Columns and warps of the pass over one row.
SELECT = Tile(1, 8192, 0, 16, 1)
#: Positives, or words of bits, that are read at a time.
_CHUNK = 256


def multilabel_triton(
    problem: MultilabelProblem,
    sets: Sequence[LabelSet],
    *,
    tile: Tile | None = None,
    select: Tile = SELECT,
    block: int = BLOCK,
) -> tuple[Tensor, Tensor]:
    """Compute the outputs of `multilabel_bank_loss`'s custom op, on checked arguments, none of them
    empty.

    Args:
        problem: The settings; its own labels are not read.
        sets: The sets of labels, whose losses are summed.
        tile: Tile of the products, by default from the table.
        select: Columns and warps of the pass over one row.
        block: Bytes of similarities that exist at a time.
    """
    features = unit_stride(problem.features)
    bank = unit_stride(problem.bank)
    count = len(features)
    n, dim = bank.shape
    how = operands(features.dtype, problem.precision)
    # Half floats would lose a weight of one in millions. tf32 holds it, and holds the bank's half
    # floats exactly.
    sums = how if features.dtype == torch.float32 else Operands(torch.float32, tl.float32, "tf32")
    labels = [_Labels.of_set(one, n, problem.hard_ratio) for one in sets]
    losses = torch.zeros(count, dtype=torch.float32, device=bank.device)
    rows = count if problem.gradient else 0
    gradient = torch.empty(rows, dim, dtype=torch.float32, device=bank.device)
    step = max(1, block // (4 * n))
    for start in range(0, count, step):
        part = slice(start, start + step)
        similarity = similarities(features[part], bank, how, tile)
        # The weights of a single set take the place of its similarities.
        weights = similarity if len(sets) == 1 else _like_rows(similarity)
        for number, one in enumerate(labels):
            select_kernel[(len(similarity),)](
                similarity,
                weights,
                one.bits[part],
                one.total[part],
                one.hard[part],
                losses[part],
                n,
                one.bits.shape[1],
                similarity.stride(0),
                problem.delta,
                one.factor,
                WEIGHTS=problem.gradient,
                ADD=number > 0,
                BLOCK_N=select.columns,
                num_warps=select.warps,
                num_stages=select.stages,
            )
        if problem.gradient:
            gradient[part] = weighted_rows(weights, bank, sums, tile)
    return losses, gradient


class _Labels(NamedTuple):
    """A set of labels as the kernel reads it.

    Args:
        bits: (B, words) int32.
        total: (B,) int32 positives.
        hard: (B,) int32 hard negatives.
        factor: Weight of the loss.
    """

    bits: Tensor
    total: Tensor
    hard: Tensor
    factor: float

    @classmethod
    def of_set(cls, labels: LabelSet, n: int, hard_ratio: float) -> _Labels:
        """Convert lists to bits, and count."""
        if labels.indices is None:
            bits = labels.positives.contiguous()
        else:
            bits = bit_rows(labels.positives, labels.indices, n)
        total = count_bits(bits, n)
        # In float64, like `int(hard_ratio * negatives)` in Python: float32 would round differently.
        negatives = n - total.long()
        hard = (negatives.double() * hard_ratio).long().clamp_(min=1).minimum(negatives).int()
        return cls(bits, total, hard, labels.factor)


def _like_rows(rows: Tensor) -> Tensor:
    """An empty tensor of the shape and the strides of rows (m, n)."""
    return rows.new_empty(rows.shape[0], rows.stride(0))[:, : rows.shape[1]]


def similarities(rows: Tensor, bank: Tensor, how: Operands, tile: Tile | None = None) -> Tensor:
    """Dot products in float32.

    Args:
        rows: (m, D), stride 1 inside.
        bank: (n, D), dtype of the rows, stride 1 inside.
        how: Precision of the products.
        tile: By default from the table.

    Returns:
        (m, n) float32; the stride of the rows is a multiple of 16.
    """
    m, dim = rows.shape
    n = len(bank)
    tile = tile or product_tile(how.dtype, how.precision, m, bank.dtype)
    rows = rounded(rows, how)
    bank = rounded(bank, how)
    # Rows that begin at multiples of 64 bytes are written and read in wide words.
    stride = triton.cdiv(n, 16) * 16
    result = torch.empty(m, stride, dtype=torch.float32, device=bank.device)
    similarity_kernel[(triton.cdiv(m, tile.rows) * triton.cdiv(n, tile.columns),)](
        rows,
        bank,
        result,
        m,
        n,
        dim,
        rows.stride(0),
        bank.stride(0),
        stride,
        **product_options(how, tile),
    )
    return result[:, :n]


def bit_rows(indptr: Tensor, indices: Tensor, n: int) -> Tensor:
    """Convert the lists indices[indptr[i]:indptr[i + 1]] to bit rows (B, ceil(n / 32)) int32.

    Others than [0, n) are left out.
    """
    bits = torch.zeros(
        len(indptr) - 1, triton.cdiv(n, 32), dtype=torch.int32, device=indices.device
    )
    bit_rows_kernel[(len(bits),)](
        indptr.contiguous(),
        indices.contiguous(),
        bits,
        len(indices),
        n,
        bits.shape[1],
        BLOCK=_CHUNK,
        num_warps=4,
    )
    return bits


def count_bits(bits: Tensor, n: int) -> Tensor:
    """Number of set bits among the first n of each row, (B,) int32."""
    total = torch.empty(len(bits), dtype=torch.int32, device=bits.device)
    count_bits_kernel[(len(bits),)](bits, total, n, bits.shape[1], BLOCK=_CHUNK, num_warps=4)
    return total


@triton.jit
def similarity_kernel(
    rows_ptr,  # (m, D)
    bank_ptr,  # (n, D)
    similarity_ptr,  # (m, stride)
    m,
    n,
    dim,
    rows_stride,
    bank_stride,
    stride,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Compute one tile of the dot products.

    Programs that read the same piece of the bank run at the same time.
    """
    tiles = tl.cdiv(m, BLOCK_M)
    row = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    first = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_N
    column = first + tl.arange(0, BLOCK_N)
    similarity = product(
        rows_ptr,
        bank_ptr,
        row,
        column,
        row < m,
        column < n,
        dim,
        rows_stride,
        bank_stride,
        OPERAND,
        PRECISION,
        BLOCK_M,
        BLOCK_N,
        BLOCK_D,
    )
    # One int64 address a row: int64 columns would not fit the registers. Columns from n on are
    # written too, so that the mask is the same for 16 columns.
    local = tl.arange(0, BLOCK_N)
    tl.store(
        (similarity_ptr + row * stride + first)[:, None] + local[None, :],
        similarity,
        mask=(row < m)[:, None] & (local < stride - first)[None, :],
    )


@triton.jit
def bit_rows_kernel(
    indptr_ptr,  # (m + 1,)
    indices_ptr,  # (entries,)
    bits_ptr,  # (m, words) zeros
    entries,
    n,
    words,
    BLOCK: tl.constexpr,
):
    """Set the bits of one list."""
    row = tl.program_id(0).to(tl.int64)
    first = tl.maximum(tl.load(indptr_ptr + row), 0)
    last = tl.minimum(tl.load(indptr_ptr + row + 1), entries)
    for start in range(first, last, BLOCK):
        place = start + tl.arange(0, BLOCK)
        j = tl.load(indices_ptr + place, mask=place < last, other=-1)
        inside = (j >= 0) & (j < n)
        word = tl.where(inside, j // 32, 0)
        bit = tl.full((BLOCK,), 1, dtype=tl.int32) << (j % 32).to(tl.int32)
        tl.atomic_or(bits_ptr + row * words + word, tl.where(inside, bit, 0), mask=inside)


@triton.jit
def count_bits_kernel(
    bits_ptr,  # (m, words)
    total_ptr,  # (m,)
    n,
    words,
    BLOCK: tl.constexpr,
):
    """Count the set bits of one row; bits after the n-th do not count."""
    row = tl.program_id(0).to(tl.int64)
    total = tl.zeros((BLOCK,), dtype=tl.int32)
    for start in range(0, words, BLOCK):
        word = start + tl.arange(0, BLOCK)
        bits = tl.load(bits_ptr + row * words + word, mask=word < words, other=0)
        for place in range(32):
            total += tl.where(word.to(tl.int64) * 32 + place < n, (bits >> place) & 1, 0)
    tl.store(total_ptr + row, tl.sum(total))


@triton.jit
def negative_keys(similarity_ptr, bits_ptr, row, n, words, stride, start, BLOCK_N: tl.constexpr):
    """Read the similarities of a run of columns, 32 in each row of the result.

    Returns them, their uint32 keys that sort alike, which are negatives, and which are positives.
    """
    word = start // 32 + tl.arange(0, BLOCK_N // 32)
    column = word[:, None] * 32 + tl.arange(0, 32)[None, :]
    # The mask is the same for 16 columns, so that they are read in wide words.
    similarity = tl.load(similarity_ptr + row * stride + column, mask=column < stride, other=0.0)
    bits = tl.load(bits_ptr + row * words + word, mask=word < words, other=0)
    set_bit = ((bits[:, None] >> tl.arange(0, 32)[None, :]) & 1) == 1
    inside = column < n
    key = sortable(similarity).to(tl.uint32, bitcast=True) ^ 0x80000000
    return similarity, key, inside & (set_bit == 0), inside & set_bit


@triton.jit
def threshold_key(
    similarity_ptr,  # (m, stride)
    bits_ptr,  # (m, words)
    row,
    hard,
    n,
    words,
    stride,
    BLOCK_N: tl.constexpr,
):
    """The largest key that at least `hard` negatives of a row reach.

    Each of four steps determines eight bits: it counts the values of these bits among the keys that
    begin with the bits found before.
    """
    least = tl.full((), 0, dtype=tl.uint32)
    rest = hard
    for step in tl.static_range(4):
        shift = 24 - 8 * step
        count = tl.zeros((256,), dtype=tl.int32)
        for start in range(0, n, BLOCK_N):
            _, key, negative, _ = negative_keys(
                similarity_ptr, bits_ptr, row, n, words, stride, start, BLOCK_N
            )
            if step > 0:
                negative = negative & ((key >> (shift + 8)) == (least >> (shift + 8)))
            digit = ((key >> shift) & 255).to(tl.int32)
            count += tl.histogram(
                tl.reshape(digit, (BLOCK_N,)), 256, mask=tl.reshape(negative, (BLOCK_N,))
            )
        # Keys that reach each value of the digit.
        reach = tl.sum(count) - tl.cumsum(count, axis=0) + count
        top = tl.maximum(tl.sum((reach >= rest).to(tl.int32)) - 1, 0)
        rest -= tl.sum(tl.where(tl.arange(0, 256) > top, count, 0))
        least = least | (top.to(tl.uint32) << shift)
    return least


@triton.jit
def select_kernel(
    similarity_ptr,  # (m, stride)
    weights_ptr,  # (m, stride), may be the similarities
    bits_ptr,  # (m, words)
    count_ptr,  # (m,) positives
    hard_ptr,  # (m,) hard negatives
    loss_ptr,  # (m,)
    n,
    words,
    stride,
    delta,
    factor,
    WEIGHTS: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Compute threshold, loss and gradient weights of one row, times a factor.

    The loss is added to what is there, and with ADD the weights are, too.
    """
    row = tl.program_id(0).to(tl.int64)
    count = tl.load(count_ptr + row)
    hard = tl.load(hard_ptr + row)
    key_least = threshold_key(similarity_ptr, bits_ptr, row, hard, n, words, stride, BLOCK_N)
    order = (key_least ^ 0x80000000).to(tl.int32, bitcast=True)
    value = tl.where(order >= 0, order, order ^ 0x7FFFFFFF).to(tl.float32, bitcast=True)

    near = tl.zeros((BLOCK_N // 32, 32), dtype=tl.float32)
    far = tl.zeros((BLOCK_N // 32, 32), dtype=tl.float32)
    above = tl.zeros((BLOCK_N // 32, 32), dtype=tl.int32)
    equal = tl.zeros((BLOCK_N // 32, 32), dtype=tl.int32)
    for start in range(0, n, BLOCK_N):
        similarity, key, negative, positive = negative_keys(
            similarity_ptr, bits_ptr, row, n, words, stride, start, BLOCK_N
        )
        near += tl.where(positive, (1 - similarity) * (1 - similarity), 0.0)
        greater = negative & (key > key_least)
        far += tl.where(greater, (1 + similarity) * (1 + similarity), 0.0)
        above += greater.to(tl.int32)
        equal += (negative & (key == key_least)).to(tl.int32)
    rest = (hard - tl.sum(above)).to(tl.float32)
    # Negatives equal to the threshold divide its remaining places equally.
    at_threshold = rest / tl.maximum(tl.sum(equal), 1).to(tl.float32)
    positives = tl.maximum(count, 1).to(tl.float32)
    places = tl.maximum(hard, 1).to(tl.float32)
    loss = delta * tl.sum(near) / positives
    # A row without negatives has no threshold.
    loss += tl.where(hard > 0, (tl.sum(far) + rest * ((1 + value) * (1 + value))) / places, 0.0)
    tl.store(loss_ptr + row, tl.load(loss_ptr + row) + factor * loss)

    if WEIGHTS:
        for start in range(0, n, BLOCK_N):
            similarity, key, negative, positive = negative_keys(
                similarity_ptr, bits_ptr, row, n, words, stride, start, BLOCK_N
            )
            weight = 2 * (1 + similarity) / places * tl.where(key == key_least, at_threshold, 1.0)
            weight = tl.where(negative & (key >= key_least) & (hard > 0), weight, 0.0)
            weight = tl.where(positive, -2 * delta * (1 - similarity) / positives, weight)
            column = start + tl.arange(0, BLOCK_N // 32)[:, None] * 32 + tl.arange(0, 32)[None, :]
            weight *= factor
            place = weights_ptr + row * stride + column
            if ADD:
                weight += tl.load(place, mask=column < stride, other=0.0)
            # Columns from n on become 0.
            tl.store(place, weight, mask=column < stride)
