"""What the cases that the interpreter runs share: tiles so small that little problems have several, and inputs."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from reid_kernels import bank_loss, grouped_norm, labels, multilabel, tiles, topk, update_bank
from torch import Tensor

assert os.environ.get("TRITON_INTERPRET") == "1", "run with TRITON_INTERPRET=1"

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def shrink_tiles() -> None:
    """Tiles of 16 everywhere. Before the kernels' first launch."""
    for value in vars(tiles).values():
        if isinstance(value, dict):
            for key, tile in value.items():
                if isinstance(tile, tiles.Tile):
                    value[key] = dataclasses.replace(tile, rows=16, columns=16, depth=16)


@contextlib.contextmanager
def through_operators() -> Iterator[None]:
    """Let the registered operators take their kernels for tensors of a CPU."""

    def takes_kernels(*rows: Tensor) -> bool:
        return rows[0].dtype != torch.float64 and all(x.numel() for x in rows)

    with contextlib.ExitStack() as stack:
        for module in (bank_loss, grouped_norm, labels, multilabel, topk, update_bank):
            stack.enter_context(mock.patch.object(module, "takes_kernels", takes_kernels))
        yield


def far_apart(rows: Tensor) -> Tensor:
    """The same rows, so far apart in memory that the last lies past 2^31 values; pages between them are never touched."""
    stride = 2**31 // (len(rows) - 1) + 1
    far = torch.empty((len(rows) - 1) * stride + rows.shape[1], dtype=rows.dtype).as_strided(
        rows.shape, (stride, 1)
    )
    far.copy_(rows)
    assert far.stride(0) * (len(rows) - 1) > 2**31
    return far


class Cases:
    """Counts what was compared."""

    def __init__(self) -> None:
        self.count = 0

    def close(self, found: Tensor, expected: Tensor, tolerance: float, *what: Any) -> None:
        """Within a tolerance, infinities and NaN alike."""
        torch.testing.assert_close(
            found.double(),
            expected.double(),
            rtol=0,
            atol=tolerance,
            equal_nan=True,
            msg=lambda m: f"{what}: {m}",
        )
        self.count += 1

    def equal(self, found: Tensor, expected: Tensor, *what: Any) -> None:
        """To the bit."""
        assert torch.equal(found, expected), (what, found, expected)
        self.count += 1

    def done(self) -> None:
        """The line that the test looks for."""
        assert self.count
        print(f"{self.count} cases")
