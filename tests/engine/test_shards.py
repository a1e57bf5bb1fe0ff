"""Checkpoints of several ranks: any number of ranks, one too, goes on from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ranked import Pool
from torch import Tensor

from fastreid_al.engine.shards import has_shards, load_shards, save_shards
from fastreid_al.errors import CheckpointError
from fastreid_al.ranks import ALONE, Ranks, Sharded

WHOLE = {
    "features": torch.arange(28.0).view(7, 4),
    "words": torch.arange(15, dtype=torch.int32).view(5, 3),
    "few": torch.tensor([[1.5]], dtype=torch.float64),
    "counts": torch.arange(9),
}


def state(ranks: Ranks) -> dict[str, Any]:
    method = {name: ranks.shard(x[ranks.own(len(x))], len(x)) for name, x in WHOLE.items()}
    return {"model": {"w": torch.ones(2)}, "epoch": 3, "method": {"memory": method, "none": None}}


def save(ranks: Ranks, run: str, times: int) -> None:
    for _ in range(times):
        save_shards(Path(run), state(ranks), ranks)


def load(ranks: Ranks, run: str) -> None:
    found = load_shards(Path(run), ranks)
    assert found["epoch"] == 3 and torch.equal(found["model"]["w"], torch.ones(2)) and found["method"]["none"] is None
    for name, x in WHOLE.items():
        value: Tensor | Sharded = found["method"]["memory"][name]
        rows = value.rows if isinstance(value, Sharded) else value
        assert torch.equal(rows, x[ranks.own(len(x))]) and rows.dtype == x.dtype
        assert ranks.size == 1 or (isinstance(value, Sharded) and value.n == len(x))


@pytest.mark.parametrize("size", [2, 4])
def test_a_checkpoint_of_several_ranks_is_read_by_any_number(pool: Pool, tmp_path: Path, size: int) -> None:
    pool.run(save, size, str(tmp_path), 2)
    assert [f.name for f in tmp_path.glob("last-*")] == ["last-1"]
    for other in (1, 2, 3, 4):
        pool.run(load, other, str(tmp_path))
    load(ALONE, str(tmp_path))


def fail(ranks: Ranks, run: str) -> str:
    if ranks.rank == 1:
        Path(run, "last-1").mkdir(exist_ok=True)
    try:
        save_shards(Path(run, "file" if ranks.is_first else ""), state(ranks), ranks)
    except CheckpointError as error:
        return str(error)
    return "nothing"


def test_what_cannot_be_written_is_refused_on_all_ranks(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    for said in pool.run(fail, 2, str(tmp_path)):
        assert "could not write a checkpoint" in said


def test_a_pointer_to_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "last.json").write_text(json.dumps({"checkpoint": "../elsewhere"}))
    assert has_shards(tmp_path)
    with pytest.raises(CheckpointError, match="names no checkpoint"):
        load_shards(tmp_path, ALONE)
    (tmp_path / "last.json").write_text(json.dumps({"checkpoint": "last-4"}))
    with pytest.raises(CheckpointError, match="readable checkpoint"):
        load_shards(tmp_path, ALONE)
