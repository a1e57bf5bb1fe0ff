"""The check of every argument of a public function.

Each function takes the name of an argument and its value. It returns the value as the library uses
it, or raises a ValueError in one line: the name, what was got, what is expected. NumPy arrays are
taken where a tensor is, integers of any dtype and lists of integers where ids are.

No check waits for a GPU: values of tensors are read on a CPU only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from reid_kernels import checks
from reid_kernels.checks import (
    as_flag,
    as_integer,
    as_number,
    as_temperature,
    check_choice,
    check_range,
    described,
)
from torch import Tensor

__all__ = [
    "as_callable",
    "as_device",
    "as_features",
    "as_flag",
    "as_ids",
    "as_instance",
    "as_integer",
    "as_integers",
    "as_labels",
    "as_lists",
    "as_number",
    "as_numbers",
    "as_path",
    "as_temperature",
    "as_tensor",
    "as_world",
    "check_choice",
    "check_finite",
    "check_range",
    "check_row",
    "described",
]

T = TypeVar("T")

#: The dtypes that clustering takes.
SINGLE_AND_DOUBLE = (torch.float32, torch.float64)


def as_tensor(name: str, x: Any, ndim: int, shape: str) -> Tensor:
    """Return a tensor or a NumPy array as a tensor of some dimensions.

    Args:
        name: Name of the argument.
        x: Its value.
        ndim: The number of dimensions.
        shape: The expected shape, for the message, such as "(n, D)".
    """
    x = _with_values(name, x)
    if x.ndim != ndim:
        raise ValueError(f"{name}: got shape {tuple(x.shape)}, expected {shape}")
    return x


def _with_values(name: str, x: Any) -> Tensor:
    x = checks.as_tensor(name, x)
    if x.is_meta:
        raise ValueError(f"{name}: got device meta, expected a tensor with values")
    return x


def as_features(
    name: str,
    x: Any,
    dtypes: Sequence[torch.dtype] = checks.DTYPES,
    rows: int | None = None,
    *,
    finite: bool = True,
) -> Tensor:
    """Return features (n, D), detached.

    Args:
        name: Name of the argument.
        x: Its value.
        dtypes: The dtypes that are taken.
        rows: n, if it is known.
        finite: Refuse rows that are not finite, on a CPU.
    """
    x = as_tensor(name, x, 2, "(n, D)").detach()
    if x.dtype not in dtypes:
        *others, last = (str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"{name}: got dtype {x.dtype}, expected {', '.join(others)} or {last}")
    if rows is not None and len(x) != rows:
        raise ValueError(f"{name}: got {len(x)} rows, expected {rows}")
    if finite:
        check_finite(name, x)
    return x


def as_ids(
    name: str,
    x: Any,
    count: int | None = None,
    low: int | None = None,
    high: int | None = None,
    *,
    per: str = "row",
) -> Tensor:
    """Return integers (m,) as int64, on their device.

    Args:
        name: Name of the argument.
        x: Its value: a tensor or array of any integers, or a list or tuple of integers.
        count: m, if it is known.
        low: The least value; checked on a CPU.
        high: One above the greatest value.
        per: What each value belongs to, for the message.
    """
    if isinstance(x, list | tuple):
        x = _array_of_integers(name, x)
    x = _with_values(name, x)
    if x.ndim != 1 or (count is not None and x.shape[0] != count):
        # Not before: torch.compile takes a length in a text for a constant.
        length = "m" if count is None else count
        raise ValueError(
            f"{name}: got shape {tuple(x.shape)}, expected ({length},), one for each {per}"
        )
    if x.dtype not in checks.INTEGERS:
        raise ValueError(f"{name}: got dtype {x.dtype}, expected integers, such as torch.int64")
    x = checks.widened(name, x)
    if low is not None or high is not None:
        least = -checks.LARGEST - 1 if low is None else low
        _check_bounds(name, x, least, checks.LARGEST if high is None else high)
    return x


def as_labels(name: str, x: Any, count: int | None = None) -> Tensor:
    """Return labels (n,) int64 of 0 or more, -1 for images outside every cluster."""
    return as_ids(name, x, count, low=-1, per="image")


def as_lists(indptr: Any, indices: Any, rows: int, n: int) -> tuple[Tensor, Tensor]:
    """Return lists of ids in CSR form, on their device.

    Args:
        indptr: (rows + 1,) integers, ascending from 0 to the number of indices.
        indices: (entries,) integers in [0, n).
        rows: Number of lists.
        n: One above the greatest id.
    """
    indptr = as_ids("indptr", indptr, rows + 1, per="row, and the end")
    indices = as_ids("indices", indices, low=0, high=n, per="entry")
    if indptr.is_cpu:
        ends = int(indptr[0]), int(indptr[-1])
        if ends != (0, len(indices)):
            raise ValueError(
                f"indptr: got {ends[0]} first and {ends[1]} last, expected 0 and {len(indices)}, "
                "the number of indices"
            )
        falls = (indptr[1:] < indptr[:-1]).nonzero()
        if len(falls):
            at = int(falls[0, 0])
            raise ValueError(
                f"indptr: got {int(indptr[at])} before {int(indptr[at + 1])}, "
                "expected ascending values"
            )
    return indptr, indices


def _array_of_integers(name: str, x: Sequence[Any]) -> np.ndarray:
    """A list of integers as an array; an empty one is a list of no integers."""
    whole = [isinstance(v, int | np.integer) and not isinstance(v, bool) for v in x]
    if not all(whole):
        wrong = x[whole.index(False)]
        raise ValueError(f"{name}: got {described(wrong)} in a list, expected integers")
    try:
        return np.array(x, dtype=np.int64)
    except OverflowError as error:
        raise ValueError(f"{name}: got an integer beyond 64 bits, expected int64") from error


def _check_bounds(name: str, x: Tensor, low: int, high: int) -> None:
    """Refuse values outside [low, high), in one pass if there are none. Read on a CPU only."""
    if x.is_cpu and len(x):
        least, greatest = (int(value) for value in torch.aminmax(x))
        if least < low or greatest >= high:
            bad = int(((x < low) | (x >= high)).nonzero()[0, 0])
            unbounded = high == checks.LARGEST
            expected = f"{low} or more" if unbounded else f"values in [{low}, {high})"
            raise ValueError(f"{name}: got {int(x[bad])} at index {bad}, expected {expected}")


def check_finite(name: str, x: Tensor) -> None:
    """Refuse rows (n, ...) with a NaN or an infinity. They are read on a CPU only."""
    # The sum is one pass without a copy; only if it is not finite every value is tested.
    if not x.is_cpu or not x.numel() or bool(torch.isfinite(x.sum())):
        return
    bad = (~torch.isfinite(x).view(len(x), -1).all(1)).nonzero()[:, 0]
    if len(bad):
        raise checks.NotFiniteError(
            f"{name}: row {int(bad[0])} is not finite ({len(bad)} such rows), "
            "expected finite values"
        )


def as_numbers(name: str, value: Any, low: float, high: float, *, below: bool) -> list[float]:
    """Return numbers in [low, high], with `below` in [low, high): one number, or a list of them."""
    if isinstance(value, np.ndarray | Tensor) and value.ndim <= 1:
        value = value.tolist()
    values = value if isinstance(value, list | tuple) else [value]
    return [float(as_number(name, x, low, high, below=below)) for x in values]


def as_integers(name: str, value: Any, count: int, low: int) -> tuple[int, ...]:
    """Return `count` integers of `low` or more."""
    if not isinstance(value, list | tuple) or len(value) != count:
        raise ValueError(f"{name}: got {described(value)}, expected {count} integers")
    return tuple(as_integer(name, x, low) for x in value)


def check_row(name: str, value: Any, n: int) -> int:
    """Return the number of a row, 0 to n - 1."""
    row: int = as_integer(name, value, 0, max(0, n - 1))
    if row >= n:
        raise ValueError(f"{name}: got {row}, expected a row, and there are none")
    return row


def as_instance(name: str, value: T, *kinds: type) -> T:
    """Return an object of one of the classes."""
    if not isinstance(value, kinds):
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{name}: got {described(value)}, expected a {expected}")
    return value


def as_callable(name: str, value: Callable[..., T], expected: str) -> Callable[..., T]:
    """Return a function."""
    if not callable(value):
        raise ValueError(f"{name}: got {described(value)}, expected {expected}")
    return value


def as_device(name: str, value: torch.device | str | int) -> torch.device:
    """Return a device."""
    try:
        device = torch.device(value)
        torch.empty(0, device=device)
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"{name}: got {described(value)}, expected a device of this machine, such as 'cpu'"
        ) from error
    return device


def as_path(name: str, value: Any) -> Path:
    """Return a path."""
    if not isinstance(value, str | os.PathLike) or "\0" in os.fspath(value):
        raise ValueError(f"{name}: got {described(value)}, expected a path")
    return Path(value)


def as_world(world: T) -> T:
    """Return the ranks of a run."""
    if not hasattr(world, "local_slice"):
        raise ValueError(f"world: got {described(world)}, expected a World")
    return world
