"""Checkpoints of several processes: one file of common values, and tensors sharded by rows.

A checkpoint is a folder `last-N`; `last.json` names the valid one. Both are written whole or not at
all. Any number of processes can resume from it, also a single one. The sharded tensors are written
by torch.distributed.checkpoint (DCP); no pickle is run when they are read (`shard_files`). The
file of common values holds their digests, and carries its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from ..distributed.world import Sharded, World
from ..errors import CheckpointError
from .checkpoint import load_checkpoint, save_checkpoint
from .checkpoint_content import is_count
from .shard_files import ShardReader, ShardWriter, check_files
from .shard_folders import (
    COMMON,
    POINTER,
    TENSORS,
    has_shards,
    last_checkpoint,
    make_checkpoint,
    next_checkpoint,
    point_to,
)


def save_shards(run: Path, state: dict[str, Any], world: World) -> None:
    """Save a dictionary of tensors, `Sharded` tensors and plain values. All processes call it.

    Args:
        run: The folder of the run.
        state: The state; what is not `Sharded` is written by the first process.
        world: The processes of the run.

    Raises:
        CheckpointError: On all processes: the disk is full or not writable; the checkpoint before
            it is intact.
    """
    name = next_checkpoint(run) if world.is_first else ""
    folder = run / world.all_gather_objects(name)[0]
    error = None
    try:
        if world.is_first:
            make_checkpoint(folder)
    except OSError as failed:
        error = failed.strerror
    _raise_together(world, error, run)
    try:
        _write(run, folder, state, world)
    except (CheckpointError, OSError, dcp.CheckpointException) as failed:
        error = _reason(failed)
    _raise_together(world, error, run)


def _reason(failed: BaseException) -> str:
    """Return why a write failed; DCP hides the system's reason in a traceback."""
    if isinstance(failed, dcp.CheckpointException):
        causes = [cause for cause, _ in failed.failures.values()]
        failed = next((c for c in causes if isinstance(c, OSError)), causes[0])
    # The message of a file is about that file alone; its cause is the system's reason.
    cause = failed.__cause__ if isinstance(failed, CheckpointError) else failed
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return str(failed).splitlines()[0]


def _write(run: Path, folder: Path, state: dict[str, Any], world: World) -> None:
    """Write a checkpoint into its folder, point to it, and remove the ones before it."""
    parts = dict(_sharded(state))
    tensors = {name: _distributed(part, world) for name, part in parts.items()}
    writer = ShardWriter(folder / TENSORS)
    with _without_warnings():
        dcp.save(tensors, storage_writer=writer, process_group=world.control)
    digests: dict[str, str] = {}
    for written in world.all_gather_objects(writer.digests):
        digests |= written
    if not world.is_first:
        return
    lengths = {name: part.n for name, part in parts.items()}
    common = {**_without_sharded(state), "sharded": lengths, "digests": digests}
    save_checkpoint(folder / COMMON, common)
    point_to(folder, world.size)


def load_shards(run: Path, world: World) -> dict[str, Any]:
    """Load what `save_shards` wrote, to the CPU. All processes call it.

    Args:
        run: The folder of the run.
        world: The processes of the run; each gets its own rows of the sharded tensors as `Sharded`,
            a single process gets the whole tensors.

    Raises:
        CheckpointError: The checkpoint is missing, damaged, or of another format.
    """
    name = last_checkpoint(run)
    if name is None:
        raise CheckpointError(
            f"{run / POINTER} names no checkpoint; delete it and last.pt to start from the "
            "beginning, or start another run from best.pt with `weights`"
        )
    state = load_checkpoint(run / name / COMMON)
    lengths = state.pop("sharded", None)
    digests = state.pop("digests", {})
    if not _are_lengths(lengths):
        raise _unreadable(run, name, "it does not say which tensors are sharded")
    problem = None
    tensors: dict[str, Tensor] = {}
    try:
        check_files(run / name / TENSORS, digests, world.rank, world.size)
    except Exception as error:
        problem = _reason(error)
    _refuse_together(world, run, name, problem)
    try:
        tensors = _read_tensors(run / name / TENSORS, lengths, world)
    except (Exception, dcp.CheckpointException) as error:
        raise _unreadable(run, name, _reason(error)) from error
    for key, tensor in tensors.items():
        rows = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        _put(state, key, rows if world.size == 1 else Sharded(rows, lengths[key]))
    return state


def _are_lengths(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(key, str) and is_count(length) for key, length in value.items()
    )


def _refuse_together(world: World, run: Path, name: str, problem: str | None) -> None:
    """Raise the first problem of any process on all of them."""
    for found in world.all_gather_objects(problem):
        if found is not None:
            raise _unreadable(run, name, found)


def _unreadable(run: Path, name: str, problem: str) -> CheckpointError:
    return CheckpointError(
        f"{run / name / TENSORS} is not a readable checkpoint ({problem}); delete {run / POINTER} "
        "and last.pt to start from the beginning, or start another run from best.pt with `weights`"
    )


def _read_tensors(folder: Path, lengths: dict[str, int], world: World) -> dict[str, Tensor]:
    """Read this process's rows of the sharded tensors, by their paths in the state."""
    reader = ShardReader(folder)
    found = reader.read_metadata().state_dict_metadata
    tensors: dict[str, Tensor] = {}
    for key, length in lengths.items():
        about = found[key]
        assert isinstance(about, TensorStorageMetadata)
        if about.size[0] != length:
            raise ValueError(f"{key} has {about.size[0]} rows, expected {length}")
        own = world.local_slice(length)
        shape = (own.stop - own.start, *about.size[1:])
        rows = torch.empty(shape, dtype=about.properties.dtype)
        if world.size > 1:
            rows = _distributed(Sharded(rows, length), world, "cpu")
        tensors[key] = rows
    with _without_warnings():
        single = world.size == 1
        dcp.load(tensors, storage_reader=reader, process_group=world.control, no_dist=single)
    return tensors


def _raise_together(world: World, error: str | None, run: Path) -> None:
    """Raise the first process's error on all processes; `error` is this process's, or None."""
    errors = [other for other in world.all_gather_objects(error) if other is not None]
    if errors:
        kept = "the checkpoint before it is intact"
        if not has_shards(run):
            kept = "there is none before it"
        raise CheckpointError(
            f"could not write a checkpoint into {run} ({errors[0]}); {kept}. "
            "Fix this, then continue with `resume`"
        )


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Hide DCP's warnings, which are about its own settings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _distributed(part: Sharded, world: World, device: str | None = None) -> DTensor:
    """Return a sharded tensor in the form that DCP takes."""
    rows = part.rows.detach().contiguous()
    assert world.control is not None
    mesh = DeviceMesh.from_group(world.control, device or rows.device.type)
    shape = torch.Size((part.n, *rows.shape[1:]))
    strides = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(rows, mesh, [Shard(0)], shape=shape, stride=strides)


def _sharded(state: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Sharded]]:
    """Yield the sharded tensors of nested dictionaries by path, such as "method/memory"."""
    for key, value in state.items():
        if isinstance(value, Sharded):
            yield prefix + key, value
        elif isinstance(value, dict):
            yield from _sharded(value, f"{prefix}{key}/")


def _without_sharded(state: dict[str, Any]) -> dict[str, Any]:
    """Return nested dictionaries without their sharded tensors."""
    kept = {}
    for key, value in state.items():
        if not isinstance(value, Sharded):
            kept[key] = _without_sharded(value) if isinstance(value, dict) else value
    return kept


def _put(state: dict[str, Any], path: str, value: object) -> None:
    """Set a value in nested dictionaries by its path."""
    *groups, key = path.split("/")
    for group in groups:
        state = state.setdefault(group, {})
    state[key] = value
