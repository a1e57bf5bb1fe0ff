"""What a run continues from, and whether a checkpoint fits the run that asks for it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..config import RunConfig
from ..distributed.world import World
from ..errors import CheckpointError
from ..settings import flatten, resumable_keys
from .checkpoint import load_checkpoint
from .checkpoint_content import check_content
from .run_folder import RunFolder
from .shard_folders import POINTER, has_shards


def holds_run(folder: RunFolder) -> bool:
    """Whether the folder holds a checkpoint, of one process or of several."""
    return os.path.exists(folder.last) or has_shards(folder.path)


def after_divergence(folder: RunFolder) -> str:
    """Return what to do after a training has diverged, as words of a message."""
    if holds_run(folder):
        return "the last checkpoint is intact. Continue with `resume` and a lower `optimizer.lr`"
    return "no checkpoint was written yet. Start again with a lower `optimizer.lr`"


def last_state(folder: RunFolder, world: World) -> dict[str, Any] | None:
    """Return the last state that a run saved, by one process or several; None if it saved none.

    All processes call it.

    Args:
        folder: The folder of the run.
        world: The processes of the run.

    Raises:
        CheckpointError: The checkpoint cannot be read.
    """
    sharded = None
    if has_shards(folder.path):
        # Imported here: it takes more than a second, and a single process needs it rarely.
        from .sharded_checkpoint import load_shards

        sharded = load_shards(folder.path, world)
        check_content(sharded, folder.path / POINTER)
    whole = load_checkpoint(folder.last) if os.path.exists(folder.last) else None
    if whole is not None and "optimizer" in whole:
        check_content(whole, folder.last)
    if sharded is None or whole is None:
        return sharded or whole
    # Both exist when several processes wrote weights for evaluation next to their shards, or when a
    # single process was killed between writing its checkpoint and removing the shards.
    if "optimizer" not in whole:
        return sharded
    return whole if _progress(whole) > _progress(sharded) else sharded


def _progress(state: Mapping[str, Any]) -> tuple[int, int]:
    return state["epoch"], state["step"]


def check_resumable(state: Mapping[str, Any], config: RunConfig) -> None:
    """Refuse a checkpoint of a run with other settings, before expensive work starts.

    Args:
        state: A checkpoint's state.
        config: The configuration of the run that asks for it.

    Raises:
        CheckpointError: Settings differ that may not change, which are named; or the checkpoint
            lacks the state of a training run.
    """
    if "optimizer" not in state:
        raise CheckpointError(
            "the checkpoint holds only weights; resume from last.pt of a run, not best.pt"
        )
    trained = flatten(state["config"])
    asked = flatten(config)
    fixed = asked.keys() - resumable_keys(RunConfig)
    different = [key for key in asked if key in fixed and trained.get(key) != asked[key]]
    if different:
        raise CheckpointError(
            f"the checkpoint was trained with {named_values(trained, different)}, "
            f"the run asks for {named_values(asked, different)}; "
            "resume with the former, or start a new run with another `run_dir`"
        )


def named_values(settings: Mapping[str, Any], keys: list[str]) -> str:
    """Return settings and their values as words of a message."""
    return " ".join(f"`{key}` {settings.get(key)}" for key in keys)
