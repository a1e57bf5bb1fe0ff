"""Grouped BatchNorm on CUDA: against float64, against PyTorch's BatchNorm of each group, and
against itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reid_kernels import grouped_batch_norm, grouped_batch_norm_reference
from reid_kernels.grouped_norm import _grouped_batch_norm, _grouped_batch_norm_backward
from torch import Tensor, nn

from fastreid_al.models import group_batchnorm
from tests.support.kernels import FLOATS, assert_as_good_as_eager

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DEVICE = "cuda"


def problem(shape: tuple[int, ...], dtype: torch.dtype, last: bool) -> list[Tensor]:
    """Images, weight, bias and a gradient on the device."""
    generator = torch.Generator().manual_seed(0)
    x, gradient = (torch.randn(shape, generator=generator).add(shift).to(dtype) for shift in (1, 0))
    if last:
        x, gradient = (y.movedim(1, -1).contiguous().movedim(-1, 1) for y in (x, gradient))
    kind = torch.promote_types(dtype, torch.float32)
    weight, bias = (torch.randn(shape[1], generator=generator).to(kind) for _ in range(2))
    return [y.to(DEVICE) for y in (x, weight, bias, gradient)]


def through(call: Callable[..., Any], inputs: list[Tensor], group: int) -> list[Tensor]:
    """Images, statistics and gradients of a form."""
    leaves = [y.clone().requires_grad_() for y in inputs[:3]]
    y, mean, var = call(*leaves, group)
    return [y.detach(), mean.detach(), var.detach(), *torch.autograd.grad(y, leaves, inputs[3])]


def loop(x: Tensor, weight: Tensor, bias: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """PyTorch's BatchNorm of one group after the other."""
    got = []
    for part in x.split(group):
        mean, var = torch.zeros_like(weight), torch.zeros_like(weight)
        got.append((F.batch_norm(part, mean, var, weight, bias, True, 1.0, 1e-5), mean, var))
    parts, means, variances = zip(*got, strict=True)
    return torch.cat(parts), torch.stack(means), torch.stack(variances)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("shape", "group"),
    [
        ((64, 256, 32, 16), 16),
        ((12, 65, 7, 3), 4),
        ((64, 512), 16),
        ((6, 3, 129), 6),
        ((4, 1, 2, 2), 2),
    ],
)
def test_it_is_as_good_as_a_loop_over_the_groups(
    dtype: torch.dtype, last: bool, shape: tuple[int, ...], group: int
) -> None:
    inputs = problem(shape, dtype, last)
    got, eager = (through(call, inputs, group) for call in (grouped_batch_norm, loop))
    exact = through(grouped_batch_norm_reference, [x.double() for x in inputs], group)
    tiny = {torch.float64: 1e-13, torch.float32: 1e-6}.get(dtype, 1e-3)
    for a, b, c in zip(got, eager, exact, strict=True):
        assert a.dtype == b.dtype
        assert_as_good_as_eager(a, b, c, tiny)
    assert got[0].stride() == got[3].stride() == inputs[0].stride()
    for a, b in zip(got, through(grouped_batch_norm, inputs, group), strict=True):
        assert torch.equal(a, b)


def test_it_is_compiled_into_one_graph() -> None:
    inputs = problem((16, 64, 12, 6), torch.bfloat16, True)
    compiled = torch.compile(grouped_batch_norm, fullgraph=True)
    for a, b in zip(
        through(compiled, inputs, 4), through(grouped_batch_norm, inputs, 4), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


def test_operators_are_registered_as_pytorch_wants_them() -> None:
    x, weight, bias, gradient = problem((4, 3, 2, 2), torch.float32, True)
    torch.library.opcheck(_grouped_batch_norm, (x.requires_grad_(), weight, bias, 2, 1e-5))
    _, mean, _, rstd = _grouped_batch_norm(x.detach(), weight, bias, 2, 1e-5)
    torch.library.opcheck(
        _grouped_batch_norm_backward, (gradient, x.detach(), weight, mean, rstd, 2)
    )


def test_it_runs_past_two_to_the_31_values() -> None:
    if torch.cuda.mem_get_info()[0] < 20 * 2**30:
        pytest.skip("needs 20 GiB of free GPU memory")
    x = torch.zeros(2**14 + 2, 2, 256, 256, dtype=torch.bfloat16, device=DEVICE)
    x[-2:] = problem((2, 2, 256, 256), torch.bfloat16, False)[0]
    weight, bias = torch.ones(2, device=DEVICE), torch.zeros(2, device=DEVICE)
    y, mean, _ = grouped_batch_norm(x, weight, bias, 2)
    expected, expected_mean, _ = grouped_batch_norm(x[-2:].clone(), weight, bias, 2)
    torch.testing.assert_close(y[-2:], expected)
    torch.testing.assert_close(mean[-1:], expected_mean)


def test_a_training_step_does_not_wait_for_the_device() -> None:
    model = group_batchnorm(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()), 4).to(
        DEVICE
    )
    x = torch.randn(8, 3, 9, 9, device=DEVICE)
    model(x).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(x).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert int(model[1].num_batches_tracked) == 4  # type: ignore[index]
