"""BatchNorm over consecutive groups of a batch, each with its own statistics, as on a batch that is
spread over GPUs.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ._ops import device_of, once, qualified, takes_kernels
from .checks import DTYPES, as_integer, as_number, as_tensor, check_device, returns_given_kind
from .grouped_norm_cpu import channels_last, group_parts
from .numerics import accumulator

__all__ = ["grouped_batch_norm", "grouped_batch_norm_reference"]


@returns_given_kind
def grouped_batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, group: int, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise every `group` consecutive images with their own statistics, as BatchNorm in
    training (Ioffe and Szegedy, 2015).

    Statistics and sums are float32 (float64 for float64). Repeated calls return the same bits. x,
    weight and bias receive gradients, the statistics do not, and there is no second derivative.
    Inside `torch.compile` it is not a custom op but its formula in plain PyTorch, so that the
    activation and the addition that follow can be fused with it.

    Args:
        x: (B, C, ...) float32, float16, bfloat16 or float64, B a multiple of `group`. Contiguous or
            channels-last; images in any other format are copied. With B = 0 there are no groups.
        weight: (C,) float; used in the dtype of the statistics.
        bias: (C,) float; used in the dtype of the statistics.
        group: Images of a group, 1 to B.
        eps: Added to the variance.

    Returns:
        The normalised images, with shape, dtype and memory format of x; the means of the G = B /
        group groups, (G, C); their variances with Bessel's correction, (G, C), as running
        statistics use them.

    Memory:
        In addition to the outputs a few (G, C) and, on a GPU, partial sums of some 1,024 programs,
        0.5 MB, independent of the number of images.

    Moved:
        On a GPU x twice and y once in the forward pass, x and its gradient twice and one gradient
        once in the backward pass: as much as one BatchNorm over the whole batch.

    Raises:
        ValueError: Wrong rank, shape, dtype or device, a `group` that does not divide B, or groups
            with a single value per channel.
    """
    x, weight, bias, group = _checked(x, weight, bias, group)
    eps = as_number("eps", eps, 0)
    if torch.compiler.is_compiling():
        y, mean, var = grouped_batch_norm_reference(x, weight, bias, group, eps)
        return y, mean.detach(), var.detach()
    kind = accumulator(x.dtype)
    inputs = x, weight.to(kind), bias.to(kind), group, eps
    y, mean, var, _ = _grouped_batch_norm(*inputs) if _traced(x) else _Eager.apply(*inputs)
    return y, mean, var


def _checked(
    x: Tensor, weight: Tensor, bias: Tensor, group: int
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Return the arguments, or raise ValueError unless they fit together."""
    x = as_tensor("x", x)
    if x.ndim < 2:
        raise ValueError(
            f"x: got shape {tuple(x.shape)}, expected two dimensions or more, (B, C, ...)"
        )
    if x.dtype not in DTYPES:
        raise ValueError(f"x: got dtype {x.dtype}, expected float32, float16, bfloat16 or float64")
    group = as_integer("group", group, 1)
    if x.shape[0] % group:
        raise ValueError(f"group: got {group}, expected a divisor of {x.shape[0]}, the images of x")
    if x.shape[0] and group * math.prod(x.shape[2:]) < 2:
        raise ValueError(
            f"x: got shape {tuple(x.shape)}, expected more than one value a channel in each group"
        )
    return x, _of_channels("weight", weight, x), _of_channels("bias", bias, x), group


def _of_channels(name: str, of_channels: Tensor, x: Tensor) -> Tensor:
    """Return a tensor (C,) on the device of images x (B, C, ...)."""
    of_channels = as_tensor(name, of_channels)
    if of_channels.shape != x.shape[1:2]:
        raise ValueError(
            f"{name}: got shape {tuple(of_channels.shape)}, "
            f"expected ({x.shape[1]},), one for each channel"
        )
    if not of_channels.dtype.is_floating_point:
        raise ValueError(f"{name}: got dtype {of_channels.dtype}, expected a floating dtype")
    check_device(name, of_channels, x, "x")
    return of_channels


@returns_given_kind
def grouped_batch_norm_reference(
    x: Tensor, weight: Tensor, bias: Tensor, group: int, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `grouped_batch_norm` in plain PyTorch, differentiable any number of times.

    Args:
        x: (B, C, ...), any floating dtype, B a multiple of `group`.
        weight: (C,) float.
        bias: (C,) float.
        group: Images of a group.
        eps: Added to the variance.
    """
    x, weight, bias, group = _checked(x, weight, bias, group)
    eps = as_number("eps", eps, 0)
    parts = group_parts(x, group).to(accumulator(x.dtype))  # (G, group, C, places)
    count = group * parts.shape[3]
    var, mean = torch.var_mean(parts, (1, 3), correction=0)
    factor = weight.to(parts.dtype) * (var + eps).rsqrt()
    y = (parts - mean[:, None, :, None]) * factor[:, None, :, None] + bias.to(parts.dtype)[:, None]
    return y.to(x.dtype).reshape(x.shape), mean, var * (count / max(1, count - 1))


def _dense(x: Tensor) -> Tensor:
    """Return the images contiguous or channels-last."""
    return x if channels_last(x) else x.contiguous()


def _traced(x: Tensor) -> bool:
    """Whether `x` is a stand-in for a tensor, as PyTorch's tracing passes it."""
    return type(x) not in (Tensor, torch.nn.Parameter)


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, group: int, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalised images, means (G, C), variances with Bessel's correction (G, C), and 1 /
    sqrt(variance + eps) (G, C).
    """
    x = _dense(x)
    if not x.numel():
        mean = weight.new_zeros(x.shape[0] // group, x.shape[1])
        return torch.empty_like(x), mean, torch.zeros_like(mean), torch.zeros_like(mean)
    if takes_kernels(x):
        from .grouped_norm_triton import forward_triton

        with device_of(x):
            return forward_triton(x, weight.contiguous(), bias.contiguous(), group, eps)
    from .grouped_norm_cpu import forward_native, forward_plain

    forward = forward_native if x.is_cpu else forward_plain
    return forward(x, weight, bias, group, eps)


def _gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, group: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for the images, weight (C,) and bias (C,)."""
    x = _dense(x)
    if not x.numel():
        return torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(weight)
    # The gradient must have the memory format of the images.
    if channels_last(x):
        gradient = gradient.movedim(1, -1).contiguous().movedim(-1, 1)
    else:
        gradient = gradient.contiguous()
    if takes_kernels(x):
        from .grouped_norm_triton import backward_triton

        with device_of(x):
            return backward_triton(gradient, x, weight.contiguous(), mean, rstd, group)
    from .grouped_norm_cpu import backward_native, backward_plain

    backward = backward_native if x.is_cpu else backward_plain
    return backward(gradient, x, weight, mean, rstd, group)


_grouped_batch_norm = torch.library.custom_op(
    qualified("grouped_batch_norm"), _forward, mutates_args=()
)


@_grouped_batch_norm.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor, group: int, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean = weight.new_empty(x.shape[0] // group, x.shape[1])
    return torch.empty_like(_dense(x)), mean, torch.empty_like(mean), torch.empty_like(mean)


_grouped_batch_norm_backward = torch.library.custom_op(
    qualified("grouped_batch_norm_backward"), _gradients, mutates_args=()
)


@_grouped_batch_norm_backward.register_fake
def _(
    gradient: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, group: int
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(_dense(x)), torch.empty_like(weight), torch.empty_like(weight)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Save what the backward pass needs."""
    x, weight, _, ctx.group, _ = inputs
    _, mean, var, rstd = output
    ctx.mark_non_differentiable(mean, var, rstd)
    ctx.save_for_backward(x, weight, mean, rstd)


def _backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    """Gradients for the inputs of the forward pass."""
    x, weight, mean, rstd = ctx.saved_tensors
    call = _grouped_batch_norm_backward if _traced(gradient) else _gradients
    with torch.no_grad():
        computed = call(gradient.detach(), x.detach(), weight.detach(), mean, rstd, ctx.group)
    needed = ctx.needs_input_grad[:3]
    gradients = [once(y) if need else None for y, need in zip(computed, needed, strict=True)]
    return (*gradients, None, None)


_grouped_batch_norm.register_autograd(_backward, setup_context=_keep)


class _Eager(torch.autograd.Function):
    """The operator as an autograd function: calling a registered op costs more than a small layer
    takes.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        output = _forward(*inputs)
        _keep(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _backward(ctx, *gradients)
