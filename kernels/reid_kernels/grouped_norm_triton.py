"""`grouped_batch_norm` in Triton: sums of parts of a group, statistics from the sums, and one pass
that writes the images.
"""

# Kernels are not typed Python.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .grouped_norm_cpu import channels_last
from .tiles import NORM, Tile

#: Programs that compute sums, on any device: the results do not depend on the number of its
#: multiprocessors.
_PROGRAMS = 1024
#: Channels of a program that adds up partial sums, and partial sums that it reads in a step.
_CHANNELS = 32
_PARTS = 64


def forward_triton(
    x: Tensor, weight: Tensor, bias: Tensor, group: int, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalise images, on checked arguments, none of them empty.

    Args:
        x: (B, C, ...), contiguous or channels-last.
        weight: (C,) float32, contiguous.
        bias: (C,) float32, contiguous.
        group: Images of a group.
        eps: Added to the variance.

    Returns:
        Images, means (G, C), variances with Bessel's correction (G, C), and 1 / sqrt(variance +
        eps) (G, C).
    """
    groups = x.shape[0] // group
    channels = x.shape[1]
    layout = _Layout(x, group)
    y = torch.empty_like(x)
    mean, var, rstd, factor = (weight.new_empty(groups, channels) for _ in range(4))
    partial, count = _sums(x, x, mean, layout, backward=False)
    statistics_kernel[(triton.cdiv(channels, _CHANNELS), groups)](
        partial,
        x,
        weight,
        mean,
        var,
        rstd,
        factor,
        partial.shape[1],
        channels,
        layout.images * layout.strides[0],
        layout.strides[1],
        count,
        eps,
        BLOCK_P=_PARTS,
        BLOCK_C=_CHANNELS,
    )
    _apply(x, x, mean, factor, bias, factor, y, layout, backward=False)
    return y, mean, var, rstd


def backward_triton(
    gradient: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, group: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for images, weight (C,) and bias (C,), on checked arguments, none of them empty.

    Args:
        gradient: (B, C, ...), gradient for the normalised images, in the memory format of x.
        x: (B, C, ...), contiguous or channels-last.
        weight: (C,) float32, contiguous.
        mean: (G, C).
        rstd: (G, C), 1 / sqrt(variance + eps).
        group: Images of a group.
    """
    groups, channels = mean.shape
    layout = _Layout(x, group)
    out = torch.empty_like(x)
    slope, constant, factor = (weight.new_empty(groups, channels) for _ in range(3))
    of_groups = weight.new_empty(2, groups, channels)
    mean = mean.contiguous()
    partial, count = _sums(x, gradient, mean, layout, backward=True)
    slopes_kernel[(triton.cdiv(channels, _CHANNELS), groups)](
        partial,
        weight,
        rstd.contiguous(),
        slope,
        constant,
        factor,
        of_groups,
        partial.shape[1],
        channels,
        count,
        BLOCK_P=_PARTS,
        BLOCK_C=_CHANNELS,
    )
    _apply(x, gradient, mean, slope, constant, factor, out, layout, backward=True)
    return out, of_groups[0].sum(0), of_groups[1].sum(0)


class _Layout:
    """A group seen as images of places.

    With the channels last a group is one image of all its places, otherwise its images one by one.

    Attributes:
        images: Images of a group.
        places: Places of an image.
        blocks: Tiles of an image.
        strides: From image to image, channel to channel, place to place.
        tile: Tile sizes.
        grid: Tiles of channels, and groups.
    """

    def __init__(self, x: Tensor, group: int) -> None:
        channels = x.shape[1]
        places = math.prod(x.shape[2:])
        self.tile: Tile
        if channels_last(x):
            self.images = 1
            self.places = group * places
            self.strides = (self.places * channels, 1, channels)
            self.tile = NORM["channels last"]
        else:
            self.images = group
            self.places = places
            self.strides = (channels * places, places, 1)
            self.tile = NORM["contiguous"]
        self.blocks = triton.cdiv(self.places, self.tile.rows)
        self.grid = (triton.cdiv(channels, self.tile.columns), x.shape[0] // group)

    def options(self) -> dict[str, int]:
        """Launch options of the kernels that read images."""
        return {
            "BLOCK_S": self.tile.rows,
            "BLOCK_C": self.tile.columns,
            "num_warps": self.tile.warps,
            "num_stages": self.tile.stages,
        }


def _sums(
    x: Tensor, other: Tensor, mean: Tensor, layout: _Layout, backward: bool
) -> tuple[Tensor, int]:
    """Two sums of each part of a group, (G, parts, 2, C), and the number of values of a group and
    channel.
    """
    units = layout.images * layout.blocks
    parts = max(1, min(units, _PROGRAMS // math.prod(layout.grid)))
    step = triton.cdiv(units, parts)
    parts = triton.cdiv(units, step)
    channels = x.shape[1]
    partial = torch.empty(layout.grid[1], parts, 2, channels, dtype=torch.float32, device=x.device)
    sums_kernel[(parts, *layout.grid)](
        x,
        other,
        mean,
        partial,
        layout.images,
        layout.places,
        layout.blocks,
        step,
        channels,
        *layout.strides,
        BACKWARD=backward,
        **layout.options(),
    )
    return partial, layout.images * layout.places


def _apply(
    x: Tensor,
    other: Tensor,
    mean: Tensor,
    slope: Tensor,
    constant: Tensor,
    factor: Tensor,
    out: Tensor,
    layout: _Layout,
    backward: bool,
) -> None:
    """Write slope (x - mean) + constant to `out`; in the backward pass add factor times the
    gradient.

    Args:
        x: (B, C, ...).
        other: (B, C, ...), the gradient; not read in the forward pass.
        mean: (G, C).
        slope: (G, C).
        constant: (C,), in the backward pass (G, C).
        factor: (G, C); not read in the forward pass.
        out: (B, C, ...).
        layout: Of the images.
        backward: Whether this is the backward pass.
    """
    apply_kernel[(layout.images * layout.blocks, *layout.grid)](
        x,
        other,
        mean,
        slope,
        constant,
        factor,
        out,
        layout.images,
        layout.places,
        layout.blocks,
        x.shape[1],
        *layout.strides,
        BACKWARD=backward,
        **layout.options(),
    )


@triton.jit
def _tile_of(
    unit,
    group,
    c,  # (BLOCK_C,)
    images,
    places,
    blocks,
    channels,
    image_stride,
    channel_stride,
    place_stride,
    BLOCK_S: tl.constexpr,
):
    """Offsets and mask (BLOCK_S, BLOCK_C) of the tile `unit` of a group's images."""
    s = (unit % blocks) * BLOCK_S + tl.arange(0, BLOCK_S)
    place = (group * images + unit // blocks) * image_stride + s.to(tl.int64) * place_stride
    where = place[:, None] + (c.to(tl.int64) * channel_stride)[None, :]
    return where, (s < places)[:, None] & (c < channels)[None, :]


@triton.jit
def sums_kernel(
    x_ptr,  # (G, images, C, places), strided
    other_ptr,  # the same, the gradient
    mean_ptr,  # (G, C)
    partial_ptr,  # (G, parts, 2, C)
    images,
    places,
    blocks,
    step,
    channels,
    image_stride,
    channel_stride,
    place_stride,
    BACKWARD: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sum u and u v over a part of a group.

    In the forward pass v is x minus the group's first value, and u = v: moments about a value near
    the mean lose no digits. In the backward pass v is x minus the mean, and u is the gradient.
    """
    part = tl.program_id(0)
    group = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    if BACKWARD:
        centre = tl.load(mean_ptr + group * channels + c, mask=c < channels, other=0.0)
    else:
        first = x_ptr + group * images * image_stride + c.to(tl.int64) * channel_stride
        centre = tl.load(first, mask=c < channels, other=0.0).to(tl.float32)
    plain = tl.zeros((BLOCK_S, BLOCK_C), dtype=tl.float32)
    product = tl.zeros((BLOCK_S, BLOCK_C), dtype=tl.float32)
    for unit in range(part * step, tl.minimum((part + 1) * step, images * blocks)):
        where, mask = _tile_of(
            unit,
            group,
            c,
            images,
            places,
            blocks,
            channels,
            image_stride,
            channel_stride,
            place_stride,
            BLOCK_S,
        )
        v = tl.load(x_ptr + where, mask=mask, other=0.0).to(tl.float32) - centre[None, :]
        u = tl.where(mask, v, 0.0)
        if BACKWARD:
            u = tl.load(other_ptr + where, mask=mask, other=0.0).to(tl.float32)
        plain += u
        product += tl.where(mask, u * v, 0.0)
    out = partial_ptr + (group * tl.num_programs(0) + part) * 2 * channels + c
    tl.store(out, tl.sum(plain, axis=0), mask=c < channels)
    tl.store(out + channels, tl.sum(product, axis=0), mask=c < channels)


@triton.jit
def _added_up(
    partial_ptr,  # (parts, 2, C) of a group
    c,
    parts,
    channels,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Add up the partial sums of a group: two sums, (BLOCK_C,) each."""
    plain = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
    product = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
    for start in range(0, parts, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        where = partial_ptr + (p.to(tl.int64) * 2 * channels)[:, None] + c[None, :]
        mask = (p < parts)[:, None] & (c < channels)[None, :]
        plain += tl.load(where, mask=mask, other=0.0)
        product += tl.load(where + channels, mask=mask, other=0.0)
    return tl.sum(plain, axis=0), tl.sum(product, axis=0)


@triton.jit
def statistics_kernel(
    partial_ptr,  # (G, parts, 2, C)
    x_ptr,
    weight_ptr,  # (C,)
    mean_ptr,  # (G, C)
    var_ptr,  # (G, C)
    rstd_ptr,  # (G, C)
    factor_ptr,  # (G, C)
    parts,
    channels,
    group_stride,
    channel_stride,
    count,
    eps,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Compute mean, variance with Bessel's correction, 1 / sqrt(variance + eps), and the latter
    times the weight.
    """
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    group = tl.program_id(1).to(tl.int64)
    mask = c < channels
    plain, square = _added_up(
        partial_ptr + group * parts * 2 * channels, c, parts, channels, BLOCK_P, BLOCK_C
    )
    first = tl.load(
        x_ptr + group * group_stride + c.to(tl.int64) * channel_stride, mask=mask, other=0.0
    )
    moved = plain / count
    rest = tl.maximum(square - plain * moved, 0.0)
    # The maximum above would turn a NaN into 0.
    rest = tl.where(square == square, rest, square)
    rstd = 1.0 / tl.sqrt_rn(rest / count + eps)
    where = group * channels + c
    tl.store(mean_ptr + where, first.to(tl.float32) + moved, mask=mask)
    tl.store(var_ptr + where, rest / (count - 1), mask=mask)
    tl.store(rstd_ptr + where, rstd, mask=mask)
    tl.store(factor_ptr + where, rstd * tl.load(weight_ptr + c, mask=mask, other=0.0), mask=mask)


@triton.jit
def slopes_kernel(
    partial_ptr,  # (G, parts, 2, C)
    weight_ptr,  # (C,)
    rstd_ptr,  # (G, C)
    slope_ptr,  # (G, C)
    constant_ptr,  # (G, C)
    factor_ptr,  # (G, C)
    of_groups_ptr,  # (2, G, C)
    parts,
    channels,
    count,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Compute the coefficients of a group's gradients, and the group's part of the gradients for
    weight and bias.
    """
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    group = tl.program_id(1).to(tl.int64)
    mask = c < channels
    plain, product = _added_up(
        partial_ptr + group * parts * 2 * channels, c, parts, channels, BLOCK_P, BLOCK_C
    )
    where = group * channels + c
    rstd = tl.load(rstd_ptr + where, mask=mask, other=0.0)
    factor = rstd * tl.load(weight_ptr + c, mask=mask, other=0.0)
    product *= rstd
    tl.store(factor_ptr + where, factor, mask=mask)
    tl.store(constant_ptr + where, -factor * (plain / count), mask=mask)
    tl.store(slope_ptr + where, -factor * rstd * (product / count), mask=mask)
    tl.store(of_groups_ptr + where, product, mask=mask)
    tl.store(of_groups_ptr + tl.num_programs(1) * channels + where, plain, mask=mask)


@triton.jit
def apply_kernel(
    x_ptr,  # (G, images, C, places), strided
    other_ptr,  # the same, the gradient
    mean_ptr,  # (G, C)
    slope_ptr,  # (G, C)
    constant_ptr,  # (C,), backward (G, C)
    factor_ptr,  # (G, C)
    out_ptr,  # as x
    images,
    places,
    blocks,
    channels,
    image_stride,
    channel_stride,
    place_stride,
    BACKWARD: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write slope (x - mean) + constant; in the backward pass add factor times the gradient."""
    unit = tl.program_id(0)
    group = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    own = group * channels + c
    held = c < channels
    mean = tl.load(mean_ptr + own, mask=held, other=0.0)
    slope = tl.load(slope_ptr + own, mask=held, other=0.0)
    constant = tl.load(constant_ptr + (own if BACKWARD else c), mask=held, other=0.0)
    where, mask = _tile_of(
        unit,
        group,
        c,
        images,
        places,
        blocks,
        channels,
        image_stride,
        channel_stride,
        place_stride,
        BLOCK_S,
    )
    x = tl.load(x_ptr + where, mask=mask, other=0.0)
    out = (x.to(tl.float32) - mean[None, :]) * slope[None, :] + constant[None, :]
    if BACKWARD:
        factor = tl.load(factor_ptr + own, mask=held, other=0.0)
        out += tl.load(other_ptr + where, mask=mask, other=0.0).to(tl.float32) * factor[None, :]
    tl.store(out_ptr + where, out.to(x.dtype), mask=mask)
