"""Checkpoints of several processes, from which any number of processes resumes."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastreid_al.distributed.world import SINGLE_PROCESS, Sharded, World
from fastreid_al.engine.checkpoint import load_checkpoint, save_checkpoint
from fastreid_al.engine.sharded_checkpoint import has_shards, load_shards, save_shards
from fastreid_al.errors import CheckpointError
from tests.support.process_pool import Pool

WHOLE = {
    "features": torch.arange(28.0).view(7, 4),
    "words": torch.arange(15, dtype=torch.int32).view(5, 3),
    "few": torch.tensor([[1.5]], dtype=torch.float64),
    "counts": torch.arange(9),
}


def state(world: World) -> dict[str, Any]:
    method = {name: world.shard(x[world.local_slice(len(x))], len(x)) for name, x in WHOLE.items()}
    return {"model": {"w": torch.ones(2)}, "epoch": 3, "method": {"memory": method, "none": None}}


def save(world: World, run: str, times: int) -> None:
    for _ in range(times):
        save_shards(Path(run), state(world), world)


def load(world: World, run: str) -> None:
    got = load_shards(Path(run), world)
    assert (
        got["epoch"] == 3
        and torch.equal(got["model"]["w"], torch.ones(2))
        and got["method"]["none"] is None
    )
    for name, x in WHOLE.items():
        value: Tensor | Sharded = got["method"]["memory"][name]
        rows = value.rows if isinstance(value, Sharded) else value
        assert torch.equal(rows, x[world.local_slice(len(x))]) and rows.dtype == x.dtype
        assert world.size == 1 or (isinstance(value, Sharded) and value.n == len(x))


@pytest.mark.parametrize("size", [2, 4])
def test_a_checkpoint_of_several_ranks_is_read_by_any_number(
    pool: Pool, tmp_path: Path, size: int
) -> None:
    pool.run(save, size, str(tmp_path), 2)
    assert [f.name for f in tmp_path.glob("last-*")] == ["last-1"]
    for other in (1, 2, 3, 4):
        pool.run(load, other, str(tmp_path))
    load(SINGLE_PROCESS, str(tmp_path))


def fail(world: World, run: str) -> str:
    if world.rank == 1:
        Path(run, "last-1").mkdir(exist_ok=True)
    try:
        save_shards(Path(run, "file" if world.is_first else ""), state(world), world)
    except CheckpointError as error:
        return str(error)
    return "nothing"


def test_a_failed_write_is_raised_on_all_ranks(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    for said in pool.run(fail, 2, str(tmp_path)):
        assert "could not write a checkpoint" in said


def test_a_pointer_to_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "last.json").write_text(json.dumps({"checkpoint": "../elsewhere"}))
    assert has_shards(tmp_path)
    with pytest.raises(CheckpointError, match="names no checkpoint"):
        load_shards(tmp_path, SINGLE_PROCESS)
    (tmp_path / "last.json").write_text(json.dumps({"checkpoint": "last-4"}))
    with pytest.raises(CheckpointError, match="readable checkpoint"):
        load_shards(tmp_path, SINGLE_PROCESS)


def test_a_sharded_checkpoint_of_the_first_format_is_refused_with_advice(tmp_path: Path) -> None:
    (tmp_path / "last.json").write_text(json.dumps({"checkpoint": "last-0", "ranks": 2}))
    (tmp_path / "last-0").mkdir()
    torch.save({"format": 1, "model": {}, "sharded": {}}, tmp_path / "last-0" / "common.pt")
    with pytest.raises(CheckpointError, match="an earlier version of fastreid_al"):
        load_shards(tmp_path, SINGLE_PROCESS)


class Executed:
    """What a pickle could run: it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path(self.path),))


@pytest.fixture
def saved(pool: Pool, tmp_path: Path) -> Path:
    """The folder of a run that two ranks saved."""
    run = tmp_path / "run"
    run.mkdir()
    pool.run(save, 2, str(run), 1)
    return run


def refused(run: Path) -> str:
    with pytest.raises(CheckpointError) as said:
        load_shards(run, SINGLE_PROCESS)
    assert "\n" not in str(said.value)
    return str(said.value)


def test_no_pickle_of_an_index_is_run(saved: Path, tmp_path: Path) -> None:
    content = pickle.dumps(Executed(tmp_path / "executed"))
    tensors = saved / "last-0" / "tensors"
    (tensors / ".metadata").write_bytes(content)
    assert "is damaged" in refused(saved)
    # As an earlier version wrote it, without digests.
    common = load_checkpoint(saved / "last-0" / "common.pt")
    del common["digests"]
    torch.save({**common, "format": 2}, saved / "last-0" / "common.pt")
    assert "pathlib.Path.touch, which is never run" in refused(saved)
    for module, name in (("os", "system"), ("builtins", "eval"), ("torch", "load")):
        (tensors / ".metadata").write_bytes(f"c{module}\n{name}\n(S'x'\ntR.".encode())
        assert f"{module}.{name}, which is never run" in refused(saved)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "name", ["/elsewhere/last-0", "../last-0", "last-0/../last-0", "last-٣", 7]
)
def test_the_pointer_leads_nowhere_but_into_the_run_folder(saved: Path, name: object) -> None:
    (saved / "last.json").write_text(json.dumps({"checkpoint": name}))
    assert "names no checkpoint" in refused(saved)


def test_a_checkpoint_that_is_a_link_is_not_followed(saved: Path, tmp_path: Path) -> None:
    (saved / "last-0").rename(tmp_path / "elsewhere")
    (saved / "last-0").symlink_to(tmp_path / "elsewhere")
    assert "names no checkpoint" in refused(saved)
    (saved / "last.json").write_text("[" * 4000)
    assert "names no checkpoint" in refused(saved)


def test_a_checkpoint_of_format_2_without_digests_is_read(saved: Path) -> None:
    common = load_checkpoint(saved / "last-0" / "common.pt")
    del common["digests"]
    torch.save({**common, "format": 2}, saved / "last-0" / "common.pt")
    load(SINGLE_PROCESS, str(saved))


def test_a_changed_bit_of_any_file_is_refused(saved: Path) -> None:
    for file in sorted((saved / "last-0").rglob("*")):
        if file.is_file():
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 4
            before = file.read_bytes()
            file.write_bytes(content)
            assert "damaged" in refused(saved)
            file.write_bytes(before)
    load(SINGLE_PROCESS, str(saved))


@pytest.mark.parametrize(
    "sharded", [None, [], {"method/memory/features": -1}, {"method/memory/features": 8}, {"x": 3}]
)
def test_wrong_lengths_of_sharded_tensors_are_refused(saved: Path, sharded: object) -> None:
    common = load_checkpoint(saved / "last-0" / "common.pt")
    save_checkpoint(saved / "last-0" / "common.pt", {**common, "sharded": sharded})
    assert "is not a readable checkpoint" in refused(saved)


def test_shards_are_their_owners_only_and_others_files_beside_them_stay(
    pool: Pool, saved: Path
) -> None:
    (saved / "last-0" / "notes.txt").touch()
    (saved / "last-best").mkdir()
    pool.run(save, 2, str(saved), 1)
    assert sorted(f.name for f in saved.glob("last-*")) == ["last-0", "last-1", "last-best"]
    assert [f.name for f in (saved / "last-0").iterdir()] == ["notes.txt"]
    for path in (saved / "last-1").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
