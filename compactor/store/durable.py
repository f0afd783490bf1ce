"""Files that are there as a whole or not at all, and stay: what the local store does to a directory."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from compactor.store.base import Bytes
from compactor.store.retry import Retry
from ourdb.errors import Error, StorageError, TemporaryError
from ourdb.units import MIB

LOCK_NAME = ".lock"
ABANDONED_SECONDS = 60
COPY_BYTES = MIB  # at a time, where the kernel cannot copy
_TEMPORARY = re.compile(r"\.tmp-[0-9a-f]{16}")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_IN_THE_WAY = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, *_IN_THE_WAY)


@contextlib.contextmanager
def translated(path: str | Path) -> Iterator[None]:
    """OSErrors as StorageError: `disk_full`, `not_writable`, `io_error`."""
    try:
        yield
    except OSError as error:
        raise _storage_error(error, path) from error


def _storage_error(error: OSError, path: str | Path) -> Error:
    where = error.filename or path
    reason = os.strerror(error.errno).lower() if error.errno else str(error)
    if error.errno == errno.EEXIST:
        reason = "not a directory"
    if error.errno in _FULL:
        return StorageError(f"no space left for the store: {where}", kind="disk_full", path=str(where))
    if error.errno in _NOT_WRITABLE:
        return StorageError(f"cannot use the store: {reason}: {where}", kind="not_writable", path=str(where))
    return StorageError(f"the store failed: {reason}: {where}", kind="io_error", path=str(where))


class TemporaryFile:
    """A file under a name of its own beside the one it will have. As a context manager it goes away
    unless it was published; after a kill it stays, and `sweep` finds it by its lock, which is free then.
    Its methods raise StorageError.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / f".tmp-{secrets.token_hex(8)}"
        with translated(self.path):
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with contextlib.suppress(OSError):  # without locks on this file system nothing is swept either
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def __enter__(self) -> TemporaryFile:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._fd)
        with translated(self.path):
            self.path.unlink(missing_ok=True)

    def write(self, data: Bytes) -> None:
        rest = memoryview(data)
        with translated(self.path):
            while rest:
                rest = rest[os.write(self._fd, rest) :]

    def append_from(self, fd: int, start: int, length: int) -> None:
        """Bytes of another file, copied by the kernel, which shares blocks where the file system can."""
        with translated(self.path):
            while length:
                count = _copy_some(fd, self._fd, start, length)
                start, length = start + count, length - count

    def publish(self, name: str, *, newer_than_ns: int = -1) -> os.stat_result:
        """Puts it in place of `name` in its directory, durably; a crash leaves the old or the new.

        Its time of change is the moment of this call, and later than `newer_than_ns` whatever the
        clock does: the ETag is made of it.
        """
        with translated(self.path.with_name(name)):
            os.utime(self._fd)  # not when the first byte came: grace times are counted from here
            status = self._later_than(newer_than_ns)
            os.fsync(self._fd)  # before the rename: else a power cut may leave the name on an empty file
            os.rename(self.path, self.path.with_name(name))
            sync_directory(self.path.parent)  # the rename itself
        return status

    def _later_than(self, before_ns: int) -> os.stat_result:
        status = os.fstat(self._fd)
        step = 1
        while status.st_mtime_ns <= before_ns:  # some file systems keep whole seconds only
            os.utime(self._fd, ns=(before_ns + step, before_ns + step))
            status = os.fstat(self._fd)
            step *= 10
        return status


def _copy_some(source: int, target: int, start: int, length: int) -> int:
    """Appends some of the bytes, and returns how many."""
    with contextlib.suppress(OSError):
        # Not between these file systems, or not at all: reading says why, or works.
        if count := os.copy_file_range(source, target, length, start):
            return count
    data = os.pread(source, min(length, COPY_BYTES), start)
    if not data:
        raise OSError(errno.EIO, "a file became shorter while it was copied")
    return os.write(target, data)


def abandon(directory: Path, name: str) -> None:
    """Removes a temporary file by its name, if it is one and there."""
    if _TEMPORARY.fullmatch(name):
        (directory / name).unlink(missing_ok=True)


def walk(directory: Path, above: str, prefix: str, start_after: str) -> Iterator[tuple[str, os.stat_result]]:
    """Keys below a directory in the order of their bytes, with their status; dot names left out."""
    try:
        with os.scandir(directory) as entries:
            found = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return
    for name, is_directory in sorted(found, key=lambda one: os.fsencode(one[0] + "/" * one[1])):
        key = above + os.fsencode(name).decode(errors="backslashreplace") + "/" * is_directory
        if is_directory:
            inside = key.startswith(prefix) or prefix.startswith(key)
            if inside and (key > start_after or start_after.startswith(key)):
                yield from walk(directory / name, key, prefix, start_after)
        elif key.startswith(prefix) and key > start_after:
            status = regular_status(directory / name)
            if status is not None:
                yield key, status


def temporary_files(root: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Those in the directory and below, used or abandoned."""
    for directory, _, names in os.walk(root):
        for name in filter(_TEMPORARY.fullmatch, names):
            path = Path(directory, name)
            status = regular_status(path)
            if status is not None:
                yield path, status


def sweep(directory: Path) -> None:
    """Removes the temporary files of writers that were killed."""
    with os.scandir(directory) as entries:
        names = [entry.name for entry in entries if _TEMPORARY.fullmatch(entry.name)]
    for name in names:
        with contextlib.suppress(OSError):  # in use, or gone meanwhile
            _remove_if_free(directory / name)


def _remove_if_free(path: Path) -> None:
    if time.time() - path.stat().st_mtime < ABANDONED_SECONDS:
        return  # may have been created just now, and not be locked yet
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    finally:
        os.close(fd)


def make_directory(path: Path) -> None:
    """The directory and what is missing above it, each name durable before anything stands in it."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        directory.mkdir(exist_ok=True)
        sync_directory(directory.parent)


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def locked(directory: Path, retry: Retry) -> Iterator[None]:
    """Holds the kernel's lock on the directory's lock file, which goes with its holder and is never
    removed. Each call has a descriptor of its own, so it excludes threads as well as processes.
    TemporaryError if somebody else holds it for too long."""
    fd = retry.call(lambda: _take_lock(directory / LOCK_NAME))
    try:
        yield
    finally:
        os.close(fd)


def _take_lock(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(fd), os.stat(path)):
            raise TemporaryError(f"the store was moved while it was locked: {path}")
    except BlockingIOError as error:
        os.close(fd)
        raise TemporaryError(f"the store is locked by another process: {path}", path=str(path)) from error
    except BaseException:
        os.close(fd)
        raise
    return fd


def regular_status(path: Path) -> os.stat_result | None:
    """The status of a regular file, None if there is none."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status if stat.S_ISREG(status.st_mode) else None
