"""Decoded pixels that are kept for later runs, and that the processes of a machine share, in the files of one folder.

    pixels-KEY.u8      the pixels; then, as JSON, the images left out and checksums; its length and checksum
    index-LIST.npy     digests of the files of one list of paths, with what shows whether a file is still the same
    LIST.lock          held by the process that reads or decodes that list, while others of the machine wait for it
    KEY-NUMBER.part    pixels in the making

The key is made of the digests of the files' contents in their order, of the size, and of the library that decodes, so that
files may be moved or touched. Files of pixels are renamed into place when they are complete and never changed; they may be
mapped by any number of processes, and removed at any time: on Linux a mapping outlives its name. Who opens one reads all of it
once, for its checksums. A cache that cannot be written is done without.

An entry of the index holds as long as the file's size, inode, time of modification and time of change of its inode, which no
program can set, are what they were when it was read; it is kept only of files that had not been changed in the two seconds
before they were read, because a second change could leave all four as they are. Removing the index costs one reading of all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import time
import uuid
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

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

#: Whatever decides the pixels beside the contents and the size: raised when the way of resizing changes.
RESAMPLING = f"1, Pillow {PIL.__version__}, jpeg {features.version('libjpeg_turbo') or features.version('jpg')}"

_MAGIC = b"fral-px1"
_FOOT = struct.Struct("<QL8s")
#: Images of one checksum, and paths of one task.
_BLOCK = 256
_RACE_NS = 2 * 10**9
#: Seconds after which a process that waits for another says so.
_PATIENCE = 10.0
#: Days after which files other than pixels are taken for left over.
_LEFT_OVER = {".part": 1, ".lock": 30, ".npy": 30}

_INDEX = np.dtype(
    [("size", "i8"), ("modified", "i8"), ("changed", "i8"), ("inode", "u8"), ("digest", "V16")]
)


class Seen(NamedTuple):
    """One file: the digest of its content, empty where it cannot be read, and why it is left out, empty where it is not."""

    digest: str
    reason: str = ""


class Kept(NamedTuple):
    """Pixels (n, 3, H, W) uint8 from the cache, read or mapped, and what is known of the n files."""

    pixels: np.ndarray
    seen: list[Seen]


Progress = Callable[[int, int], None]


def digest_of(content: bytes) -> str:
    """32 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


@contextmanager
def threads() -> Iterator[ThreadPoolExecutor]:
    """A thread for each core; what has not begun when the block is left never does."""
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def reserve(file: Any, size: int) -> None:
    """Give an open file `size` bytes, now: without that a full disk would be a bus error in the middle of decoding."""
    with contextlib.suppress(AttributeError):
        os.posix_fallocate(file.fileno(), 0, size)
    file.truncate(size)


class PixelCache:
    """A folder of decoded pixels.

    A file takes 98 kB an image of 256 x 128: 3.2 GB at n = 32,621, 98 GB at 1e6; an index 48 bytes an image.

    Args:
        folder: The folder; made when it does not exist.
        budget: Bytes of all files of pixels, past which those used longest ago are removed when another is added. A file that
            alone is larger is not made.
        warn: Called with one line for what is amiss and does not stop the run.
    """

    def __init__(self, folder: Path, budget: float, warn: Callable[[str], None]) -> None:
        self.folder, self.budget, self._warn = folder, budget, warn

    def get(
        self,
        paths: Sequence[Path],
        height: int,
        width: int,
        mapped: bool,
        fill: Callable[[np.ndarray], list[Seen]],
        on_progress: Progress | None = None,
    ) -> Kept | None:
        """The pixels of a list of files, decoded now if they are not there; None where they cannot be kept.

        Args:
            paths: The n files.
            height: Height of the pixels.
            width: Width of the pixels.
            mapped: Map the file rather than read it into memory.
            fill: Decodes all files into (n, 3, H, W) uint8.
            on_progress: Called with (files read, files in all) while digests are taken, if they have to be.
        """
        shape = (len(paths), 3, height, width)
        size = len(paths) * 3 * height * width
        if not size:
            return None
        if size > self.budget:
            self._warn(
                f"{size / 2**30:.1f} GiB of decoded pixels are not kept in {self.folder}: more than --image.cache-gib "
                f"{self.budget / 2**30:g}"
            )
            return None
        places = [os.path.abspath(path) for path in paths]
        name = digest_of("\0".join(places).encode("utf-8", "surrogatepass"))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for _ in range(2):  # once more if the file is damaged, or removed by another process
                with self._alone(name):
                    digests = self._digests(places, name, on_progress)
                    key = digest_of(
                        "\n".join([RESAMPLING, f"{height} x {width}", *digests]).encode()
                    )
                    file = self.folder / f"pixels-{key}.u8"
                    if not file.exists() and not self._make(file, key, shape, digests, fill):
                        return None
                found = self._opened(file, shape, mapped, digests)
                if found is not None:
                    return found
        except OSError as error:
            self._warn(f"decoded pixels are not kept in {self.folder}: {error.strerror or error}")
        return None

    def _make(
        self,
        file: Path,
        key: str,
        shape: tuple[int, ...],
        digests: list[str],
        fill: Callable[[np.ndarray], list[Seen]],
    ) -> bool:
        part = self.folder / f"{key}-{uuid.uuid4().hex}.part"
        try:
            with part.open("xb") as out:
                reserve(out, int(np.prod(shape)))
                pixels = np.memmap(part, np.uint8, "r+", shape=shape)
                seen = fill(pixels)
                if [_part_of_key(x) for x in seen] != digests:
                    self._warn(
                        "decoded pixels are not kept: images were changed while they were read"
                    )
                    return False
                with threads() as pool:
                    sums = list(pool.map(zlib.crc32, _blocks(pixels)))
                reasons = {place: x.reason for place, x in enumerate(seen) if x.reason}
                text = json.dumps({"reasons": reasons, "sums": sums}).encode()
                out.seek(0, os.SEEK_END)
                out.write(text + _FOOT.pack(len(text), zlib.crc32(text), _MAGIC))
                del pixels
            os.replace(part, file)
        finally:
            part.unlink(missing_ok=True)
        self._tidy(file)
        return True

    def _opened(
        self, file: Path, shape: tuple[int, ...], mapped: bool, digests: list[str]
    ) -> Kept | None:
        """What a file holds; None, and the file is removed, if it is damaged."""
        size = int(np.prod(shape))
        try:
            with file.open("rb") as source:
                number = os.fstat(source.fileno()).st_ino
                source.seek(size)
                tail = source.read()
                content = _content(tail)
                pixels: np.ndarray = (
                    np.memmap(source, np.uint8, "r", shape=shape) if content else np.empty(0)
                )
        except FileNotFoundError:  # it was removed since
            return None
        if content is not None:
            out = pixels if mapped else np.empty(shape, np.uint8)
            with threads() as pool:
                if (
                    list(pool.map(_read, _blocks(out), _blocks(pixels), repeat(mapped)))
                    == content["sums"]
                ):
                    with contextlib.suppress(OSError):
                        os.utime(file)
                    reasons = content["reasons"]
                    seen = [
                        Seen("" if digest.startswith("!") else digest, reasons.get(str(place), ""))
                        for place, digest in enumerate(digests)
                    ]
                    return Kept(out, seen)
        with contextlib.suppress(FileNotFoundError):
            if file.stat().st_ino == number:  # unless another process has mended it
                self._warn(f"{file} is damaged and is made again")
                file.unlink()
        return None

    def _digests(self, places: list[str], name: str, on_progress: Progress | None) -> list[str]:
        """Digest of each file's content; an exclamation mark and the reason where it cannot be read."""
        file = self.folder / f"index-{name}.npy"
        old = _index(file, len(places))
        new = np.zeros(len(places), _INDEX)

        def block(start: int) -> list[str]:
            return [
                _digest(place, old[start + number], new[start + number : start + number + 1])
                for number, place in enumerate(places[start : start + _BLOCK])
            ]

        digests: list[str] = []
        with threads() as pool:
            for some in pool.map(block, range(0, len(places), _BLOCK)):
                digests += some
                if on_progress is not None and len(digests) < len(places):
                    on_progress(len(digests), len(places))
        if (new != old).any():
            part = file.with_name(f"{uuid.uuid4().hex}.part")
            try:
                with part.open("xb") as out:
                    np.save(out, new, allow_pickle=False)
                os.replace(part, file)
            except OSError:  # the next run reads the files again
                part.unlink(missing_ok=True)
        else:
            with contextlib.suppress(OSError):
                os.utime(file)
        return digests

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Hold a list's lock. Where there are none, two processes may do the same work, and one result is kept."""
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):
                file = stack.enter_context((self.folder / f"{name}.lock").open("ab"))
                if fcntl is not None:
                    self._wait_for(file.fileno())
            yield

    def _wait_for(self, descriptor: int) -> None:
        began, said = time.monotonic(), False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(0.05)
            if not said and time.monotonic() - began > _PATIENCE:
                said = True
                self._warn(
                    f"waiting for another process that decodes the same images into {self.folder}"
                )

    def _tidy(self, made: Path) -> None:
        """Remove what is left over, then the pixels used longest ago until the rest is within the budget."""
        now = time.time()
        found: list[tuple[float, int, Path]] = []
        for path in self.folder.iterdir():
            with contextlib.suppress(OSError):
                facts = path.stat()
                if path.match("pixels-*.u8"):
                    found.append((now if path == made else facts.st_mtime, facts.st_size, path))
                elif now - facts.st_mtime > 86_400 * _LEFT_OVER.get(path.suffix, float("inf")):
                    path.unlink()
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total > self.budget and path != made:
                total -= size
                path.unlink(missing_ok=True)


def _part_of_key(x: Seen) -> str:
    return x.digest or f"!{x.reason}"


def _digest(place: str, old: np.void, new: np.ndarray) -> str:
    """The digest of a file, from its entry in the index if that holds; writes the entry."""
    try:
        facts = os.stat(place)
        if _same(facts, old):
            new[0] = old
            return bytes(old["digest"]).hex()
        with open(place, "rb") as source:
            began, facts = time.time_ns(), os.fstat(source.fileno())
            digest = digest_of(source.read())
    except OSError as error:
        return f"!{error.strerror or error}"
    if max(facts.st_mtime_ns, facts.st_ctime_ns) < began - _RACE_NS:
        new[0] = (
            facts.st_size,
            facts.st_mtime_ns,
            facts.st_ctime_ns,
            facts.st_ino,
            bytes.fromhex(digest),
        )
    return digest


def _same(facts: os.stat_result, entry: np.void) -> bool:
    # An entry that was not written is all zeros, and no file was changed in 1970.
    was = entry["size"], entry["modified"], entry["changed"], entry["inode"]
    return bool(entry["changed"]) and was == (
        facts.st_size,
        facts.st_mtime_ns,
        facts.st_ctime_ns,
        facts.st_ino,
    )


def _index(file: Path, n: int) -> np.ndarray:
    try:
        index = np.load(file, allow_pickle=False)
        if index.dtype == _INDEX and index.shape == (n,):
            return np.asarray(index)
    except (OSError, ValueError, EOFError):
        pass
    return np.zeros(n, _INDEX)


def _content(tail: bytes) -> dict[str, Any] | None:
    """What stands after the pixels; None where it is not what was written."""
    if len(tail) < _FOOT.size:
        return None
    length, checksum, magic = _FOOT.unpack(tail[-_FOOT.size :])
    text = tail[: -_FOOT.size]
    if magic != _MAGIC or length != len(text) or checksum != zlib.crc32(text):
        return None
    content: dict[str, Any] = json.loads(text)
    return content


def _blocks(pixels: np.ndarray) -> list[np.ndarray]:
    return [pixels[start : start + _BLOCK] for start in range(0, len(pixels), _BLOCK)]


def _read(out: np.ndarray, pixels: np.ndarray, mapped: bool) -> int:
    """Copy a block, unless it is mapped, and take its checksum."""
    if not mapped:
        out[:] = pixels
    return zlib.crc32(out)  # type: ignore[arg-type]  # an array is a buffer
