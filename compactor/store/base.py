"""What every store can do, and what its failures are called.

A store is rooted at one namespace: keys are relative to it ("head", "lists/x.json",
"segments/GENERATION/NAME.seg"), and the store adds the prefix. One object, the head, changes by
compare-and-swap; every other one is written once under a name of its own. All stores pass the same
contract tests and may be used by several threads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from compactor.store.requests import RequestCounter
from compactor.url import StoreUrl
from ourdb.errors import DamageError, Error, InvalidError, TemporaryError
from ourdb.units import GIB, MIB

THREADS_MAX = 64
Etag = str
_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,254}")


class NoSuchKey(Error):
    """There is no object of this key. For callers inside: they say what it means to the user."""

    default_kind = "no_such_key"


class PreconditionFailed(Error):
    """The store refused a conditional put: somebody else was first, or it says that the key is not there.

    status: 412 or 409, or 404 to If-Match on a key that the store does not know.
    """

    default_kind = "precondition_failed"

    def __init__(self, message: str, *, status: int, key: str) -> None:
        super().__init__(message, status=status, key=key)
        self.status = status


class NotSupported(Error):
    """The store says that it cannot do this at all (501), for instance conditional puts."""

    default_kind = "not_supported"


class NoAnswer(TemporaryError):
    """The request may have been carried out or not, or may be later. Only a read can tell."""


@dataclass(frozen=True)
class Reply:
    """An object. modified_ms: LastModified; date_ms: the store's clock as it answered, 0 if unknown."""

    data: bytes
    etag: Etag
    modified_ms: int
    date_ms: int


class Tail(NamedTuple):
    """The end of an object. size: of the whole object."""

    data: bytes
    size: int
    etag: Etag


@dataclass(frozen=True)
class Stat:
    """An object without its bytes. crc32c: of all its bytes, None where the store does not say."""

    key: str
    bytes: int
    etag: Etag
    modified_ms: int
    date_ms: int
    crc32c: int | None


@dataclass(frozen=True)
class ListPage:
    """Some entries of a listing (perhaps none), and the store's clock when it gave them, 0 if unknown."""

    entries: tuple[Stat, ...]
    date_ms: int


@dataclass(frozen=True)
class Upload:
    """An unfinished upload. initiated_ms: when it was begun, by the store's clock; for a local file, when it
    was last written to."""

    key: str
    upload_id: str
    initiated_ms: int


@dataclass(frozen=True)
class CopyRange:
    """Bytes of another object of the namespace. etag: of the object, None if any will do. start, length: in
    bytes."""

    key: str
    etag: Etag | None
    start: int
    length: int

    def cut(self, start: int, end: int) -> CopyRange:
        """Of its own bytes those from `start` up to `end`."""
        return CopyRange(self.key, self.etag, self.start + start, end - start)


Bytes = bytes | bytearray | memoryview  # a byte an item
Piece = Bytes | CopyRange  # what an object is put together from


@dataclass(frozen=True)
class FailedDelete:
    key: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class StoreOptions:
    """threads: requests at a time, 1 to 64. retry_seconds: how long a request is tried again after the
    first failure. put_bytes_max: the longest body that goes as one put; what is longer goes in parts of
    part_bytes (5 MiB to 5 GiB), of which `threads` are in memory at a time, and one more for each stream."""

    threads: int = 4
    retry_seconds: float = 30.0
    connect_seconds: float = 10.0
    read_seconds: float = 60.0
    put_bytes_max: int = 16 * MIB
    part_bytes: int = 8 * MIB

    def validate(self) -> StoreOptions:
        """Self, or InvalidError that names the option."""
        check_threads(self.threads)
        if min(self.retry_seconds, self.connect_seconds, self.read_seconds) < 0:
            raise InvalidError("retry_seconds, connect_seconds and read_seconds must not be negative")
        if not 5 * MIB <= self.part_bytes <= 5 * GIB:
            raise InvalidError(f"part_bytes must be 5 MiB to 5 GiB: {self.part_bytes}")
        if not 0 <= self.put_bytes_max <= 5 * GIB:
            raise InvalidError(f"put_bytes_max must be 0 to 5 GiB: {self.put_bytes_max}")
        return self


def check_threads(threads: int) -> None:
    """InvalidError unless so many threads are 1 to 64."""
    if not 1 <= threads <= THREADS_MAX:
        raise InvalidError(f"threads must be 1 to {THREADS_MAX}: {threads}")


class Store(Protocol):
    """The objects of one namespace. Beside what a method names, each may raise NotFoundError
    (`no_bucket`), RefusedError (`credentials`, `permission`), StorageError (local files), DamageError
    (`store_damaged`: bytes altered on the way, again and again) and TemporaryError (the store is away,
    after bounded retries; nothing was written unless it is a NoAnswer)."""

    @property
    def url(self) -> StoreUrl: ...

    @property
    def requests(self) -> RequestCounter:
        """What was really sent, retries included."""
        ...

    def get(self, key: str) -> Reply:
        """The whole object. Raises NoSuchKey."""
        ...

    def get_if_changed(self, key: str, etag: Etag) -> Reply | None:
        """The object, or None if its ETag is still this one. Raises NoSuchKey."""
        ...

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Exactly `length` bytes from offset `start`. Raises NoSuchKey, or DamageError if the object is
        shorter."""
        ...

    def get_tail(self, key: str, length: int) -> Tail:
        """The last `length` bytes, at least 1 (all, if the object is shorter). Raises NoSuchKey."""
        ...

    def put_if_absent(self, key: str, data: bytes) -> Stat:
        """Creates the object, durably. Raises PreconditionFailed (somebody was first), or NoAnswer, also
        when nothing can have been sent: it is never repeated here, because only a fresh GET may allow
        that (protocol rule 10)."""
        ...

    def put_if_match(self, key: str, data: bytes, etag: Etag) -> Stat:
        """Replaces the object of this ETag, durably. Raises PreconditionFailed or NoAnswer. Repeated
        here only if the attempt before cannot have had an effect, so 412 is never our own success. An
        ETag never comes back only if the data differ from all before: put a random value in."""
        ...

    def put_stream(
        self,
        key: str,
        chunks: Iterable[bytes],
        *,
        size_hint: int | None = None,
        on_begin: Callable[[str], None] | None = None,
    ) -> Stat:
        """Writes an object whose key nobody else uses: as one put if it fits, else as a multipart upload,
        whose id `on_begin` gets before the first part is sent. size_hint: bytes at most; needed beyond
        10,000 parts. After an error nothing is at the key (unless it is a NoAnswer), and nothing is left."""
        ...

    def assemble(
        self,
        key: str,
        pieces: Iterable[Piece],
        *,
        size_hint: int,
        on_begin: Callable[[str], None] | None = None,
    ) -> Stat:
        """Writes an object whose key nobody else uses from the pieces in their order, as put_stream does.

        Long ranges (COPY_BYTES_MIN) are copied within the store; shorter ones are fetched, and sent with the
        bytes around them. A store that cannot copy fetches all, and says so once in the log. Bytes must not
        be changed after they were given. size_hint: bytes at most. The checksum of the whole is None unless
        it is known. Raises NoSuchKey if an object of a range is gone, and DamageError (`store_damaged`) if it
        is shorter or has another ETag; both name its key.
        """
        ...

    def list(self, prefix: str = "", start_after: str = "") -> Iterator[ListPage]:
        """What has this key prefix and comes after the key `start_after`, in byte order within each
        directory. A namespace that does not exist is empty. Foreign keys are listed as they are."""
        ...

    def head(self, key: str) -> Stat | None:
        """The object without its bytes, None if there is none."""
        ...

    def delete_many(self, keys: Iterable[str]) -> Failures:
        """Deletes, and returns what it could not delete. A key that is not there counts as deleted."""
        ...

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Frees what an unfinished put_stream or assemble left; no error if there is nothing (any more)."""
        ...

    def list_uploads(self) -> Iterator[Upload]:
        """What put_stream and assemble left unfinished, or are at, in no order: as far as the store tells.
        Some tell nothing, or not to everybody, so what a run begins is noted too. For local files the key is
        only a place that abort_upload understands."""
        ...

    def heads_above(self) -> str | None:
        """The head of the first namespace that encloses this one (its path from the root of the bucket
        or file system), None if there is none. One HEAD for each part of the prefix."""
        ...

    def close(self) -> None:
        """Gives back connections and threads. The store cannot be used afterwards."""
        ...


Failures = tuple[FailedDelete, ...]  # beside the protocol, whose `list` is a method


def checked_key(key: str) -> str:
    """The key, if each of its parts is one that every store can keep; InvalidError otherwise."""
    if not all(_PART.fullmatch(part) for part in key.split("/")):
        raise InvalidError(f"not a key that a store can keep: {key!r}")
    return key


def checked_etag(etag: Etag) -> Etag:
    """The ETag; InvalidError for an empty one, which some stores take for no condition at all."""
    if not etag.strip('"') or etag == "*":
        raise InvalidError(f"not an ETag: {etag!r}")
    return etag


def short_object(url: StoreUrl, key: str, size: int, wanted: int) -> DamageError:
    """The object ends before bytes that something refers to."""
    return DamageError(
        f"object is shorter than what refers to it: {url.display} {key}: {size} bytes, {wanted} wanted",
        kind="store_damaged",
        key=key,
        bytes=size,
    )


def other_object(url: StoreUrl, key: str, etag: Etag) -> DamageError:
    """The object has this ETag, and not the one that it had: yet keys are used once."""
    return DamageError(
        f"object is not the one that was read before: {url.display} {key}: its ETag is {etag} now",
        kind="store_damaged",
        key=key,
    )


def no_such_key(url: StoreUrl, key: str) -> NoSuchKey:
    return NoSuchKey(f"no such object: {url.display} {key}", key=key)
