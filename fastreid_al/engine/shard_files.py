"""The files of sharded tensors, written and read by torch.distributed.checkpoint (DCP).

DCP keeps its index, `.metadata`, as a pickle. It is read here by an unpickler that knows only the
classes of the index, none of which does anything when it is made; any other name is refused.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from ..files import create_file, digest_of_file, make_folder, move_made
from .shard_folders import FILES

_DATA = re.compile(r"__[0-9]{1,9}_[0-9]{1,9}\.distcp")
#: Most bytes of an index; that of a run takes a few kB.
_LARGEST_INDEX = 2**26
_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "TensorProperties"),
        *("ChunkStorageMetadata", "BytesStorageMetadata", "_MEM_FORMAT_ENCODING"),
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "pathlib": {"Path", "PosixPath", "WindowsPath", "PurePosixPath"},
    "pathlib._local": {"Path", "PosixPath", "WindowsPath", "PurePosixPath"},
}


class ShardWriter(FileSystemWriter):
    """Writes the tensors of a process into new files that only their owner can read.

    Args:
        folder: The folder of the files, which is new.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, overwrite=False)
        #: SHA-256 of the files that this process wrote, in hexadecimal, by name.
        self.digests: dict[str, str] = {}
        self.fs = _PrivateFiles(self.digests)


class _PrivateFiles(FileSystem):
    """Files as DCP uses them: new ones, private, with their digests; links are not followed."""

    def __init__(self, digests: dict[str, str]) -> None:
        self._digests = digests

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[Any]:
        path = Path(path)
        if mode == "rb":
            with open_regular(path) as stream:
                yield stream
            return
        with create_file(path) as file:
            file.start_digest()
            try:
                yield file
            except RuntimeError as error:
                raise file.failed or error from error
            self._digests[path.name.removesuffix(".tmp")] = file.digest.hex()

    def mkdir(self, path: str | os.PathLike[str]) -> None:
        make_folder(Path(path))

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        move_made(Path(path), Path(new_path))

    def rm_file(self, path: str | os.PathLike[str]) -> None:
        raise FileExistsError(f"{path} exists already")


class ShardReader(FileSystemReader):
    """Reads tensors that `ShardWriter` or an earlier version wrote, without running a pickle.

    Args:
        folder: The folder of the files.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.fs = _PrivateFiles({})
        self._folder = folder

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return the index.

        Raises:
            pickle.UnpicklingError: It holds something else than an index does.
            ValueError: It names files or sizes that cannot be.
        """
        with open_regular(self._folder / ".metadata") as file:
            if os.fstat(file.fileno()).st_size > _LARGEST_INDEX:
                raise ValueError("the index is too large")
            metadata = _IndexUnpickler(file).load()
        _check_index(metadata, self._folder)
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _IndexUnpickler(pickle.Unpickler):
    """Reads the index of DCP; refuses every other class and function."""

    def find_class(self, module: str, name: str) -> Any:
        known = name in _CLASSES.get(module, ())
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            known = True
        if not known:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is never run")
        return super().find_class(module, name)


def _check_index(metadata: Any, folder: Path) -> None:
    """Refuse an index whose files lie elsewhere, or whose tensors are larger than its files."""
    assert isinstance(metadata, Metadata) and metadata.storage_meta is not None
    stored = 0
    for name in {info.relative_path for info in metadata.storage_data.values()}:
        if not _DATA.fullmatch(name):
            raise ValueError(f"the index names the file {name!r}")
        with open_regular(folder / name) as file:
            stored += os.fstat(file.fileno()).st_size
    claimed = 0
    for about in metadata.state_dict_metadata.values():
        assert isinstance(about, TensorStorageMetadata)
        claimed += torch.Size(about.size).numel() * about.properties.dtype.itemsize
    if claimed > stored:
        raise ValueError(f"the index names {claimed} bytes of tensors, its files hold {stored}")
    for info in metadata.storage_data.values():
        if info.offset < 0 or info.length < 0 or info.transform_descriptors:
            raise ValueError("the index names a part of a file that cannot be")


def open_regular(path: Path) -> Any:
    """Open a regular file for reading, not through a link.

    Raises:
        OSError: It is missing, a link, or not a regular file.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | os.O_NONBLOCK)
    file = os.fdopen(handle, "rb")
    if not path.is_file():
        file.close()
        raise OSError(f"{path.name} is not a regular file")
    return file


def check_files(folder: Path, digests: dict[str, str], rank: int, size: int) -> None:
    """Compare this rank's share of the files with their digests.

    Args:
        folder: The folder of the files.
        digests: SHA-256 in hexadecimal by the name of the file.
        rank: This process.
        size: Number of processes.

    Raises:
        ValueError: A file is not what was written.
        OSError: A file cannot be read.
    """
    for name in sorted(digests)[rank::size]:
        if not FILES.fullmatch(name):
            raise ValueError(f"the checkpoint names the file {name!r}")
        with open_regular(folder / name) as file:
            if digest_of_file(file, 2**62).hex() != digests[name]:
                raise ValueError(f"{name} is damaged: its content is not what was written")
