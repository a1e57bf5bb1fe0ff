"""Files of features: any names, any number of splits, whole or not there, refused when damaged."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fastreid_al.errors import DataError
from fastreid_al.retrieval.feature_file import ImageEntry, Names, new_feature_file, read_table

NAMES = ["", "a", os.fsdecode(b"\xff\xfe"), "ünï", "x\ny", "long" * 50]


def entries(names: list[str]) -> list[ImageEntry]:
    return [ImageEntry(name, f"{n:032x}", n, n + 5, n + 7, n + 9) for n, name in enumerate(names)]


# Odd numbers of values, so that the tensors behind them would not be aligned.
@pytest.mark.parametrize(("count", "dim"), [(1, 1), (3, 5), (6, 64), (5, 7)])
def test_what_is_written_is_read(tmp_path: Path, count: int, dim: int) -> None:
    path = tmp_path / "x.safetensors"
    features = torch.randn(count, dim)
    columns = ("cameras", "identities", "sizes", "modified")
    with new_feature_file(path, {"model": "ü"}, columns, splits=2) as writer:
        writer.add(features[:1], entries(NAMES[:count])[:1])
        writer.add(features[1:], entries(NAMES[:count])[1:])
        assert writer.end_split() == count
        writer.add(-features, entries(NAMES[:count]))
        assert writer.end_split("query_") == count
    table = read_table(path)
    assert torch.equal(table.features, features)
    assert [table.entry(row) for row in range(count)] == entries(NAMES[:count])
    assert table.about["model"] == "ü"
    assert torch.equal(read_table(path, "query_").features, -features)
    assert table.features.data_ptr() % 4 == table.cameras.data_ptr() % 8 == 0


def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"byte\xff \n'")
    folder.mkdir()
    with new_feature_file(folder / "x.safetensors", {}) as writer:
        writer.add(torch.ones(3, 4), entries(["a", "b", "c"]))
        writer.end_split()
    table = read_table(folder / "x.safetensors")
    with new_feature_file(folder / "x.safetensors", {}) as writer:
        writer.add(torch.zeros(3, 4), entries(["a", "b", "c"]))
        writer.end_split()
    assert torch.equal(table.features, torch.ones(3, 4))
    assert torch.equal(read_table(folder / "x.safetensors").features, torch.zeros(3, 4))


def test_names_behave_as_a_list_of_them() -> None:
    content = torch.frombuffer(bytearray(b"abcdef\0\0"), dtype=torch.uint8)
    names = Names(content, torch.tensor([0, 1, 1, 6]))
    assert list(names) == ["a", "", "bcdef"] and names[-1] == "bcdef"
    assert names[1:] == ["", "bcdef"] and "a" in names
    with pytest.raises(IndexError):
        names[3]


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_text("old")

    def fail() -> None:
        with new_feature_file(path, {}) as writer:
            writer.add(torch.ones(1, 2), entries(["a"]))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["x.safetensors"]


def test_features_are_not_held_in_memory(tmp_path: Path) -> None:
    """Of 2^17 rows of 512 values, 268 MB, no copy is made when they are written or read."""
    path = tmp_path / "x.safetensors"
    rows = torch.ones(4096, 512)
    some = entries(["name"] * 4096)
    before = resident()
    with new_feature_file(path, {}) as writer:
        for _ in range(32):
            writer.add(rows, some)
        writer.end_split()
    table = read_table(path)
    assert table.features.shape == (2**17, 512) and float(table.features.sum()) > 0
    assert resident() - before < 60e6


def resident() -> int:
    """Bytes of memory that are not mapped from files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


def test_other_files_and_damage_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with new_feature_file(path, {}) as writer:
        writer.add(torch.ones(3, 4), entries(["a", "b", "c"]))
        writer.end_split()
    whole = path.read_bytes()
    for content in (b"", whole[:7], whole[:4200], whole[:-1], whole + b"x", whole[8:]):
        refused(tmp_path, content, "cannot be read as features")
    refused(tmp_path, whole.replace(b"features 1", b"features 9"), "its format is")
    offsets = whole.rindex((3).to_bytes(8, "little"))
    broken = bytearray(whole)
    broken[offsets] = 200
    refused(tmp_path, bytes(broken), "name_offsets do not ascend")
    save_file({"features": torch.ones(3, 4)}, tmp_path / "y.safetensors", {"format": "pt"})
    refused(tmp_path, (tmp_path / "y.safetensors").read_bytes(), "its format is 'pt'")
    os.mkfifo(tmp_path / "pipe")
    for other in ("pipe", "nothing", "."):
        with pytest.raises(DataError, match=r"regular file|No such file"):
            read_table(tmp_path / other)


def refused(folder: Path, content: bytes, message: str) -> None:
    (folder / "z.safetensors").write_bytes(content)
    with pytest.raises(DataError, match=message) as raised:
        read_table(folder / "z.safetensors")
    assert "\n" not in str(raised.value)


def test_random_damage_to_the_header_is_an_error_of_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with new_feature_file(path, {"model": "m"}) as writer:
        writer.add(torch.ones(3, 4), entries(["a", "b", "c"]))
        writer.end_split()
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(whole)
        for place in random.integers(0, 900, 3):
            damaged[place] = int(random.integers(256))
        path.write_bytes(damaged)
        assert "\n" not in message_of(path)


def message_of(path: Path) -> str:
    """The error of reading a file, or nothing."""
    try:
        read_table(path)
    except DataError as error:
        return str(error)
    return ""
