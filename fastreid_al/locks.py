"""Locks between processes, held in files; the system releases them when a process ends."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import weakref
from pathlib import Path
from typing import ClassVar

import filelock

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

#: What a lock file holds: the number of the process that took the lock last.
_CONTENT = re.compile(rb"[0-9]{0,20}\n?")
_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


class FileLock:
    """An exclusive lock on a file; the system releases it when the process ends.

    On Windows, which has no `fcntl`, a second file with the suffix `.held` carries the lock, so
    that the number of the process stays readable.

    Args:
        path: The file, which is made where it does not exist, and then holds the number of the
            process.

    Raises:
        BlockingIOError: Another process holds it; `strerror` is the number of that process.
        OSError: The lock cannot be made, or the file is not a lock's.
    """

    #: The locks of this process. A forked child, such as a worker that loads images, closes its
    #: copies: it would hold them after the death of its parent.
    held: ClassVar[weakref.WeakSet[FileLock]] = weakref.WeakSet()

    def __init__(self, path: Path) -> None:
        self._path = path
        #: Whether this process made the file.
        self.made = False
        self._handle: int | None = self._open()
        self._portable: filelock.BaseFileLock | None = None
        if fcntl is None:
            self._portable = filelock.FileLock(f"{path}.held", timeout=0, is_singleton=False)
        try:
            self._take()
        except BaseException:
            self._close()
            raise
        self.held.add(self)

    def _open(self) -> int:
        try:
            handle = open_lock(self._path, os.O_EXCL)
            self.made = True
        except FileExistsError:
            handle = open_lock(self._path)
        return handle

    def _take(self) -> None:
        """Take the lock, of the file that has the name now."""
        assert self._handle is not None
        while True:
            try:
                if self._portable is None:
                    lock(self._handle)
                else:
                    self._portable.acquire()
            except (BlockingIOError, filelock.Timeout) as error:
                holder = _content(self._handle).decode(errors="replace").strip()
                raise BlockingIOError(errno.EAGAIN, holder or "unknown") from error
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._handle), os.lstat(self._path)):
                    break
            # Whoever held it has removed the file since it was opened.
            self._close()
            self._handle = self._open()
        os.ftruncate(self._handle, 0)
        os.lseek(self._handle, 0, os.SEEK_SET)
        os.write(self._handle, f"{os.getpid()}\n".encode())

    def free(self, remove: bool = False) -> None:
        """Release the lock, even if a forked child has not closed its copy yet.

        Args:
            remove: Whether the file is removed.
        """
        if self._handle is not None:
            if remove:
                with contextlib.suppress(OSError):
                    os.unlink(self._path)
            if fcntl is not None:
                with contextlib.suppress(OSError):
                    fcntl.flock(self._handle, fcntl.LOCK_UN)
            self._close()
            if self._portable is not None:
                self._portable.release()

    def _close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    @classmethod
    def free_all(cls) -> None:
        """Close the copies of a forked child; the parent keeps its locks."""
        for one in list(cls.held):
            one._close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=FileLock.free_all)


def open_lock(path: Path, flags: int = 0) -> int:
    """Open a file to be locked; it is made where it does not exist.

    Args:
        path: The file.
        flags: Further flags of `os.open`.

    Raises:
        OSError: It cannot be made, is a link, or has a content that is not a lock's.
    """
    handle = os.open(path, _FLAGS | flags, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, f"{path.name} is not a regular file")
        if not _CONTENT.fullmatch(_content(handle)):
            raise OSError(errno.EEXIST, f"{path.name} is not a lock file of fastreid_al")
    except BaseException:
        os.close(handle)
        raise
    return handle


def _content(handle: int) -> bytes:
    """The beginning of an open file; Windows has no `os.pread`."""
    os.lseek(handle, 0, os.SEEK_SET)
    return os.read(handle, 64)


def lock(descriptor: int) -> None:
    """Lock an open file exclusively, without waiting; where there are no locks, do nothing.

    Raises:
        BlockingIOError: Another process holds the lock.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
            raise
