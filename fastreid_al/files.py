"""Writes files whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

from .errors import CheckpointError


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file so that at any instant either the old or the new content is complete on disk.

    The content is written into a temporary file next to `path`, flushed to the disk, and renamed.

    Args:
        path: The file.
        write: Writes the content into the open file that it is called with.

    Raises:
        CheckpointError: The disk is full or not writable; the old file is intact.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch.save turns a failed write into a RuntimeError
        with contextlib.suppress(OSError):
            temporary.unlink()
        kept = "the one before it is intact" if path.exists() else "there is none before it"
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise CheckpointError(
            f"could not write {path} ({reason}); {kept}. Fix this, then continue with `resume`"
        ) from error


def _sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename survives a power failure."""
    with contextlib.suppress(OSError):  # not every file system lets a folder be opened
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: Path, content: object) -> None:
    """Write JSON atomically.

    Raises:
        CheckpointError: The disk is full or not writable; the old file is intact.
    """
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
