"""Reads .safetensors files, without the package of that name: 8 bytes, a JSON header, raw data.

Everything that the header says is checked before a tensor is made of it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
#: Most bytes of a header, as in the format's own library.
_LARGEST_HEADER = 100_000_000
_LENGTH = 8
_ABOUT = "__metadata__"
#: The entry of the metadata in which this library says what network the weights are of, as JSON.
ABOUT_NETWORK = "fastreid_al"


def is_safetensors(path: Path) -> bool:
    """Whether a file is of this format, by its name or its first bytes."""
    if path.suffix.lower() == ".safetensors":
        return True
    with open(path, "rb") as file:
        start = file.read(_LENGTH + 1)
    length = int.from_bytes(start[:_LENGTH], "little")
    return start[_LENGTH:] == b"{" and 2 <= length <= path.stat().st_size - _LENGTH


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file, by name, to the CPU.

    Raises:
        ValueError: The file is damaged, or holds a dtype that is not known here.
        OSError: The file cannot be read.
    """
    with open(path, "rb") as file:
        header, data = _read_header(file, path.stat().st_size)
        header.pop(_ABOUT, None)
        places = sorted((_place(name, about) for name, about in header.items()), key=_first_byte)
        _check_places(places, data)
        return {name: _tensor(file.read(end - begin), *how) for name, begin, end, how in places}


def read_about(path: Path) -> dict[str, Any]:
    """Read what this library wrote about the network whose weights a file holds.

    Returns:
        A dictionary with an entry `network`, as a checkpoint has it; empty for other files.

    Raises:
        ValueError: The file is damaged.
        OSError: The file cannot be read.
    """
    with open(path, "rb") as file:
        header, _ = _read_header(file, path.stat().st_size)
    metadata = header.get(_ABOUT)
    text = metadata.get(ABOUT_NETWORK) if isinstance(metadata, dict) else None
    if text is None:
        return {}
    try:
        about = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"its metadata {ABOUT_NETWORK} is not JSON") from error
    return about if isinstance(about, dict) else {}


def _read_header(file: IO[bytes], size: int) -> tuple[dict[str, Any], int]:
    """Return the header of an open file of so many bytes, and the number of bytes after it."""
    length = int.from_bytes(file.read(_LENGTH), "little")
    if not 2 <= length <= min(_LARGEST_HEADER, size - _LENGTH):
        raise ValueError(f"its header has {length} bytes, the file {size}")
    return _parse_header(file.read(length)), size - _LENGTH - length


def _parse_header(text: bytes) -> dict[str, Any]:
    def refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("its header names a tensor twice")
        return found

    try:
        header = json.loads(text, object_pairs_hook=refuse_twice)
    except RecursionError as error:
        raise ValueError("its header is nested too deeply") from error
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    return header


def _place(name: str, about: Any) -> tuple[str, int, int, tuple[torch.dtype, list[int]]]:
    """Return the name, the first byte, the byte after the last, and dtype and shape of a tensor."""
    try:
        dtype, shape, (begin, end) = about["dtype"], about["shape"], about["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"its header describes {name!r} by {str(about)[:60]}") from error
    if dtype not in _DTYPES:
        raise ValueError(f"{name!r} has the dtype {str(dtype)[:20]}")
    numbers = [begin, end, *shape] if isinstance(shape, list) else [None]
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers):
        raise ValueError(f"{name!r} has the shape {str(shape)[:60]} at {begin} to {end}")
    if math.prod(shape) * _DTYPES[dtype].itemsize != end - begin:
        raise ValueError(f"{name!r} has the shape {shape} of {dtype} in {end - begin} bytes")
    return name, begin, end, (_DTYPES[dtype], shape)


def _first_byte(place: tuple[str, int, int, Any]) -> tuple[int, int]:
    return place[1], place[2]


def _check_places(places: list[tuple[str, int, int, Any]], size: int) -> None:
    """Refuse tensors that overlap, leave gaps, or end before or after the data."""
    expected = 0
    for name, begin, end, _ in places:
        if begin != expected:
            raise ValueError(f"{name!r} begins at byte {begin}, expected {expected}")
        expected = end
    if expected != size:
        raise ValueError(f"its tensors take {expected} bytes, the file holds {size}")


def _tensor(content: bytes, dtype: torch.dtype, shape: list[int]) -> Tensor:
    if not content:
        return torch.empty(shape, dtype=dtype)
    raw = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    if dtype is torch.bool and int(raw.max()) > 1:
        raise ValueError("it holds a truth value that is neither 0 nor 1")
    return raw.view(dtype).reshape(shape)
