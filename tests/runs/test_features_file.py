"""Files of features, sound and not: read in bounded memory, or refused in one line."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fastreid_al.errors import DataError
from fastreid_al.runs.features_file import read_features

FEATURES = np.random.default_rng(0).normal(size=(12, 5))
IDENTITIES = np.arange(12) // 3


def written(path: Path, **arrays: Any) -> Path:
    np.savez(path, **{"features": FEATURES, "identities": IDENTITIES, **arrays})
    return path


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array)
    return file.getvalue()


def archive(path: Path, compression: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return path


@pytest.mark.parametrize("dtype", ["<f2", "f4", ">f4", "f8", ">f8", "i4", "u1", ">i8"])
def test_features_of_any_real_dtype_are_read(tmp_path: Path, dtype: str) -> None:
    features = np.abs(10 * FEATURES + 1).astype(dtype)
    for layout in (features, np.asfortranarray(features)):
        path = written(tmp_path / "f.npz", features=layout, identities=IDENTITIES.astype(">u2"))
        rows, identities, cameras = read_features(path)
        expected = torch.nn.functional.normalize(torch.tensor(features.astype(np.float32)))
        assert torch.equal(rows, expected)
        assert identities.tolist() == IDENTITIES.tolist() and identities.dtype == torch.int64
        assert cameras is None


@pytest.mark.parametrize("dtype", ["i8", ">i2", "f4"])
def test_cameras_are_read_if_there_are_any(tmp_path: Path, dtype: str) -> None:
    given = IDENTITIES - 1
    cameras = read_features(written(tmp_path / "f.npz", cameras=given.astype(dtype))).cameras
    assert cameras is not None and cameras.dtype == torch.int64
    assert cameras.tolist() == given.tolist()


@pytest.mark.parametrize(
    "compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_every_compression_is_read(tmp_path: Path, compression: int) -> None:
    members = {"features": npy(FEATURES), "identities": npy(IDENTITIES.astype(float))}
    rows, identities, _ = read_features(archive(tmp_path / "f.npz", compression, **members))
    assert rows.shape == (12, 5)
    assert identities.tolist() == IDENTITIES.tolist()


UNUSABLE: dict[str, tuple[dict[str, Any], str]] = {
    "NaN identities": ({"identities": np.full(12, np.nan)}, "identities: got nan at index 0"),
    "half identities": ({"identities": IDENTITIES + 0.5}, "identities: got 0.5 at index 0"),
    "huge identities": (
        {"identities": np.full(12, 2**64 - 1, np.uint64)},
        "identities: got 18446744073709551615 at index 0, expected whole numbers below 2^63",
    ),
    "unknown identities": ({"identities": IDENTITIES - 1}, "got 3 of 12 below 0"),
    "dates": ({"identities": IDENTITIES.astype("M8[D]")}, "identities: got dtype datetime64[D]"),
    "bools": ({"identities": IDENTITIES > 0}, "identities: got dtype bool"),
    "texts": ({"identities": IDENTITIES.astype(str)}, "identities: got dtype <U21"),
    "objects": ({"identities": IDENTITIES.astype(object)}, "identities: got dtype object"),
    "structures": ({"identities": np.zeros(12, "i4,i4")}, "identities: got dtype [('f0'"),
    "complex features": ({"features": FEATURES + 0j}, "features: got dtype complex128"),
    "text features": ({"features": FEATURES.astype(str)}, "features: got dtype <U"),
    "bool features": ({"features": FEATURES > 0}, "features: got dtype bool"),
    "wide floats": ({"features": FEATURES.astype(np.longdouble)}, "features: got dtype float128"),
    "one dimension": ({"features": FEATURES[:, 0]}, "expected (n, D) and (n,)"),
    "three dimensions": ({"features": FEATURES[None]}, "expected (n, D) and (n,)"),
    "no dimension": ({"features": np.array(1.0)}, "expected (n, D) and (n,)"),
    "no columns": ({"features": FEATURES[:, :0]}, "expected (n, D) and (n,)"),
    "one row": ({"features": FEATURES[:1], "identities": IDENTITIES[:1]}, "with n >= 2"),
    "other lengths": ({"identities": IDENTITIES[:11]}, "expected (n, D) and (n,)"),
    "unknown cameras": ({"cameras": IDENTITIES - 3}, "cameras: got -3 at index 0, expected -1"),
    "half cameras": ({"cameras": IDENTITIES + 0.5}, "cameras: got 0.5 at index 0"),
    "fewer cameras": ({"cameras": IDENTITIES[:11]}, "got cameras (11,), expected (12,)"),
    "text cameras": ({"cameras": IDENTITIES.astype(str)}, "cameras: got dtype <U21"),
    "NaN features": ({"features": np.full((12, 5), np.nan)}, "features: got row 0 of length nan"),
    "zero rows": ({"features": FEATURES * (IDENTITIES != 2)[:, None]}, "got row 6 of length 0 (3"),
    "too long": ({"features": FEATURES * 1e300}, "features: got row 0 of length inf"),
    "long": ({"features": FEATURES * 1e25}, "features: got row 0 of length inf"),
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_arrays_that_cannot_be_used_are_named(tmp_path: Path, what: str) -> None:
    arrays, message = UNUSABLE[what]
    refused(written(tmp_path / "f.npz", **arrays), message)


def refused(path: Path, message: str) -> None:
    with pytest.raises(DataError) as raised:
        read_features(path)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)


def header(shape: str) -> bytes:
    """An .npy file of no values whose header has this shape."""
    text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header("(2000000000, 1)"), "holds 0 bytes, its header says 16,000,000,000"),
        (header("(2, 2**40)"), "cannot be read as .npz"),
        (header("(2, -2)") + bytes(32), "cannot be read as .npz"),
        (header("('a', 2)"), "cannot be read as .npz"),
        (header("(" * 90), "cannot be read as .npz"),
        (npy(FEATURES)[:-8], "features.npy holds 472 bytes, its header says 480"),
        (npy(FEATURES) + bytes(8), "features.npy holds 488 bytes, its header says 480"),
        (b"", "cannot be read as .npz"),
        (b"\x93NUMPY\x03\x00" + npy(FEATURES)[8:], "format 3.0, expected 1.0 or 2.0"),
    ],
)
def test_headers_that_lie_are_refused_before_memory_is_taken(
    tmp_path: Path, content: bytes, message: str
) -> None:
    refused(archive(tmp_path / "f.npz", features=content, identities=npy(IDENTITIES)), message)


def test_more_than_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", lambda name: 20)
    refused(written(tmp_path / "f.npz"), "this machine has 0.0 GB of memory")


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    whole = written(tmp_path / "f.npz").read_bytes()
    for size in (0, 1, 4, 30, len(whole) // 2, len(whole) - 1):
        (tmp_path / "short.npz").write_bytes(whole[:size])
        refused(tmp_path / "short.npz", "cannot be read as .npz")
    flipped = bytearray(whole)
    flipped[300] ^= 1  # a value of the features
    (tmp_path / "flipped.npz").write_bytes(flipped)
    refused(tmp_path / "flipped.npz", "Bad CRC-32")
    encrypted = bytearray(whole)
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        begin = whole.find(mark)
        while begin >= 0:
            encrypted[begin + at] |= 1
            begin = whole.find(mark, begin + 1)
    (tmp_path / "encrypted.npz").write_bytes(encrypted)
    refused(tmp_path / "encrypted.npz", "encrypted")
    np.save(tmp_path / "f.npy", FEATURES)
    refused(tmp_path / "f.npy", "File is not a zip file")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "no regular file")
    refused(tmp_path, "no regular file")
    refused(tmp_path / "missing", "No such file or directory")
    refused(Path("/dev/zero"), "no regular file")


def saved(path: Path, **tensors: torch.Tensor) -> Path:
    """A .safetensors file of other programs: without names and metadata."""
    given = {"features": torch.from_numpy(FEATURES), "identities": torch.from_numpy(IDENTITIES)}
    save_file({**given, **tensors}, path)
    return path


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.int32])
def test_safetensors_of_other_programs_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    features = (torch.from_numpy(FEATURES).abs() * 10 + 1).to(dtype)
    cameras = torch.arange(12, dtype=torch.int16) - 1
    found = read_features(saved(tmp_path / "f.safetensors", features=features, cameras=cameras))
    expected = torch.nn.functional.normalize(features.float())
    assert torch.equal(found.features, expected)
    assert found.identities.tolist() == IDENTITIES.tolist()
    assert found.cameras is not None and found.cameras.tolist() == cameras.tolist()


def test_safetensors_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    save_file({"features": torch.ones(3, 2)}, path)
    refused(path, "has no array identities; it holds 'features'")
    refused(saved(path, features=torch.ones(12, 2).bfloat16()), "features: got dtype BF16")
    refused(saved(path, identities=torch.zeros(12, dtype=torch.bool)), "got dtype BOOL, expected")
    refused(saved(path, identities=torch.zeros(3)), "expected (n, D) and (n,) with n >= 2")
    refused(saved(path, identities=torch.full((12,), -1)), "12 of 12 below 0, which are unknown")
    whole = saved(path).read_bytes()
    for content in (b"", whole[:20], whole[:-1], b"PK" + whole[2:]):
        path.write_bytes(content)
        refused(path, "cannot be read as features")
    refused(tmp_path / "missing.safetensors", "No such file or directory")
