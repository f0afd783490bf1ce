"""A store in this process: for tests, and the plainest statement of what a store does."""

from __future__ import annotations

import contextlib
import secrets
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import crc32c

from compactor.store.assembly import assemble_here
from compactor.store.base import (
    CopyRange,
    Etag,
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
from compactor.store.requests import RequestCounter
from compactor.url import StoreUrl
from ourdb.units import now_ms

PAGE_KEYS = 1000


@dataclass(frozen=True)
class _Object:
    data: bytes
    etag: Etag
    modified_ms: int


@dataclass
class Bucket:
    """Objects by key, shared by the stores on them. clock_ms: what LastModified and Date are taken from.
    uploads: when each unfinished one was begun, by key and id."""

    clock_ms: Callable[[], int] = now_ms
    objects: dict[str, _Object] = field(default_factory=dict)
    uploads: dict[tuple[str, str], int] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)


_buckets: dict[str, Bucket] = {}


def shared_bucket(name: str) -> Bucket:
    """The bucket of this name in this process, made when first asked for: `memory://name/..`."""
    return _buckets.setdefault(name, Bucket())


class MemoryStore:
    """A namespace in a Bucket. Durable as long as the process."""

    def __init__(
        self, url: StoreUrl, options: StoreOptions | None = None, *, bucket: Bucket | None = None
    ) -> None:
        self.url = url
        self.requests = RequestCounter()
        self._options = (options or StoreOptions()).validate()
        self._bucket = bucket or shared_bucket(url.bucket)
        self._root = url.root + "/"

    def get(self, key: str) -> Reply:
        self.requests.add("GET")
        found = self._object(key)
        return Reply(found.data, found.etag, found.modified_ms, self._bucket.clock_ms())

    def get_if_changed(self, key: str, etag: Etag) -> Reply | None:
        reply = self.get(key)
        return None if reply.etag == checked_etag(etag) else reply

    def get_range(self, key: str, start: int, length: int) -> bytes:
        self.requests.add("GET")
        data = self._object(key).data
        if start + length > len(data):
            raise short_object(self.url, key, len(data), start + length)
        return data[start : start + length]

    def get_tail(self, key: str, length: int) -> Tail:
        self.requests.add("GET")
        found = self._object(key)
        size = len(found.data)
        return Tail(found.data[max(0, size - length) :], size, found.etag)

    def put_if_absent(self, key: str, data: bytes) -> Stat:
        self.requests.add("PUT")
        with self._bucket.lock:
            if self._root + checked_key(key) in self._bucket.objects:
                raise PreconditionFailed(f"exists already: {self.url.display} {key}", status=412, key=key)
            return self._put(key, data)

    def put_if_match(self, key: str, data: bytes, etag: Etag) -> Stat:
        self.requests.add("PUT")
        with self._bucket.lock:
            found = self._bucket.objects.get(self._root + checked_key(key))
            if found is None:
                raise PreconditionFailed(f"is not there: {self.url.display} {key}", status=404, key=key)
            if found.etag != checked_etag(etag):
                raise PreconditionFailed(f"was replaced: {self.url.display} {key}", status=412, key=key)
            return self._put(key, data)

    def put_stream(
        self,
        key: str,
        chunks: Iterable[bytes],
        *,
        size_hint: int | None = None,
        on_begin: Callable[[str], None] | None = None,
    ) -> Stat:
        data = bytearray()
        begun = False
        with self._upload(key, on_begin) as begin:
            for chunk in chunks:
                data += chunk
                if len(data) > self._options.put_bytes_max and not begun:
                    begun = True
                    self.requests.add("POST")
                    begin()
            for _ in range(-(-len(data) // self._options.part_bytes) if begun else 1):
                self.requests.add("PUT")
            if begun:
                self.requests.add("POST")
            return self._put(key, bytes(data))

    def assemble(
        self,
        key: str,
        pieces: Iterable[Piece],
        *,
        size_hint: int,
        on_begin: Callable[[str], None] | None = None,
    ) -> Stat:
        data = bytearray()

        def append(piece: Piece) -> None:
            nonlocal data
            data += self._range(piece) if isinstance(piece, CopyRange) else piece

        with self._upload(key, on_begin) as begin:
            assemble_here(pieces, size_hint, self._options, self.requests, begin=begin, append=append)
            return self._put(key, bytes(data))

    def list(self, prefix: str = "", start_after: str = "") -> Iterator[ListPage]:
        with self._bucket.lock:
            names = sorted(self._bucket.objects)
        keys = [name.removeprefix(self._root) for name in names if name.startswith(self._root + prefix)]
        keys = keys[bisect_right(keys, start_after) :]
        for first in range(0, max(len(keys), 1), PAGE_KEYS):
            self.requests.add("LIST")
            stats = (self._stat(key) for key in keys[first : first + PAGE_KEYS])
            yield ListPage(tuple(stat for stat in stats if stat is not None), self._bucket.clock_ms())

    def head(self, key: str) -> Stat | None:
        self.requests.add("HEAD")
        return self._stat(checked_key(key))

    def delete_many(self, keys: Iterable[str]) -> Failures:
        names = [self._root + checked_key(key) for key in keys]
        for first in range(0, len(names), PAGE_KEYS):
            self.requests.add("DELETE")
            with self._bucket.lock:
                for name in names[first : first + PAGE_KEYS]:
                    self._bucket.objects.pop(name, None)
        return ()

    def abort_upload(self, key: str, upload_id: str) -> None:
        self.requests.add("DELETE")
        self._bucket.uploads.pop((self._root + checked_key(key), upload_id), None)

    def list_uploads(self) -> Iterator[Upload]:
        self.requests.add("LIST")
        with self._bucket.lock:
            uploads = list(self._bucket.uploads.items())
        for (name, upload_id), begun_ms in uploads:
            if name.startswith(self._root):
                yield Upload(name.removeprefix(self._root), upload_id, begun_ms)

    def heads_above(self) -> str | None:
        parts = self.url.root.split("/")[:-1]
        for count in range(1, len(parts) + 1):
            self.requests.add("HEAD")
            name = "/".join((*parts[:count], "head"))
            if name in self._bucket.objects:
                return name
        return None

    def close(self) -> None:
        """Nothing to give back: the bucket stays for the next store on it."""

    def _object(self, key: str) -> _Object:
        found = self._bucket.objects.get(self._root + checked_key(key))
        if found is None:
            raise no_such_key(self.url, key)
        return found

    def begin_upload(self, key: str) -> str:
        """The id of a new upload, which stays until it is aborted: for tests of whoever has to."""
        upload_id = secrets.token_hex(8)
        self._bucket.uploads[self._root + checked_key(key), upload_id] = self._bucket.clock_ms()
        return upload_id

    @contextlib.contextmanager
    def _upload(self, key: str, on_begin: Callable[[str], None] | None) -> Iterator[Callable[[], None]]:
        """Gives what begins an upload of the key; none is left in the end."""
        checked_key(key)
        begun: list[str] = []

        def begin() -> None:
            begun.append(self.begin_upload(key))
            if on_begin is not None:
                on_begin(begun[0])

        try:
            yield begin
        finally:
            for upload_id in begun:
                self._bucket.uploads.pop((self._root + key, upload_id), None)

    def _range(self, wanted: CopyRange) -> memoryview:
        found = self._object(wanted.key)
        if wanted.etag not in (None, found.etag):
            raise other_object(self.url, wanted.key, found.etag)
        end = wanted.start + wanted.length
        if end > len(found.data):
            raise short_object(self.url, wanted.key, len(found.data), end)
        return memoryview(found.data)[wanted.start : end]

    def _put(self, key: str, data: bytes) -> Stat:
        with self._bucket.lock:
            made = _Object(bytes(data), f'"{secrets.token_hex(16)}"', self._bucket.clock_ms())
            self._bucket.objects[self._root + checked_key(key)] = made
        return Stat(key, len(data), made.etag, made.modified_ms, made.modified_ms, crc32c.crc32c(data))

    def _stat(self, key: str) -> Stat | None:
        found = self._bucket.objects.get(self._root + key)
        if found is None:
            return None
        checksum = crc32c.crc32c(found.data)
        return Stat(key, len(found.data), found.etag, found.modified_ms, self._bucket.clock_ms(), checksum)
