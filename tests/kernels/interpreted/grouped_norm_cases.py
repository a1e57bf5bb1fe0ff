"""`grouped_batch_norm`'s kernels, interpreted."""

from __future__ import annotations

import torch
from reid_kernels import grouped_batch_norm, grouped_batch_norm_reference, tiles
from reid_kernels.grouped_norm_triton import backward_triton, forward_triton
from torch import Tensor

from tests.kernels.interpreted import small

#: Largest errors of values near one.
TIGHT = {torch.float32: 3e-6, torch.float16: 4e-3, torch.bfloat16: 4e-2}


def exact(x: Tensor, weight: Tensor, bias: Tensor, group: int, gradient: Tensor) -> list[Tensor]:
    """What the reference gives in float64, and its gradients."""
    inputs = [y.double().requires_grad_() for y in (x, weight, bias)]
    y, mean, var = grouped_batch_norm_reference(*inputs, group)
    return [
        y.detach(),
        mean.detach(),
        var.detach(),
        *torch.autograd.grad(y, inputs, gradient.double()),
    ]


def launches() -> None:
    """Launch the kernels for both memory formats, in one dtype each: the dtype changes no tile.

    The forward pass of contiguous images is left out; its code is a part of the backward pass.
    """
    weight = torch.ones(64)
    of_groups = torch.ones(2, 64)
    x = torch.ones(4, 64, 24, 12)
    backward_triton(x, x, weight, of_groups, of_groups, 2)
    x = x.to(torch.bfloat16, memory_format=torch.channels_last)
    forward_triton(x, weight, weight, 2, 1e-5)
    backward_triton(x, x, weight, of_groups, of_groups, 2)


def main() -> None:
    """Compare the kernels with the reference."""
    cases = small.Cases()
    small.shrink_tiles()
    for dtype in small.DTYPES:
        shapes = [((6, 21, 3, 5), 2), ((16, 33), 8), ((5, 3, 7), 5), ((9, 18, 1, 1), 9)]
        for shape, group in shapes if dtype == torch.float32 else shapes[:1]:
            for last in (False, True):
                x, gradient = (torch.randn(shape) + shift for shift in (3, 0))
                x, gradient = (y.to(dtype) for y in (x, gradient))
                if last:
                    x, gradient = (
                        y.movedim(1, -1).contiguous().movedim(-1, 1) for y in (x, gradient)
                    )
                weight, bias = torch.rand(shape[1]), torch.randn(shape[1])
                expected = exact(x, weight, bias, group, gradient)
                y, mean, var, rstd = forward_triton(x, weight, bias, group, 1e-5)
                got = y, mean, var, *backward_triton(gradient, x, weight, mean, rstd, group)
                assert y.stride() == got[3].stride() == x.stride()
                for a, b in zip(got, expected, strict=True):
                    scale = b.abs().max().clamp(min=1)
                    tolerance = TIGHT[dtype if a.dtype == dtype else torch.float32]
                    cases.close(a / scale, b / scale, tolerance, dtype, shape, last)
                again = forward_triton(x, weight, bias, group, 1e-5)[0]
                cases.equal(again, y)
    # A NaN is of its group and channel alone.
    x = torch.randn(4, 3, 2, 2)
    x[3, 1, 0, 0] = torch.nan
    y, _, var, _ = forward_triton(x, torch.ones(3), torch.zeros(3), 2, 1e-5)
    cases.equal(y.isnan().flatten(2).any(2).nonzero(), torch.tensor([[2, 1], [3, 1]]))
    cases.equal(var.isnan().nonzero(), torch.tensor([[1, 1]]))
    with small.through_operators():
        x = x.nan_to_num().requires_grad_()
        y, _, _ = grouped_batch_norm(x, torch.ones(3), torch.zeros(3), 2)
        y.square().sum().backward()
    expected = exact(x.detach(), torch.ones(3), torch.zeros(3), 2, 2 * y.detach())
    cases.close(y.detach(), expected[0], 3e-6)
    cases.close(x.grad, expected[3], 1e-5)
    assert tiles.NORM["contiguous"].rows == 16
    cases.done()


if __name__ == "__main__":
    main()
