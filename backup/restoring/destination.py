"""Where a restore goes: built beside its destination, renamed when it stands. Nothing is overwritten.

A build is `.NAME.restore-{16 hex digits}` in the same directory, locked (flock) by the process that makes
it. One that nobody has locked is what a killed restore left: the next one for this NAME removes it.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
from pathlib import Path

from ourdb import directory
from ourdb.errors import ExistsError, LockedError, NotFoundError
from ourdb.files import File, FileSystem
from ourdb.units import format_time, now_ms


class Destination:
    """path: the database to be. force: something that is there is renamed aside, and kept.

    Raises ExistsError (`exists`) for anything but nothing or an empty directory, without force; NotFoundError
    (`no_directory`) if the directory that it shall lie in is not there; LockedError if somebody writes it.
    """

    def __init__(self, path: str | os.PathLike[str], *, force: bool, fs: FileSystem | None = None) -> None:
        self.path = Path(os.path.realpath(path))
        self._fs = fs or FileSystem()
        self._force = force
        self.check()

    def check(self) -> None:
        """Whether the destination may be made."""
        if not self.path.parent.is_dir():
            raise NotFoundError(
                f"no directory to restore into: {self.path.parent} (make it first)",
                kind="no_directory",
                path=str(self.path.parent),
            )
        if self._occupied() and not self._force:
            raise ExistsError(
                f"destination is not empty: {self.path} (use another one, or --force, which keeps it aside)",
                path=str(self.path),
            )

    def begin(self) -> Build:
        """A new directory beside the destination, locked. What killed restores left is removed."""
        self._sweep()
        path = self.path.with_name(f".{self.path.name}.restore-{secrets.token_hex(8)}")
        self._fs.make_directory(path)
        return Build(path, _lock(path, self._fs), self._fs)

    def put(self, build: Build) -> Path | None:
        """The build, which is verified and durable, takes its place. Returns where the old one is kept.

        Whoever dies in here leaves both whole, one of them at the destination (or both beside it, where the
        file system cannot exchange two names).
        """
        self.check()
        aside = None
        if self._occupied():
            with self._unused():
                aside = self._exchange(build)
        else:
            self._fs.rename(build.path, self.path)  # over an empty directory, too
        self._fs.sync_directory(self.path.parent)
        build.close()
        return aside

    def _exchange(self, build: Build) -> Path:
        """The build and what is at the destination change places; the old one is then at the path returned.

        The build takes that name first: under its own one, the next restore would remove the old one as a
        leftover of this.
        """
        aside = self._free_name()
        self._fs.rename(build.path, aside)
        try:
            if self._fs.exchange(aside, self.path):
                return aside
        except BaseException:
            self._fs.rename(aside, build.path)
            raise
        self._fs.rename(aside, build.path)
        self._fs.rename(self.path, aside)
        try:
            self._fs.rename(build.path, self.path)
        except BaseException:
            self._fs.rename(aside, self.path)
            raise
        return aside

    def _occupied(self) -> bool:
        if os.path.isdir(self.path):  # those of Path raise what no caller expects
            return bool(self._fs.names(self.path))
        return os.path.exists(self.path)

    def _unused(self) -> File:
        """The writer's lock of the database that is replaced; of anything else nothing is asked."""
        lock = self.path / directory.LOCK
        found = self._fs.lock(lock, wait=False) if lock.is_file() else self._fs.open(self.path)
        if found is None:
            raise LockedError(f"somebody writes the database that would be replaced: {self.path}")
        return found

    def _free_name(self) -> Path:
        stamp = re.sub(r"[-:.]", "", format_time(now_ms()))
        name = f"{self.path.name}.before-restore-{stamp}"
        taken = {other.name for other in self.path.parent.iterdir()}
        return self.path.with_name(next(n for n in _numbered(name) if n not in taken))

    def _sweep(self) -> None:
        pattern = re.compile(re.escape(f".{self.path.name}.restore-") + "[0-9a-f]{16}")
        for name in self._fs.names(self.path.parent):
            if pattern.fullmatch(name):
                left = self.path.with_name(name)
                lock = _try_lock(left, self._fs)
                if lock is not None:
                    with lock:
                        shutil.rmtree(left, ignore_errors=True)


class Build:
    """A directory in the making, locked until it is closed."""

    def __init__(self, path: Path, lock: File, fs: FileSystem) -> None:
        self.path, self._lock, self._fs = path, lock, fs

    def discard(self) -> None:
        """Removes it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.close()

    def close(self) -> None:
        """Unlocks it."""
        self._lock.close()


def _lock(path: Path, fs: FileSystem) -> File:
    lock = _try_lock(path, fs)
    if lock is None:  # another restore took it for a leftover before it was locked, and removes it
        raise LockedError(f"another restore into the same place begins just now: {path}")
    return lock


def _try_lock(path: Path, fs: FileSystem) -> File | None:
    """The lock of a directory; None: another process has it, or it is gone."""
    try:
        file = fs.open(path)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _numbered(name: str) -> list[str]:
    return [name, *(f"{name}-{number}" for number in range(2, 1000))]
