"""Exact nearest neighbours among unit vectors."""

from __future__ import annotations

import torch
from reid_kernels import similarity_topk
from reid_kernels._ops import full_precision
from reid_kernels.topk_cpu import has_bf16_units, select
from torch import Tensor

from .. import native

#: Longest list for which candidates are kept; longer ones are rare and searched for row by row.
_LONGEST = 128
#: Values of a tile of similarities: 8 MiB of bfloat16.
_TILE = 2**22
#: Rows of a tile: enough for the product to run at its rate, few enough that the square on the diagonal wastes little.
_ROWS = 1024
#: Below any length whose square float32 can hold, so that no bound is zero because squares were.
_SHORTEST = 1e-17
#: Rows as long as this have products that float32 and bfloat16 cannot hold.
_TOO_LONG = 1e19


def nearest_neighbours(features: Tensor, k: int) -> Tensor:
    """The k nearest rows of every row by dot product, itself at place 0.

    The others follow by descending similarity, ties to the lowest index. On a CPU with the extension a similarity of float32
    rows is the float32 nearest to the exact one: half the products are computed (s_ij = s_ji), in bfloat16 where the CPU has
    units for it, and what the bound of their error does not rule out is computed again. The same lists for any number of
    threads. Elsewhere it is `reid_kernels.similarity_topk`, whose float32 sums may order differently what differs by their
    rounding.

    Args:
        features: (n, D) float32 or float64, unit rows, on any device.
        k: Neighbours wanted, itself counted, 1,025 at most; n when there are fewer rows.

    Returns:
        (n, min(k, n)) int64, on the device of the features. 7.8 MB at n = 32,621 and 240 MB at 1e6 for k = 30. On a CPU
        candidates of 8 (2 k + 62) bytes a row come with it while it runs (32 MB and 1 GB), a bfloat16 copy of the features
        and a tile of 8 MB; elsewhere what `similarity_topk` takes.

    Raises:
        ValueError: Wrong shape or dtype, k below 1 or above 1,025, or, on a CPU, features that are not finite.
    """
    if not isinstance(features, Tensor) or features.ndim != 2 or features.dtype not in (torch.float32, torch.float64):
        found = f"{tuple(features.shape)} {features.dtype}" if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"features: found {found}, wanted a tensor (n, D) of float32 or float64")
    if k < 1:
        raise ValueError(f"k: found {k}, wanted 1 or more, the row itself counted")
    k = min(k, len(features))
    own = torch.arange(len(features), device=features.device)
    if k <= 1:
        return own[:, None][:, :k]
    if features.is_cpu and features.dtype == torch.float32 and k <= _LONGEST and native.extension() is not None:
        with full_precision(features):
            return _symmetric(features.detach().contiguous(), k)
    others = similarity_topk(features, features, k - 1, normalize=False, exclude=own)[1]
    return torch.cat([own[:, None], others], dim=1)


def _symmetric(features: Tensor, k: int) -> Tensor:
    """The lists from tiles of the upper half of the similarities."""
    extension, threads = native.extension(), native.threads()
    assert extension is not None
    n, width = features.shape
    low = has_bf16_units() and width >= 64
    rows, margins = _operand(features, low)
    capacity = 2 * (k - 1) + 64
    values = features.new_empty(n, capacity)
    columns = features.new_empty((n, capacity), dtype=torch.int32)
    counts = features.new_zeros(n, dtype=torch.int32)
    thresholds = features.new_full((n,), -torch.inf)
    places = (native.address(x) for x in (values, columns, counts, thresholds, margins))
    candidates = extension.Candidates(*places, n, capacity, k - 1)
    high = min(_ROWS, max(64, n // 16))
    room = rows.new_empty(_TILE)
    for row in range(0, n, high):
        block = rows[row : row + high]
        for column in range(row, n, _TILE // high):
            others = rows[column : column + _TILE // high]
            tile = torch.mm(block, others.T, out=room[: len(block) * len(others)].view(len(block), len(others)))
            extension.take_tile(candidates, native.address(tile), low, row, len(block), column, len(others), threads)
    ranks = features.new_empty((n, k), dtype=torch.int64)
    extension.finish(candidates, low, native.address(features), width, native.address(ranks), threads)
    # Rows with more near equals than there is room for.
    for left in (ranks[:, 1] < 0).nonzero()[:, 0].split(max(16, _TILE // n)):
        ranks[left, 1:] = select(_similarities(features, left), k - 1)[1]
    return ranks


def _similarities(features: Tensor, rows: Tensor) -> Tensor:
    """All similarities of some rows, each the float32 nearest to the exact one; -inf to themselves."""
    some = features[rows].double()
    out = features.new_empty(len(rows), len(features))
    for start in range(0, len(features), _ROWS):
        out[:, start : start + _ROWS] = some @ features[start : start + _ROWS].double().T
    out[torch.arange(len(rows)), rows] = -torch.inf
    return out


def _operand(features: Tensor, low: bool) -> tuple[Tensor, Tensor]:
    """What the tiles are products of, and how far two of a row's similarities may be from their exact order.

    The lengths of what rounding a row takes away bound its effect on a product (Cauchy-Schwarz); float32 sums have a bound of
    their own.
    """
    n, width = features.shape
    rows = features.new_empty((n, width), dtype=torch.bfloat16) if low else features
    length, error = features.new_empty(n), features.new_zeros(n)
    step = max(1, _TILE // max(1, width))
    for start in range(0, n, step):
        now = slice(start, start + step)
        torch.linalg.vector_norm(features[now], dim=1, out=length[now])
        if low:
            rows[now] = features[now]
            torch.linalg.vector_norm(features[now] - rows[now].float(), dim=1, out=error[now])
    bad = (~(length < _TOO_LONG)).nonzero()[:, 0]
    if len(bad):
        raise ValueError(
            f"features: found that row {int(bad[0])} is not finite or far too long ({len(bad)} such rows), wanted unit rows"
        )
    length = length * 1.001 + _SHORTEST
    error = error * 1.001 + _SHORTEST if low else error
    longest, worst = float(length.max()), float(error.max())
    bound = error * longest + length * worst + error * worst + width * 2.0**-22 * length * longest
    return rows, 2.002 * bound
