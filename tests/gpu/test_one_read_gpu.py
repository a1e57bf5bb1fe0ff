"""The one-read form of the contrastive loss on CUDA, against float64 and against itself."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from reid_kernels import bank_contrast_loss_reference
from torch import Tensor

from fastreid_al.memory.one_read import one_read_contrast_loss
from tests.support.kernels import HALVES, unit_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(
        torch.cuda.is_available() and torch.cuda.get_device_capability() not in ((9, 0), (10, 0)),
        reason="the kernel needs clusters of blocks with 227 KiB of shared memory",
    ),
]
DEVICE = "cuda"
TEMPERATURE = 0.05
#: Besides twice the error of eager PyTorch.
TINY = 1e-6


def rows_near_targets(batch: int, n: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Features (B, D), a bank (n, D), and targets (B,), of which the first is ignored."""
    bank = unit_rows(n, dim)
    targets = torch.arange(batch) * 7 % n
    features = F.normalize(bank[targets] + 3 * unit_rows(batch, dim, seed=1))
    targets[0] = -1
    return features.to(DEVICE, dtype), bank.to(DEVICE, dtype), targets.to(DEVICE)


def with_gradient(loss: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    loss.backward()
    assert features.grad is not None
    return loss.detach().double(), features.grad.double()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 8), (64, 32_621, 2048), (256, 5_000, 2048), (65, 333, 1000), (512, 4_000, 4096)],
    ids=lambda shape: "x".join(map(str, shape)),
)
def test_error_is_at_most_twice_that_of_eager_pytorch(
    shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    features, bank, targets = rows_near_targets(*shape, dtype)
    exact = features.double().requires_grad_()
    reference = bank_contrast_loss_reference(exact, bank.double(), targets, TEMPERATURE)
    expected = with_gradient(reference, exact)
    plain = features.clone().requires_grad_()
    of_eager = with_gradient(bank_contrast_loss_reference(plain, bank, targets, TEMPERATURE), plain)
    found = []
    for _ in range(2):
        x = features.clone().requires_grad_()
        found.append(with_gradient(one_read_contrast_loss(x, bank, targets, TEMPERATURE), x))
    for x, again, y, z in zip(*found, of_eager, expected, strict=True):
        assert torch.equal(x, again)
        assert (x - z).norm() <= 2 * (y - z).norm() + TINY
