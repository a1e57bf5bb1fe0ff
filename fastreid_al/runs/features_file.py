"""Reads features, identities and cameras from an .npz or .safetensors file, without pickles."""

from __future__ import annotations

import lzma
import math
import os
import stat
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..arguments import as_ids
from ..errors import DataError
from ..retrieval.feature_file import TensorFile

#: What a damaged or foreign archive makes Python raise.
_DAMAGE = (
    *(OSError, EOFError, ValueError, RuntimeError, NotImplementedError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, UnicodeError, SyntaxError),
    *(KeyError, TypeError, MemoryError, RecursionError, tokenize.TokenError),
)
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
#: What each array holds. Cameras may be missing.
_EXPECTED = {
    "features": "real numbers, such as float32",
    "identities": "whole numbers, such as int64",
    "cameras": "whole numbers, such as int64, or no such array",
}
#: Dtypes of a .safetensors file that can be used.
_TENSOR_DTYPES = {
    **{"F64": "f8", "F32": "f4", "F16": "f2"},
    **{f"{kind}{8 * size}": f"{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)},
}
#: Bytes that are read at a time.
_CHUNK = 2**20
#: Norms of rows that float32 can normalise.
_SHORTEST = 1e-12
#: Whole numbers up to here are the same in float64.
_LARGEST_WHOLE = 2**53


class _Header(NamedTuple):
    """What an array of the file holds.

    Args:
        shape: Its shape.
        fortran: Whether the first index changes fastest.
        dtype: Its dtype.
        begin: Bytes before its values.
    """

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    begin: int

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


class FeaturesFile(NamedTuple):
    """The content of a file of features.

    Args:
        features: (n, D) float32, unit-norm.
        identities: (n,) int64.
        cameras: (n,) int64, -1 where unknown; None if the file has none.
    """

    features: Tensor
    identities: Tensor
    cameras: Tensor | None


def read_features(path: Path) -> FeaturesFile:
    """Read features, identities and, if there are any, cameras from an .npz or .safetensors file.

    Args:
        path: The file, recognised as .safetensors by its name, with arrays `features` (n, D) of
            any real numbers, `identities` (n,) of whole numbers, 0 or more, and optionally
            `cameras` (n,) of whole numbers, -1 where unknown.

    Raises:
        DataError: The file cannot be read, or its arrays cannot be used.
    """
    tensors = path.suffix.lower() == ".safetensors"
    arrays = _read_tensors(path) if tensors else _read_arrays(path)
    try:
        return FeaturesFile(
            _unit_rows(arrays["features"]),
            _identities(arrays["identities"]),
            _cameras(arrays["cameras"]) if "cameras" in arrays else None,
        )
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays by name, whose headers are checked before any value is read."""
    try:
        # Not a pipe or a device, which could be read for ever.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("it is no regular file")
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            held = _held(path, names)
            headers = {name: _header(archive, f"{name}.npy") for name in held}
            _check_headers(path, headers)
            return {name: _values(archive, f"{name}.npy", headers[name]) for name in held}
    except _DAMAGE as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        reason = (what or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{path} cannot be read as .npz ({reason:.200}); "
            "an evaluation with `save_features` writes such a file"
        ) from error


def _held(path: Path, names: Sequence[str]) -> list[str]:
    """The arrays that are read, of those that a file holds.

    Raises:
        DataError: There are no features, or no identities.
    """
    missing = [x for x in ("features", "identities") if x not in names]
    if missing:
        found = ", ".join(names[:8]) or "nothing"
        raise DataError(f"{path} has no array {' and no '.join(missing)}; it holds {found!a:.200}")
    return [name for name in _EXPECTED if name in names]


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .safetensors file by name, whose headers are checked before they are read."""
    file = TensorFile(path)
    headers = {}
    for name in _held(path, file.names):
        dtype, shape = file.kind(name)
        if dtype not in _TENSOR_DTYPES:
            raise DataError(f"{path}: {name}: got dtype {dtype:.20}, expected {_EXPECTED[name]}")
        headers[name] = _Header(shape, False, np.dtype(_TENSOR_DTYPES[dtype]), 0)
    _check_headers(path, headers)
    return {name: file.tensor(name).numpy() for name in headers}


def _header(archive: zipfile.ZipFile, name: str) -> _Header:
    """The header of an array."""
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"{name} has format {version[0]}.{version[1]}, expected 1.0 or 2.0")
        shape, fortran, dtype = _HEADERS[version](file)
        header = _Header(shape, fortran, dtype, file.tell())
    held = archive.getinfo(name).file_size - header.begin
    if not dtype.hasobject and header.nbytes != held:
        raise ValueError(f"{name} holds {held:,} bytes, its header says {header.nbytes:,}")
    return header


def _check_headers(path: Path, headers: dict[str, _Header]) -> None:
    """Refuse arrays of other shapes or dtypes, or larger than the memory."""
    features = headers["features"]
    identities = headers["identities"]
    cameras = headers.get("cameras", identities)
    n = features.shape[0] if features.shape else 0
    if len(features.shape) != 2 or identities.shape != (n,) or n < 2 or not features.shape[1]:
        raise DataError(
            f"{path}: got features {features.shape} and identities {identities.shape}, "
            "expected (n, D) and (n,) with n >= 2"
        )
    if cameras.shape != (n,):
        raise DataError(f"{path}: got cameras {cameras.shape}, expected ({n},), or no such array")
    for name, header in headers.items():
        if header.dtype.kind not in "fiu" or header.dtype.itemsize > 8:
            raise DataError(
                f"{path}: {name}: got dtype {header.dtype!s:.60}, expected {_EXPECTED[name]}"
            )
    # The values as they are, and as float32.
    needed = features.nbytes + 4 * math.prod(features.shape)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        raise DataError(
            f"{path}: features {features.shape} take {needed / 1e9:,.1f} GB, this machine has "
            f"{memory / 1e9:,.1f} GB of memory"
        )


def _values(archive: zipfile.ZipFile, name: str, header: _Header) -> np.ndarray:
    """The values of an array, in the byte order of this machine."""
    flat = np.empty(math.prod(header.shape), dtype=header.dtype)
    with archive.open(name) as file:
        file.read(header.begin)
        _fill(flat, file, name)
    values = flat.reshape(header.shape, order="F" if header.fortran else "C")
    return values.astype(header.dtype.newbyteorder("="), copy=False)


def _fill(flat: np.ndarray, file: IO[bytes], name: str) -> None:
    """Read the values of an array, which the archive's checksum ends."""
    target = flat.view(np.uint8)
    at = 0
    while at < len(target):
        part = file.read(min(_CHUNK, len(target) - at))
        if not part:
            raise EOFError(f"{name} ends after {at:,} of {len(target):,} bytes")
        target[at : at + len(part)] = np.frombuffer(part, np.uint8)
        at += len(part)
    if file.read(1):
        raise ValueError(f"{name} is longer than its header says")


def _unit_rows(features: np.ndarray) -> Tensor:
    """Unit-norm features (n, D) float32."""
    with np.errstate(over="ignore"):
        rows = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32))
    lengths = torch.linalg.vector_norm(rows, dim=1)
    usable = (lengths > _SHORTEST) & torch.isfinite(lengths)
    if not bool(usable.all()):
        row = int((~usable).nonzero()[0, 0])
        raise ValueError(
            f"features: got row {row} of length {float(lengths[row]):.3g} "
            f"({int((~usable).sum())} such rows), expected finite rows that are not zero"
        )
    return torch.nn.functional.normalize(rows, dim=1)


def _whole_numbers(name: str, values: np.ndarray) -> Tensor:
    """Whole numbers (n,) int64."""
    if values.dtype.kind == "f":
        whole = np.isfinite(values) & (np.abs(values) <= _LARGEST_WHOLE)
        whole &= values == np.rint(np.where(whole, values, 0))
    else:
        whole = values <= np.iinfo(np.int64).max
    if not whole.all():
        at = int(np.flatnonzero(~whole)[0])
        raise ValueError(
            f"{name}: got {values[at]} at index {at}, expected whole numbers below 2^63"
        )
    return torch.from_numpy(values.astype(np.int64))


def _cameras(cameras: np.ndarray) -> Tensor:
    """Cameras (n,) int64, -1 where unknown."""
    return as_ids("cameras", _whole_numbers("cameras", cameras), low=-1, per="image")


def _identities(identities: np.ndarray) -> Tensor:
    """Identities (n,) int64, all known."""
    numbers = _whole_numbers("identities", identities)
    unknown = int((numbers < 0).sum())
    if unknown:
        raise ValueError(
            f"identities: got {unknown:,} of {len(numbers):,} below 0, which are unknown; "
            "expected the true identity of each image"
        )
    return numbers
