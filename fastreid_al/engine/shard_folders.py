"""The folders of checkpoints of several processes, and the file that names the last one.

A single process looks for them too. This module does not import torch.distributed.checkpoint,
which takes more than a second.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path

from ..files import (
    TEMPORARY,
    list_folder,
    make_folder,
    remove_file,
    remove_folder,
    write_json,
)

POINTER = "last.json"
COMMON = "common.pt"
TENSORS = "tensors"
#: Names of the files of sharded tensors, as DCP gives them.
FILES = re.compile(r"__[0-9]{1,9}_[0-9]{1,9}\.distcp|\.metadata(\.tmp)?")
_POINTER = re.compile(re.escape(POINTER))
_CHECKPOINT = re.compile(r"last-[0-9]{1,9}")
_ALL_FILES = re.compile(rf"{re.escape(COMMON)}|{FILES.pattern}|{TEMPORARY.pattern}")
#: Most bytes of `last.json`.
_LARGEST_POINTER = 4096


def has_shards(run: Path) -> bool:
    """Whether the last checkpoint of a run was written by several processes."""
    return os.path.isfile(run / POINTER)


def last_checkpoint(run: Path) -> str | None:
    """Return the name of the valid checkpoint's folder in a run's; None when there is none."""
    name = None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        name = json.loads(_read_start(run / POINTER))["checkpoint"]
    # A link would lead out of the run's folder.
    if not isinstance(name, str) or not _CHECKPOINT.fullmatch(name) or (run / name).is_symlink():
        return None
    return name


def _read_start(path: Path) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read(_LARGEST_POINTER)


def next_checkpoint(run: Path) -> str:
    """Return the name of the folder of the next checkpoint."""
    before = last_checkpoint(run)
    number = 0 if before is None else int(before.rsplit("-", 1)[1]) + 1
    return f"last-{number}"


def make_checkpoint(folder: Path) -> None:
    """Make the folder of a checkpoint, empty."""
    remove_folder(folder, _CHECKPOINT, _ALL_FILES)
    make_folder(folder / TENSORS)


def point_to(folder: Path, ranks: int) -> None:
    """Make a checkpoint the last one, and remove the ones before it."""
    write_json(folder.parent / POINTER, {"checkpoint": folder.name, "ranks": ranks})
    _remove_checkpoints(folder.parent, folder.name)


def drop_shards(run: Path) -> None:
    """Remove the checkpoint of several processes, after a single process has written its own."""
    if has_shards(run):
        remove_file(run / POINTER, _POINTER)
        _remove_checkpoints(run)


def _remove_checkpoints(run: Path, kept: str = "") -> None:
    for old in list_folder(run, _CHECKPOINT):
        if old.name != kept:
            remove_folder(old, _CHECKPOINT, _ALL_FILES)
