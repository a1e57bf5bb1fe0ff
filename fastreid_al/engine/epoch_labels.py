"""The labels of each epoch in which questions were asked, which a run keeps beside its ledger."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError, UserError, printable
from ..files import TEMPORARY, make_folder, remove_file, remove_files, write_atomically

#: Folder of a run that holds the labels of its epochs.
FOLDER = "epoch_labels"
_NAMES = "images.z"
_EPOCH = re.compile(r"epoch-(\d{4,9})\.npz")
#: What reading a damaged file raises. zipfile raises RuntimeError, or its NotImplementedError, for
#: damaged flags, versions and methods of compression.
_DAMAGED = (
    *(OSError, ValueError, KeyError, EOFError, RuntimeError),
    *(zlib.error, zipfile.BadZipFile),
)


class EpochLabels(NamedTuple):
    """The labels of an epoch.

    Args:
        names: n paths relative to the image set's folder, with forward slashes.
        labels: (n,) int64 cluster of each image, -1 outside every cluster.
        event: Last event of the ledger that they were made from.
    """

    names: list[str]
    labels: Tensor
    event: int


class EpochLabelsFolder:
    """Writes and reads the labels of the epochs of a run.

    The names of the images are written once, and the labels of an epoch as a compressed int32
    array: up to 58 kB an epoch at n = 32,621 and 2.3 MB at 1e6, where images of a person are not
    next to each other, and about a third of it where they are. The names take 126 kB and 3.9 MB.

    Args:
        run: Folder of the run.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / FOLDER

    def write_names(self, names: Sequence[str]) -> None:
        """Write the paths of the n images, in the order of their labels."""
        text = "\0".join(names).encode("utf-8", "surrogateescape")
        if self.path.is_dir():
            # What a killed run was writing.
            remove_files(self.path, TEMPORARY)
        self._write(_NAMES, zlib.compress(text))

    def write(self, epoch: int, labels: Tensor, event: int) -> None:
        """Write the labels of an epoch; those of an earlier attempt at the epoch are replaced.

        Args:
            epoch: The epoch, from 1.
            labels: (n,) int64 cluster of each image, -1 outside every cluster.
            event: Last event of the ledger that they were made from.
        """
        file = io.BytesIO()
        np.savez_compressed(
            file, labels=labels.cpu().numpy().astype(np.int32), event=np.int64(event)
        )
        self._write(f"epoch-{epoch:04d}.npz", file.getvalue())

    def remove_from(self, epoch: int) -> None:
        """Remove the labels of an epoch and of those after it."""
        for later in self.epochs():
            if later >= epoch:
                remove_file(self.path / f"epoch-{later:04d}.npz", _EPOCH)

    def _write(self, name: str, content: bytes) -> None:
        try:
            make_folder(self.path)
        except OSError as error:
            raise CheckpointError(f"could not make {self.path} ({error.strerror})") from error
        write_atomically(self.path / name, lambda file: file.write(content))

    def epochs(self) -> list[int]:
        """Return the epochs whose labels are kept, ascending."""
        if not self.path.is_dir():
            return []
        found = (_EPOCH.fullmatch(file.name) for file in self.path.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def read(self, epoch: int) -> EpochLabels:
        """Return the labels of an epoch.

        Raises:
            UserError: The run keeps no labels of this epoch, or they are damaged.
        """
        kept = self.epochs()
        if epoch not in kept:
            raise UserError(
                f"{printable(self.path.parent)} keeps no labels of epoch {epoch}; {_kept(kept)}"
            )
        file = self.path / f"epoch-{epoch:04d}.npz"
        try:
            text = zlib.decompress((self.path / _NAMES).read_bytes())
            names = text.decode("utf-8", "surrogateescape").split("\0")
            with np.load(file, allow_pickle=False) as arrays:
                labels, event = arrays["labels"], int(arrays["event"])
        except _DAMAGED as error:
            raise UserError(
                f"the labels of epoch {epoch} in {printable(self.path)} cannot be read ({error}); "
                "restore the folder, or export another epoch"
            ) from error
        if labels.shape != (len(names),) or labels.dtype != np.int32:
            raise UserError(
                f"{printable(file)} holds {labels.shape} of {labels.dtype}, expected "
                f"({len(names)},) int32, one label for each image; restore it"
            )
        return EpochLabels(names, torch.from_numpy(labels.astype(np.int64)), event)


def _kept(epochs: list[int]) -> str:
    """What to say of the epochs whose labels are kept."""
    if not epochs:
        return "a run keeps them of each epoch in which it asks questions"
    return f"it keeps those of epochs {epochs[0]} to {epochs[-1]}, in which it asked questions"
