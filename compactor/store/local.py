"""A store of local files: objects are files below the directory of the namespace.

An object appears by rename, whole and durable. Conditions hold under a kernel lock on a file in the
directory of the namespace. The store's own files (lock, temporary ones) have names that begin with a
dot and are never listed. The ETag is made of time of change and size; a replaced object's time of
change always grows, so an ETag does not come back.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import crc32c

from compactor.store.assembly import assemble_here
from compactor.store.base import (
    CopyRange,
    Etag,
    FailedDelete,
    Failures,
    ListPage,
    Piece,
    PreconditionFailed,
    Reply,
    Stat,
    StoreOptions,
    Tail,
    Upload,
    checked_etag,
    checked_key,
    no_such_key,
    other_object,
    short_object,
)
from compactor.store.durable import (
    LOCK_NAME,
    TemporaryFile,
    abandon,
    locked,
    make_directory,
    regular_status,
    sweep,
    sync_directory,
    temporary_files,
    translated,
    walk,
)
from compactor.store.requests import RequestCounter
from compactor.store.retry import Retry
from compactor.url import StoreUrl

PAGE_KEYS = 1000


class LocalStore:
    """A namespace in a directory. Requests are counted as if it were S3."""

    def __init__(self, url: StoreUrl, options: StoreOptions | None = None) -> None:
        self.url = url
        self.requests = RequestCounter()
        self._options = (options or StoreOptions()).validate()
        self._root = Path(url.root)
        self._lock_retry = Retry(self._options.retry_seconds, pause_seconds=0.002)
        self._swept: set[Path] = set()

    def get(self, key: str) -> Reply:
        self.requests.add("GET")
        with self._opened(key) as (fd, status):
            return self._reply(fd, status)

    def get_if_changed(self, key: str, etag: Etag) -> Reply | None:
        self.requests.add("GET")
        with self._opened(key) as (fd, status):
            return None if _etag(status) == checked_etag(etag) else self._reply(fd, status)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        self.requests.add("GET")
        with self._opened(key) as (fd, status):
            data = _read(fd, start, length)
        if len(data) < length:
            raise short_object(self.url, key, status.st_size, start + length)
        return data

    def get_tail(self, key: str, length: int) -> Tail:
        self.requests.add("GET")
        with self._opened(key) as (fd, status):
            size = status.st_size
            return Tail(_read(fd, max(0, size - length), min(length, size)), size, _etag(status))

    def put_if_absent(self, key: str, data: bytes) -> Stat:
        return self._put_if(key, data, None)

    def put_if_match(self, key: str, data: bytes, etag: Etag) -> Stat:
        return self._put_if(key, data, checked_etag(etag))

    def put_stream(
        self,
        key: str,
        chunks: Iterable[bytes],
        *,
        size_hint: int | None = None,
        on_begin: Callable[[str], None] | None = None,
    ) -> Stat:
        path = self._path(key)
        size, checksum, begun = 0, 0, False
        with self._temporary_beside(path) as temporary:
            for chunk in chunks:
                temporary.write(chunk)
                size, checksum = size + len(chunk), crc32c.crc32c(chunk, checksum)
                if size > self._options.put_bytes_max and not begun:
                    begun = True
                    self.requests.add("POST")
                    if on_begin is not None:
                        on_begin(temporary.path.name)
            status = temporary.publish(path.name, newer_than_ns=self._changed_ns(path))
        self._count_parts(size, begun)
        return _stat(key, status, status.st_mtime_ns // 1_000_000, checksum)

    def assemble(
        self,
        key: str,
        pieces: Iterable[Piece],
        *,
        size_hint: int,
        on_begin: Callable[[str], None] | None = None,
    ) -> Stat:
        path = self._path(key)
        with self._temporary_beside(path) as temporary:

            def append(piece: Piece) -> None:
                if isinstance(piece, CopyRange):
                    self._append_range(piece, temporary)
                else:
                    temporary.write(piece)

            def begin() -> None:
                if on_begin is not None:
                    on_begin(temporary.path.name)

            assemble_here(pieces, size_hint, self._options, self.requests, begin=begin, append=append)
            status = temporary.publish(path.name, newer_than_ns=self._changed_ns(path))
        return _stat(key, status, status.st_mtime_ns // 1_000_000, None)

    def list(self, prefix: str = "", start_after: str = "") -> Iterator[ListPage]:
        entries: list[Stat] = []
        self.requests.add("LIST")
        with translated(self._root):
            date_ms = self._date_ms()
            for key, status in walk(self._root, "", prefix, start_after):
                if len(entries) == PAGE_KEYS:
                    yield ListPage(tuple(entries), date_ms)
                    self.requests.add("LIST")
                    entries, date_ms = [], self._date_ms()
                entries.append(_stat(key, status, date_ms, None))
        yield ListPage(tuple(entries), date_ms)

    def head(self, key: str) -> Stat | None:
        self.requests.add("HEAD")
        path = self._path(key)
        with translated(path):
            status = regular_status(path)
        return status and _stat(key, status, self._date_ms(), None)

    def delete_many(self, keys: Iterable[str]) -> Failures:
        paths = {key: self._path(key) for key in keys}
        failures = []
        for number, (key, path) in enumerate(paths.items()):
            if number % PAGE_KEYS == 0:
                self.requests.add("DELETE")
            try:
                path.unlink(missing_ok=True)
            except NotADirectoryError:
                pass  # it is not there
            except OSError as error:
                failures.append(FailedDelete(key, str(error.strerror)))
        for directory in {path.parent for path in paths.values()}:
            if directory.is_dir():
                with translated(directory):
                    sync_directory(directory)  # an object that was reported deleted must not come back
        return tuple(failures)

    def abort_upload(self, key: str, upload_id: str) -> None:
        self.requests.add("DELETE")
        path = self._path(key)
        with translated(path):
            abandon(path.parent, upload_id)

    def list_uploads(self) -> Iterator[Upload]:
        self.requests.add("LIST")
        with translated(self._root):
            for path, status in temporary_files(self._root):
                key = path.relative_to(self._root).with_name(path.name.removeprefix(".")).as_posix()
                yield Upload(key, path.name, status.st_mtime_ns // 1_000_000)

    def heads_above(self) -> str | None:
        path = Path("/")
        for part in self.url.prefix:
            path /= part
            self.requests.add("HEAD")
            if (path / "head").is_file():
                return str(path / "head")
        return None

    def close(self) -> None:
        """Nothing to give back: files are closed after each use."""

    def _put_if(self, key: str, data: bytes, etag: Etag | None) -> Stat:
        self.requests.add("PUT")
        path = self._path(key)
        with translated(path):
            make_directory(self._root)
            with locked(self._root, self._lock_retry):
                self._check_condition(key, regular_status(path), etag)
                with self._temporary_beside(path) as temporary:
                    temporary.write(data)
                    status = temporary.publish(path.name, newer_than_ns=self._changed_ns(path))
        return _stat(key, status, status.st_mtime_ns // 1_000_000, crc32c.crc32c(data))

    @staticmethod
    def _changed_ns(path: Path) -> int:
        """When the object that is there now was changed, -1 if there is none."""
        status = regular_status(path)
        return status.st_mtime_ns if status else -1

    def _check_condition(self, key: str, before: os.stat_result | None, etag: Etag | None) -> None:
        if etag is None and before is not None:
            raise PreconditionFailed(f"exists already: {self.url.display} {key}", status=412, key=key)
        if etag is not None and before is None:
            raise PreconditionFailed(f"is not there: {self.url.display} {key}", status=404, key=key)
        if etag is not None and before is not None and _etag(before) != etag:
            raise PreconditionFailed(f"was replaced: {self.url.display} {key}", status=412, key=key)

    def _temporary_beside(self, path: Path) -> TemporaryFile:
        with translated(path.parent):
            make_directory(path.parent)
            if path.parent not in self._swept:
                sweep(path.parent)
                self._swept.add(path.parent)
        return TemporaryFile(path.parent)

    def _append_range(self, wanted: CopyRange, temporary: TemporaryFile) -> None:
        with self._opened(wanted.key) as (fd, status):
            if wanted.etag not in (None, _etag(status)):
                raise other_object(self.url, wanted.key, _etag(status))
            end = wanted.start + wanted.length
            if end > status.st_size:
                raise short_object(self.url, wanted.key, status.st_size, end)
            temporary.append_from(fd, wanted.start, wanted.length)

    def _count_parts(self, size: int, begun: bool) -> None:
        for _ in range(-(-size // self._options.part_bytes) if begun else 1):
            self.requests.add("PUT")
        if begun:
            self.requests.add("POST")

    @contextlib.contextmanager
    def _opened(self, key: str) -> Iterator[tuple[int, os.stat_result]]:
        path = self._path(key)
        with translated(path):
            try:
                fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            except (FileNotFoundError, NotADirectoryError) as error:
                raise no_such_key(self.url, key) from error
            try:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode):
                    raise no_such_key(self.url, key)
                yield fd, status
            finally:
                os.close(fd)

    def _path(self, key: str) -> Path:
        return self._root / checked_key(key)

    def _reply(self, fd: int, status: os.stat_result) -> Reply:
        data = _read(fd, 0, status.st_size)
        return Reply(data, _etag(status), status.st_mtime_ns // 1_000_000, self._date_ms())

    def _date_ms(self) -> int:
        """The file system's clock, from the lock file: its time may be another host's. 0 if we may not
        write there, or nothing was ever committed: nothing looks older than it is then."""
        lock = self._root / LOCK_NAME
        try:
            os.utime(lock)
            return lock.stat().st_mtime_ns // 1_000_000
        except OSError:
            return 0


def _read(fd: int, start: int, length: int) -> bytes:
    pieces = []
    while length and (piece := os.pread(fd, length, start)):
        pieces.append(piece)
        start, length = start + len(piece), length - len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _etag(status: os.stat_result) -> Etag:
    return f'"{status.st_mtime_ns:x}-{status.st_size:x}"'


def _stat(key: str, status: os.stat_result, date_ms: int, checksum: int | None) -> Stat:
    modified_ms = status.st_mtime_ns // 1_000_000
    return Stat(key, status.st_size, _etag(status), modified_ms, date_ms, checksum)
