"""Files of image features: .safetensors, written part by part and read by mapping.

For every image there is a row in each tensor of its split. The training images, or the images of a
file that has no splits, have the tensors

    features       (n, D) float32, unit-norm
    names          (b,) uint8, the bytes of all names, one after the other
    name_offsets   (n + 1,) int64; name i is names[name_offsets[i]:name_offsets[i + 1]]
    digests        (n, 16) uint8, BLAKE2b of the content of each image file
    cameras        (n,) int64, -1 where unknown
    identities     (n,) int64, -1 where unknown; where the images have identities
    sizes          (n,) int64, bytes of each image file; in an index only
    modified       (n,) int64, its time of modification in nanoseconds; in an index only

and those of other splits have the split's name before, as in `query_features`. A name holds the
bytes of a path with slashes, which need not be UTF-8. Zero bytes may follow the last name, so that
the tensors behind it begin at multiples of eight bytes.

The metadata, all texts, say where the features come from: `format`, `model_digest` (what
`runs.trained.Trained.digest` returns), `model` (name of the backbone), `height`, `width`, `stage`,
`flip`, `precision` and `version` (of this project). An index also has its `gallery`.
"""

from __future__ import annotations

import json
import os
import stat
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from torch import Tensor

from ..errors import DataError, UserError
from ..files import replacing

#: What the metadata says a file is.
FORMAT = "fastreid_al features 1"
#: Columns beside features, names and digests, and the field of `ImageEntry` that each holds.
COLUMNS: Mapping[str, str] = {
    "cameras": "camera",
    "identities": "identity",
    "sizes": "size",
    "modified": "modified",
}
#: Bytes of a digest.
_DIGEST = 16
#: Bytes that the header may take for each tensor.
_PER_TENSOR = 160
_PAGE = 4096


class ImageEntry(NamedTuple):
    """What a file of features holds of an image in addition to its features.

    Args:
        name: Its path.
        digest: Digest of its content, 32 hexadecimal digits.
        camera: -1 where unknown.
        identity: -1 where unknown.
        size: Bytes of the file.
        modified: Time of its modification in nanoseconds.
    """

    name: str
    digest: str
    camera: int = -1
    identity: int = -1
    size: int = -1
    modified: int = -1


class Names(Sequence[str]):
    """Names of images, decoded when they are asked for.

    Args:
        content: (b,) uint8, their bytes.
        offsets: (n + 1,) int64, ascending from 0.
    """

    def __init__(self, content: Tensor, offsets: Tensor) -> None:
        self._content = content.numpy()
        self._offsets = offsets.numpy()

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        """Return a name; bytes that are not UTF-8 are as in the names of files (PEP 383)."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        begin, end = self._offsets[index : index + 2]
        return os.fsdecode(self._content[begin:end].tobytes())


@dataclass(frozen=True)
class FeatureTable:
    """The images of a split in a file of features.

    Args:
        features: (n, D) float32, mapped from the file: 267 MB at n = 32,621 and 8.2 GB at 1e6 for
            D = 2,048, of which the system holds what is read.
        names: Their paths, some 100 bytes an image.
        digests: (n, 16) uint8, digests of the contents.
        cameras: (n,) int64, -1 where unknown.
        identities: (n,) int64, -1 where unknown; None where the file has none.
        sizes: (n,) int64, bytes of the image files; None where the file has none.
        modified: (n,) int64, nanoseconds; None where the file has none.
        about: The metadata.
    """

    features: Tensor
    names: Names
    digests: Tensor
    cameras: Tensor
    identities: Tensor | None
    sizes: Tensor | None
    modified: Tensor | None
    about: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.features)

    def entry(self, row: int) -> ImageEntry:
        """What the table holds of an image in addition to its features."""
        of_row = [-1 if x is None else int(x[row]) for x in self._columns]
        return ImageEntry(self.names[row], bytes(self.digests[row].numpy()).hex(), *of_row)

    @property
    def _columns(self) -> tuple[Tensor | None, ...]:
        return self.cameras, self.identities, self.sizes, self.modified


class FeatureWriter:
    """Writes a file of features, part by part, into an open file.

    The features go to the file at once; the names and the other columns stay in memory until
    their split ends, some 100 bytes an image and the bytes of its name: 200 MB at 1e6.

    Args:
        file: A new file, open for writing in binary mode.
        about: The metadata.
        columns: Names in `COLUMNS` that are written; cameras always are.
        splits: Most splits that the file gets.
    """

    def __init__(
        self,
        file: Any,
        about: Mapping[str, str],
        columns: Sequence[str] = ("cameras",),
        splits: int = 1,
    ) -> None:
        self._file = file
        self._about = {"format": FORMAT, **about}
        self._columns = [name for name in COLUMNS if name == "cameras" or name in columns]
        self._tensors: dict[str, dict[str, Any]] = {}
        self._room = _header_room(self._about, splits * (4 + len(self._columns)))
        self._at = 0
        file.seek(self._room)
        self._start()

    def _start(self) -> None:
        self._dim = 0
        self._begin = self._at
        self._names = bytearray()
        self._offsets = array("q", [0])
        self._digests = bytearray()
        self._values = {name: array("q") for name in self._columns}

    def add(self, features: Tensor, entries: Sequence[ImageEntry]) -> None:
        """Write images of the present split.

        Args:
            features: (m, D) float32.
            entries: The m images.
        """
        self._dim = features.shape[1]
        self._append(np.ascontiguousarray(features.cpu().numpy(), dtype="<f4"))
        for entry in entries:
            self._names += os.fsencode(entry.name)
            self._offsets.append(len(self._names))
            self._digests += bytes.fromhex(entry.digest)
        for column, values in self._values.items():
            values.extend(getattr(entry, COLUMNS[column]) for entry in entries)

    def end_split(self, prefix: str = "") -> int:
        """End the present split.

        Args:
            prefix: Stands before the names of its tensors.

        Returns:
            Its number of images.
        """
        n = len(self._offsets) - 1
        self._note(f"{prefix}features", "F32", [n, self._dim], self._begin)
        self._write(f"{prefix}digests", "U8", [n, _DIGEST], bytes(self._digests))
        names_end = self._at + len(self._names)
        self._names += bytes(-names_end % 8)
        self._write(f"{prefix}names", "U8", [len(self._names)], bytes(self._names))
        for name, values in {"name_offsets": self._offsets, **self._values}.items():
            content = np.frombuffer(values, np.int64) if len(values) else np.empty(0, np.int64)
            self._write(f"{prefix}{name}", "I64", [len(values)], content.astype("<i8"))
        self._start()
        return n

    def finish(self) -> None:
        """Write the header."""
        header = json.dumps({"__metadata__": self._about, **self._tensors}).encode()
        self._file.seek(0)
        self._file.write((self._room - 8).to_bytes(8, "little"))
        self._file.write(header.ljust(self._room - 8))

    def _append(self, content: Any) -> None:
        self._file.write(memoryview(content).cast("B") if len(content) else b"")
        self._at += memoryview(content).nbytes

    def _write(self, name: str, dtype: str, shape: list[int], content: Any) -> None:
        begin = self._at
        self._append(content)
        self._note(name, dtype, shape, begin)

    def _note(self, name: str, dtype: str, shape: list[int], begin: int) -> None:
        self._tensors[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, self._at]}


def _header_room(about: Mapping[str, str], tensors: int) -> int:
    """Bytes that are kept for the header: whole pages."""
    needed = 8 + len(json.dumps(about)) + _PER_TENSOR * (tensors + 1)
    return -(-needed // _PAGE) * _PAGE


@contextmanager
def new_feature_file(
    path: Path,
    about: Mapping[str, str],
    columns: Sequence[str] = ("cameras",),
    *,
    splits: int = 1,
    key: str = "out",
) -> Iterator[FeatureWriter]:
    """Yield a writer of a file that is complete, and readable by its owner only, when this ends.

    Args:
        path: The file; an existing one is replaced at the end.
        about: The metadata.
        columns: Names in `COLUMNS` that are written.
        splits: Most splits that the file gets.
        key: Key of the setting that names the file, for the message.

    Raises:
        UserError: The disk is full or not writable; the old file is intact.
    """
    try:
        with replacing(path) as file:
            writer = FeatureWriter(file, about, columns, splits)
            yield writer
            writer.finish()
    except OSError as error:
        raise UserError(
            f"could not write {path} ({error.strerror}); name a file on another disk with `{key}`"
        ) from error


def _opened(path: Path) -> Any:
    """The file as the package safetensors opens it, which takes a path as UTF-8 only."""
    from safetensors import safe_open

    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        with open(path, "rb") as file:
            return safe_open(f"/dev/fd/{file.fileno()}", "pt")
    return safe_open(path, "pt")


class TensorFile:
    """A .safetensors file whose header is read, and whose tensors are mapped when they are asked.

    Args:
        path: The file.

    Raises:
        DataError: It cannot be read as .safetensors.
    """

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError

        self.path = path
        try:
            # Not a pipe or a device, which could be read for ever.
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise OSError(0, "it is no regular file")
            self._file = _opened(path)
            self.about: dict[str, str] = dict(self._file.metadata() or {})
            self._names = frozenset(self._file.keys())
        except OSError as error:
            raise self.damaged(error.strerror or str(error)) from error
        except (SafetensorError, ValueError, UnicodeError) as error:
            raise self.damaged(str(error)) from error

    def damaged(self, reason: str) -> DataError:
        """The error that says that the file cannot be read."""
        lines = reason.splitlines() or ["damaged"]
        return DataError(
            f"{self.path} cannot be read as features ({lines[0]:.200}); "
            "the command extract writes such a file"
        )

    def __contains__(self, name: str) -> bool:
        return name in self._names

    @property
    def names(self) -> list[str]:
        """The names of the tensors."""
        return sorted(self._names)

    def kind(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Dtype, as the format spells it, and shape of a tensor."""
        about = self._file.get_slice(name)
        return about.get_dtype(), tuple(about.get_shape())

    def tensor(self, name: str) -> Tensor:
        """A tensor, mapped from the file."""
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def checked(self, name: str, dtype: str, *shape: int | None) -> Tensor:
        """A tensor of a known dtype and shape, in which None is any length.

        Raises:
            DataError: It is not there, or is another.
        """
        if name not in self:
            raise self.damaged(f"it has no tensor {name}")
        found, sizes = self.kind(name)
        fits = len(sizes) == len(shape) and all(
            expected in (None, size) for size, expected in zip(sizes, shape, strict=True)
        )
        if found != dtype or not fits:
            expected = ", ".join("any" if size is None else str(size) for size in shape)
            raise self.damaged(f"{name} is {found} {sizes}, expected {dtype} ({expected})")
        return self.tensor(name)


def read_table(path: Path, prefix: str = "") -> FeatureTable:
    """Read the images of a split of a file that this project wrote.

    Args:
        path: The file.
        prefix: Stands before the names of the split's tensors, such as "query_".

    Returns:
        The images; their features are mapped and not read.

    Raises:
        DataError: The file cannot be read, or is another.
    """
    file = TensorFile(path)
    if file.about.get("format") != FORMAT:
        raise file.damaged(f"its format is {file.about.get('format', 'unknown')!r:.60}")
    features = file.checked(f"{prefix}features", "F32", None, None)
    n = len(features)
    content = file.checked(f"{prefix}names", "U8", None)
    offsets = file.checked(f"{prefix}name_offsets", "I64", n + 1)
    if int(offsets[0]) != 0 or int(offsets[-1]) > len(content) or bool((offsets.diff() < 0).any()):
        raise file.damaged(f"{prefix}name_offsets do not ascend from 0 to the length of the names")
    optional = {
        name: file.checked(f"{prefix}{name}", "I64", n) if f"{prefix}{name}" in file else None
        for name in ("identities", "sizes", "modified")
    }
    return FeatureTable(
        features,
        Names(content, offsets),
        file.checked(f"{prefix}digests", "U8", n, _DIGEST),
        file.checked(f"{prefix}cameras", "I64", n),
        **optional,
        about=file.about,
    )
