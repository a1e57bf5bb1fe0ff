"""A model of the time of the operators on an H200: bytes, operations, launches, occupancy.

    python bench/gpu_model.py > bench/results/gpu_model.md

Nothing here is measured. The model says what limits an operator as it is written, beside the goal,
so that a measured figure can be set beside both. Its assumptions are the constants below; trust the
ratios more than the numbers.
"""

from __future__ import annotations

import math
from typing import NamedTuple

#: Bytes per second of the memory, and from the L2 cache to the multiprocessors.
MEMORY = 4.3e12
L2 = 6.5e12
#: Operations per second of tensor cores on 16-bit operands, and of float32 multiply-adds.
HALF = 780e12
FLOAT = 59e12
#: Share of the rate that products reach with one program on a multiprocessor, and with two.
ALONE, PAIRED = 0.75, 0.85
PROCESSORS = 132
#: Seconds that a step waits for values that are loaded when they are needed.
WAIT = 600e-9
#: Seconds of a launch that waits for the one before.
LAUNCH = 3e-6
#: Columns of a group that are computed again, of 16. Seen in simulation, k = 29: 1.1 on features of
#: a trained network in the order of their set, 1.3 on random ones, 1.0 on planted ones.
NEAR = 1.3
#: Instructions per second of a multiprocessor, of 32 threads each.
ISSUE = 4 * 1.75e9


class Row(NamedTuple):
    """An operator at one shape.

    Args:
        operator: Name.
        shape: The shape.
        before: Seconds of the revision of 21 November.
        now: Seconds as it is.
        floor: Seconds of the bytes or operations that cannot be avoided.
        goal: Seconds of the goal; None where there is none.
        rest: What keeps it from the floor.
    """

    operator: str
    shape: str
    before: float
    now: float
    floor: float
    goal: float | None
    rest: str

    @property
    def key(self) -> tuple[str, str]:
        """Operator and shape, by which a measured figure finds its row."""
        return self.operator, self.shape


#: Shapes of the rows, as measured figures name them.
TOPK = "B = 1,024, n = 1e6, D = 2,048, k = 32"
NEIGHBOURS = "n = 32,621, D = 2,048, k = 29"
MULTILABEL = "B = 64, n = 32,621, D = 2,048, float32"
LABEL_MEMORY = "n = 32,621, B = 64, 20 labels an image"
LABELS = "B = 64, 10 candidates, n = 32,621, D = 2,048, float32"
CONTRAST = {batch: f"B = {batch}, n = 1e5, D = 2,048, bfloat16" for batch in (64, 256)}


def product(m: int, n: int, dim: int, tile: tuple[int, int], rate: float, share: float) -> float:
    """Seconds of a product of tiles in half precision: operations, or what comes from L2.

    Args:
        m: Rows.
        n: Columns.
        dim: Width.
        tile: Rows and columns of a tile.
        rate: Operations per second.
        share: Share of the rate that the loop reaches.
    """
    rows = math.ceil(m / tile[0]) * tile[0]
    columns = math.ceil(n / tile[1]) * tile[1]
    operations = 2 * rows * columns * dim / (rate * share)
    streamed = rows * columns * dim * 2 * (1 / tile[0] + 1 / tile[1]) / L2
    return max(operations, streamed)


def topk_kernels() -> dict[str, float]:
    """Seconds of the launches of `similarity_topk` of float32 rows at n = 1e6, as it is."""
    m, n, dim, chosen = 1024, 1_000_000, 2048, 32 + 8
    maxima = 4 * m * n / 16
    return {
        # The rows are read twice, the second time out of L2.
        "round_kernel": (4 + 2) * n * dim / MEMORY + 4 * n * dim / L2,
        # It writes two maxima of each group.
        "group_maxima_kernel": product(m, n, dim, (128, 256), HALF, ALONE) + 2 * maxima / MEMORY,
        # A selection reads its values once for each 8 bits.
        "selection": 4 * maxima / MEMORY,
        "rescore_kernel": m * chosen * NEAR * 4 * dim / MEMORY,
    }


def topk() -> list[Row]:
    """`similarity_topk` of float32 rows at n = 1e6."""
    m, n, dim, k = 1024, 1_000_000, 2048, 32
    copy_before = (4 + 2) * n * dim / MEMORY
    # 536 rows a pass before: nine tiles of 128 instead of eight, and keys of 8 bytes.
    product_before = product(m, n, dim, (128, 128), HALF, PAIRED) * 9 / 8
    keys_before = 8 * m * n / 16
    # All columns of the chosen groups before, now those that come near.
    rescored_before = m * (k + max(8, k // 4)) * 16 * 4 * dim
    before = copy_before + product_before + (9 * keys_before + rescored_before) / MEMORY
    launches = topk_kernels()
    now = sum(launches.values())
    floor = 2 * m * n * dim / HALF
    ieee = 2 * m * n * dim / (FLOAT * 0.75)
    return [
        Row(
            "similarity_topk, proven",
            TOPK,
            before,
            now,
            floor,
            floor / 0.7,
            "the copy is made anew at each call",
        ),
        Row(
            "BankIndex.search",
            TOPK,
            before,
            now - launches["round_kernel"],
            floor,
            floor / 0.7,
            "L2 (128 x 256 tiles), one program on a multiprocessor",
        ),
        Row(
            "similarity_topk, no query proven",
            TOPK,
            before + ieee,
            now * 2 + ieee,
            floor,
            None,
            "float32 products outside the tensor cores; with float16 hardly any query comes here",
        ),
    ]


class _Contrast:
    """Sizes of `bank_contrast_loss` at n = 1e5, and the times of its launches over one piece.

    Args:
        batch: Number of features.
    """

    n, dim, piece = 100_000, 2048, 8192

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.pieces = math.ceil(self.n / self.piece)
        self.splits = 2 if batch <= 128 else 1
        self.programs = math.ceil(batch / 64) * (self.dim // 128) * self.splits

    def exponentials(self, share: float) -> float:
        """Seconds of the exponentials, with the share of the rate that the product reaches."""
        tile = (64, 128) if self.batch <= 64 else (128, 128)
        of_product = product(self.batch, self.piece, self.dim, tile, HALF, share)
        return max(2 * self.piece * self.dim / MEMORY, of_product)

    def weighted(self, instructions: int) -> float:
        """Seconds of the weighted sum, with the instructions of a step of its loop."""
        # Tensor-core rate of the multiprocessors that have a program.
        busy = min(1.0, self.programs / PROCESSORS)
        operations = 2 * self.batch * self.piece * self.dim / (HALF * busy * PAIRED)
        steps = self.piece / 64 / self.splits
        per_processor = max(1.0, self.programs / PROCESSORS)
        issue = steps * instructions * 4 * per_processor / ISSUE
        return max(operations, issue, 2 * self.piece * self.dim / L2)


def bank_contrast(batch: int) -> Row:
    """`bank_contrast_loss` of bfloat16 rows, forward and gradient."""
    sizes = _Contrast(batch)
    n, dim = sizes.n, sizes.dim
    floor = max(2 * n * dim / MEMORY, 4 * 2 * batch * n * dim / 2 / HALF)
    # Before, its loop loaded the exponentials value by value: 429 instructions a step instead of
    # 268, and no copies ahead of time, so that each step waits for memory.
    steps = sizes.piece / 64 / sizes.splits
    waiting = steps * WAIT / (1 if sizes.programs > 132 else 2)
    # Before, one program of the large tile was alone on a multiprocessor.
    share_before = PAIRED if batch <= 64 else ALONE
    one_before = sizes.exponentials(share_before) + sizes.weighted(429) + waiting + 3 * LAUNCH
    one_now = sizes.exponentials(PAIRED) + sizes.weighted(268) + 3 * LAUNCH
    return Row(
        "bank_contrast_loss",
        CONTRAST[batch],
        sizes.pieces * one_before,
        sizes.pieces * one_now,
        floor,
        1.6 * (0.095e-3 if batch == 64 else 0.27e-3),
        f"{sizes.programs} programs of the weighted sum on {PROCESSORS} multiprocessors, and three "
        f"launches for each of {sizes.pieces} pieces, one after the other",
    )


def bank_contrast_one_read(batch: int) -> Row:
    """The one-read form of `bank_contrast_loss`, off by default: 16 clusters of 8 blocks."""
    n, dim, clusters = _Contrast.n, _Contrast.dim, 16
    width = dim // 8
    rows, tile, instructions = (64, 64, 888) if batch <= 64 else (128, 32, 1004)
    groups = math.ceil(batch / rows)
    # Assumed: `mma.sync`, which later chips have too, reaches 62 % of the rate of `wgmma`.
    operations = 4 * rows * tile * width / (HALF / PROCESSORS * 0.62)
    # 16-bit values that the 8 warps load for both products: the tile, features unless registers
    # hold them, and exponentials. The tile is written once, and float32 parts of logits are written
    # and read. A multiprocessor moves 128 bytes in a cycle.
    features = 0 if rows == 64 else rows * width
    moved = 2 * (features + 5 * tile * rows + tile * width * (rows // 16 + 3)) + 8 * rows * tile
    shared = moved / (128 * ISSUE / 4)
    # Assumed: what is not hidden of the barrier of the cluster and of the writes before it.
    barrier = 400e-9
    step = max(operations, shared, instructions * 8 / ISSUE) + barrier
    steps = math.ceil(math.ceil(n / tile) * groups / clusters) + 2
    parts = 2 * 4 * clusters * rows * dim / L2
    present = bank_contrast(batch)
    return present._replace(
        operator="bank_contrast_loss, one read",
        now=max(2 * n * dim / MEMORY, steps * step) + parts + 2 * LAUNCH,
        rest=f"`mma.sync` reads a tile {rows // 16 + 2} times from shared memory; `wgmma`, of H100 "
        f"and H200 only, would read it {rows // 32} times",
    )


def select_seconds(n: int, as_before: bool) -> float:
    """Seconds of the selection of hard negatives among n columns."""
    # Instructions of a thread for each of its 16 columns, on 64 of 132 multiprocessors.
    return n / 32 * (514 if as_before else 4 * 340 / 16 + 2 * 34) / ISSUE


def multilabel() -> Row:
    """NNCT's losses with k = 1: two sets of labels of float32 rows."""
    batch, n, dim, sets = 64, 32_621, 2048, 2
    similarity = 2 * batch * n * dim / (FLOAT * 0.75)
    weighted = similarity
    select_before = select_seconds(n, as_before=True)
    select_now = select_seconds(n, as_before=False)
    before = sets * (similarity + select_before + weighted + 4 * LAUNCH)
    now = similarity + weighted + sets * (select_now + 2 * LAUNCH) + 2 * LAUNCH
    return Row(
        "multilabel_bank_loss, two sets",
        MULTILABEL,
        before,
        now,
        2 * 4 * n * dim / MEMORY,
        None,
        "float32 products outside the tensor cores",
    )


def neighbours() -> Row:
    """The neighbour search of an epoch's clustering."""
    n, dim, chosen = 32_621, 2048, 37
    product_before = product(n, n, dim, (128, 128), HALF, PAIRED)
    product_now = product(n, n, dim, (128, 256), HALF, ALONE)
    groups = n / 16
    # All queries in one pass: their copies do not fit L2, so that they come from memory again.
    again = n * dim * 2 * (n / 128) / 2
    moved_before = again + 9 * 8 * n * groups + n * chosen * 16 * 4 * dim
    moved_now = (4 + 2) * 4 * n * groups + n * chosen * NEAR * 4 * dim
    before = product_before + moved_before / MEMORY
    now = product_now + moved_now / MEMORY
    return Row(
        "similarity_topk of all images",
        NEIGHBOURS,
        before,
        now,
        2 * n * n * dim / HALF,
        1.0,
        "L2 (128 x 256 tiles), one program on a multiprocessor",
    )


def label_prediction() -> Row:
    """MPLP's labels of a batch, one round of ten candidates."""
    batch, n, dim, pairs = 64, 32_621, 2048, 640
    similarity = 2 * batch * n * dim / (FLOAT * 0.75)
    before = similarity + 2 * pairs * n * dim / (FLOAT * 0.75)
    copy = (4 + 2) * n * dim / MEMORY + 4 * n * dim / L2
    counted = product(pairs, n, dim, (128, 128), HALF, PAIRED)
    # The products of the pairs, one tile of float32 sums that has undecided pairs, launches.
    rest = 2 * 64 * 64 * dim / (FLOAT / PROCESSORS) + 2 * 64 * n * dim / (FLOAT * 0.75)
    return Row(
        "label_prediction",
        LABELS,
        before,
        similarity + copy + counted + rest + 12 * LAUNCH,
        2 * pairs * n * dim / HALF,
        None,
        "float32 similarities of the batch, and a tile of those that float16 leaves undecided",
    )


def label_memory() -> Row:
    """Update and lookup of the label memory's bit rows on the device."""
    batch, words, labels = 64, 32_621 / 32, 20
    floor = (2 * 4 * batch * words + 2 * 8 * batch * labels) / MEMORY
    # The update; counts, their sums, and lists.
    launches = 4
    return Row(
        "label memory, update + lookup",
        LABEL_MEMORY,
        launches * LAUNCH,
        launches * LAUNCH,
        floor,
        15e-6,
        f"{launches} launches one after the other; the host waits for the number of labels "
        "between two of them, which is not counted",
    )


def rows() -> list[Row]:
    """All operators and shapes of the model."""
    return [
        *topk(),
        neighbours(),
        bank_contrast(64),
        bank_contrast(256),
        bank_contrast_one_read(64),
        bank_contrast_one_read(256),
        multilabel(),
        label_prediction(),
        label_memory(),
    ]


def kernels() -> dict[tuple[str, str], float]:
    """Seconds of one launch of each kernel, by its name and the shape of its operator."""
    found = {(name, TOPK): seconds for name, seconds in topk_kernels().items()}
    for batch, shape in CONTRAST.items():
        sizes = _Contrast(batch)
        found["exponentials_kernel", shape] = sizes.exponentials(PAIRED)
        found["weighted_kernel", shape] = sizes.weighted(268)
        found["running_kernel", shape] = LAUNCH
    found["select_kernel", MULTILABEL] = select_seconds(32_621, as_before=False)
    return found


def main() -> None:
    """Print the table."""
    print("# Modelled times on an H200\n")
    print("**Not measured.** Made by `python bench/gpu_model.py`, whose constants are the")
    print(
        "assumptions: memory 4.3 TB/s, L2 6.5 TB/s, 780 TFLOP/s in half precision, 59 in float32,"
    )
    print(
        "75 and 85 % of these rates with one and two programs on a multiprocessor, 3 us a launch."
    )
    print("Trust the ratios more than the numbers.\n")
    print("| operator | shape | before, ms | now, ms | floor, ms | goal, ms | what is left |")
    print("|---|---|---|---|---|---|---|")
    for row in rows():
        goal = "-" if row.goal is None else f"{1e3 * row.goal:.3g}"
        times = " | ".join(f"{1e3 * x:.3g}" for x in (row.before, row.now, row.floor))
        print(f"| {row.operator} | {row.shape} | {times} | {goal} | {row.rest} |")


if __name__ == "__main__":
    main()
