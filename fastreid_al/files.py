"""The one place where files are written and removed.

Files are written whole or not at all. What derives from private images is readable by its owner
only: 0600 for files, 0700 for folders, or less where the umask says so. A temporary file has a
random name and is made new (O_EXCL, O_NOFOLLOW), so that a link planted under its name or under the
final name is never written through. Removed are only regular files whose whole name matches a
pattern of this program, and folders that then are empty; nothing else is, whatever its age.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import CheckpointError, UserError

#: Name of a file or folder that is being written.
TEMPORARY = re.compile(r"\.fastreid_al-[0-9a-f]{32}\.tmp")
#: Bytes below which a disk is full, where a library hides the reason of a failed write.
_FULL = 2**20
#: Stands before the digest at the end of a file.
_DIGEST_MARK = b"fastreid_al SHA-256\n"
_DIGEST_SIZE = len(_DIGEST_MARK) + 32
#: Bytes that are read at a time.
_PART = 2**20
#: Words of a RuntimeError that torch makes of a failed write.
_TORCH_WRITE = ("inline_container", "PytorchStreamWriter")
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_BINARY = getattr(os, "O_BINARY", 0)


class NewFile:
    """A new binary file, open for reading and writing, which knows why a write failed.

    Libraries hide the reason: torch.save makes a RuntimeError of a full disk.

    Args:
        descriptor: Descriptor of the file.
    """

    def __init__(self, descriptor: int) -> None:
        self._file = os.fdopen(descriptor, "w+b")
        self._digest: Any = None
        #: The first failed write.
        self.failed: OSError | None = None

    def write(self, content: Any) -> int:
        """Write bytes; returns their number."""
        try:
            written = self._file.write(content)
        except OSError as error:
            self.failed = self.failed or error
            raise
        if self._digest is not None:
            self._digest.update(content)
        return written

    def start_digest(self) -> None:
        """Compute the SHA-256 of all that is written from now on, without seeking."""
        self._digest = hashlib.sha256()

    @property
    def digest(self) -> bytes:
        """The SHA-256 of what was written since `start_digest`: 32 bytes."""
        value: bytes = self._digest.digest()
        return value

    def sync(self) -> None:
        """Bring all that was written to the disk."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            self.failed = self.failed or error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> NewFile:
        return self

    def __exit__(self, *_: object) -> None:
        # After a failed write the content cannot be flushed either; the first reason counts.
        try:
            self._file.close()
        except OSError as error:
            if self.failed is None:
                self.failed = error
                raise


def create_file(path: Path, *, private: bool = True) -> NewFile:
    """Create a file that does not exist.

    Args:
        path: The file.
        private: Whether only the owner may read it.

    Raises:
        OSError: It exists, if only as a link, or cannot be made.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _NOFOLLOW | _BINARY
    return NewFile(os.open(path, flags, 0o600 if private else 0o666))


@contextmanager
def nameless_file(folder: Path) -> Iterator[NewFile]:
    """Yield a new file without a name, which the system removes when nothing maps it any more.

    Args:
        folder: The folder on whose disk it lies; made where it does not exist.

    Raises:
        OSError: It cannot be made.
    """
    make_folder(folder)
    temporary = _temporary(folder)
    with create_file(temporary) as file:
        os.unlink(temporary)
        yield file


def _temporary(folder: Path) -> Path:
    return folder / f".fastreid_al-{uuid.uuid4().hex}.tmp"


@contextmanager
def replacing(path: Path, *, private: bool = True, durable: bool = True) -> Iterator[NewFile]:
    """Yield a new file that takes the place of `path` when the block ends without an error.

    Args:
        path: The file. A link of that name is replaced, and what it leads to is not touched.
        private: Whether only the owner may read it.
        durable: Whether content and name are brought to the disk before this returns.

    Raises:
        OSError: It cannot be written, with the reason that the system gave; the old file is intact.
    """
    _refuse_special(path)
    temporary = _temporary(path.parent)
    file = create_file(temporary, private=private)
    try:
        with file:
            yield file
            if durable:
                file.sync()
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        reason = _reason(error, file, path.parent)
        if reason is None or reason is error:
            raise
        raise reason from error
    if durable:
        _sync_folder(path.parent)


def _refuse_special(path: Path) -> None:
    """Refuse to replace a folder, a device, a pipe, a socket, or a link to one but a folder."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if _is_special(path):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def _is_special(path: Path) -> bool:
    """Whether a path leads to a device, a pipe, a socket, or an open file as /dev/stdout does."""
    with contextlib.suppress(OSError):
        if os.path.islink(path) and os.readlink(path).startswith("/proc/"):
            return True
        mode = os.stat(path).st_mode
        return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)
    return False


def _reason(error: BaseException, file: NewFile, folder: Path) -> OSError | None:
    """Return the system's reason for a failed write; None for an error that is none."""
    if file.failed is not None and isinstance(error, OSError | RuntimeError | ValueError):
        return file.failed
    if isinstance(error, OSError):
        return error if error.strerror else write_error(error, folder)
    if isinstance(error, RuntimeError) and any(word in str(error) for word in _TORCH_WRITE):
        return write_error(error, folder)
    return None


def write_error(error: BaseException, folder: Path) -> OSError:
    """Return the system's reason for a failed write, where a library hides it.

    Args:
        error: The library's error.
        folder: The folder that was written into.
    """
    with contextlib.suppress(OSError, AttributeError):
        space = os.statvfs(folder)
        if space.f_bavail * space.f_frsize < _FULL:
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return OSError(errno.EIO, next(iter(str(error).splitlines()), type(error).__name__))


def write_atomically(path: Path, write: Callable[[Any], object], *, private: bool = True) -> None:
    """Write a file so that at any instant either the old or the new content is complete on disk.

    The content is written into a temporary file next to `path`, flushed to the disk, and renamed.

    Args:
        path: The file.
        write: Writes the content into the open file that it is called with, a `NewFile`.
        private: Whether only the owner may read it.

    Raises:
        CheckpointError: The disk is full or not writable; the old file is intact.
    """
    try:
        with replacing(path, private=private) as file:
            write(file)
    except OSError as error:
        kept = "the one before it is intact" if path.exists() else "there is none before it"
        raise CheckpointError(
            f"could not write {path} ({error.strerror}); {kept}. "
            "Fix this, then continue with `resume`"
        ) from error


def write_with_digest(path: Path, write: Callable[[Any], object]) -> None:
    """Write a file atomically, and after its content the SHA-256 of it.

    The content must be a zip archive or of another format that ignores what follows.

    Args:
        path: The file.
        write: Writes the content into the open file that it is called with, without seeking.

    Raises:
        CheckpointError: The disk is full or not writable; the old file is intact.
    """

    def write_both(file: NewFile) -> None:
        file.start_digest()
        write(file)
        file.write(_DIGEST_MARK + file.digest)

    write_atomically(path, write_both)


def check_digest(path: Path) -> bool:
    """Compare a file with the digest at its end.

    Args:
        path: The file.

    Returns:
        Whether it carries a digest; that is right then.

    Raises:
        ValueError: The content is not what was written.
        OSError: The file cannot be read.
    """
    length = path.stat().st_size - _DIGEST_SIZE
    if length < 0:
        return False
    with open(path, "rb") as file:
        file.seek(length)
        end = file.read()
        if not end.startswith(_DIGEST_MARK):
            return False
        file.seek(0)
        if digest_of_file(file, length) != end[len(_DIGEST_MARK) :]:
            raise ValueError("it is damaged: its content is not what was written")
    return True


def digest_of_file(file: Any, length: int) -> bytes:
    """Return the SHA-256 of the next bytes of an open file.

    Args:
        file: The file, open in binary mode.
        length: Number of bytes.
    """
    digest = hashlib.sha256()
    while length > 0:
        part = file.read(min(length, _PART))
        if not part:
            break
        digest.update(part)
        length -= len(part)
    return digest.digest()


def write_json(path: Path, content: object) -> None:
    """Write JSON atomically.

    Raises:
        CheckpointError: The disk is full or not writable; the old file is intact.
    """
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def write_file(path: Path, text: str, *, private: bool = True) -> None:
    """Write a text atomically, as UTF-8.

    Raises:
        CheckpointError: The disk is full or not writable; the old file is intact.
    """
    write_atomically(path, lambda file: file.write(text.encode()), private=private)


def refuse_existing(path: Path, force: bool, *, stream: bool = False) -> None:
    """Refuse a file or a folder with content, which a command of the user's would replace.

    Args:
        path: What is to be written.
        force: Whether the user allows to replace it.
        stream: Whether it may be a pipe or a device, which is written to and not replaced.

    Raises:
        UserError: It exists and may not be replaced, or its folder does not exist.
    """
    if _is_special(path):
        if stream:
            return
        raise UserError(f"{path} is neither a file nor a folder; name a file")
    used = os.path.lexists(path) and not (os.path.isdir(path) and not os.listdir(path))
    if used and not force:
        raise UserError(f"{path} exists: name another file, or replace it with `force`")
    if not os.path.isdir(path.parent):
        raise UserError(f"{path.parent} is not a folder; make it, or name another")


@contextmanager
def open_output(path: str | Path) -> Iterator[Any]:
    """Yield a writer of text for a path that the user named; it is complete when the block ends.

    Args:
        path: A file, which is replaced; or a pipe or a device such as /dev/stdout.

    Raises:
        OSError: It cannot be written, or is a link to a file, which is not written through.
    """
    path = Path(path)
    mode = path.stat().st_mode if path.exists() else stat.S_IFREG
    if stat.S_ISCHR(mode) or stat.S_ISFIFO(mode):
        with os.fdopen(os.open(path, os.O_WRONLY), "w", newline="", encoding="utf-8") as stream:
            yield stream
        return
    if path.is_symlink():
        raise OSError(errno.ELOOP, "it is a link, which is not followed: name the file itself")
    with replacing(path) as file:
        yield _TextWriter(file)


class _TextWriter:
    """Writes text into a binary file, as UTF-8."""

    def __init__(self, file: NewFile) -> None:
        self._file = file

    def write(self, text: str) -> int:
        return self._file.write(text.encode())


def write_figure(path: Path, figure: Any, *, private: bool = True) -> None:
    """Write a figure of matplotlib atomically, as PNG.

    Raises:
        CheckpointError: The disk is full or not writable; the old file is intact.
    """
    write_atomically(
        path, lambda file: figure.savefig(file, format="png", dpi=130), private=private
    )


def write_by_path(path: Path, write: Callable[[str], object], others: Sequence[str] = ()) -> None:
    """Write a file by a function that opens it itself; private, and complete or not there.

    Args:
        path: The file.
        write: Writes the file of the path that it is called with, which exists and is empty.
        others: Names of further files that it writes next to that one; they take their places
            before the file does.

    Raises:
        OSError: It cannot be written; the old file is intact.
    """
    targets = [path.parent / name for name in (*others, path.name)]
    for target in targets:
        _refuse_special(target)
    prefix = ".fastreid_al-"
    folder = new_folder(path.parent, prefix)
    try:
        create_file(folder / path.name).close()
        write(str(folder / path.name))
        for target in targets:
            written = folder / target.name
            # The function may have replaced the file by a new one.
            os.chmod(written, os.lstat(written).st_mode & 0o600)
            os.replace(written, target)
    finally:
        discard_folder(folder, prefix)


def append_text(path: Path, text: str) -> None:
    """Add a text at the end of a file of the owner's, which is made where it does not exist.

    Raises:
        OSError: It cannot be written, or is a link.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | _NOFOLLOW | _BINARY
    with os.fdopen(os.open(path, flags, 0o600), "ab") as file:
        file.write(text.encode())


@contextmanager
def made_private() -> Iterator[None]:
    """Make what a library creates in the block private; no other thread may create files in it."""
    before = os.umask(0o077)
    os.umask(before | 0o077)
    try:
        yield
    finally:
        os.umask(before)


def make_folder(folder: Path, *, private: bool = True) -> None:
    """Make a folder, and the folders above it that do not exist.

    Args:
        folder: The folder; one that exists stays as it is.
        private: Whether only the owner may open those that are made.

    Raises:
        OSError: It cannot be made, or is a file.
    """
    missing = []
    above = folder
    while not os.path.isdir(above):
        missing.append(above)
        if above == above.parent:
            break
        above = above.parent
    for new in reversed(missing):
        try:
            os.mkdir(new, 0o700 if private else 0o777)
        except FileExistsError:
            if not new.is_dir():  # else another process was faster
                raise


def new_folder(parent: Path, prefix: str, *, private: bool = True) -> Path:
    """Make a folder with a random name, `prefix` and 32 hexadecimal digits.

    Raises:
        OSError: It cannot be made.
    """
    make_folder(parent, private=private)
    folder = parent / f"{prefix}{uuid.uuid4().hex}"
    os.mkdir(folder, 0o700 if private else 0o777)
    return folder


def discard_folder(folder: Path, prefix: str) -> None:
    """Remove a folder that `new_folder` made, with all its contents.

    Args:
        folder: The folder; nothing happens where it was renamed.
        prefix: The prefix that it was made with.
    """
    if re.fullmatch(re.escape(prefix) + "[0-9a-f]{32}", folder.name) and _is_folder(folder):
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def replacing_folder(path: Path, prefix: str) -> Iterator[Path]:
    """Yield a new folder that takes the place of `path` when the block ends without an error.

    Args:
        path: The folder. One that exists is removed with its content once the new one is complete;
            the caller has made sure that this program made it, or that it is empty.
        prefix: Stands before the random names of the new and the removed folder, next to `path`.

    Raises:
        OSError: It cannot be written; the old folder is intact.
    """
    folder = new_folder(path.parent, prefix)
    removed = path.parent / f"{prefix}{uuid.uuid4().hex}"
    try:
        yield folder
        if os.path.lexists(path):
            os.rename(path, removed)
        os.rename(folder, path)
        _sync_folder(path.parent)
    finally:
        discard_folder(folder, prefix)
        discard_folder(removed, prefix)


def copy_file(source: Path, target: Path) -> None:
    """Copy the content of a file into a new one, which only the owner may read.

    Raises:
        OSError: The source cannot be read, or the target exists or cannot be written.
    """
    with open(source, "rb") as content, create_file(target) as file:
        shutil.copyfileobj(content, file, _PART)


def link_file(source: Path, target: Path) -> None:
    """Make a symbolic link to a file.

    Raises:
        OSError: The link exists or cannot be made.
    """
    os.symlink(source, target)


def move_made(old: Path, new: Path) -> None:
    """Rename a file or folder that this program made.

    Raises:
        OSError: It cannot be renamed; nothing changes then.
    """
    os.rename(old, new)


def remove_file(path: Path, pattern: re.Pattern[str]) -> None:
    """Remove a regular file whose whole name matches a pattern; anything else stays.

    Raises:
        OSError: It matches and cannot be removed.
    """
    if pattern.fullmatch(path.name) and _is_file(path):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def remove_files(folder: Path, pattern: re.Pattern[str], older_than: float = 0.0) -> None:
    """Remove the regular files of a folder whose whole names match a pattern; best effort.

    Args:
        folder: The folder.
        pattern: Of the whole name.
        older_than: Only files that were last changed so many seconds ago.
    """
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            with contextlib.suppress(OSError):
                if time.time() - entry.stat(follow_symlinks=False).st_mtime >= older_than:
                    remove_file(Path(entry.path), pattern)


def remove_folder(folder: Path, pattern: re.Pattern[str], files: re.Pattern[str]) -> None:
    """Remove a folder whose whole name matches a pattern, and the program's files in it.

    It stays, with what is not the program's, where anything else lies in it. Best effort.

    Args:
        folder: The folder; a link stays.
        pattern: Of the folder's name.
        files: Of the names of the program's files in it, at any depth.
    """
    if not (pattern.fullmatch(folder.name) and _is_folder(folder)):
        return
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            with contextlib.suppress(OSError):
                remove_file(Path(parent, name), files)
        with contextlib.suppress(OSError):
            os.rmdir(parent)


def list_folder(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    """Return what lies in a folder under names that match a pattern as a whole."""
    try:
        return sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name))
    except OSError:
        return []


def _is_file(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISREG(os.lstat(path).st_mode)
    return False


def _is_folder(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISDIR(os.lstat(path).st_mode)
    return False


def _sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename survives a power failure."""
    with contextlib.suppress(OSError):  # not every file system lets a folder be opened
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
