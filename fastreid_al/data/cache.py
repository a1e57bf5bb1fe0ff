"""A folder of decoded pixels that are kept for later runs and used by all processes of a machine.

    pixels-KEY.u8      the pixels; then, as JSON, the images left out and checksums; its length and
                       checksum
    index-LIST.npy     digests of the files of one list of paths, with what shows whether a file is
                       still the same
    list-LIST.lock     held by the process that reads or decodes that list, while others of the
                       machine wait for it
    .fastreid_al-*.tmp a file that is being written

The key is made of the digests of the files' contents in their order, of the size, and of the
library that decodes, so that files may be moved or touched. Files of pixels are renamed when they
are complete and never changed; they may be mapped by any number of processes, and removed at any
time: on Linux a mapping outlives its name. A process that opens one reads all of it once, for its
checksums. If a cache cannot be written, the run works without it.

An entry of the index holds as long as the file's size, inode, time of modification and time of
change of its inode, which no program can set, are what they were when it was read. It is kept only
of files that had not been changed in the two seconds before they were read, because a second change
could leave all four as they are. After the index is removed, all files are read once more.

The files can be read by their owner only. Nothing is removed but regular files whose whole names
are those above, with 32 hexadecimal digits for KEY and LIST.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
from PIL import features

from ..files import TEMPORARY, list_folder, make_folder, remove_file, remove_files, replacing
from ..locks import lock, open_lock

_JPEG_LIBRARY = features.version("libjpeg_turbo") or features.version("jpg")
#: Everything that decides the pixels in addition to contents and size; its number is raised when
#: the method of resizing changes.
RESAMPLING = f"2, Pillow {PIL.__version__}, jpeg {_JPEG_LIBRARY}"

_MAGIC = b"fral-px1"
#: End of a file of pixels: length and checksum of the JSON before it, and the magic bytes.
_FOOT = struct.Struct("<QL8s")
#: Images of one checksum, and paths of one task.
_BLOCK = 256
#: A file that was changed less than this before it was read gets no entry in the index.
_RACE_NS = 2 * 10**9
#: Seconds after which a process that waits for another reports it.
_PATIENCE = 10.0
_SECONDS_PER_DAY = 86_400
_PIXELS = re.compile(r"pixels-[0-9a-f]{32}\.u8")
_INDEX_FILE = re.compile(r"index-[0-9a-f]{32}\.npy")
_LOCK = re.compile(r"list-[0-9a-f]{32}\.lock")
#: Pixels that an earlier version was writing.
_PART = re.compile(r"[0-9a-f]{32}-[0-9a-f]{32}\.part")
#: Days after which files other than pixels are removed, because no process uses them any more.
_LEFT_OVER = {TEMPORARY: 1, _PART: 1, _LOCK: 30, _INDEX_FILE: 30}
#: Marks, instead of a digest, a file that cannot be read; the reason follows.
_UNREADABLE = "!"

#: Most bytes of the header of an index, and of what follows the pixels apart from the reasons.
_LARGEST_HEADER = 4096
#: Most bytes of the reason why an image is left out.
_REASON = 4096

_INDEX = np.dtype(
    [("size", "i8"), ("modified", "i8"), ("changed", "i8"), ("inode", "u8"), ("digest", "V16")]
)


class _Changed(Exception):  # noqa: N818
    """Images were changed while they were decoded."""


class FileState(NamedTuple):
    """What is known of an image file.

    Args:
        digest: Digest of its content, empty where it cannot be read.
        reason: Why the image is left out, empty where it is not.
    """

    digest: str
    reason: str = ""


class CachedPixels(NamedTuple):
    """Pixels (n, 3, H, W) uint8 from the cache, read or mapped, and the state of the n files."""

    pixels: np.ndarray
    files: list[FileState]


Progress = Callable[[int, int], None]


def digest_of(content: bytes) -> str:
    """Return the digest of a content: 32 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


@contextmanager
def threads() -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of a thread for each core; tasks that have not begun at its end do not run."""
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def reserve(file: Any, size: int) -> None:
    """Reserve the space of an open file now.

    Without that, a full disk would be a bus error in the middle of decoding.

    Args:
        file: The file, open for writing.
        size: Its size in bytes.
    """
    with contextlib.suppress(AttributeError):
        os.posix_fallocate(file.fileno(), 0, size)
    file.truncate(size)


class PixelCache:
    """A folder of decoded pixels.

    A file takes 98 kB for each image of 256 x 128: 3.2 GB at n = 32,621, 98 GB at 1e6; an index
    takes 48 bytes for each image.

    Args:
        folder: The folder; made when it does not exist.
        budget: Bytes of all files of pixels, past which the least recently used are removed when
            another is added. A file that is larger by itself is not made.
        warn: Called with one line for a problem that does not stop the run.
    """

    def __init__(self, folder: Path, budget: float, warn: Callable[[str], None]) -> None:
        self.folder = folder
        self.budget = budget
        self._warn = warn

    def get(
        self,
        paths: Sequence[Path],
        height: int,
        width: int,
        mapped: bool,
        fill: Callable[[np.ndarray], list[FileState]],
        on_progress: Progress | None = None,
    ) -> CachedPixels | None:
        """Return the pixels of a list of files; they are decoded now if they are not in the cache.

        Args:
            paths: The n files.
            height: Height of the pixels.
            width: Width of the pixels.
            mapped: Map the file rather than read it into memory.
            fill: Decodes all files into (n, 3, H, W) uint8.
            on_progress: Called with (files read, files in all) while digests are taken, if they
                have to be.

        Returns:
            The pixels; None where they cannot be kept.
        """
        shape = (len(paths), 3, height, width)
        size = len(paths) * 3 * height * width
        if not size:
            return None
        if size > self.budget:
            self._warn(
                f"{size / 2**30:.1f} GiB of decoded pixels are not kept in {self.folder}: "
                f"more than `image.cache_gib` {self.budget / 2**30:g}"
            )
            return None
        names, list_name = _list_of(paths)
        try:
            make_folder(self.folder)
            # Once more if the file is damaged, or removed by another process.
            for _ in range(2):
                with self._locked(list_name):
                    digests = self._digests(names, list_name, on_progress)
                    key = _key(digests, height, width)
                    file = self.folder / f"pixels-{key}.u8"
                    if not file.exists() and not self._make(file, key, shape, digests, fill):
                        return None
                opened = self._open(file, shape, mapped, digests)
                if opened is not None:
                    return opened
        except OSError as error:
            self._warn(f"decoded pixels are not kept in {self.folder}: {error.strerror or error}")
        return None

    def digests(self, paths: Sequence[Path], on_progress: Progress | None = None) -> list[str]:
        """Return the digests of files' contents, empty for a file that cannot be read.

        A file that is still what it was when it was last read is not read again.

        Args:
            paths: The n files; the same list that `get` is called with, where it is.
            on_progress: Called with (files done, files in all).

        Raises:
            OSError: The cache cannot be written.
        """
        names, list_name = _list_of(paths)
        make_folder(self.folder)
        with self._locked(list_name):
            found = self._digests(names, list_name, on_progress)
        return ["" if digest.startswith(_UNREADABLE) else digest for digest in found]

    def _make(
        self,
        file: Path,
        key: str,
        shape: tuple[int, ...],
        digests: list[str],
        fill: Callable[[np.ndarray], list[FileState]],
    ) -> bool:
        """Decode into a new file; False where images were changed meanwhile."""
        try:
            with replacing(file, durable=False) as out:
                reserve(out, int(np.prod(shape)))
                pixels = np.memmap(out, np.uint8, "r+", shape=shape)
                files = fill(pixels)
                if [_digest_or_reason(x) for x in files] != digests:
                    raise _Changed
                with threads() as pool:
                    sums = list(pool.map(zlib.crc32, _blocks(pixels)))
                reasons = {index: x.reason for index, x in enumerate(files) if x.reason}
                text = json.dumps({"reasons": reasons, "sums": sums}).encode()
                out.seek(0, os.SEEK_END)
                out.write(text + _FOOT.pack(len(text), zlib.crc32(text), _MAGIC))
                del pixels
        except _Changed:
            self._warn("decoded pixels are not kept: images were changed while they were read")
            return False
        self._tidy(file)
        return True

    def _open(
        self, file: Path, shape: tuple[int, ...], mapped: bool, digests: list[str]
    ) -> CachedPixels | None:
        """Read or map a file; None, and the file is removed, if it is damaged."""
        size = int(np.prod(shape))
        try:
            with file.open("rb") as source:
                inode = os.fstat(source.fileno()).st_ino
                source.seek(size)
                content = _content(source.read(_LARGEST_HEADER + _REASON * shape[0]))
                pixels: np.ndarray = np.empty(0)
                if content:
                    pixels = np.memmap(source, np.uint8, "r", shape=shape)
        except FileNotFoundError:
            # Another process has removed it since.
            return None
        if content is not None:
            out = pixels if mapped else np.empty(shape, np.uint8)
            with threads() as pool:
                sums = list(pool.map(_read_block, _blocks(out), _blocks(pixels), repeat(mapped)))
            if sums == content["sums"]:
                with contextlib.suppress(OSError):
                    os.utime(file)
                return CachedPixels(out, _files(digests, content["reasons"]))
        with contextlib.suppress(FileNotFoundError):
            # Not if another process has replaced it by a sound one.
            if file.stat().st_ino == inode:
                self._warn(f"{file} is damaged and is made again")
                remove_file(file, _PIXELS)
        return None

    def _digests(self, names: list[str], list_name: str, on_progress: Progress | None) -> list[str]:
        """Digest of each file's content; where unreadable, an exclamation mark and the reason."""
        file = self.folder / f"index-{list_name}.npy"
        old = _read_index(file, len(names))
        new = np.zeros(len(names), _INDEX)

        def digest_block(start: int) -> list[str]:
            digests = []
            for index in range(start, min(start + _BLOCK, len(names))):
                digests.append(_digest(names[index], old[index], new[index : index + 1]))
            return digests

        digests: list[str] = []
        with threads() as pool:
            for block in pool.map(digest_block, range(0, len(names), _BLOCK)):
                digests += block
                if on_progress is not None and len(digests) < len(names):
                    on_progress(len(digests), len(names))
        if (new != old).any():
            _write_index(file, new)
        else:
            with contextlib.suppress(OSError):
                os.utime(file)
        return digests

    @contextmanager
    def _locked(self, list_name: str) -> Iterator[None]:
        """Hold a list's lock.

        Where a file system has no locks, two processes may do the same work; one result is kept.
        """
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):
                descriptor = open_lock(self.folder / f"list-{list_name}.lock")
                stack.callback(os.close, descriptor)
                self._wait_for(descriptor)
            yield

    def _wait_for(self, descriptor: int) -> None:
        """Wait for a lock; report it once if that takes long."""
        began = time.monotonic()
        reported = False
        while True:
            try:
                lock(descriptor)
                return
            except BlockingIOError:
                time.sleep(0.05)
            if not reported and time.monotonic() - began > _PATIENCE:
                reported = True
                self._warn(
                    f"waiting for another process that decodes the same images into {self.folder}"
                )

    def _tidy(self, made: Path) -> None:
        """Remove leftovers, then the least recently used pixels until the rest fits the budget."""
        for pattern, days in _LEFT_OVER.items():
            remove_files(self.folder, pattern, older_than=_SECONDS_PER_DAY * days)
        pixel_files: list[tuple[float, int, Path]] = []
        for path in list_folder(self.folder, _PIXELS):
            with contextlib.suppress(OSError):
                status = path.lstat()
                used = time.time() if path == made else status.st_mtime
                pixel_files.append((used, status.st_size, path))
        total = sum(size for _, size, _ in pixel_files)
        for _, size, path in sorted(pixel_files):
            if total > self.budget and path != made:
                total -= size
                remove_file(path, _PIXELS)


def _list_of(paths: Sequence[Path]) -> tuple[list[str], str]:
    """Return the absolute paths of a list, and the name of the list."""
    names = [os.path.abspath(path) for path in paths]
    return names, digest_of("\0".join(names).encode("utf-8", "surrogatepass"))


def _key(digests: Sequence[str], height: int, width: int) -> str:
    """Name of the pixels of files with these contents."""
    return digest_of(
        "\n".join([RESAMPLING, f"{height} x {width}", *digests]).encode("utf-8", "surrogatepass")
    )


def _digest_or_reason(file: FileState) -> str:
    return file.digest or f"{_UNREADABLE}{file.reason}"


def _files(digests: Sequence[str], reasons: dict[str, str]) -> list[FileState]:
    """What is known of the files, from their digests and the reasons by index."""
    files = []
    for index, digest in enumerate(digests):
        readable = "" if digest.startswith(_UNREADABLE) else digest
        files.append(FileState(readable, reasons.get(str(index), "")))
    return files


def _digest(name: str, old: np.void, new: np.ndarray) -> str:
    """The digest of a file, from its entry in the old index if that holds.

    Args:
        name: The file.
        old: Its entry in the old index.
        new: Its entry in the new index, (1,); written where the file is readable.
    """
    try:
        status = os.stat(name)
        if _same(status, old):
            new[0] = old
            return bytes(old["digest"]).hex()
        with open(name, "rb") as source:
            began = time.time_ns()
            status = os.fstat(source.fileno())
            digest = digest_of(source.read())
    except OSError as error:
        return f"{_UNREADABLE}{error.strerror or error}"
    if max(status.st_mtime_ns, status.st_ctime_ns) < began - _RACE_NS:
        new[0] = (
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
            status.st_ino,
            bytes.fromhex(digest),
        )
    return digest


def _same(status: os.stat_result, entry: np.void) -> bool:
    """Whether a file is what it was when its entry was written."""
    # An entry that was not written is all zeros, and no file was changed in 1970.
    return (
        bool(entry["changed"])
        and entry["size"] == status.st_size
        and entry["modified"] == status.st_mtime_ns
        and entry["changed"] == status.st_ctime_ns
        and entry["inode"] == status.st_ino
    )


def _read_index(file: Path, n: int) -> np.ndarray:
    """Read an index of n files; all zeros where there is none."""
    try:
        # A header that is damaged may ask for any amount of memory.
        if file.stat().st_size <= n * _INDEX.itemsize + _LARGEST_HEADER:
            index = np.load(file, mmap_mode="r", allow_pickle=False)
            if index.dtype == _INDEX and index.shape == (n,):
                return np.array(index)
    except Exception:  # damaged bytes raise a wide range of types
        return np.zeros(n, _INDEX)
    return np.zeros(n, _INDEX)


def _write_index(file: Path, index: np.ndarray) -> None:
    """Write an index atomically; if that fails, the next run reads the images again."""
    with contextlib.suppress(OSError), replacing(file, durable=False) as out:
        np.save(out, index, allow_pickle=False)


def _content(tail: bytes) -> dict[str, Any] | None:
    """The JSON after the pixels; None where it is not what was written."""
    if len(tail) < _FOOT.size:
        return None
    length, checksum, magic = _FOOT.unpack(tail[-_FOOT.size :])
    text = tail[: -_FOOT.size]
    if magic != _MAGIC or length != len(text) or checksum != zlib.crc32(text):
        return None
    content = json.loads(text)
    known = isinstance(content, dict) and {"reasons", "sums"} <= content.keys()
    return content if known and isinstance(content["reasons"], dict) else None


def _blocks(pixels: np.ndarray) -> list[np.ndarray]:
    return [pixels[start : start + _BLOCK] for start in range(0, len(pixels), _BLOCK)]


def _read_block(out: np.ndarray, pixels: np.ndarray, mapped: bool) -> int:
    """Copy a block, unless it is mapped, and return its checksum."""
    if not mapped:
        out[:] = pixels
    return zlib.crc32(out)  # type: ignore[arg-type]  # an array is a buffer
