"""Where the one-read form of the contrastive loss is used, and where it is refused."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from fastreid_al.config import MemoryConfig
from fastreid_al.distributed.world import World
from fastreid_al.memory import ClusterMemory, one_read
from fastreid_al.memory.one_read import fits, one_read_contrast_loss
from fastreid_al.methods.contrastive import build_memory
from tests.support.kernels import unit_rows

TARGETS = torch.arange(4)


def started(memory: ClusterMemory, features: Tensor) -> ClusterMemory:
    memory.start(features)
    memory.begin_epoch(features, torch.arange(len(features)))
    return memory


@pytest.mark.parametrize(
    ("batch", "n", "dim", "dtype", "expected"),
    [
        (1, 1, 8, torch.float32, True),
        (512, 9, 4096, torch.bfloat16, True),
        (513, 9, 64, torch.bfloat16, False),
        (0, 9, 64, torch.bfloat16, False),
        (4, 0, 64, torch.bfloat16, False),
        (4, 9, 60, torch.bfloat16, False),
        (4, 9, 4104, torch.bfloat16, False),
        (4, 9, 64, torch.float64, False),
    ],
)
def test_shapes_that_the_kernel_has(
    batch: int, n: int, dim: int, dtype: torch.dtype, expected: bool
) -> None:
    features = torch.zeros(batch, dim, dtype=dtype)
    assert fits(features, torch.zeros(n, dim, dtype=dtype)) is expected


def test_a_memory_on_a_cpu_is_refused_with_what_to_do() -> None:
    rows = unit_rows(4, 16)
    with pytest.raises(RuntimeError, match=r"got a memory on cpu, .*memory\.one_read to false"):
        one_read_contrast_loss(rows, rows, TARGETS, 0.05)
    memory = started(ClusterMemory(0.1, 0.05, one_read=True), rows)
    with pytest.raises(RuntimeError, match="got a memory on cpu"):
        memory.loss(rows, TARGETS)


def test_other_shapes_take_the_usual_form() -> None:
    rows = unit_rows(4, 12)
    memory = started(ClusterMemory(0.1, 0.05, one_read=True), rows)
    usual = started(ClusterMemory(0.1, 0.05), rows)
    assert torch.equal(memory.loss(rows, TARGETS), usual.loss(rows, TARGETS))


def test_an_extension_without_cuda_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnDevice(Tensor):
        is_cuda = True

    monkeypatch.setattr(torch.cuda, "device_of", lambda _: torch.no_grad())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(one_read.native, "cuda_extension", lambda: None)
    bank = unit_rows(4, 16).as_subclass(OnDevice)
    with pytest.raises(RuntimeError, match=r"capability 9\.0 and no CUDA part of fastreid_al"):
        one_read._extension(bank)


@pytest.mark.parametrize(
    ("features", "named"),
    [(unit_rows(4, 16).double(), "dtype"), (unit_rows(4, 8), "width"), (unit_rows(4, 16), "")],
)
def test_rows_that_do_not_fit_each_other_are_refused(features: Tensor, named: str) -> None:
    targets = TARGETS if named else TARGETS[:2]
    with pytest.raises(ValueError, match=named or "targets: got shape"):
        one_read.one_read_contrast_loss(features, unit_rows(4, 16), targets, 0.05)


def test_several_ranks_are_refused() -> None:
    two = mock.Mock(spec=World, rank=0, size=2)
    with pytest.raises(ValueError, match="2 ranks, expected one rank"):
        ClusterMemory(0.1, 0.05, world=two, one_read=True)


@pytest.mark.parametrize("value", [False, True])
def test_setting_reaches_the_memory(value: bool) -> None:
    settings: dict[str, Any] = {"kind": "cluster", "one_read": value}
    assert build_memory(MemoryConfig(**settings)).one_read is value
    assert not build_memory(MemoryConfig()).one_read
