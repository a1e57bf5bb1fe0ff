"""Checkpoints: written whole or not at all, read without executing pickles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..data.records import ImageSet, Record
from ..errors import CheckpointError, WeightsError
from ..files import write_atomically
from ..models.weights import read_tensors

FORMAT = 1


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Save a dictionary of tensors and plain values atomically.

    Raises:
        CheckpointError: The disk is full or not writable; the old checkpoint is intact.
    """
    write_atomically(path, lambda file: torch.save({"format": FORMAT, **state}, file))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load what `save_checkpoint` wrote, to the CPU.

    Raises:
        CheckpointError: The file is missing, damaged, not a checkpoint, or of a newer version.
    """
    try:
        state = read_tensors(path)
    except WeightsError as error:
        raise CheckpointError(
            f"{path} is not a readable checkpoint; delete it to begin anew, or begin another run from best.pt with --weights"
        ) from error
    if not isinstance(state, dict) or "format" not in state or "model" not in state:
        raise CheckpointError(
            f"{path} is not a checkpoint of fastreid_al; evaluate a bare weights file with --model NAME"
        )
    if state["format"] > FORMAT:
        raise CheckpointError(
            f"{path} was written by a newer fastreid_al (format {state['format']}); update the package"
        )
    return state


def data_fingerprint(
    images: ImageSet, train: Sequence[Record], digests: Sequence[str]
) -> dict[str, str]:
    """What each image is: relative path -> digest of the content (training) or size (test), identity and camera.

    Some 150 bytes an image. Test images are not read for it: a large set is evaluated seldom.
    """
    parts = [(r, digest) for r, digest in zip(train, digests, strict=True)]
    parts += [(r, _size(r.path)) for r in (*images.query, *images.gallery)]
    return {
        r.path.relative_to(images.root).as_posix(): f"{what} {r.identity} {r.camera}"
        for r, what in parts
    }


def _size(path: Path) -> str:
    try:
        return str(path.stat().st_size)
    except OSError:
        return "unreadable"


def check_same_data(saved: dict[str, str], found: dict[str, str]) -> None:
    """Refuse to continue on other images than the run began with.

    Raises:
        CheckpointError: Naming how many images are missing, new or changed, and the first of them.
    """
    if differences := different_images(saved, found):
        raise CheckpointError(
            f"the images are not those the run began with: {differences}; "
            "restore them, or start a new run with another --run-dir"
        )


def different_images(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """How many images are missing, new or changed, and the first of them; empty where they are the same."""
    missing = [name for name in before if name not in now]
    new = [name for name in now if name not in before]
    changed = [name for name in before if name in now and before[name] != now[name]]
    return ", ".join(
        f"{len(names)} {what} (first: {names[0]})"
        for what, names in (("missing", missing), ("new", new), ("changed", changed))
        if names
    )
