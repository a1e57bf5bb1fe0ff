"""`grouped_batch_norm` on a CPU by PyTorch's own BatchNorm, group by group into one result; and in
plain PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_forward = torch.ops.aten.native_batch_norm.out
_sums = torch.ops.aten.native_batch_norm_backward.default

#: Values of a batch below which a copy costs less than additional calls.
_SMALL = 2**20
#: Values to which a row of channel weights is repeated: PyTorch is slow on short rows.
_ROW = 2**11


def forward_native(
    x: Tensor, weight: Tensor, bias: Tensor, group: int, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalise the images with PyTorch's BatchNorm, on checked arguments, none of them empty.

    Args:
        x: (B, C, ...), contiguous or channels-last.
        weight: (C,).
        bias: (C,).
        group: Images of a group.
        eps: Added to the variance.

    Returns:
        Images, means (G, C), variances with Bessel's correction (G, C), and 1 / sqrt(variance +
        eps) (G, C).
    """
    y = torch.empty_like(x)
    groups = x.shape[0] // group
    mean = weight.new_zeros(groups, x.shape[1])  # (G, C)
    var = torch.zeros_like(mean)
    mean_again = torch.zeros_like(mean)
    rstd = torch.zeros_like(mean)
    parts = _images(x).split(group)
    outputs = _images(y).split(group)
    for g in range(groups):
        # With momentum 1 the running averages are the statistics of this group.
        _forward(
            parts[g],
            weight,
            bias,
            mean[g],
            var[g],
            True,
            1.0,
            eps,
            out=outputs[g],
            save_mean=mean_again[g],
            save_invstd=rstd[g],
        )
    return y, mean, var, rstd


def backward_native(
    gradient: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, group: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for images, weight (C,) and bias (C,).

    PyTorch's own gradient cannot be written to a given place, and copying it costs more than
    computing it in two passes from the group's sums, except for small batches. Half floats are
    copied always: the two passes would round between them.

    Args:
        gradient: (B, C, ...), gradient for the normalised images, in the memory format of x.
        x: (B, C, ...), the images.
        weight: (C,).
        mean: (G, C).
        rstd: (G, C), 1 / sqrt(variance + eps).
        group: Images of a group.
    """
    whole = torch.empty_like(x)
    gradient = _images(gradient)
    x = _images(x)
    out = _images(whole)
    outputs = out.split(group)
    parts = x.split(group)
    copied = x.dtype.itemsize < 4 or x.numel() < _SMALL
    sums = []
    for g, of_group in enumerate(gradient.split(group)):
        outputs_wanted = [copied, True, True]
        of_images, *of_parameters = _sums(
            of_group, parts[g], weight, None, None, mean[g], rstd[g], True, 0.0, outputs_wanted
        )
        sums.append(of_parameters)
        if copied:
            outputs[g].copy_(of_images)
    to_weight, to_bias = (torch.stack(list(x)) for x in zip(*sums, strict=True))  # (G, C)
    if not copied:
        factor = weight * rstd  # (G, C)
        per_value = -factor / (x.numel() // mean.numel())
        slope = per_value * rstd * to_weight
        _write_slope_and_constant(parts, mean, slope, per_value * to_bias, outputs)
        _add_product(out, gradient, factor)
    return whole, to_weight.sum(0), to_bias.sum(0)


def _write_slope_and_constant(
    parts: Sequence[Tensor],
    mean: Tensor,
    slope: Tensor,
    constant: Tensor,
    outputs: Sequence[Tensor],
) -> None:
    """Write slope (x - mean) + constant for each group: a BatchNorm in evaluation mode.

    Args:
        parts: The images of each group.
        mean: (G, C).
        slope: (G, C).
        constant: (G, C).
        outputs: Where the result of each group is written.
    """
    one = torch.ones_like(mean[0])
    unused = (mean.new_empty(0), mean.new_empty(0))
    for g, part in enumerate(parts):
        _forward(
            part,
            slope[g],
            constant[g],
            mean[g],
            one,
            False,
            0.0,
            0.0,
            out=outputs[g],
            save_mean=unused[0],
            save_invstd=unused[1],
        )


def _images(x: Tensor) -> Tensor:
    """View x as (B, C) or (B, C, H, W): PyTorch's BatchNorm knows the two memory formats for these
    shapes only.
    """
    if x.ndim in (2, 4):
        return x
    places = math.prod(x.shape[2:])
    if channels_last(x):
        return x.movedim(1, -1).view(len(x), places, 1, x.shape[1]).permute(0, 3, 1, 2)
    return x.view(len(x), x.shape[1], places, 1)


def _add_product(out: Tensor, gradient: Tensor, factor: Tensor) -> None:
    """Add the gradient times a factor (G, C) to `out`, in rows that are long enough to be fast."""
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
    """Compute the outputs of `forward_native` in plain PyTorch, on any device."""
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
    """Compute the gradients of `backward_native` in plain PyTorch, on any device."""
    own = group_parts(gradient, group).to(weight.dtype)  # (G, group, C, places)
    parts = group_parts(x, group).to(weight.dtype)
    normal = (parts - mean[:, None, :, None]) * rstd[:, None, :, None]
    count = group * parts.shape[3]
    to_bias = own.sum((1, 3))  # (G, C)
    to_weight = (own * normal).sum((1, 3))
    centred = own - (to_bias[:, None, :, None] + normal * to_weight[:, None, :, None]) / count
    out = torch.empty_like(x).copy_((centred * (weight * rstd)[:, None, :, None]).reshape(x.shape))
    return out, to_weight.sum(0), to_bias.sum(0)


def group_parts(x: Tensor, group: int) -> Tensor:
    """View images in one of the two memory formats as (G, group, C, places)."""
    return x.reshape(x.shape[0] // group, group, x.shape[1], math.prod(x.shape[2:]))


def channels_last(x: Tensor) -> bool:
    """Whether the channels of a place are adjacent in memory, as they are if there is one place."""
    return x.movedim(1, -1).is_contiguous()
