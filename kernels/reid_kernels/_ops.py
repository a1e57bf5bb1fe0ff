"""Private parts that the operators share: the namespace of the custom ops, devices, gradients."""

from __future__ import annotations

import contextlib
import re
import zlib
from typing import Any

import torch
from torch import Tensor


def _namespace(package: str) -> str:
    """Return the namespace of the custom ops of one copy of this folder.

    Each copy has its own. The checksum distinguishes names that become equal once dots are
    replaced.
    """
    plain = re.sub(r"[^0-9A-Za-z]", "_", package)
    return plain if package == "reid_kernels" else f"{plain}_{zlib.crc32(package.encode()):08x}"


NAMESPACE = _namespace(__package__ or "reid_kernels")
PRECISIONS = ("auto", "ieee", "tf32", "bf16")
REDUCTIONS = ("mean", "sum", "none")


def qualified(name: str) -> str:
    """Return the full name of a custom op."""
    return f"{NAMESPACE}::{name}"


def takes_kernels(*rows: Tensor) -> bool:
    """Whether the Triton kernels run on these tensors: not on a CPU, not float64, none of them
    empty.
    """
    return not rows[0].is_cpu and rows[0].dtype != torch.float64 and all(x.numel() for x in rows)


def device_of(x: Tensor) -> contextlib.AbstractContextManager[None]:
    """Make the tensor's device the current one.

    Triton launches on the current device, not on that of its arguments.
    """
    if x.is_cpu:
        return contextlib.nullcontext()
    return torch.get_device_module(x.device).device(x.device)


def reduced(losses: Tensor, reduction: str, counted: Tensor | None = None) -> Tensor:
    """Reduce the losses of a batch.

    Args:
        losses: (B,), 0 where they do not count.
        reduction: "mean", "sum" or "none".
        counted: (B,) bool, which losses the mean is taken over; None for all.

    Returns:
        A scalar, 0 where nothing counts; (B,) for "none".
    """
    if reduction == "none":
        return losses
    total = losses.sum()
    if reduction == "sum":
        return total
    return total / (max(1, len(losses)) if counted is None else counted.sum().clamp(min=1))


def once(gradient: Tensor) -> Tensor:
    """Return a gradient that raises when it is differentiated again.

    Otherwise autograd would take it for a constant.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return gradient
    return _Once.apply(gradient.detach().requires_grad_())


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Tensor:
        raise RuntimeError(
            "the losses of reid_kernels have no second derivative: they are differentiable once"
        )


def unit_stride(x: Tensor) -> Tensor:
    """Return the rows with each row's values adjacent in memory, as the kernels read them."""
    return x if x.stride(1) == 1 or (x.shape[1] <= 1 and x.is_contiguous()) else x.contiguous()
