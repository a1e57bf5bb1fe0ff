"""`grouped_batch_norm` by PyTorch's own BatchNorm of a CPU, a group at a time into one result; and in plain PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_forward = torch.ops.aten.native_batch_norm.out
_sums = torch.ops.aten.native_batch_norm_backward.default

#: Values of a batch below which a copy costs less than calls do.
_SMALL = 2**20
#: Values of a row that the weights of the channels are repeated to: short rows are slow.
_ROW = 2**11


def forward_native(
    x: Tensor, weight: Tensor, bias: Tensor, group: int, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images, means, variances and 1 / sqrt(variance + eps), on checked arguments, none of them empty."""
    y = torch.empty_like(x)
    # Moving averages that keep nothing of what they held are the statistics themselves.
    mean, var, again, rstd = (weight.new_zeros(x.shape[0] // group, x.shape[1]) for _ in range(4))
    each = zip(
        _images(x).split(group), _images(y).split(group), mean, var, again, rstd, strict=True
    )
    for part, out, m, v, a, r in each:
        _forward(part, weight, bias, m, v, True, 1.0, eps, out=out, save_mean=a, save_invstd=r)
    return y, mean, var, rstd


def backward_native(
    gradient: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, group: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of images, weight and bias: PyTorch's sums of each group, then two passes that write where they shall.

    PyTorch's own gradient cannot be told where to go, and a copy of it costs more than the second pass, but for small batches.
    Half floats would be rounded between the two and are copied.
    """
    whole = torch.empty_like(x)
    gradient, x, out = (_images(y) for y in (gradient, x, whole))
    copied = x.dtype.itemsize < 4 or x.numel() < _SMALL
    groups = zip(gradient.split(group), x.split(group), out.split(group), mean, rstd, strict=True)
    sums = []
    for own, part, to, m, r in groups:
        found, *of_group = _sums(
            own, part, weight, None, None, m, r, True, 0.0, [copied, True, True]
        )
        sums.append(of_group)
        if copied:
            to.copy_(found)
    to_weight, to_bias = (torch.stack(list(x)) for x in zip(*sums, strict=True))
    if not copied:
        count = x.numel() // mean.numel()
        factor = weight * rstd
        slope, constant = (-factor / count) * rstd * to_weight, (-factor / count) * to_bias
        one, none, nothing = torch.ones_like(weight), x.new_empty(0), x.new_empty(0)
        each = zip(x.split(group), out.split(group), slope, constant, mean, strict=True)
        for part, to, a, b, m in each:
            _forward(
                part, a, b, m, one, False, 0.0, 0.0, out=to, save_mean=none, save_invstd=nothing
            )
        _add_product(out, gradient, factor)
    return whole, to_weight.sum(0), to_bias.sum(0)


def _images(x: Tensor) -> Tensor:
    """The same memory as images: PyTorch knows their two formats, and not those of a row of places."""
    if x.ndim in (2, 4):
        return x
    places = math.prod(x.shape[2:])
    if channels_last(x):
        return x.movedim(1, -1).view(len(x), places, 1, x.shape[1]).permute(0, 3, 1, 2)
    return x.view(len(x), x.shape[1], places, 1)


def _add_product(out: Tensor, gradient: Tensor, factor: Tensor) -> None:
    """Out += gradient times a factor (G, C) of group and channel, in rows long enough."""
    groups, channels = factor.shape
    if not channels_last(out):
        group_parts(out, len(out) // groups).addcmul_(
            group_parts(gradient, len(out) // groups), factor[:, None, :, None]
        )
        return
    rows = out.numel() // factor.numel()
    times = next(k for k in range(max(1, _ROW // channels), 0, -1) if rows % k == 0)
    shape = (groups, rows // times, times * channels)
    long, other = (y.movedim(1, -1).view(shape) for y in (out, gradient))
    long.addcmul_(other, factor.repeat(1, times)[:, None])


def forward_plain(
    x: Tensor, weight: Tensor, bias: Tensor, group: int, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`forward_native` on any device."""
    parts = group_parts(x, group).to(weight.dtype)
    count = group * parts.shape[3]
    var, mean = torch.var_mean(parts, (1, 3), correction=0)
    rstd = (var + eps).rsqrt()
    y = (parts - mean[:, None, :, None]) * (weight * rstd)[:, None, :, None] + bias[:, None]
    out = torch.empty_like(x).copy_(y.reshape(x.shape))
    return out, mean, var * (count / (count - 1)), rstd


def backward_plain(
    gradient: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, group: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`backward_native` on any device."""
    own, parts = (group_parts(y, group).to(weight.dtype) for y in (gradient, x))
    normal = (parts - mean[:, None, :, None]) * rstd[:, None, :, None]
    count = group * parts.shape[3]
    to_bias, to_weight = own.sum((1, 3)), (own * normal).sum((1, 3))
    centred = own - (to_bias[:, None, :, None] + normal * to_weight[:, None, :, None]) / count
    out = torch.empty_like(x).copy_((centred * (weight * rstd)[:, None, :, None]).reshape(x.shape))
    return out, to_weight.sum(0), to_bias.sum(0)


def group_parts(x: Tensor, group: int) -> Tensor:
    """(G, group, C, values of an image a channel), a view of images in one of the two memory formats."""
    return x.reshape(x.shape[0] // group, group, x.shape[1], math.prod(x.shape[2:]))


def channels_last(x: Tensor) -> bool:
    """Whether the channels of a place lie side by side; of the images of one place they do."""
    return x.movedim(1, -1).is_contiguous()
