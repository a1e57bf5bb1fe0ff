"""Inputs of the launches that are compiled for several chips: small in number of rows, of real
width.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

#: Width of features.
DIM = 2048
#: Batches on both sides of each choice that depends on the batch's size.
SMALL = 64
LARGE = 256
#: A bank whose size nothing divides.
BANK = 999
#: A bank whose size, and number of groups, 16 divides.
EVEN = 4096
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
#: Dtype of the rows, and the precision asked for.
OPERANDS = (
    (torch.float32, "ieee"),
    (torch.float32, "tf32"),
    (torch.float32, "bf16"),
    (torch.bfloat16, "ieee"),
    (torch.float16, "ieee"),
)


class Case(NamedTuple):
    """One way to call a launcher.

    Args:
        dtype: Of the rows.
        precision: Of the products.
        batch: Rows of the batch.
        flag: Whether an optional part of the kernel is on. It is off for bfloat16 rows only:
            without the part the code is smaller, so the other dtypes prove nothing more.
    """

    dtype: torch.dtype
    precision: str
    batch: int
    flag: bool


def cases() -> Iterator[Case]:
    """Every way to call a launcher that picks another tile, dtype or flag."""
    for (dtype, precision), batch, flag in itertools.product(
        OPERANDS, (SMALL, LARGE), (False, True)
    ):
        if flag or dtype == torch.bfloat16:
            yield Case(dtype, precision, batch, flag)


def rows(count: int, dtype: torch.dtype, dim: int = DIM) -> Tensor:
    """Rows of ones, (count, dim)."""
    return torch.ones(count, dim, dtype=dtype)


def ids(count: int) -> Tensor:
    """Zeros, (count,) int64."""
    return torch.zeros(count, dtype=torch.int64)
