"""Tile sizes of the Triton kernels: the one place where they are chosen.

Nothing is tuned at run time. Sizes that change each epoch (n, classes) are no part of the choice, so nothing is compiled anew
but for Triton's own variants (a size that 16 divides, or not).
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
        stages: Steps that are loaded ahead.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


#: By operand: products on tensor cores take large tiles, float32 sums on ordinary units small ones.
PRODUCT = {
    torch.bfloat16: Tile(128, 128, 64, 8, 3),
    torch.float16: Tile(128, 128, 64, 8, 3),
    "tf32": Tile(64, 128, 32, 4, 3),
    torch.float32: Tile(64, 64, 32, 8, 3),
}
#: The same for batches of 64 rows or fewer.
SMALL_PRODUCT = {
    torch.bfloat16: Tile(64, 128, 64, 4, 3),
    torch.float16: Tile(64, 128, 64, 4, 3),
    "tf32": Tile(64, 64, 32, 4, 3),
    torch.float32: Tile(32, 64, 16, 4, 3),
}
#: Column group of which `similarity_topk` keeps the maximum.
GROUP = 16
#: Rows and width of a step where rows are read once and reduced.
REDUCE = Tile(16, 0, 256, 4, 2)
#: Places and channels of `grouped_batch_norm`; the longer side is the one whose values lie side by side.
NORM = {"channels last": Tile(32, 64, 0, 4, 2), "contiguous": Tile(256, 8, 0, 4, 2)}


def product_tile(
    operand: torch.dtype, precision: str, rows: int, memory: torch.dtype | None = None
) -> Tile:
    """The tile of a product whose operands are of a dtype, at a precision, over so many rows.

    `memory` is the widest dtype that rows are read in, the operands' own where it is not given.
    """
    table = SMALL_PRODUCT if rows <= 64 else PRODUCT
    return _step(
        table["tf32" if operand == torch.float32 and precision == "tf32" else operand],
        operand,
        memory,
    )


#: Weighted sums of bank rows: batch rows, part of the width, bank rows a step. The last divides every product tile's columns.
WEIGHTED = {
    torch.bfloat16: Tile(64, 128, 64, 4, 3),
    torch.float16: Tile(64, 128, 64, 4, 3),
    "tf32": Tile(64, 64, 32, 4, 3),
    torch.float32: Tile(32, 64, 16, 4, 3),
}
#: Parts of the bank whose weighted sums are kept apart where the batch alone leaves most of a GPU idle.
WEIGHTED_SPLITS = 2


def weighted_tile(
    operand: torch.dtype, precision: str, rows: int, memory: torch.dtype | None = None
) -> Tile:
    """The tile of a weighted sum, chosen as `product_tile` does."""
    return _step(
        WEIGHTED["tf32" if operand == torch.float32 and precision == "tf32" else operand],
        operand,
        memory,
    )


def _step(tile: Tile, operand: torch.dtype, memory: torch.dtype | None) -> Tile:
    """Rows that are wider in memory than as operands: a step of as many bytes, or 64 KiB of shared memory would not do."""
    wider = max(1, (memory or operand).itemsize // operand.itemsize)
    return replace(tile, depth=tile.depth // wider)
