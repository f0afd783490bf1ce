"""The seam to the operating system: each call that touches a database's files goes through here.

`FileSystem.call` is the one place where a system call is made and its error translated, so that a
test can record each of them, or make any of them fail.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from ourdb.errors import StorageError

T = TypeVar("T")

_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_PIECE_BYTES = 1 << 20
_NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}
MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # since Python 3.12; the value of Linux
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # fcntl.h, linux/fs.h


def require_linux() -> None:
    """StorageError (`unsupported_system`) where the kernel lacks what the engine stands on."""
    missing = [name for name in ("posix_fallocate", "fdatasync", "pread") if not hasattr(os, name)]
    if not sys.platform.startswith("linux") or missing:
        raise StorageError(
            f"ourdb needs Linux (preallocation, fdatasync, flock): this system is {sys.platform}",
            kind="unsupported_system",
        )


def descriptors_max() -> int:
    """How many files this process may have open."""
    import resource  # here, for the same reason as fcntl below

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def translate(what: str, path: Path, error: OSError) -> Exception:
    """The error of ours for one of the system's. FileNotFoundError passes: callers know what it means."""
    if isinstance(error, FileNotFoundError):
        return error
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in _FULL:
        return StorageError(
            f"no space left, {what} failed: {path} (free some space; nothing that was acknowledged is lost)",
            kind="disk_full",
            path=str(path),
        )
    if error.errno in _NOT_WRITABLE:
        return StorageError(
            f"{what} is not permitted ({reason.lower()}): {path}", kind="not_writable", path=str(path)
        )
    return StorageError(f"{what} failed ({reason.lower()}): {path}", kind="io_error", path=str(path))


def _exchange(first: Path, second: Path) -> None:
    """renameat2 of the C library, which Python does not offer. OSError with ENOSYS where that has none."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(first), None, str(second))


class File:
    """An open file. Reads and writes are at given offsets, whole or an error."""

    __slots__ = ("_fs", "fd", "path")

    def __init__(self, fs: FileSystem, fd: int, path: Path) -> None:
        self._fs, self.fd, self.path = fs, fd, path

    def pread(self, length: int, offset: int) -> bytes:
        """Up to `length` bytes: fewer only at the end of the file."""
        data = self._fs.call("read", self.path, os.pread, self.fd, length, offset)
        while data and len(data) < length:
            more = self._fs.call("read", self.path, os.pread, self.fd, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        view = memoryview(data).cast("B")
        while view:
            done = self._fs.call("write", self.path, os.pwrite, self.fd, view, offset)
            view, offset = view[done:], offset + done

    def fdatasync(self) -> None:
        self._fs.call("fdatasync", self.path, os.fdatasync, self.fd)

    def fsync(self) -> None:
        self._fs.call("fsync", self.path, os.fsync, self.fd)

    def ftruncate(self, size: int) -> None:
        self._fs.call("truncate", self.path, os.ftruncate, self.fd, size)

    def fallocate(self, offset: int, length: int) -> None:
        """Space on the disk for a range, so that no later store into it can meet a full disk."""
        self._fs.call("preallocate", self.path, os.posix_fallocate, self.fd, offset, length)

    def size(self) -> int:
        return self._fs.call("stat", self.path, os.fstat, self.fd).st_size

    def map(self, length: int, *, write: bool = False) -> mmap.mmap:
        """The first `length` bytes, shared with all other processes."""
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if write else 0)
        return self._fs.call("map", self.path, mmap.mmap, self.fd, length, mmap.MAP_SHARED, protection)

    def map_private(self, length: int) -> mmap.mmap:
        """The first `length` bytes as they are in the file; what is stored into them stays in this process
        and never reaches the file."""
        flags = mmap.MAP_PRIVATE | MAP_NORESERVE
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        return self._fs.call("map", self.path, mmap.mmap, self.fd, length, flags, protection)

    def data_ranges(self, start: int, end: int) -> list[tuple[int, int]]:
        """Ranges of [start, end) that may hold bytes other than 0: preallocated space does not."""
        found: list[tuple[int, int]] = []
        while start < end:
            try:
                begin = os.lseek(self.fd, start, os.SEEK_DATA)
                stop = os.lseek(self.fd, begin, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but a hole from here on
                    break
                return [*found, (start, end)]  # the file system cannot tell
            if begin >= end:
                break
            found.append((begin, min(stop, end)))
            start = stop
        return found

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        self.close()  # a handle that was forgotten gives its lock back

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _lock(fd: int, wait: bool) -> bool:
    """Whether the kernel's lock on a file was to be had."""
    import fcntl  # here, so that a system without it is refused by `require_linux` and not by an import

    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


class FileSystem:
    """The system calls of the engine, with errors of ours: `disk_full`, `not_writable`, `io_error`."""

    def call(self, what: str, path: Path, function: Callable[..., T], *args: Any) -> T:
        """Make one system call. Every call passes here: what a test overrides to make it fail."""
        try:
            return function(*args)
        except OSError as error:
            raise translate(what, path, error) from error

    def open(self, path: Path, *, write: bool = False, create: bool = False, exclusive: bool = False) -> File:
        flags = os.O_CLOEXEC | (os.O_RDWR if write else os.O_RDONLY)
        flags |= os.O_CREAT if create else 0
        flags |= os.O_EXCL if exclusive else 0
        return File(self, self.call("open", path, os.open, path, flags, 0o666), path)

    def read(self, path: Path, *, bytes_max: int) -> bytes:
        """A whole small file, at most `bytes_max` bytes and one more (so that too large is seen)."""
        with self.open(path) as file:
            return file.pread(min(file.size(), bytes_max) + 1, 0)  # os.pread allocates what it is asked for

    def replace(self, path: Path, data: bytes) -> None:
        """Put `data` in the place of `path`, durably: whoever crashes finds the old or the new, whole."""
        beside = path.with_name(path.name + ".tmp")
        with self.open(beside, write=True, create=True) as file:
            file.ftruncate(0)
            file.pwrite(data, 0)
            file.fsync()
        self.rename(beside, path)
        self.sync_directory(path.parent)

    def rename(self, source: Path, target: Path) -> None:
        self.call("rename", target, os.rename, source, target)

    def exchange(self, first: Path, second: Path) -> bool:
        """Each takes the other's place, in one step. False where kernel or file system do not offer that."""
        try:
            self.call("rename", second, _exchange, first, second)
        except StorageError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in _NO_EXCHANGE:
                return False
            raise
        return True

    def unlink(self, path: Path, *, missing_ok: bool = True) -> None:
        try:
            self.call("remove", path, os.unlink, path)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def make_directory(self, path: Path) -> None:
        """The directory and its parents, if need be; the entry of each is durable in its parent."""
        if not os.path.isdir(path):  # of Path, it raises what is not translated
            self.make_directory(path.parent)
            self.call("create", path, lambda: path.mkdir(exist_ok=True))
            self.sync_directory(path.parent)

    def remove_directory(self, path: Path) -> None:
        self.call("remove", path, os.rmdir, path)

    def names(self, path: Path) -> list[str]:
        return sorted(self.call("list", path, os.listdir, path))

    def sync_directory(self, path: Path) -> None:
        """Make the entries of a directory durable: files that were created, renamed or removed."""
        with self.open(path) as directory:
            directory.fsync()

    def lock(self, path: Path, *, wait: bool, create: bool = True) -> File | None:
        """The kernel's lock on a file, until it is closed or the process ends. None: another has it."""
        file = self.open(path, write=True, create=create)
        held = False
        try:
            held = self.call("lock", path, _lock, file.fd, wait)
        finally:
            if not held:
                file.close()
        return file if held else None

    @contextmanager
    def locked(self, path: Path) -> Iterator[None]:
        """Hold the lock on a file; waits for it."""
        file = self.lock(path, wait=True)
        try:
            yield
        finally:
            if file:
                file.close()

    def copy_out(self, file: File, start: int, end: int, target: Path) -> None:
        """The bytes [start, end) of a file into a new file, durably, a piece at a time."""
        with self.open(target, write=True, create=True) as copy:
            for offset in range(start, end, _PIECE_BYTES):
                copy.pwrite(file.pread(min(_PIECE_BYTES, end - offset), offset), offset - start)
            copy.fsync()
        self.sync_directory(target.parent)
