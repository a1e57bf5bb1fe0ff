"""Private parts that the operators share: the namespace of the custom ops and the checks of
arguments.
"""

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
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
PRECISIONS = ("auto", "ieee", "tf32", "bf16")
REDUCTIONS = ("mean", "sum", "none")


class NotFiniteError(ValueError):
    """Rows hold a NaN or an infinity, or their products do."""


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


def check_tensor(name: str, x: Any) -> None:
    """Raise ValueError unless `x` is a tensor."""
    if not isinstance(x, Tensor):
        raise ValueError(f"{name}: got a {type(x).__name__}, expected a torch.Tensor")


def check_rows(name: str, x: Tensor) -> None:
    """Raise ValueError unless `x` is a matrix of a supported dtype."""
    check_tensor(name, x)
    if x.ndim != 2:
        raise ValueError(f"{name}: got shape {tuple(x.shape)}, expected two dimensions, (rows, D)")
    if x.dtype not in DTYPES:
        raise ValueError(
            f"{name}: got dtype {x.dtype}, expected float32, float16, bfloat16 or float64"
        )


def check_pair(name: str, x: Tensor, bank: Tensor, bank_name: str = "bank") -> None:
    """Raise ValueError unless both are matrices of one width, dtype and device."""
    check_rows(name, x)
    check_rows(bank_name, bank)
    if x.shape[1] != bank.shape[1]:
        raise ValueError(
            f"{bank_name}: got rows of width {bank.shape[1]}, "
            f"expected {x.shape[1]}, the width of {name}"
        )
    if x.dtype != bank.dtype:
        raise ValueError(
            f"{bank_name}: got dtype {bank.dtype}, "
            f"expected {x.dtype}, the dtype of {name}; cast one of them"
        )
    check_device(bank_name, bank, x, name)


def check_device(name: str, x: Tensor, like: Tensor, like_name: str) -> None:
    """Raise ValueError unless both tensors are on one device."""
    if x.device != like.device:
        raise ValueError(
            f"{name}: got device {x.device}, expected {like.device}, the device of {like_name}"
        )


def check_ids(name: str, x: Tensor, count: int, like: Tensor, like_name: str, per: str) -> None:
    """Raise ValueError unless `x` is (count,) int64 on the device of `like`.

    Args:
        name: Name of the argument, for the message.
        x: The ids.
        count: Number of ids.
        like: A tensor on the expected device.
        like_name: Its name, for the message.
        per: What each id belongs to, for the message.
    """
    check_tensor(name, x)
    if x.ndim != 1 or x.shape[0] != count:
        raise ValueError(
            f"{name}: got shape {tuple(x.shape)}, expected ({count},), one for each {per}"
        )
    if x.dtype != torch.int64:
        raise ValueError(f"{name}: got dtype {x.dtype}, expected torch.int64")
    check_device(name, x, like, like_name)


def check_range(name: str, x: Tensor, low: int, high: int, ignored: int | None = None) -> None:
    """Raise ValueError unless all values are in [low, high) or equal `ignored`.

    The values are read on a CPU only. On a GPU reading them would wait for the device.
    """
    if x.is_cpu and len(x):
        outside = (x < low) | (x >= high)
        bad = (outside if ignored is None else outside & (x != ignored)).nonzero()
        if len(bad):
            index = int(bad[0, 0])
            raise ValueError(
                f"{name}: got {int(x[index])} at index {index}, expected values in [{low}, {high})"
            )


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(choices)}")


def check_finite(**rows: Tensor) -> None:
    """Raise NotFiniteError naming the first row that is not finite.

    It reads all rows, so it is called only after a result has shown that a value is not finite.
    Where every row is finite, their products are not, and the error says so.
    """
    for name, x in rows.items():
        bad = (~torch.isfinite(x).all(1)).nonzero()
        if len(bad):
            message = f"row {int(bad[0, 0])} is not finite ({len(bad)} such rows)"
            raise NotFiniteError(f"{name}: {message}, expected finite values")
    names = " and ".join(rows)
    raise NotFiniteError(
        f"{names}: got rows whose product is not finite, expected rows of moderate length"
    )


def unit_stride(x: Tensor) -> Tensor:
    """Return the rows with each row's values adjacent in memory, as the kernels read them."""
    return x if x.stride(1) == 1 or (x.shape[1] <= 1 and x.is_contiguous()) else x.contiguous()
