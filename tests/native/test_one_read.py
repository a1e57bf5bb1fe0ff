"""The one-read form of the contrastive loss on an imitated GPU, whose kernel is emulated."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import exercise_bank_contrast
import pytest
import torch
import torch.nn.functional as F
from reid_kernels import bank_contrast_loss, bank_contrast_loss_reference
from torch import Tensor

from fastreid_al.memory import ClusterMemory
from fastreid_al.memory.one_read import one_read_contrast_loss
from tests.support.imitated_cuda import content_of, imitated_cuda
from tests.support.kernels import HALVES, unit_rows

pytestmark = pytest.mark.slow

TEMPERATURE = 0.05
#: Besides twice the error of eager PyTorch.
TINY = 1e-6


@pytest.fixture
def module(emulated: ModuleType) -> Iterator[ModuleType]:
    pytest.importorskip("triton")
    with exercise_bank_contrast.emulated(clusters=2):
        yield emulated


def rows_near_targets(batch: int, n: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Features (B, D), a bank (n, D), and targets (B,), of which the first is ignored."""
    bank = unit_rows(n, dim)
    targets = torch.arange(batch) * 7 % n
    features = F.normalize(bank[targets] + 3 * unit_rows(batch, dim, seed=1))
    targets[0] = -1
    return features.to(dtype), bank.to(dtype), targets


def eager(features: Tensor, bank: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(features @ bank.T / TEMPERATURE, targets, ignore_index=-1)


def value_and_gradient(loss: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    loss.backward()
    assert features.grad is not None
    return content_of(loss).detach().double(), content_of(features.grad).double()


def on_device(
    module: ModuleType, features: Tensor, bank: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    with imitated_cuda(module) as record:
        x = features.to("cuda").requires_grad_()
        found = one_read_contrast_loss(x, bank.to("cuda"), targets.to("cuda"), TEMPERATURE)
        result = value_and_gradient(found, x)
    assert record.launches["bank_contrast_cuda"] == 1
    return result


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("shape", [(33, 150, 512), (66, 40, 1104)], ids=str)
def test_error_is_at_most_twice_that_of_eager_pytorch(
    module: ModuleType, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    features, bank, targets = rows_near_targets(*shape, dtype)
    exact = features.double().requires_grad_()
    reference = bank_contrast_loss_reference(exact, bank.double(), targets, TEMPERATURE)
    expected = value_and_gradient(reference, exact)
    plain = features.clone().requires_grad_()
    of_eager = value_and_gradient(eager(plain, bank, targets), plain)
    found = on_device(module, features, bank, targets)
    for x, y, z in zip(found, of_eager, expected, strict=True):
        assert (x - z).norm() <= 2 * (y - z).norm() + TINY


def test_results_are_those_of_the_cpu_form(module: ModuleType) -> None:
    features, bank, targets = rows_near_targets(20, 90, 264, torch.bfloat16)
    plain = features.clone().requires_grad_()
    expected = value_and_gradient(bank_contrast_loss(plain, bank, targets, TEMPERATURE), plain)
    found = on_device(module, features, bank, targets)
    assert torch.allclose(found[0], expected[0], atol=1e-6)
    assert (found[1] - expected[1]).norm() <= 2.0**-8 * expected[1].norm()


def test_float32_rows_are_rounded_to_bfloat16(module: ModuleType) -> None:
    features, bank, targets = rows_near_targets(20, 90, 264, torch.float32)
    rounded = on_device(module, features.bfloat16(), bank.bfloat16(), targets)
    found = on_device(module, features, bank, targets)
    assert torch.equal(found[0], rounded[0])
    # The gradient of float32 features is not rounded.
    assert torch.equal(found[1].bfloat16().double(), rounded[1])
    assert not torch.equal(found[1], rounded[1])


def test_a_feature_has_no_second_derivative(module: ModuleType) -> None:
    features, bank, targets = rows_near_targets(4, 20, 16, torch.bfloat16)
    with imitated_cuda(module):
        x = features.to("cuda").requires_grad_()
        loss = one_read_contrast_loss(x, bank.to("cuda"), targets.to("cuda"), TEMPERATURE)
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative"):
            gradient.sum().backward()


def test_rows_that_are_not_aligned_are_copied(module: ModuleType) -> None:
    features, bank, targets = rows_near_targets(9, 30, 24, torch.bfloat16)
    expected = on_device(module, features, bank, targets)
    # Rows that begin 2 bytes after a multiple of 16.
    moved = [torch.cat([x[:, :1], x], 1)[:, 1:] for x in (features, bank)]
    found = on_device(module, *moved, targets)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_all_targets_ignored_give_zero(module: ModuleType) -> None:
    features, bank, targets = rows_near_targets(9, 30, 24, torch.bfloat16)
    loss, gradient = on_device(module, features, bank, targets.fill_(-1))
    assert loss == 0 and not gradient.any()


def test_cluster_memory_uses_it_where_it_is_asked_to(module: ModuleType) -> None:
    features = unit_rows(40, 64)
    rows = torch.arange(0, 40, 4)
    x = features[rows].flip(0)
    memory = ClusterMemory(0.1, TEMPERATURE, one_read=True)
    memory.start(features)
    memory.begin_epoch(features, torch.arange(40) % 10 - 1)
    targets = memory.classes[rows]
    usual = x.clone().requires_grad_()
    of_usual = bank_contrast_loss(usual, memory.bank, targets, TEMPERATURE)
    expected = value_and_gradient(of_usual, usual)
    with imitated_cuda(module) as record:
        memory.bank, memory.classes = memory.bank.to("cuda"), memory.classes.to("cuda")
        on_gpu = x.to("cuda").requires_grad_()
        found = value_and_gradient(memory.loss(on_gpu, rows.to("cuda")), on_gpu)
    assert record.launches["bank_contrast_cuda"] == 1
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= 2.0**-6 * other.norm()


def test_a_device_without_room_for_the_kernel_is_refused(module: ModuleType) -> None:
    features, bank, targets = rows_near_targets(9, 30, 24, torch.bfloat16)
    # Shared memory of compute capability 8.6 and 12.0.
    with (
        exercise_bank_contrast.emulated(clusters=2, shared_bytes=101_376),
        pytest.raises(RuntimeError, match=r"got a GPU of compute capability 9\.0, expected"),
    ):
        on_device(module, features, bank, targets)
