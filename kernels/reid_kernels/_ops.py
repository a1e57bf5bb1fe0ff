"""What the operators share: the namespace of the custom ops and the checks of what they are given."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import torch
from torch import Tensor

#: A copy of this folder that is loaded under another name registers its operators under that name.
NAMESPACE = re.sub(r"\W", "_", __package__ or "reid_kernels")
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
    chosen = torch.get_float32_matmul_precision()
    with torch.autocast(x.device.type, enabled=False):
        if chosen == "highest":
            yield
            return
        try:
            torch.set_float32_matmul_precision("highest")
            yield
        finally:
            torch.set_float32_matmul_precision(chosen)


def takes_kernels(*rows: Tensor) -> bool:
    """Whether Triton's kernels run on these: float32 or less, on a device that is no CPU, none of them empty."""
    return not rows[0].is_cpu and rows[0].dtype != torch.float64 and all(x.numel() for x in rows)


def device_of(x: Tensor) -> contextlib.AbstractContextManager[None]:
    """Make the tensor's device the current one: Triton launches there, not where its arguments are."""
    return contextlib.nullcontext() if x.is_cpu else torch.get_device_module(x.device).device(x.device)


def check_rows(name: str, x: Tensor) -> None:
    """A matrix of rows, of a dtype that the operators take."""
    if x.ndim != 2:
        raise ValueError(f"{name}: found shape {tuple(x.shape)}, wanted two dimensions, (rows, D)")
    if x.dtype not in DTYPES:
        raise ValueError(f"{name}: found dtype {x.dtype}, wanted float32, float16, bfloat16 or float64")


def check_pair(name: str, x: Tensor, bank: Tensor, bank_name: str = "bank") -> None:
    """Two matrices of rows that can be multiplied with each other."""
    check_rows(name, x)
    check_rows(bank_name, bank)
    if x.shape[1] != bank.shape[1]:
        raise ValueError(f"{bank_name}: found rows of width {bank.shape[1]}, wanted {x.shape[1]}, the width of {name}")
    if x.dtype != bank.dtype:
        raise ValueError(f"{bank_name}: found dtype {bank.dtype}, wanted {x.dtype}, the dtype of {name}")
    check_device(bank_name, bank, x, name)


def check_device(name: str, x: Tensor, like: Tensor, like_name: str) -> None:
    """Both on one device."""
    if x.device != like.device:
        raise ValueError(f"{name}: found device {x.device}, wanted {like.device}, the device of {like_name}")


def check_ids(name: str, x: Tensor, count: int, like: Tensor, like_name: str, per: str) -> None:
    """One int64 per row of something."""
    if x.ndim != 1 or x.shape[0] != count:
        raise ValueError(f"{name}: found shape {tuple(x.shape)}, wanted ({count},), one for each {per}")
    if x.dtype != torch.int64:
        raise ValueError(f"{name}: found dtype {x.dtype}, wanted torch.int64")
    check_device(name, x, like, like_name)


def check_range(name: str, x: Tensor, low: int, high: int, ignored: int | None = None) -> None:
    """Values in [low, high), or `ignored`. Read on a CPU alone: elsewhere it would wait for the device."""
    if x.is_cpu and len(x):
        outside = (x < low) | (x >= high)
        bad = (outside if ignored is None else outside & (x != ignored)).nonzero()
        if len(bad):
            place = int(bad[0, 0])
            raise ValueError(f"{name}: found {int(x[place])} at place {place}, wanted values in [{low}, {high})")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """One of a few words."""
    if value not in choices:
        raise ValueError(f"{name}: found {value!r}, wanted one of {', '.join(choices)}")


def check_finite(**rows: Tensor) -> None:
    """Name the first row that is not finite. Reads everything: called when a result shows that there is one."""
    for name, x in rows.items():
        bad = (~torch.isfinite(x).all(1)).nonzero()
        if len(bad):
            found = f"row {int(bad[0, 0])} is not finite ({len(bad)} such rows)"
            raise NotFiniteError(f"{name}: found that {found}, wanted finite values")
    names = " and ".join(rows)
    raise NotFiniteError(f"{names}: found rows whose product is not finite, wanted rows of moderate length")


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """What sums are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def unit_stride(x: Tensor) -> Tensor:
    """With each row's values side by side, as the kernels read them."""
    return x if x.stride(1) == 1 or (x.shape[1] <= 1 and x.is_contiguous()) else x.contiguous()
