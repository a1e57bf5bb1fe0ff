"""What the operators share: the namespace of the custom ops and the checks of what they are given."""

from __future__ import annotations

import contextlib
import re
import zlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def _namespace(package: str) -> str:
    """A name for the operators of a copy of this folder: its own, told apart where two names look alike without dots."""
    plain = re.sub(r"[^0-9A-Za-z]", "_", package)
    return plain if package == "reid_kernels" else f"{plain}_{zlib.crc32(package.encode()):08x}"


NAMESPACE = _namespace(__package__ or "reid_kernels")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
PRECISIONS = ("auto", "ieee", "tf32", "bf16")


class NotFiniteError(ValueError):
    """Rows that hold a NaN or an infinity, or whose products do."""


def qualified(name: str) -> str:
    """The custom op's full name."""
    return f"{NAMESPACE}::{name}"


@contextlib.contextmanager
def full_precision(x: Tensor) -> Iterator[None]:
    """Around an operator's own products: neither autocast nor PyTorch's own choice of precision rounds them."""
    # Once these have been set, PyTorch 2.9 refuses to read the older setting, which is all that 2.8 has.
    backends: list[Any] = [
        getattr(torch.backends.mkldnn, "matmul", None),
        torch.backends.cuda.matmul,
    ]
    newer = [backend for backend in backends if hasattr(backend, "fp32_precision")]
    chosen = [backend.fp32_precision for backend in newer]
    older = None if newer else torch.get_float32_matmul_precision()
    with torch.autocast(x.device.type, enabled=False):
        try:
            _choose(newer, ["ieee"] * len(newer), older and "highest")
            yield
        finally:
            _choose(newer, chosen, older)


def _choose(backends: list[Any], precisions: list[str], older: str | None) -> None:
    """Only what differs: some builds warn when it is set at all."""
    for backend, precision in zip(backends, precisions, strict=True):
        if backend.fp32_precision != precision:
            backend.fp32_precision = precision
    if older is not None and torch.get_float32_matmul_precision() != older:
        torch.set_float32_matmul_precision(older)


def takes_kernels(*rows: Tensor) -> bool:
    """Whether Triton's kernels run on these: float32 or less, on a device that is no CPU, none of them empty."""
    return not rows[0].is_cpu and rows[0].dtype != torch.float64 and all(x.numel() for x in rows)


def device_of(x: Tensor) -> contextlib.AbstractContextManager[None]:
    """Make the tensor's device the current one: Triton launches there, not where its arguments are."""
    return (
        contextlib.nullcontext() if x.is_cpu else torch.get_device_module(x.device).device(x.device)
    )


def once(gradient: Tensor) -> Tensor:
    """A gradient that says so when it is asked for a gradient of its own, instead of being taken for a constant."""
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
    """A tensor, and not what could be made one."""
    if not isinstance(x, Tensor):
        raise ValueError(f"{name}: got a {type(x).__name__}, expected a torch.Tensor")


def check_rows(name: str, x: Tensor) -> None:
    """A matrix of rows, of a dtype that the operators take."""
    check_tensor(name, x)
    if x.ndim != 2:
        raise ValueError(f"{name}: got shape {tuple(x.shape)}, expected two dimensions, (rows, D)")
    if x.dtype not in DTYPES:
        raise ValueError(
            f"{name}: got dtype {x.dtype}, expected float32, float16, bfloat16 or float64"
        )


def check_pair(name: str, x: Tensor, bank: Tensor, bank_name: str = "bank") -> None:
    """Two matrices of rows that can be multiplied with each other."""
    check_rows(name, x)
    check_rows(bank_name, bank)
    if x.shape[1] != bank.shape[1]:
        raise ValueError(
            f"{bank_name}: got rows of width {bank.shape[1]}, expected {x.shape[1]}, the width of {name}"
        )
    if x.dtype != bank.dtype:
        raise ValueError(
            f"{bank_name}: got dtype {bank.dtype}, expected {x.dtype}, the dtype of {name}; cast one of them"
        )
    check_device(bank_name, bank, x, name)


def check_device(name: str, x: Tensor, like: Tensor, like_name: str) -> None:
    """Both on one device."""
    if x.device != like.device:
        raise ValueError(
            f"{name}: got device {x.device}, expected {like.device}, the device of {like_name}"
        )


def check_ids(name: str, x: Tensor, count: int, like: Tensor, like_name: str, per: str) -> None:
    """One int64 per row of something."""
    check_tensor(name, x)
    if x.ndim != 1 or x.shape[0] != count:
        raise ValueError(
            f"{name}: got shape {tuple(x.shape)}, expected ({count},), one for each {per}"
        )
    if x.dtype != torch.int64:
        raise ValueError(f"{name}: got dtype {x.dtype}, expected torch.int64")
    check_device(name, x, like, like_name)


def check_range(name: str, x: Tensor, low: int, high: int, ignored: int | None = None) -> None:
    """Values in [low, high), or `ignored`. Read on a CPU alone: elsewhere it would wait for the device."""
    if x.is_cpu and len(x):
        outside = (x < low) | (x >= high)
        bad = (outside if ignored is None else outside & (x != ignored)).nonzero()
        if len(bad):
            place = int(bad[0, 0])
            raise ValueError(
                f"{name}: got {int(x[place])} at place {place}, expected values in [{low}, {high})"
            )


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """One of a few words."""
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(choices)}")


def check_finite(**rows: Tensor) -> None:
    """Name the first row that is not finite. Reads everything: called when a result shows that there is one."""
    for name, x in rows.items():
        bad = (~torch.isfinite(x).all(1)).nonzero()
        if len(bad):
            found = f"row {int(bad[0, 0])} is not finite ({len(bad)} such rows)"
            raise NotFiniteError(f"{name}: {found}, expected finite values")
    names = " and ".join(rows)
    raise NotFiniteError(
        f"{names}: got rows whose product is not finite, expected rows of moderate length"
    )


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """What sums are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def unit_stride(x: Tensor) -> Tensor:
    """With each row's values side by side, as the kernels read them."""
    return x if x.stride(1) == 1 or (x.shape[1] <= 1 and x.is_contiguous()) else x.contiguous()
