"""Checkpoints of several ranks: one file for what all share, sharded tensors by torch.distributed.checkpoint.

A checkpoint is a folder, `last-N`, and `last.json` names the one that holds; both are written whole or not at all. Any number
of ranks can go on from it, a single process too. DCP keeps its index as a pickle: resume from folders that you trust.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from ..distributed.world import Sharded, World
from ..engine.checkpoint import load_checkpoint, save_checkpoint
from ..errors import CheckpointError
from ..files import write_json

POINTER = "last.json"
_COMMON, _TENSORS = "common.pt", "tensors"


def save_shards(run: Path, state: dict[str, Any], world: World) -> None:
    """Save a dictionary of tensors, `Sharded` tensors and plain values. All ranks call it.

    Raises:
        CheckpointError: On all ranks: the disk is full or not writable; the checkpoint before it is intact.
    """
    before = _pointed(run) if world.is_first else None
    number = world.all_gather_objects(0 if before is None else int(before.rsplit("-", 1)[1]) + 1)[0]
    folder = run / f"last-{number}"
    error = None
    try:
        if world.is_first:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
    except OSError as failed:
        error = failed.strerror
    _agree(world, error, run)
    parts = dict(_sharded(state))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.save(
                {name: _distributed(part, world) for name, part in parts.items()},
                checkpoint_id=folder / _TENSORS,
                process_group=world.control,
            )
        if world.is_first:
            save_checkpoint(
                folder / _COMMON, {**_without(state), "sharded": {k: p.n for k, p in parts.items()}}
            )
            write_json(run / POINTER, {"checkpoint": folder.name, "ranks": world.size})
            for old in run.glob("last-*"):
                if old.name != folder.name:
                    shutil.rmtree(old, ignore_errors=True)
    except Exception as failed:
        if not isinstance(failed, CheckpointError | OSError | dcp.CheckpointException):
            raise
        error = str(failed).splitlines()[0]
    _agree(world, error, run)


def has_shards(run: Path) -> bool:
    """Whether a run's last checkpoint is one of several ranks."""
    return (run / POINTER).is_file()


def load_shards(run: Path, world: World) -> dict[str, Any]:
    """Load what `save_shards` wrote, to the CPU: to a rank its rows of sharded tensors, to a process alone the whole.

    All ranks call it.

    Raises:
        CheckpointError: It is missing, damaged, or of a newer version.
    """
    name = _pointed(run)
    if name is None:
        raise CheckpointError(
            f"{run / POINTER} names no checkpoint; delete it and last.pt to begin anew, or begin another run from best.pt "
            "with --weights"
        )
    state = load_checkpoint(run / name / _COMMON)
    lengths: dict[str, int] = state.pop("sharded")
    tensors = run / name / _TENSORS
    try:
        found = dcp.FileSystemReader(tensors).read_metadata().state_dict_metadata
        rooms: dict[str, Tensor] = {}
        for key in lengths:
            about = found[key]
            assert isinstance(about, TensorStorageMetadata)
            own = world.local_slice(about.size[0])
            rows = torch.empty(
                (own.stop - own.start, *about.size[1:]), dtype=about.properties.dtype
            )
            rooms[key] = (
                rows
                if world.size == 1
                else _distributed(Sharded(rows, about.size[0]), world, "cpu")
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.load(
                rooms, checkpoint_id=tensors, process_group=world.control, no_dist=world.size == 1
            )
    except (OSError, KeyError, AssertionError, dcp.CheckpointException) as error:
        raise CheckpointError(
            f"{tensors} is not a readable checkpoint; delete {run / POINTER} and last.pt to begin anew, or begin another run "
            "from best.pt with --weights"
        ) from error
    for key, room in rooms.items():
        rows = room.to_local() if isinstance(room, DTensor) else room
        _put(state, key, rows if world.size == 1 else Sharded(rows, lengths[key]))
    return state


def drop_shards(run: Path) -> None:
    """Forget the checkpoint of several ranks, when a process alone has written its own."""
    if has_shards(run):
        os.unlink(run / POINTER)
        for old in run.glob("last-*"):
            shutil.rmtree(old, ignore_errors=True)


def _pointed(run: Path) -> str | None:
    try:
        name = json.loads((run / POINTER).read_text())["checkpoint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (
        name if isinstance(name, str) and name.startswith("last-") and name[5:].isdigit() else None
    )


def _agree(world: World, error: str | None, run: Path) -> None:
    """Raise on all ranks what went wrong on one."""
    wrong = [said for said in world.all_gather_objects(error) if said is not None]
    if wrong:
        kept = (
            "the checkpoint before it is intact" if has_shards(run) else "there is none before it"
        )
        raise CheckpointError(
            f"could not write a checkpoint into {run} ({wrong[0]}); {kept}. Mend that, then go on with --resume"
        )


def _distributed(part: Sharded, world: World, device: str | None = None) -> DTensor:
    rows = part.rows.detach()
    assert world.control is not None
    mesh = DeviceMesh.from_group(world.control, device or rows.device.type)
    shape = torch.Size((part.n, *rows.shape[1:]))
    return DTensor.from_local(
        rows.contiguous(), mesh, [Shard(0)], shape=shape, stride=_strides(shape)
    )


def _strides(shape: torch.Size) -> tuple[int, ...]:
    return torch.empty(shape, device="meta").stride()


def _sharded(state: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Sharded]]:
    """The sharded tensors of nested dictionaries, by path."""
    for key, value in state.items():
        if isinstance(value, Sharded):
            yield prefix + key, value
        elif isinstance(value, dict):
            yield from _sharded(value, f"{prefix}{key}/")


def _without(state: dict[str, Any]) -> dict[str, Any]:
    """Nested dictionaries without their sharded tensors."""
    return {
        k: _without(v) if isinstance(v, dict) else v
        for k, v in state.items()
        if not isinstance(v, Sharded)
    }


def _put(state: dict[str, Any], path: str, value: object) -> None:
    *groups, key = path.split("/")
    for group in groups:
        state = state.setdefault(group, {})
    state[key] = value
