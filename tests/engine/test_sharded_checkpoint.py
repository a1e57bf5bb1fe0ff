"""Checkpoints of several processes, from which any number of processes resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastreid_al.distributed.world import SINGLE_PROCESS, Sharded, World
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
