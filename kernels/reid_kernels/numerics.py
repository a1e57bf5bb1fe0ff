"""Numerical building blocks of the operators, for code that computes similarities itself.

`full_precision` keeps products free of autocast and TF32, `select_topk` selects the k largest
values of each row with ties in a defined order, `has_bf16_units` and `accumulator` describe what
the hardware and the operators compute in.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["accumulator", "full_precision", "has_bf16_units", "select_topk"]

#: Bytes of the intermediate arrays of `select_topk` that exist at a time.
_BLOCK = 2**24


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which the operators sum: float64 for float64, float32 for every other floating
    dtype.
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


@contextlib.contextmanager
def full_precision(x: Tensor) -> Iterator[None]:
    """Compute the products inside the block in the dtype of their operands.

    Neither autocast on the device of `x` nor PyTorch's global settings (TF32, bfloat16 products of
    float32 operands) round them. The settings are restored at the end, also after an exception.
    """
    # PyTorch 2.9 refuses to read the older setting once these have been set; PyTorch 2.8 has the
    # older setting only.
    backends: list[Any] = [
        getattr(torch.backends.mkldnn, "matmul", None),
        torch.backends.cuda.matmul,
    ]
    newer = [backend for backend in backends if hasattr(backend, "fp32_precision")]
    chosen = [backend.fp32_precision for backend in newer]
    older = None if newer else torch.get_float32_matmul_precision()
    with torch.autocast(x.device.type, enabled=False):
        try:
            _set_precision(newer, ["ieee"] * len(newer), older and "highest")
            yield
        finally:
            _set_precision(newer, chosen, older)


def _set_precision(backends: list[Any], precisions: list[str], older: str | None) -> None:
    """Write the settings that differ.

    The others are left alone: some builds warn when a setting is written at all.
    """
    for backend, precision in zip(backends, precisions, strict=True):
        if backend.fp32_precision != precision:
            backend.fp32_precision = precision
    if older is not None and torch.get_float32_matmul_precision() != older:
        torch.set_float32_matmul_precision(older)


@functools.cache
def has_bf16_units() -> bool:
    """Whether PyTorch multiplies bfloat16 on dedicated units of this CPU (AVX512-BF16 or AMX).

    Without them a bfloat16 product is slower than a float32 product.
    """
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    queries = [getattr(torch.cpu, name, None) for name in names]
    supported = any(bool(query()) for query in queries if query is not None)
    return torch.backends.mkldnn.is_available() and supported


def select_topk(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Select the k largest values of each row; equal values go to the lowest column.

    The result is that of the first k places of a stable descending sort, at the cost of
    `torch.topk` where few values are equal. A NaN ranks first.

    Args:
        similarity: (B, n), any floating dtype.
        k: 1 to n.

    Returns:
        Values (B, k), descending, and their columns (B, k) int64.
    """
    n = similarity.shape[1]
    values, indices = similarity.topk(min(k + 1, n), dim=1)
    equal = values[:, 1:] == values[:, :-1]
    # Rows whose k-th value equals the next one: torch.topk may have taken any of the equal columns.
    crossing = equal[:, k - 1].nonzero()[:, 0] if n > k else values.new_zeros(0, dtype=torch.int64)
    values = values[:, :k].contiguous()
    indices = indices[:, :k].contiguous()
    if bool(equal.any()):
        for rows in crossing.split(max(1, _BLOCK // (16 * n))):
            indices[rows] = _lowest_of_equals(similarity[rows], values[rows, -1:], k)
            values[rows] = similarity[rows].gather(1, indices[rows])
        # Sorting by column first makes the stable sort by value prefer the lower of two equal
        # columns.
        indices, order = indices.sort(dim=1)
        values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
        indices = indices.gather(1, order)
    return values, indices


def _lowest_of_equals(similarity: Tensor, last: Tensor, k: int) -> Tensor:
    """All columns above the k-th value and the lowest columns that equal it, (B, k) ascending."""
    # Written so that a NaN counts as above.
    above = ~(similarity <= last)
    equal = similarity == last
    missing = k - above.sum(1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(1, dtype=torch.int32) <= missing))
    return chosen.nonzero()[:, 1].view(len(similarity), k)
