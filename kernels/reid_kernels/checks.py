"""Checks of arguments: each returns the argument as the operators use it, or raises a ValueError
that names it, what was got and what is expected.

Shapes, dtypes and devices are checked everywhere. Values are read on a CPU only: on a GPU reading
them would wait for the device. NumPy arrays are taken where a tensor is.
"""

from __future__ import annotations

import functools
import inspect
import numbers
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")

__all__ = [
    "DTYPES",
    "NotFiniteError",
    "as_flag",
    "as_ids",
    "as_integer",
    "as_number",
    "as_pair",
    "as_rows",
    "as_temperature",
    "as_tensor",
    "check_choice",
    "check_device",
    "check_finite",
    "check_lengths",
    "check_range",
    "described",
    "returns_given_kind",
    "widened",
]

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
#: Integers that are ids; no bool.
INTEGERS = frozenset(
    {torch.int64, torch.int32, torch.int16, torch.int8}
    | {torch.uint8, torch.uint16, torch.uint32, torch.uint64}
)
#: The largest int64, and the largest float64.
LARGEST = 2**63 - 1
_LARGEST_NUMBER = sys.float_info.max
#: Logits of unit-norm rows divided by less leave float32's range.
_LOWEST_TEMPERATURE = 1e-30
#: Characters of a text, and bits of an integer, that a message repeats.
_SHOWN = 40
_SHOWN_BITS = 128


class NotFiniteError(ValueError):
    """Rows hold a NaN or an infinity, or their products or lengths do."""


def described(value: object) -> str:
    """Describe a value for a message, in one short line."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and dtype {value.dtype}"
    if value is None or isinstance(value, bool | float):
        return repr(value)
    if isinstance(value, int):
        big = value.bit_length() > _SHOWN_BITS
        return f"an integer of {value.bit_length()} bits" if big else repr(value)
    if isinstance(value, str):
        return repr(value if len(value) <= _SHOWN else f"{value[:_SHOWN]}...")
    if isinstance(value, numbers.Real):
        return str(value)
    shape = getattr(value, "shape", None)
    if type(shape) is tuple:
        dtype = getattr(value, "dtype", "unknown")
        return f"a {type(value).__name__} of shape {shape} and dtype {dtype}"
    return f"a {type(value).__name__}"


def as_tensor(name: str, x: Any) -> Tensor:
    """Return a tensor, or an array of another library as one.

    An array of NumPy, and any object with `__dlpack__` (CuPy, JAX, ...), shares its memory with the
    tensor, on its device; the producer's stream is waited for as DLPack says. An array of NumPy
    that is read-only, in another byte order or has negative strides is copied.
    """
    if isinstance(x, Tensor):
        if x.layout != torch.strided:
            raise ValueError(f"{name}: got a tensor of layout {x.layout}, expected a dense one")
        return x
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(x, numpy.ndarray):
        return _from_dlpack(name, x)
    if isinstance(x, numpy.ma.MaskedArray):
        raise ValueError(f"{name}: got {_type(x)}, expected an array without a mask")
    if x.dtype.kind not in "biufc":
        raise ValueError(f"{name}: got an array of dtype {x.dtype}, expected an array of numbers")
    x = numpy.asarray(x).astype(x.dtype.newbyteorder("="), copy=False)
    if not x.flags.writeable or any(s < 0 or s % x.itemsize for s in x.strides):
        x = x.copy()
    try:
        tensor: Tensor = torch.from_numpy(x)
    except TypeError as error:
        raise ValueError(
            f"{name}: got an array of dtype {x.dtype}, expected a dtype that PyTorch has"
        ) from error
    return tensor


def _from_dlpack(name: str, x: Any) -> Tensor:
    """Return a tensor that shares the memory of an object with `__dlpack__`."""
    if isinstance(x, type) or not (hasattr(x, "__dlpack__") and hasattr(x, "__dlpack_device__")):
        raise ValueError(
            f"{name}: got {_type(x)}, expected a torch.Tensor, a NumPy array or another array with "
            "__dlpack__"
        )
    try:
        tensor: Tensor = torch.from_dlpack(x)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{name}: got {_type(x)} that PyTorch cannot share ({error}), expected a dense array "
            "of a dtype and on a device that PyTorch has"
        ) from error
    return tensor


def returns_given_kind(function: Callable[P, T]) -> Callable[P, T]:
    """Make a function return arrays of the library of its first argument, on its device, in the
    same memory as the tensors that it computed.

    Tensors are returned for tensors, and where the array's library cannot take a tensor: it has no
    `from_dlpack`, or not the dtype (NumPy has no bfloat16).
    """
    name = next(iter(inspect.signature(function).parameters))

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        result = function(*args, **kwargs)
        first = args[0] if args else kwargs.get(name)
        if isinstance(first, Tensor) or not hasattr(first, "__dlpack__"):
            return result
        for kind in type(first).__mro__:
            library = sys.modules.get(kind.__module__.partition(".")[0])
            take = getattr(library, "from_dlpack", None)
            if take is not None:
                return _as_kind(take, result)
        return result

    return called


def _as_kind(take: Callable[[Any], Any], x: Any) -> Any:
    """Give the tensors of a result, in tuples also, to a library."""
    if isinstance(x, tuple):
        parts = [_as_kind(take, part) for part in x]
        return type(x)(*parts) if hasattr(x, "_fields") else tuple(parts)
    if not isinstance(x, Tensor):
        return x
    try:
        return take(x.detach())
    except (BufferError, RuntimeError, TypeError, ValueError):
        return x


def as_rows(name: str, x: Any) -> Tensor:
    """Return a matrix of a supported dtype."""
    x = as_tensor(name, x)
    if x.ndim != 2:
        raise ValueError(f"{name}: got shape {tuple(x.shape)}, expected two dimensions, (rows, D)")
    if x.dtype not in DTYPES:
        raise ValueError(
            f"{name}: got dtype {x.dtype}, expected float32, float16, bfloat16 or float64"
        )
    return x


def as_pair(name: str, x: Any, bank: Any, bank_name: str = "bank") -> tuple[Tensor, Tensor]:
    """Return two matrices of one width, dtype and device."""
    x = as_rows(name, x)
    bank = as_rows(bank_name, bank)
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
    return x, bank


def as_ids(
    name: str, x: Any, count: int | None, like: Tensor | None, like_name: str, per: str
) -> Tensor:
    """Return ids (count,) int64 on the device of `like`.

    Args:
        name: Name of the argument, for the message.
        x: The ids. A NumPy array may hold any integers.
        count: Number of ids; None for any.
        like: A tensor on the expected device; None for any device.
        like_name: Its name, for the message.
        per: What each id belongs to, for the message.
    """
    given = x
    x = as_tensor(name, x)
    if x.ndim != 1 or (count is not None and x.shape[0] != count):
        length = "B" if count is None else count
        raise ValueError(
            f"{name}: got shape {tuple(x.shape)}, expected ({length},), one for each {per}"
        )
    if x is not given and x.dtype in INTEGERS:
        x = widened(name, x)
    if x.dtype != torch.int64:
        raise ValueError(f"{name}: got dtype {x.dtype}, expected torch.int64")
    if like is not None:
        check_device(name, x, like, like_name)
    return x


def widened(name: str, x: Tensor) -> Tensor:
    """Return integers of any dtype as int64."""
    wide = x.to(torch.int64)
    if x.dtype == torch.uint64 and x.is_cpu and bool((wide < 0).any()):
        raise ValueError(f"{name}: got a number of 2^63 or more, expected int64")
    return wide


def check_device(name: str, x: Tensor, like: Tensor, like_name: str) -> None:
    """Raise ValueError unless both tensors are on one device."""
    if x.device != like.device:
        raise ValueError(
            f"{name}: got device {x.device}, expected {like.device}, the device of {like_name}"
        )


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


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless the value is one of the choices."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: got {described(value)}, expected one of {', '.join(choices)}")


def as_flag(name: str, value: Any) -> bool:
    """Return True or False."""
    if isinstance(value, bool) or type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    raise ValueError(f"{name}: got {described(value)}, expected True or False")


def _is_integer(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)


def as_integer(name: str, value: Any, low: int = -LARGEST - 1, high: int = LARGEST) -> Any:
    """Return an integer in [low, high].

    NumPy's integers and tensors of no dimension are taken, bools and floats are not.
    """
    if isinstance(value, Tensor) and value.ndim == 0 and _is_integer(value.dtype):
        value = int(value)
    whole = isinstance(value, int | torch.SymInt) and not isinstance(value, bool)
    if not whole and isinstance(value, numbers.Integral) and not isinstance(value, bool):
        value, whole = int(value), True
    if whole and low <= value <= high:
        return value
    if high < LARGEST:
        expected = f"{low} to {high}"
    else:
        expected = f"{low} or more" if low > -LARGEST else "64 bits"
    if not whole:
        raise ValueError(f"{name}: got {described(value)}, expected an integer, {expected}")
    raise ValueError(f"{name}: got {described(value)}, expected {expected}")


def as_number(
    name: str,
    value: Any,
    low: float = -_LARGEST_NUMBER,
    high: float = _LARGEST_NUMBER,
    *,
    below: bool = False,
) -> Any:
    """Return a finite number in [low, high], with `below` in [low, high).

    NumPy's numbers and tensors of no dimension are taken, bools are not.
    """
    if isinstance(value, Tensor) and value.ndim == 0 and not value.requires_grad:
        value = value.item()
    kinds = int | float | torch.SymInt | torch.SymFloat
    real = isinstance(value, kinds) and not isinstance(value, bool)
    if not real and isinstance(value, numbers.Real) and not isinstance(value, bool):
        value, real = float(value), True
    if real and low <= value <= high and not (below and value == high):
        return value
    if high < _LARGEST_NUMBER:
        expected = f"a number in [{low:g}, {high:g}{')' if below else ']'}"
    else:
        bounded = low > -_LARGEST_NUMBER
        expected = f"a finite number of {low:g} or more" if bounded else "a finite number"
    raise ValueError(f"{name}: got {described(value)}, expected {expected}")


def as_temperature(name: str, value: Any) -> Any:
    """Return a temperature: a finite number by which float32 logits can be divided."""
    if isinstance(value, Tensor) and value.requires_grad:
        raise ValueError(
            f"{name}: got a tensor that requires a gradient, expected a number; "
            "to train it, divide the features by it and pass 1.0"
        )
    if isinstance(value, int | float) and not isinstance(value, bool) and value <= 0:
        raise ValueError(f"{name}: got {described(value)}, expected a number above 0")
    return as_number(name, value, _LOWEST_TEMPERATURE)


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


def check_lengths(name: str, x: Tensor, lengths: Tensor) -> None:
    """Raise NotFiniteError unless the lengths (rows,) of rows (rows, D) are finite.

    The length of a finite row may exceed the dtype in which it is summed.
    """
    bad = (~(lengths < torch.inf)).nonzero()
    if len(bad):
        if not bool(torch.isfinite(x).all()):
            check_finite(**{name: x})
        raise NotFiniteError(
            f"{name}: row {int(bad[0, 0])} is too long ({len(bad)} such rows), its length is not "
            f"finite in {lengths.dtype}; expected rows of moderate length"
        )


def _type(x: object) -> str:
    return "None" if x is None else f"a {type(x).__name__}"
