"""3 x 3 convolutions of narrow images in bfloat16 on a CPU, as one matrix product.

oneDNN's kernels process an image row by row. On rows of three or four places they reach half of
their speed on longer rows, and half of the speed of a matrix product.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Longest rows, and fewest channels, for which the product was faster (docs/speed.md).
_WIDEST = 4
_FEWEST = 512


class NarrowConv2d(nn.Conv2d):
    """Conv2d 3 x 3 that is a matrix product on narrow images in bfloat16 on a CPU.

    It is made from a Conv2d by `narrow_convolutions`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, O, H, W)."""
        # TorchScript cannot compile the product, nor read the constants of this file.
        # It leaves out the body of this condition only where the condition stands alone.
        if not torch.jit.is_scripting():  # noqa: SIM102
            if self._is_faster(x):
                return self._as_product(x)
        return self._conv_forward(x, self.weight, self.bias)

    @torch.jit.unused
    def _is_faster(self, x: Tensor) -> bool:
        narrow = x.dtype == torch.bfloat16 and x.is_cpu and x.ndim == 4 and x.shape[3] <= _WIDEST
        return narrow and not torch.compiler.is_compiling() and _has_rows(x)

    @torch.jit.unused
    def _as_product(self, x: Tensor) -> Tensor:
        out: Tensor = _Product.apply(x, self.weight.to(x.dtype))
        return out


def narrow_convolutions(model: nn.Module) -> nn.Module:
    """Turn the wide 3 x 3 convolutions of a model into `NarrowConv2d`, in place.

    The names and values of its parameters stay. Those with a stride, a dilation, groups or a bias
    are left as they are.
    """
    for module in model.modules():
        if (
            type(module) is nn.Conv2d
            and module.kernel_size == (3, 3)
            and module.stride == module.padding == module.dilation == (1, 1)
            and module.groups == 1
            and module.bias is None
            and module.padding_mode == "zeros"
            and module.out_channels >= _FEWEST
        ):
            module.__class__ = NarrowConv2d
    return model


def _has_rows(x: Tensor) -> bool:
    """Whether the channels of a place lie together, so that the patches are copied in rows."""
    return x.is_contiguous(memory_format=torch.channels_last)


def _patches(x: Tensor) -> Tensor:
    """The 3 x 3 neighbourhood of each place, zeros outside the image.

    Args:
        x: (B, C, H, W), channels-last.

    Returns:
        (B H W, 9 C): row, column, channel. It takes nine times the memory of x.
    """
    batch, channels, height, width = x.shape
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))  # (B, H + 2, W + 2, C)
    image, row, column, channel = padded.stride()
    windows = padded.as_strided(
        (batch, height, width, 3, 3, channels), (image, row, column, row, column, channel)
    )
    return windows.reshape(batch * height * width, 9 * channels)


class _Product(torch.autograd.Function):
    """The convolution of x (B, C, H, W) with a weight (O, C, 3, 3), all channels-last."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        batch, channels, height, width = x.shape
        outputs = len(weight)
        kernel = weight.permute(0, 2, 3, 1).reshape(outputs, 9 * channels)
        y = _patches(x) @ kernel.t()  # (B H W, O)
        return y.view(batch, height, width, outputs).permute(0, 3, 1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        batch, channels, height, width = x.shape
        outputs = len(weight)
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        to_x = to_weight = None
        if ctx.needs_input_grad[0]:
            # The convolution of the gradient with the kernel turned by 180 degrees.
            turned = weight.flip(2, 3).permute(2, 3, 0, 1).reshape(9 * outputs, channels)
            to_x = (_patches(gradient) @ turned).view(batch, height, width, channels)
            to_x = to_x.permute(0, 3, 1, 2)
        if ctx.needs_input_grad[1]:
            # The patches are made again, which takes a hundredth of the product, and not kept.
            rows = gradient.permute(0, 2, 3, 1).reshape(-1, outputs)  # (B H W, O)
            to_weight = (rows.t() @ _patches(x)).view(outputs, 3, 3, channels)
            to_weight = to_weight.permute(0, 3, 1, 2)
        return to_x, to_weight
