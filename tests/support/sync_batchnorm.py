"""The parts of PyTorch's SyncBatchNorm that exist on a GPU alone, as arithmetic on CPU tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def _axes(x: Tensor) -> list[int]:
    return [axis for axis in range(x.ndim) if axis != 1]


def _channels(values: Tensor, x: Tensor) -> Tensor:
    """Values (C,) in a shape that fits images (B, C, ...)."""
    return values.view(1, -1, *[1] * (x.ndim - 2))


def stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and inverse standard deviation (C,) of a rank's images (B, C, ...)."""
    mean = x.mean(_axes(x))
    var = x.var(_axes(x), correction=0)
    return mean, (var + eps).rsqrt()


def gather_stats_with_counts(
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    """Mean and inverse standard deviation (C,) over the ranks, of whose (W, C) and counts (W,)."""
    share = (counts / counts.sum())[:, None]
    overall = (share * mean).sum(0)
    var = (share * (invstd.pow(-2) - eps + (mean - overall).square())).sum(0)
    if running_mean is not None and running_var is not None:
        total = counts.sum()
        running_mean.lerp_(overall, momentum)
        running_var.lerp_(var * total / (total - 1), momentum)
    return overall, (var + eps).rsqrt()


def elemt(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, invstd: Tensor, eps: float
) -> Tensor:
    """Normalised images."""
    out = (x - _channels(mean, x)) * _channels(invstd, x)
    if weight is not None:
        out = out * _channels(weight, x)
    return out if bias is None else out + _channels(bias, x)


def backward_reduce(
    gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    input_g: bool,
    weight_g: bool,
    bias_g: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums (C,) of a rank's gradient, of its product with x - mean, and gradients of weights."""
    total = gradient.sum(_axes(x))
    product = (gradient * (x - _channels(mean, x))).sum(_axes(x))
    return total, product, product * invstd, total.clone()


def backward_elemt(
    gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    total: Tensor,
    product: Tensor,
    counts: Tensor,
) -> Tensor:
    """Gradient of the images from the sums (C,) over the ranks."""
    count = counts.sum()
    factor = invstd if weight is None else invstd * weight
    slope = _channels(product / count * invstd.square(), x)
    centred = gradient - _channels(total / count, x) - (x - _channels(mean, x)) * slope
    return centred * _channels(factor, x)


#: By the name of PyTorch's operator.
ONLY_ON_DEVICE: dict[str, Callable[..., Any]] = {
    "aten::batch_norm_stats": stats,
    "aten::batch_norm_gather_stats_with_counts": gather_stats_with_counts,
    "aten::batch_norm_elemt": elemt,
    "aten::batch_norm_backward_reduce": backward_reduce,
    "aten::batch_norm_backward_elemt": backward_elemt,
}
