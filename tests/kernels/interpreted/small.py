"""Shared by the scripts that run kernels in Triton's interpreter: tiles so small that tiny problems
have several, and inputs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from reid_kernels import tiles
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def require_interpreter() -> None:
    """Fail where the kernels are not interpreted."""
    assert os.environ.get("TRITON_INTERPRET") == "1", "run with TRITON_INTERPRET=1"


def shrink_tiles() -> None:
    """Make all tiles 16 x 16 x 16. Call it before the first launch."""
    for table in vars(tiles).values():
        if isinstance(table, dict):
            for key, tile in table.items():
                if isinstance(tile, tiles.Tile):
                    table[key] = dataclasses.replace(tile, rows=16, columns=16, depth=16)


@contextlib.contextmanager
def through_operators() -> Iterator[None]:
    """Let the registered operators run their kernels on CPU tensors."""

    def takes_kernels(*rows: Tensor) -> bool:
        return rows[0].dtype != torch.float64 and all(x.numel() for x in rows)

    with contextlib.ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.startswith("reid_kernels.") and hasattr(module, "takes_kernels"):
                stack.enter_context(mock.patch.object(module, "takes_kernels", takes_kernels))
        yield


def far_apart(rows: Tensor) -> Tensor:
    """The same rows, so far apart in memory that the last lies past 2^31 values.

    Pages between them are never touched.
    """
    stride = 2**31 // (len(rows) - 1) + 1
    storage = torch.empty((len(rows) - 1) * stride + rows.shape[1], dtype=rows.dtype)
    far = storage.as_strided(rows.shape, (stride, 1))
    far.copy_(rows)
    assert far.stride(0) * (len(rows) - 1) > 2**31
    return far


class Cases:
    """Counts the comparisons."""

    def __init__(self) -> None:
        require_interpreter()
        self.count = 0

    def close(self, got: Tensor, expected: Tensor, tolerance: float, *what: Any) -> None:
        """Compare within an absolute tolerance; infinities and NaN must be in the same places."""
        torch.testing.assert_close(
            got.double(),
            expected.double(),
            rtol=0,
            atol=tolerance,
            equal_nan=True,
            msg=lambda m: f"{what}: {m}",
        )
        self.count += 1

    def equal(self, got: Tensor, expected: Tensor, *what: Any) -> None:
        """Compare bit by bit."""
        assert torch.equal(got, expected), (what, got, expected)
        self.count += 1

    def done(self) -> None:
        """Fail if nothing was compared."""
        assert self.count
        print(f"{self.count} cases")
