"""Bodies that are too long for one put: in parts, several at a time, each with its checksum."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import Any

import crc32c

from compactor.store.base import Bytes, Etag, NoAnswer, NoSuchKey
from compactor.store.checksum import encode_composite, encode_crc32c
from compactor.store.parts import PARTS_MAX
from compactor.store.retry import Retry, StoredAltered
from compactor.store.s3_client import S3Client, md5_base64
from compactor.store.s3_errors import NoSuchUpload
from ourdb.errors import Error, InvalidError, TemporaryError


@dataclass(frozen=True)
class SentPart:
    """crc32c: None if the upload has no checksums."""

    number: int
    bytes: int
    etag: str
    crc32c: int | None = None

    def as_request(self) -> dict[str, Any]:
        checksum = {} if self.crc32c is None else {"ChecksumCRC32C": encode_crc32c(self.crc32c)}
        return {"PartNumber": self.number, "ETag": self.etag, **checksum}


@dataclass(frozen=True)
class Uploaded:
    """A completed upload. reply: to the request that completed it. crc32c: of the whole body, if known."""

    reply: dict[str, Any]
    etag: Etag
    bytes: int
    crc32c: int | None


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
        self.client = client
        self.retry = retry
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="s3-part")
        self._slots = threading.BoundedSemaphore(threads)

    def upload(
        self, key: str, parts: Iterable[bytearray], on_begin: Callable[[str], None] | None
    ) -> Uploaded:
        """Uploads all parts and completes; after any error, of `parts` too, the upload is aborted."""
        with self.begun(key, on_begin, ChecksumAlgorithm="CRC32C", ChecksumType="FULL_OBJECT") as upload:
            whole = 0
            for part in parts:
                whole = crc32c.crc32c(part, whole)
                upload.send(partial(upload.put_checked, part))
            return upload.complete(whole)

    @contextlib.contextmanager
    def begun(
        self, key: str, on_begin: Callable[[str], None] | None, **parameters: str
    ) -> Iterator[MultipartUpload]:
        """A new upload, which is aborted after any error. parameters: of the request that creates it."""
        reply = self.retry.call(lambda: self.client.call("create_multipart_upload", key, **parameters))
        upload = MultipartUpload(self, key, str(reply["UploadId"]))
        try:
            if on_begin is not None:
                on_begin(upload.upload_id)
            yield upload
        except BaseException:
            upload.cancel()
            with contextlib.suppress(Error):  # the error that led here is the one to tell
                self.abort(key, upload.upload_id)
            raise

    def abort(self, key: str, upload_id: str) -> None:
        """Frees the parts of an upload; nothing if it was completed or aborted."""
        with contextlib.suppress(NoSuchUpload, NoSuchKey):
            self.retry.call(lambda: self.client.call("abort_multipart_upload", key, UploadId=upload_id))

    def submit(self, work: Callable[[], SentPart]) -> Future[SentPart]:
        """Waits until fewer than `threads` parts are on their way."""
        self._slots.acquire()
        try:
            future = self.pool.submit(work)
        except BaseException:
            self._slots.release()
            raise
        future.add_done_callback(lambda _: self._slots.release())
        return future

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)


class MultipartUpload:
    """One upload: its parts are sent by several threads, numbered in the order in which they were given."""

    def __init__(self, uploader: MultipartUploader, key: str, upload_id: str) -> None:
        self.key = key
        self.upload_id = upload_id
        self._uploader = uploader
        self._client = uploader.client
        self._retry = uploader.retry
        self._futures: list[Future[SentPart]] = []
        self._seen_done = 0  # how many of the first ones

    def send(self, work: Callable[[int], SentPart]) -> Future[SentPart]:
        """Has the next part sent by `work`, which is told its number. Raises the error of a part that was
        given before, as soon as all parts before that one are done."""
        while self._seen_done < len(self._futures) and self._futures[self._seen_done].done():
            self._futures[self._seen_done].result()
            self._seen_done += 1
        number = len(self._futures) + 1
        if number > PARTS_MAX:
            raise InvalidError(f"more than {PARTS_MAX} parts: the size_hint was too small: {self.key}")
        self._futures.append(self._uploader.submit(partial(work, number)))
        return self._futures[-1]

    def take_back(self) -> None:
        """The last part was refused; the next one has its number."""
        self._futures.pop()

    def put_checked(self, body: Bytes, number: int) -> SentPart:
        """Sends a part of an upload with checksums."""
        checksum = crc32c.crc32c(body)
        text = encode_crc32c(checksum)
        return SentPart(number, len(body), self._put(body, number, text, ChecksumCRC32C=text), checksum)

    def put_plain(self, body: Bytes, number: int) -> SentPart:
        """Sends a part of an upload without checksums: Amazon and others refuse one with CRC32C there, but
        all check Content-MD5."""
        return SentPart(number, len(body), self._put(body, number, ContentMD5=md5_base64(body)))

    def complete(self, whole: int | None) -> Uploaded:
        """Waits for all parts. whole: the checksum of the object, None if the upload has none."""
        parts = [future.result() for future in self._futures]
        size = sum(part.bytes for part in parts)
        unanswered = False

        def attempt() -> dict[str, Any]:
            nonlocal unanswered
            try:
                return self._client.call(
                    "complete_multipart_upload",
                    self.key,
                    UploadId=self.upload_id,
                    MultipartUpload={"Parts": [part.as_request() for part in parts]},
                )
            except TemporaryError:
                unanswered = True
                raise
            except NoSuchUpload as error:
                reply = self._completed_before(size) if unanswered else None
                if reply is None:
                    raise Error(
                        f"the upload was aborted by somebody else: {self.key}", key=self.key
                    ) from error
                return reply

        reply = self._retry.call(attempt)
        if whole is not None:
            composite = encode_composite([part.crc32c for part in parts if part.crc32c is not None])
            check_reply(reply, self.key, encode_crc32c(whole), composite)
        return Uploaded(reply, etag_of(reply, self.key), size, whole)

    def cancel(self) -> None:
        """Nothing of it is on its way any more."""
        for future in self._futures:
            future.cancel()
        wait(self._futures)

    def _put(self, body: Bytes, number: int, *checksums: str, **parameters: str) -> str:
        def attempt() -> str:
            reply = self._client.call(
                "upload_part",
                self.key,
                UploadId=self.upload_id,
                PartNumber=number,
                Body=body,
                **parameters,
            )
            check_reply(reply, self.key, *checksums)
            return etag_of(reply, self.key)

        return self._retry.call(attempt)

    def _completed_before(self, size: int) -> dict[str, Any] | None:
        """The object, if an earlier request to complete that was not answered did its work."""
        try:
            reply = self._client.call("head_object", self.key, ChecksumMode="ENABLED")
        except NoSuchKey:
            return None
        return reply if reply["ContentLength"] == size else None


def check_reply(reply: dict[str, Any], key: str, *checksums: str) -> None:
    """StoredAltered if the store says that it holds something else than was sent. checksums: any of them is
    right; none: there is nothing to compare."""
    told = reply.get("ChecksumCRC32C")
    if told is not None and checksums and told not in checksums:
        raise StoredAltered(
            f"the store holds other bytes than were sent: {key}: {told}, not {checksums[0]}", key=key
        )


def etag_of(reply: dict[str, Any], key: str) -> Etag:
    """The ETag that every reply about an object has; NoAnswer if something else replied."""
    if not reply.get("ETag"):
        raise NoAnswer(f"a reply without ETag, so not from a store: {key}", key=key)
    return str(reply["ETag"])
