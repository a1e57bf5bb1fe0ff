"""Batches of labels in CSR form, and the choice between the extension and PyTorch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastreid_al import native

FORMS = ("extension", "pytorch")


@contextlib.contextmanager
def form_of(form: str) -> Iterator[None]:
    """Compute with the extension, or without it."""
    if form == "pytorch":
        with mock.patch.object(native, "extension", return_value=None):
            yield
        return
    if native.extension() is None:
        pytest.skip("the extension is not built")
    yield


def csr(labels: list[list[int]]) -> tuple[Tensor, Tensor]:
    sizes = torch.tensor([len(some) for some in labels], dtype=torch.int64)
    return F.pad(sizes.cumsum(0), (1, 0)), torch.tensor(
        [x for some in labels for x in some], dtype=torch.int64
    )


def random_batch(
    n: int, batch: int, most: int, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(0, most + 1, (batch,), generator=generator)
    total = int(sizes.sum())
    return (
        torch.randint(n, (batch,), generator=generator),
        F.pad(sizes.cumsum(0), (1, 0)),
        torch.randint(n, (total,), generator=generator),
        torch.randint(0, 50, (total,), generator=generator) / 50,
    )
