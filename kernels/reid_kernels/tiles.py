"""Tile sizes of the Triton kernels.

Nothing is tuned at run time. The choice does not depend on sizes that change with each epoch (n,
number of classes), so a kernel is compiled again only for Triton's own variants (sizes that are
multiples of 16, and others).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Tile:
    """Sizes of one kernel.

    Args:
        rows: Queries or batch rows of a tile, BLOCK_M.
        columns: Bank rows of a tile, BLOCK_N.
        depth: Feature width of a step, BLOCK_D.
        warps: Warps of a program.
        stages: Steps of the loop over the width that are in flight at a time.
        registers: Most registers of a thread, so that two programs fit an SM of an NVIDIA GPU and
            one computes while the other writes its results; None leaves it to the compiler.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    registers: int | None = None


#: Products, by operand: large tiles on tensor cores, small ones for float32 sums on ordinary units.
PRODUCT = {
    torch.bfloat16: Tile(128, 128, 64, 8, 3, 128),
    torch.float16: Tile(128, 128, 64, 8, 3, 128),
    "tf32": Tile(64, 128, 32, 4, 3),
    torch.float32: Tile(64, 64, 32, 8, 3),
}
#: Largest batch of the small tiles.
SMALL_ROWS = 64
#: Products of batches of `SMALL_ROWS` or fewer.
SMALL_PRODUCT = {
    torch.bfloat16: Tile(64, 128, 64, 4, 3),
    torch.float16: Tile(64, 128, 64, 4, 3),
    "tf32": Tile(64, 64, 32, 4, 3),
    torch.float32: Tile(32, 64, 16, 4, 3),
}
#: Products of half floats with many columns, on chips with 227 KiB of shared memory for a program.
#: A tile reads three quarters as many bytes for each operation. One program fits a multiprocessor.
WIDE_PRODUCT = Tile(128, 256, 64, 8, 3)
#: Tiles of the wide kind from which on they are used: two for each multiprocessor of a large GPU.
_WIDE_TILES = 264
#: Columns of a group, of which `similarity_topk` keeps the maximum.
GROUP = 16
#: Rows and width of a step in kernels that read rows once and reduce them.
REDUCE = Tile(16, 0, 256, 4, 2)
#: Places and channels of `grouped_batch_norm`; the longer side is the one whose values are adjacent
#: in memory.
NORM = {"channels last": Tile(32, 64, 0, 4, 2), "contiguous": Tile(256, 8, 0, 4, 2)}


def product_tile(
    operand: torch.dtype, precision: str, rows: int, memory: torch.dtype | None = None
) -> Tile:
    """Choose the tile of a product.

    Args:
        operand: Dtype of the operands.
        precision: "ieee" or "tf32", for float32 operands.
        rows: Rows of the batch.
        memory: Widest dtype in which rows are read, by default that of the operands.
    """
    table = SMALL_PRODUCT if rows <= SMALL_ROWS else PRODUCT
    return _with_step(table[_key(operand, precision)], operand, memory)


def candidate_tile(operand: torch.dtype, precision: str, rows: int, columns: int) -> Tile:
    """Choose the tile of the product that finds candidates of `similarity_topk`.

    Args:
        operand: Dtype of the operands.
        precision: "ieee" or "tf32", for float32 operands.
        rows: Number of queries.
        columns: Rows of the bank.
    """
    tile = product_tile(operand, precision, rows)
    wide = WIDE_PRODUCT
    tiles = -(-rows // wide.rows) * -(-columns // wide.columns)
    fits = operand.itemsize == 2 and rows > SMALL_ROWS and tiles >= _WIDE_TILES
    return wide if fits and _has_large_programs() else tile


def _has_large_programs() -> bool:
    """Whether the current device is an NVIDIA GPU of a data centre, compute capability 9 or 10."""
    if torch.version.hip or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability()[0] in (9, 10)


#: Weighted sums of bank rows: batch rows, part of the width, bank rows of a step. The last divides
#: the columns of every product tile, because the exponentials of a step must be relative to the
#: maximum of one tile.
WEIGHTED = {
    torch.bfloat16: Tile(64, 128, 64, 4, 3),
    torch.float16: Tile(64, 128, 64, 4, 3),
    "tf32": Tile(64, 64, 32, 4, 3),
    torch.float32: Tile(32, 64, 16, 4, 3),
}
#: Parts of the bank that are summed separately where a small batch would leave most of a GPU idle.
WEIGHTED_SPLITS = 2


def weighted_tile(
    operand: torch.dtype, precision: str, rows: int, memory: torch.dtype | None = None
) -> Tile:
    """Choose the tile of a weighted sum. The arguments are those of `product_tile`."""
    return _with_step(WEIGHTED[_key(operand, precision)], operand, memory)


def _key(operand: torch.dtype, precision: str) -> torch.dtype | str:
    """Return the row of a table for operands of a dtype at a precision."""
    return "tf32" if operand == torch.float32 and precision == "tf32" else operand


def _with_step(tile: Tile, operand: torch.dtype, memory: torch.dtype | None) -> Tile:
    """Shorten the step so that it has as many bytes in memory as in the operands' dtype.

    Otherwise rows that are wider in memory would not fit 64 KiB of shared memory.
    """
    wider = max(1, (memory or operand).itemsize // operand.itemsize)
    return replace(tile, depth=tile.depth // wider)
