"""The images of a ledger as pictures for a browser, decoded and encoded again."""

from __future__ import annotations

import io
import os
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from PIL import Image

from ..data.cache import digest_of
from ..data.pixels import file_digests, to_rgb
from ..data.records import UNKNOWN, Record
from ..data.walk import find_images
from ..errors import printable

#: Heights that pictures are made in; a request gets the next larger one.
HEIGHTS = (96, 192, 384, 768, 1536)
#: Encoded pictures that are kept, in bytes.
_KEPT = 64 * 2**20
_QUALITY = 92
#: Seconds after which all files may be read again for an image that is missing.
_LOOK_AGAIN = 600.0


class Picture(NamedTuple):
    """An encoded image.

    Args:
        content: Its bytes.
        media_type: Their type.
    """

    content: bytes
    media_type: str


class UnshownError(Exception):
    """An image that cannot be shown; the message says why."""


class _NotThereError(UnshownError):
    """The file of an image is missing under its name, or has other content."""


class Pictures:
    """Finds the images of a ledger on the disk, and encodes them for a browser.

    Only images that the ledger names can be shown, and only files below the folder of the set. A
    picture is made from the pixels alone: the metadata of the file, such as where it was taken,
    stays here. Encoded pictures take up to 64 MiB.

    An image that was renamed or moved is found by its content. When the first one is missing, all
    files of the set are read once, and again after 10 minutes at the earliest.

    Args:
        root: Folder of the image set.
        records: Images of the set by path relative to the folder, with forward slashes. With None,
            any path in the ledger is read below the folder.
        cache: Folder of decoded pixels, which may know digests of files; None without one.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        root: Path,
        records: Mapping[str, Record] | None = None,
        cache: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root = root
        self._records = records
        self._cache = cache
        self._clock = clock
        #: Files by the digest of their content, once an image was missing, and when they were read.
        self._by_digest: dict[str, Path] = {}
        self._looked_at: float | None = None
        self._looking = threading.Lock()
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, str, int], Picture] = OrderedDict()
        self._bytes = 0

    def caption(self, path: str) -> str:
        """Return camera, time and track of an image as far as they are known.

        The name of the file is not part of it, because it may say who is shown.

        Args:
            path: Path of the image in the ledger.
        """
        record = (self._records or {}).get(path)
        if record is None:
            return ""
        camera = "" if record.camera == UNKNOWN else f"camera {record.camera}"
        return ", ".join(part for part in (camera, printable(record.caption)) if part)

    def has(self, path: str) -> bool:
        """Return whether there is a file for an image; its content is not read.

        Args:
            path: Path of the image in the ledger.
        """
        try:
            return self._file(path).is_file()
        except (UnshownError, OSError, ValueError):
            return False

    def picture(self, path: str, digest: str, height: int | None) -> Picture:
        """Return an image, no higher than asked, and never enlarged.

        Args:
            path: Path of the image in the ledger.
            digest: Digest of its content, empty when unknown.
            height: Height in pixels; None for its own.

        Raises:
            UnshownError: There is no such file, it has other content, or it is damaged.
        """
        height = next((h for h in HEIGHTS if height is not None and h >= height), 0)
        key = path, digest, height
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        picture = _encode(self._content(path, digest), height)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = picture
                self._bytes += len(picture.content)
            while self._bytes > _KEPT and len(self._kept) > 1:
                self._bytes -= len(self._kept.popitem(last=False)[1].content)
        return picture

    def forget(self, path: str, digest: str) -> None:
        """Remove an image that was erased from the pictures that are kept."""
        with self._lock:
            for key in [key for key in self._kept if key[:2] == (path, digest)]:
                self._bytes -= len(self._kept.pop(key).content)

    def find_moved(
        self, digests: Collection[str], on_progress: Callable[[int, int], None] | None = None
    ) -> set[str]:
        """Return those of some digests that a file of the set has.

        All files are read, unless they were a short time ago.

        Args:
            digests: Digests of contents.
            on_progress: Called with (files done, files in all).
        """
        wanted = set(digests) - {""}
        return {digest for digest in wanted if self._moved(digest, on_progress) is not None}

    def _content(self, path: str, digest: str) -> bytes:
        """The content of an image, by its name, else by its digest."""
        try:
            return _read(self._file(path), digest)
        except _NotThereError as error:
            file = self._moved(digest, wait=False) if digest else None
            if file is None:
                also = ", and no other file has its content" if digest else ""
                raise UnshownError(f"{error}{also}") from error
        return _read(file, digest)

    def _moved(
        self,
        digest: str,
        on_progress: Callable[[int, int], None] | None = None,
        wait: bool = True,
    ) -> Path | None:
        """The file with a content; None without one.

        Raises:
            UnshownError: Another thread looks for a file, and this one does not wait.
        """
        # One request looks. If others waited for it, answers would find no thread.
        if not self._looking.acquire(blocking=wait):
            raise UnshownError("the file of the image is looked for; load the page again later")
        try:
            file = self._by_digest.get(digest)
            if file is not None and file.is_file():
                return file
            now = self._clock()
            if self._looked_at is None or now - self._looked_at >= _LOOK_AGAIN:
                files = self._files()
                found = file_digests(files, self._cache, on_progress)
                self._by_digest = {d: f for d, f in zip(found, files, strict=True) if d}
                self._looked_at = now
            return self._by_digest.get(digest)
        finally:
            self._looking.release()

    def _files(self) -> list[Path]:
        """The files that may be shown."""
        if self._records is not None:
            return [record.path for record in self._records.values()]
        root = os.path.realpath(self._root)
        found = find_images(self._root).images
        return [f for f in found if os.path.commonpath([root, os.path.realpath(f)]) == root]

    def _file(self, path: str) -> Path:
        """The file of an image by its name."""
        if self._records is not None:
            record = self._records.get(path)
            if record is None:
                raise _NotThereError("the image is not in the set any more")
            return record.path
        parts = PurePosixPath(path).parts
        # A ledger that somebody else wrote must not show other files of this machine.
        if "\0" in path or not parts or ".." in parts or path.startswith("/"):
            raise UnshownError("the path of the image leads out of the folder of the set")
        root = os.path.realpath(self._root)
        file = os.path.realpath(self._root / path)
        if os.path.commonpath([root, file]) != root:
            raise UnshownError("the path of the image leads out of the folder of the set")
        return Path(file)


def records_by_name(root: Path, records: Sequence[Record]) -> dict[str, Record]:
    """Return records by the path that a ledger has for them.

    Args:
        root: Folder of the image set.
        records: Its images.
    """
    return {record.path.relative_to(root).as_posix(): record for record in records}


def _read(file: Path, digest: str) -> bytes:
    try:
        content = file.read_bytes()
    except (OSError, ValueError) as error:
        raise _NotThereError("the file of the image cannot be read") from error
    if digest and digest_of(content) != digest:
        raise _NotThereError("the file of the image has other content than when it was asked about")
    return content


def _encode(content: bytes, height: int) -> Picture:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about unusual files.
            image = to_rgb(content)
        if height and image.height > height:
            width = max(1, round(image.width * height / image.height))
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        image.save(file, format="JPEG", quality=_QUALITY, subsampling=0)
    except Exception as error:  # Pillow raises a wide range of types on damaged files.
        raise UnshownError("the file of the image is damaged") from error
    return Picture(file.getvalue(), "image/jpeg")
