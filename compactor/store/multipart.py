"""Bodies that are too long for one put: in parts, several at a time, each with its checksum."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import crc32c

from compactor.store.base import Etag, NoAnswer, NoSuchKey
from compactor.store.checksum import encode_composite, encode_crc32c
from compactor.store.retry import Retry, StoredAltered
from compactor.store.s3_client import S3Client
from compactor.store.s3_errors import NoSuchUpload
from ourdb.errors import Error, InvalidError, TemporaryError
from ourdb.units import MIB

PARTS_MAX = 10_000


@dataclass(frozen=True)
class _Part:
    number: int
    bytes: int
    crc32c: int
    etag: str

    def as_request(self) -> dict[str, Any]:
        return {"PartNumber": self.number, "ETag": self.etag, "ChecksumCRC32C": encode_crc32c(self.crc32c)}


@dataclass(frozen=True)
class Uploaded:
    """A completed upload. reply: to the request that completed it. crc32c: of the whole body."""

    reply: dict[str, Any]
    etag: Etag
    bytes: int
    crc32c: int


def part_bytes_for(size_hint: int | None, part_bytes: int) -> int:
    """Bytes of a part, so that no more than 10,000 are needed; all but the last have the same size."""
    least = -(-(size_hint or 0) // PARTS_MAX)
    return max(part_bytes, -(-least // MIB) * MIB)


def cut(chunks: Iterable[bytes], part_bytes: int) -> Iterator[bytearray]:
    """The bytes of the chunks in pieces of part_bytes; the last one may be shorter, none is empty."""
    part = bytearray()
    for chunk in chunks:
        rest = memoryview(chunk)
        while rest:
            taken = rest[: part_bytes - len(part)]
            part += taken
            rest = rest[len(taken) :]
            if len(part) == part_bytes:
                yield part
                part = bytearray()
    if part:
        yield part


class MultipartUploader:
    """Sends `threads` parts at a time, whatever the number of uploads: that bounds the memory they hold."""

    def __init__(self, client: S3Client, retry: Retry, threads: int) -> None:
        self._client = client
        self._retry = retry
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="s3-part")
        self._slots = threading.BoundedSemaphore(threads)

    def upload(
        self, key: str, parts: Iterable[bytearray], on_begin: Callable[[str], None] | None
    ) -> Uploaded:
        """Uploads all parts and completes; after any error, of `parts` too, the upload is aborted."""
        upload_id = self._begin(key)
        futures: list[Future[_Part]] = []
        try:
            if on_begin is not None:
                on_begin(upload_id)
            whole = 0
            for number, part in enumerate(parts, 1):
                if number > PARTS_MAX:
                    raise InvalidError(f"more than {PARTS_MAX} parts: give put_stream a size_hint: {key}")
                whole = crc32c.crc32c(part, whole)
                self._slots.acquire()
                futures.append(self._submit(key, upload_id, number, part))
                _raise_first_error(futures)
            done = [future.result() for future in futures]
            return self._complete(key, upload_id, done, whole)
        except BaseException:
            for future in futures:
                future.cancel()
            wait(futures)
            with contextlib.suppress(Error):  # the error that led here is the one to tell
                self.abort(key, upload_id)
            raise

    def abort(self, key: str, upload_id: str) -> None:
        """Frees the parts of an upload; nothing if it was completed or aborted."""
        with contextlib.suppress(NoSuchUpload, NoSuchKey):
            self._retry.call(lambda: self._client.call("abort_multipart_upload", key, UploadId=upload_id))

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _begin(self, key: str) -> str:
        reply = self._retry.call(
            lambda: self._client.call(
                "create_multipart_upload", key, ChecksumAlgorithm="CRC32C", ChecksumType="FULL_OBJECT"
            )
        )
        return str(reply["UploadId"])

    def _submit(self, key: str, upload_id: str, number: int, part: bytearray) -> Future[_Part]:
        try:
            future = self._pool.submit(self._send_part, key, upload_id, number, part)
        except BaseException:
            self._slots.release()
            raise
        future.add_done_callback(lambda _: self._slots.release())
        return future

    def _send_part(self, key: str, upload_id: str, number: int, part: bytearray) -> _Part:
        checksum = crc32c.crc32c(part)

        def attempt() -> _Part:
            reply = self._client.call(
                "upload_part",
                key,
                UploadId=upload_id,
                PartNumber=number,
                Body=part,
                ChecksumCRC32C=encode_crc32c(checksum),
            )
            check_reply(reply, key, encode_crc32c(checksum))
            return _Part(number, len(part), checksum, etag_of(reply, key))

        return self._retry.call(attempt)

    def _complete(self, key: str, upload_id: str, parts: list[_Part], whole: int) -> Uploaded:
        size = sum(part.bytes for part in parts)
        unanswered = False

        def attempt() -> dict[str, Any]:
            nonlocal unanswered
            try:
                return self._client.call(
                    "complete_multipart_upload",
                    key,
                    UploadId=upload_id,
                    MultipartUpload={"Parts": [part.as_request() for part in parts]},
                )
            except TemporaryError:
                unanswered = True
                raise
            except NoSuchUpload as error:
                reply = self._completed_before(key, size) if unanswered else None
                if reply is None:
                    raise Error(f"the upload was aborted by somebody else: {key}", key=key) from error
                return reply

        reply = self._retry.call(attempt)
        check_reply(reply, key, encode_crc32c(whole), encode_composite([part.crc32c for part in parts]))
        return Uploaded(reply, etag_of(reply, key), size, whole)

    def _completed_before(self, key: str, size: int) -> dict[str, Any] | None:
        """The object, if an earlier request to complete that was not answered did its work."""
        try:
            reply = self._client.call("head_object", key, ChecksumMode="ENABLED")
        except NoSuchKey:
            return None
        return reply if reply["ContentLength"] == size else None


def check_reply(reply: dict[str, Any], key: str, *checksums: str) -> None:
    """StoredAltered if the store says that it holds something else than was sent."""
    told = reply.get("ChecksumCRC32C")
    if told is not None and told not in checksums:
        raise StoredAltered(
            f"the store holds other bytes than were sent: {key}: {told}, not {checksums[0]}", key=key
        )


def etag_of(reply: dict[str, Any], key: str) -> Etag:
    """The ETag that every reply about an object has; NoAnswer if something else replied."""
    if not reply.get("ETag"):
        raise NoAnswer(f"a reply without ETag, so not from a store: {key}", key=key)
    return str(reply["ETag"])


def _raise_first_error(futures: list[Future[_Part]]) -> None:
    for future in futures:
        if future.done():
            future.result()
