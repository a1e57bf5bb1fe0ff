"""`grouped_batch_norm`, forward and backward, next to a loop over the groups.

One BatchNorm over the whole batch shows what the groups cost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import harness
import pytest
import torch
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture
from reid_kernels import grouped_batch_norm, grouped_batch_norm_reference
from torch import Tensor

#: Batch, channels, height and width of layers of ResNet-18 and ResNet-50, channels last; images of
#: a group.
GROUP = 16
SIZES = {
    "tiny": [(16, 4, 2, 2)],
    "small": [(32, 64, 24, 12), (32, 512, 6, 3)],
    "market": [(64, 64, 128, 64), (64, 256, 64, 32), (64, 512, 32, 16), (64, 2_048, 16, 8)],
    "msmt17": [(256, 256, 64, 32), (256, 2_048, 16, 8)],
}

Found = tuple[Tensor, ...]


class Problem(NamedTuple):
    """Images, weight, bias, and the gradient of what comes out."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    gradient: Tensor


def make(device: str, dtype: str, batch: int, channels: int, height: int, width: int) -> Problem:
    generator = torch.Generator(device).manual_seed(0)
    shape = (batch, height, width, channels)
    x, gradient = (
        torch.randn(shape, generator=generator, device=device).permute(0, 3, 1, 2) for _ in range(2)
    )
    weight, bias = torch.rand(2, channels, generator=generator, device=device)
    return Problem(
        x.to(getattr(torch, dtype)) + 1, weight, bias, gradient.to(getattr(torch, dtype))
    )


def trained(norm: Callable[[Tensor, Tensor, Tensor], Tensor], problem: tuple[Tensor, ...]) -> Found:
    """Images normalised, and the gradients of images, weight and bias."""
    *inputs, gradient = problem
    leaves = [x.detach().requires_grad_() for x in inputs]
    y = norm(leaves[0], leaves[1], leaves[2])
    return y.detach(), *torch.autograd.grad(y, leaves, gradient)


def one_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, weight, bias, True)


def looped_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.cat([one_norm(part, weight, bias) for part in x.split(GROUP)])


def operator(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return grouped_batch_norm(x, weight, bias, GROUP)[0]


def reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return grouped_batch_norm_reference(x, weight, bias, GROUP)[0]


def whole(*problem: Tensor) -> Found:
    return trained(one_norm, problem)


def loop(*problem: Tensor) -> Found:
    return trained(looped_norm, problem)


def compiled(*problem: Tensor) -> Found:
    return trained(harness.compiled(operator), problem)


def ours(*problem: Tensor) -> Found:
    return trained(operator, problem)


#: What one BatchNorm computes is something else: it is what the groups may cost.
FORMS: dict[str, Callable[..., Found]] = {
    "whole batch": whole,
    "eager loop": loop,
    "compiled": compiled,
    "ours": ours,
}


def work(dtype: str, batch: int, channels: int, height: int, width: int) -> harness.Work:
    """Four operations per value in the forward pass and six in the backward pass.

    Forward the images are read and written; backward images and gradient are read and a gradient is
    written.
    """
    values = batch * channels * height * width
    return harness.Work(10.0 * values, 5.0 * values * getattr(torch, dtype).itemsize, "float32")


@pytest.mark.parametrize("form", FORMS)
def test_grouped_norm(
    benchmark: BenchmarkFixture,
    size: tuple[int, int, int, int],
    dtype: str,
    form: str,
    device: str,
    scale: str,
) -> None:
    if form == "compiled":
        if device == "cpu" and scale == "small":
            pytest.skip("compiling takes longer than all else here")
        harness.need_compiler(device)
    batch, channels, height, width = size
    found = harness.measure_operator(
        benchmark,
        FORMS[form],
        harness.Inputs(make, (dtype, *size)),
        device,
        operator="grouped_batch_norm",
        form=form,
        size=f"{batch} x {channels:,} x {height} x {width}, {GROUP} a group",
        dtype=dtype,
        work=work(dtype, *size),
    )
    if form == "whole batch":
        assert found[0].shape == size
        return
    # Of the first group, whose images and their gradients no other group touches.
    some = [x[:GROUP] if x.ndim > 1 else x for x in make(device, dtype, *size)]
    expected = trained(reference, tuple(x.double() for x in some))[:2]
    by_loop, by_operator = (call(*some)[:2] for call in (loop, ours))
    error, error_of_eager = (
        max(harness.relative_error(a[:GROUP], b) for a, b in zip(result[:2], expected, strict=True))
        for result in (found, by_loop)
    )
    harness.check(benchmark, error, error_of_eager, [x[:GROUP] for x in found[:2]], by_operator)
