"""Checkpoints of a single process: written whole or not at all, read without executing pickles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError, WeightsError
from ..files import write_atomically
from ..models.weights import read_tensors

#: Version of the keys of a checkpoint. Format 1 had the metrics of the labels under another key.
FORMAT = 2


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Save a dictionary of tensors and plain values atomically.

    Raises:
        CheckpointError: The disk is full or not writable; the old checkpoint is intact.
    """
    write_atomically(path, lambda file: torch.save({"format": FORMAT, **state}, file))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load what `save_checkpoint` wrote, to the CPU.

    Raises:
        CheckpointError: The file is missing, damaged, not a checkpoint, or of another format.
    """
    try:
        state = read_tensors(path)
    except WeightsError as error:
        raise CheckpointError(
            f"{path} is not a readable checkpoint; delete it to start from the beginning, or start "
            "another run from best.pt with `weights`"
        ) from error
    if not isinstance(state, dict) or "format" not in state or "model" not in state:
        raise CheckpointError(
            f"{path} is not a checkpoint of fastreid_al; evaluate a bare weights file with `model`"
        )
    if state["format"] > FORMAT:
        raise CheckpointError(
            f"{path} was written by a newer fastreid_al (format {state['format']}, this version "
            f"reads {FORMAT}); update the package"
        )
    if state["format"] < FORMAT:
        raise CheckpointError(
            f"{path} was written by an earlier version of fastreid_al (format {state['format']}, "
            f"this version reads {FORMAT}); resume it with that version, or start another run from "
            "its best.pt with `weights`"
        )
    return state
