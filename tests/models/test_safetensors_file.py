"""Files of .safetensors: read as they were written, and checked before anything is made of them."""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastreid_al.errors import WeightsError
from fastreid_al.models import build_model
from fastreid_al.models.safetensors_file import is_safetensors, read_about, read_safetensors
from fastreid_al.models.weights import read_tensors

NAMES = {torch.float32: "F32", torch.float16: "F16", torch.int64: "I64", torch.bool: "BOOL"}
NAMES |= {torch.bfloat16: "BF16", torch.uint8: "U8", torch.float64: "F64"}


def written(path: Path, state: dict[str, Tensor], **more: Any) -> Path:
    """Write a file as the format's library does."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, tensor in state.items():
        content = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        offsets = [len(data), len(data) + len(content)]
        about = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        header[name] = about
        data += content
    header |= more
    return raw(path, json.dumps(header).encode(), data)


def raw(path: Path, header: bytes, data: bytes = b"", length: int | None = None) -> Path:
    length = len(header) if length is None else length
    path.write_bytes(length.to_bytes(8, "little") + header + data)
    return path


def test_every_dtype_is_read(tmp_path: Path) -> None:
    state = {f"x.{name}": torch.tensor([[1, 0, 1]]).to(dtype) for dtype, name in NAMES.items()}
    state |= {"scalar": torch.tensor(3.0), "none": torch.zeros(0, 4), "ünï": torch.ones(2)}
    got = read_safetensors(written(tmp_path / "x.safetensors", state))
    assert got.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(got[name], tensor) and got[name].dtype == tensor.dtype


def test_a_backbone_is_loaded_whatever_the_suffix(tmp_path: Path) -> None:
    body = build_model("resnet18", "none").backbone.state_dict()
    for name in ("model.safetensors", "model.bin"):
        path = written(tmp_path / name, {f"module.{k}": v for k, v in body.items()})
        assert is_safetensors(path)
        got = build_model("resnet18", path).backbone.state_dict()
        assert all(torch.equal(got[k], v) for k, v in body.items())
    torch.save(body, tmp_path / "x.pth")
    assert not is_safetensors(tmp_path / "x.pth")


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
HEADERS: dict[str, Any] = {
    "a list": [],
    "a number": 3,
    "no shape": {"x": {"dtype": "F32", "data_offsets": [0, 8]}},
    "a text": {"x": "F32"},
    "three offsets": {"x": {**ONE, "data_offsets": [0, 4, 8]}},
    "a negative offset": {"x": {**ONE, "data_offsets": [-8, 0]}},
    "offsets turned": {"x": {**ONE, "data_offsets": [8, 0]}},
    "offsets past the end": {"x": {**ONE, "data_offsets": [0, 2**40], "shape": [2**38]}},
    "a shape too large": {"x": {**ONE, "shape": [2**40]}},
    "a shape that overflows": {"x": {**ONE, "shape": [2**32, 2**32, 2]}},
    "a negative shape": {"x": {**ONE, "shape": [-1, -2]}},
    "a shape of fractions": {"x": {**ONE, "shape": [2.0]}},
    "a shape of truth": {"x": {**ONE, "shape": [True, 2]}},
    "no list of a shape": {"x": {**ONE, "shape": 2}},
    "an unknown dtype": {"x": {**ONE, "dtype": "F8_E4M3"}},
    "a dtype that is a list": {"x": {**ONE, "dtype": ["F32"]}},
    "an overlap": {"x": ONE, "y": {**ONE, "data_offsets": [4, 12]}},
    "a gap": {"x": ONE, "y": {**ONE, "data_offsets": [9, 17]}},
    "data that nothing names": {"x": {**ONE, "shape": [1], "data_offsets": [0, 4]}},
    "the same bytes twice": {"x": ONE, "y": ONE},
}


@pytest.mark.parametrize("what", HEADERS)
def test_a_header_that_lies_is_refused_in_one_line(what: str, tmp_path: Path) -> None:
    path = raw(tmp_path / "x.safetensors", json.dumps(HEADERS[what]).encode(), bytes(8))
    with pytest.raises(WeightsError, match="cannot be read as weights") as refused:
        read_tensors(path)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500


@pytest.mark.parametrize(
    ("header", "length"),
    [
        (b"", None),
        (b"{", None),
        (b"{}", 2**63),
        (b"{}", 3),
        (b"{}", 1),
        (b"[" * 100_000, None),
        (b"\xff\xfe{}", None),
        (b'{"x": 1, "x": 2}', None),
        (b'{"x": ' + b"9" * 10_000 + b"}", None),
    ],
)
def test_a_header_that_is_none_is_refused_in_one_line(
    header: bytes, length: int | None, tmp_path: Path
) -> None:
    path = raw(tmp_path / "x.safetensors", header, length=length)
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        read_tensors(path)


def test_changed_bytes_are_refused_or_change_only_values(tmp_path: Path) -> None:
    path = written(tmp_path / "x.safetensors", {"a.b": torch.ones(3), "c": torch.tensor([True])})
    content = path.read_bytes()
    places = random.Random(0)
    for _ in range(300):
        changed = bytearray(content)
        for _ in range(places.randint(1, 3)):
            changed[places.randrange(len(content))] = places.randrange(256)
        path.write_bytes(changed[: places.choice([len(content), places.randrange(len(content))])])
        with contextlib.suppress(WeightsError):
            assert all(tensor.numel() <= 24 for tensor in read_tensors(path).values())


def test_what_an_export_says_of_its_network_is_read(tmp_path: Path) -> None:
    state = {"x": torch.ones(2)}
    assert read_about(written(tmp_path / "plain.safetensors", state)) == {}
    for text, about in (('{"network": {"name": "n"}}', {"network": {"name": "n"}}), ("[1]", {})):
        metadata = {"__metadata__": {"fastreid_al": text}}
        path = written(tmp_path / "x.safetensors", state, **metadata)
        assert read_about(path) == about
        assert read_safetensors(path).keys() == {"x"}
    path = written(tmp_path / "x.safetensors", state, __metadata__={"fastreid_al": "{"})
    with pytest.raises(ValueError, match="metadata fastreid_al is not JSON"):
        read_about(path)
