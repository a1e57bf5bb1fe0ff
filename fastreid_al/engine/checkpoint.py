"""Checkpoints of a single process: written whole or not at all, read without executing pickles.

A checkpoint carries the SHA-256 of its content, so that a changed bit is noticed. Format 2, which
was written before there was a digest and has the same keys, is still read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError, WeightsError
from ..files import write_with_digest
from ..models.weights import read_tensors
from .checkpoint_content import is_count, is_tensors

#: Version of the keys of a checkpoint. Format 1 had the metrics of the labels under another key;
#: format 2 had no digest.
FORMAT = 3
#: The oldest format that is read.
_OLDEST = 2


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Save a dictionary of tensors and plain values atomically, with the digest of the file.

    Raises:
        CheckpointError: The disk is full or not writable; the old checkpoint is intact.
    """
    write_with_digest(path, lambda file: torch.save({"format": FORMAT, **state}, file))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load what `save_checkpoint` wrote, to the CPU; also files of format 2, without a digest.

    Raises:
        CheckpointError: The file is missing, damaged, not a checkpoint, or of another format.
    """
    try:
        state = read_tensors(path)
    except WeightsError as error:
        raise CheckpointError(
            f"{path} is not a readable checkpoint ({error}); delete it to start from the "
            "beginning, or start another run from best.pt with `weights`"
        ) from error
    if not isinstance(state, dict) or not is_count(state.get("format")) or "model" not in state:
        raise CheckpointError(
            f"{path} is not a checkpoint of fastreid_al; evaluate a bare weights file with `model`"
        )
    _check_format(path, state["format"])
    if not is_tensors(state["model"]):
        raise CheckpointError(
            f"{path} is not a checkpoint that a run wrote: its weights are not tensors"
        )
    return state


def _check_format(path: Path, found: int) -> None:
    if found > FORMAT:
        raise CheckpointError(
            f"{path} was written by a newer fastreid_al (format {found}, this version "
            f"reads {FORMAT}); update the package"
        )
    if found < _OLDEST:
        raise CheckpointError(
            f"{path} was written by an earlier version of fastreid_al (format {found}, "
            f"this version reads {FORMAT}); resume it with that version, or start another run from "
            "its best.pt with `weights`"
        )
