"""A store in a bucket of Amazon S3 or anything that speaks its language, by boto3.

Every put carries our CRC32C as a header, and the reply's is compared. Requests that may be repeated
are, for a bounded time; conditional puts only where the attempt before cannot have had an effect.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from email.utils import parsedate_to_datetime
from functools import partial
from itertools import chain
from typing import Any, TypeVar

import crc32c

from compactor.store.base import (
    CopyRange,
    Etag,
    Failures,
    ListPage,
    NoAnswer,
    NoSuchKey,
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
from compactor.store.checksum import decode_crc32c, encode_crc32c
from compactor.store.copying import Assembler
from compactor.store.deletion import Deleter
from compactor.store.etags import EtagForms
from compactor.store.multipart import MultipartUploader, Uploaded, check_reply, cut, etag_of
from compactor.store.parts import FETCH_BYTES_MAX, PartSizes, PartStream, evenly, opening, part_bytes_for
from compactor.store.requests import RequestCounter
from compactor.store.retry import WITHOUT_EFFECT, Altered, Retry, StoredAltered
from compactor.store.s3_client import S3Client
from compactor.store.s3_errors import NotModified, NotSatisfiable
from compactor.store.uploads import list_uploads
from compactor.url import StoreUrl
from ourdb.errors import DamageError, RefusedError, TemporaryError

_Part = TypeVar("_Part")


class S3Store:
    """A namespace in a bucket."""

    def __init__(
        self, url: StoreUrl, options: StoreOptions | None = None, *, retry: Retry | None = None
    ) -> None:
        options = (options or StoreOptions()).validate()
        self.url = url
        self.requests = RequestCounter()
        self._options = options
        self._root = url.root + "/"
        self._retry = retry or Retry(options.retry_seconds)
        self._client = S3Client(url, options, self.requests)
        self._uploader = MultipartUploader(self._client, self._retry, options.threads)
        self._etags = EtagForms()
        self._assembler = Assembler(url, self._uploader, self._etags, self.requests, self._range)
        self._deleter = Deleter(self._client, self._retry, self._root)

    def get(self, key: str) -> Reply:
        return self._retry.call(lambda: self._get(key))

    def get_if_changed(self, key: str, etag: Etag) -> Reply | None:
        checked_etag(etag)
        try:
            reply = self._retry.call(lambda: self._get(key, IfNoneMatch=etag))
        except NotModified:
            return None
        # a store that wants ETags without quotes sends it again
        return None if reply.etag.strip('"') == etag.strip('"') else reply

    def get_range(self, key: str, start: int, length: int) -> bytes:
        return self._range_once(CopyRange(key, None, start, length)) if length else b""

    def get_tail(self, key: str, length: int) -> Tail:
        try:
            reply = self._get_part(key, f"bytes=-{length}")
        except NotSatisfiable as error:  # some say so of an empty object
            found = self._found(key)
            if found.bytes == 0:
                return Tail(b"", 0, found.etag)
            raise DamageError(
                f"the store cannot give the end of an object: {self.url.display} {key}",
                kind="store_damaged",
                key=key,
            ) from error
        data: bytes = reply["Body"]
        etag = etag_of(reply, key)
        if reply["ResponseMetadata"]["HTTPStatusCode"] == 200:
            return Tail(data[max(0, len(data) - length) :], len(data), etag)
        return Tail(data, int(str(reply["ContentRange"]).rpartition("/")[2]), etag)

    def put_if_absent(self, key: str, data: bytes) -> Stat:
        try:
            return self._put(key, data, IfNoneMatch="*")
        except (TemporaryError, Altered) as error:
            raise NoAnswer(f"not known to be written: {key}: {error}", key=key) from error

    def put_if_match(self, key: str, data: bytes, etag: Etag) -> Stat:
        return self._etags.call(
            etag, lambda form: self._retry.call(partial(self._put_matching, key, data, form), WITHOUT_EFFECT)
        )

    def put_stream(
        self,
        key: str,
        chunks: Iterable[bytes],
        *,
        size_hint: int | None = None,
        on_begin: Callable[[str], None] | None = None,
    ) -> Stat:
        parts = cut(chunks, part_bytes_for(size_hint, self._options.part_bytes))
        first: list[bytearray] = []
        for part in parts:
            first.append(part)
            if sum(map(len, first)) > self._options.put_bytes_max:
                break
        else:
            return self._retry.call(partial(self._put, key, b"".join(first)))
        return _stat_of(self._uploader.upload(self._path(key), chain(_drained(first), parts), on_begin), key)

    def assemble(
        self,
        key: str,
        pieces: Iterable[Piece],
        *,
        size_hint: int,
        on_begin: Callable[[str], None] | None = None,
    ) -> Stat:
        path = self._path(key)
        sizes = PartSizes.of(size_hint, self._options.part_bytes)
        stream = PartStream(sizes, copies=self._assembler.copies)
        parts = stream.parts(pieces)
        whole, first = opening(parts, self._options.put_bytes_max)
        if whole is not None:
            return self._retry.call(partial(self._put, key, self._assembler.body(whole)))
        return _stat_of(self._assembler.upload(path, chain(_drained(first), parts), stream, on_begin), key)

    def list(self, prefix: str = "", start_after: str = "") -> Iterator[ListPage]:
        if start_after > prefix and not start_after.startswith(prefix):
            return  # everything with this prefix comes before it
        # a start outside of the prefix is not understood by every store
        inside = start_after if start_after.startswith(prefix) else ""
        place: dict[str, str] = {"StartAfter": self._root + inside} if inside else {}
        while True:
            request = {"Prefix": self._root + prefix, **place}
            reply = self._retry.call(partial(self._client.call, "list_objects_v2", "", **request))
            date_ms = _date_ms(reply)
            entries = (self._entry(found, date_ms) for found in reply.get("Contents", ()))
            yield ListPage(tuple(entry for entry in entries if entry.key > start_after), date_ms)
            if not reply.get("IsTruncated"):
                return
            following = {"ContinuationToken": str(reply.get("NextContinuationToken", ""))}
            if following == place or not following["ContinuationToken"]:
                raise TemporaryError(f"{self._client.endpoint} cut a listing off: {self.url.display}")
            place = following

    def head(self, key: str) -> Stat | None:
        path = self._path(key)
        return self._retry.call(lambda: self._head(key, path))

    def delete_many(self, keys: Iterable[str]) -> Failures:
        return tuple(self._deleter.delete([checked_key(key) for key in keys]))

    def abort_upload(self, key: str, upload_id: str) -> None:
        self._uploader.abort(self._path(key), upload_id)

    def list_uploads(self) -> Iterator[Upload]:
        return list_uploads(self._client, self._retry, self._root)

    def heads_above(self) -> str | None:
        parts = self.url.root.split("/")[:-1]
        for count in range(1, len(parts) + 1):
            path = "/".join((*parts[:count], "head"))
            with contextlib.suppress(RefusedError):  # whose credentials end at a prefix may not look above
                if self._retry.call(partial(self._head, path, path)) is not None:
                    return path
        return None

    def close(self) -> None:
        self._uploader.close()
        self._client.close()

    def _path(self, key: str) -> str:
        return self._root + checked_key(key)

    def _get(self, key: str, **conditions: str) -> Reply:
        reply = self._client.call("get_object", self._path(key), ChecksumMode="ENABLED", **conditions)
        data: bytes = reply["Body"]
        told = decode_crc32c(reply.get("ChecksumCRC32C"))
        if told is not None and told != crc32c.crc32c(data):
            raise Altered(f"object does not match the store's checksum: {self.url.display} {key}", key=key)
        return Reply(data, etag_of(reply, key), _modified_ms(reply), _date_ms(reply))

    def _get_part(self, key: str, byte_range: str) -> dict[str, Any]:
        path = self._path(key)
        return self._retry.call(lambda: self._client.call("get_object", path, Range=byte_range))

    def _range(self, wanted: CopyRange) -> bytes:
        """Its bytes, in several requests. Raises NoSuchKey; DamageError if this object is not there."""
        return b"".join(map(self._range_once, evenly(wanted, FETCH_BYTES_MAX)))

    def _range_once(self, wanted: CopyRange) -> bytes:
        key, start, end = wanted.key, wanted.start, wanted.start + wanted.length
        try:
            reply = self._get_part(key, f"bytes={start}-{end - 1}")
        except NotSatisfiable as error:
            raise self._short(key, end) from error
        if wanted.etag is not None and etag_of(reply, key).strip('"') != wanted.etag.strip('"'):
            raise other_object(self.url, key, etag_of(reply, key))
        whole = reply["ResponseMetadata"]["HTTPStatusCode"] == 200  # it did not heed the range
        data: bytes = reply["Body"][start:end] if whole else reply["Body"]
        if len(data) < wanted.length:
            raise self._short(key, end)
        return data

    def _short(self, key: str, wanted: int) -> DamageError:
        return short_object(self.url, key, self._found(key).bytes, wanted)

    def _found(self, key: str) -> Stat:
        found = self.head(key)
        if found is None:
            raise no_such_key(self.url, key)
        return found

    def _head(self, key: str, path: str) -> Stat | None:
        try:
            reply = self._client.call("head_object", path, ChecksumMode="ENABLED")
        except NoSuchKey:
            return None
        checksum = decode_crc32c(reply.get("ChecksumCRC32C"))
        size = int(reply["ContentLength"])
        return Stat(key, size, etag_of(reply, key), _modified_ms(reply), _date_ms(reply), checksum)

    def _put(self, key: str, data: bytes, **conditions: str) -> Stat:
        """One put and its checks; Altered after it means that other bytes are stored."""
        checksum = crc32c.crc32c(data)
        text = encode_crc32c(checksum)
        reply = self._client.call("put_object", self._path(key), Body=data, ChecksumCRC32C=text, **conditions)
        check_reply(reply, key, text)
        date_ms = _date_ms(reply)
        return Stat(key, len(data), etag_of(reply, key), date_ms, date_ms, checksum)

    def _put_matching(self, key: str, data: bytes, etag: Etag) -> Stat:
        try:
            return self._put(key, data, IfMatch=etag)
        except StoredAltered as error:  # it had an effect, so it is not to be repeated
            raise NoAnswer(f"not known to be written: {error}", key=key) from error
        except NoSuchKey as error:
            raise PreconditionFailed(str(error), status=404, key=key) from error

    def _entry(self, found: dict[str, Any], date_ms: int) -> Stat:
        key = str(found["Key"]).removeprefix(self._root)
        return Stat(key, int(found["Size"]), str(found["ETag"]), _modified_ms(found), date_ms, None)


def _stat_of(done: Uploaded, key: str) -> Stat:
    date_ms = _date_ms(done.reply)
    return Stat(key, done.bytes, done.etag, date_ms, date_ms, done.crc32c)


def _drained(parts: list[_Part]) -> Iterator[_Part]:
    """The parts, none of them held here any longer than needed."""
    while parts:
        yield parts.pop(0)


def _modified_ms(reply: dict[str, Any]) -> int:
    modified = reply["LastModified"]
    return int(modified.timestamp() * 1000)


def _date_ms(reply: dict[str, Any]) -> int:
    """The store's clock, 0 if it does not say: nothing looks older than it is then."""
    told = reply["ResponseMetadata"]["HTTPHeaders"].get("date")
    try:
        return int(parsedate_to_datetime(told).timestamp() * 1000) if told else 0
    except ValueError:
        return 0
