"""Objects put together in a bucket: long ranges of others are copied there, the rest is sent in parts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from compactor.store.base import (
    Bytes,
    CopyRange,
    NoSuchKey,
    NotSupported,
    Piece,
    PreconditionFailed,
    no_such_key,
)
from compactor.store.etags import EtagForms
from compactor.store.multipart import MultipartUpload, MultipartUploader, SentPart, Uploaded, etag_of
from compactor.store.parts import Gathered, Part, PartStream
from compactor.store.requests import RequestCounter
from compactor.store.s3_errors import NotSatisfiable, NotUnderstood
from compactor.url import StoreUrl

_WANTS_EVEN_PARTS = ".r2.cloudflarestorage.com"  # it refuses at the end, when the pieces are gone
_log = logging.getLogger(__name__)
_REFUSALS = (NotSupported, NotUnderstood, NotSatisfiable, PreconditionFailed)


class CannotCopy(NotSupported):
    """The store refuses to copy a range of an object that is there and long enough."""


class Assembler:
    """fetch: gives the bytes of a range; raises NoSuchKey, or DamageError if there is not this object."""

    def __init__(
        self,
        url: StoreUrl,
        uploader: MultipartUploader,
        etags: EtagForms,
        requests: RequestCounter,
        fetch: Callable[[CopyRange], bytes],
    ) -> None:
        self._url = url
        self._uploader = uploader
        self._etags = etags
        self._requests = requests
        self._fetch = fetch
        host = urlsplit(uploader.client.endpoint).hostname or ""
        self._copies: bool | None = False if host.endswith(_WANTS_EVEN_PARTS) else None  # None: not known yet

    @property
    def copies(self) -> bool:
        """Whether copying is worth a try."""
        return self._copies is not False

    def body(self, gathered: Gathered) -> bytes:
        """All of it, its ranges fetched several at once."""
        return b"".join(self._uploader.pool.map(self._bytes, gathered))

    def upload(
        self, path: str, parts: Iterable[Part], stream: PartStream, on_begin: Callable[[str], None] | None
    ) -> Uploaded:
        """Sends and copies the parts of the stream to the key `path`; aborted after any error.

        The upload has no checksums: MinIO refuses copies into one that does.
        """
        with self._uploader.begun(path, on_begin) as upload:
            for part in parts:
                if not isinstance(part, CopyRange):
                    upload.send(self._sender(upload, part))
                    continue
                known = self._copies  # another assembly may learn it meanwhile
                if known is False:
                    stream.refuse()
                    continue
                future = upload.send(partial(self._copy, upload, part))
                if known is None and not self._is_copied(future):
                    upload.take_back()
                    stream.refuse()
            return upload.complete(None)

    def _is_copied(self, first: Future[SentPart]) -> bool:
        """Waits for the first copy, which shows whether there will be others."""
        try:
            first.result()
        except CannotCopy as error:
            _log.warning("ranges are fetched and sent again, not copied, from here on: %s", error)
            self._copies = False
        else:
            self._copies = True
        return self._copies

    def _sender(self, upload: MultipartUpload, part: Gathered) -> Callable[[int], SentPart]:
        if any(isinstance(piece, CopyRange) for piece in part):
            return partial(self._send, upload, part)
        return partial(upload.put_plain, b"".join(map(self._bytes, part)))  # so that the pieces can go

    def _send(self, upload: MultipartUpload, part: Gathered, number: int) -> SentPart:
        return upload.put_plain(b"".join(map(self._bytes, part)), number)

    def _bytes(self, piece: Piece) -> Bytes:
        if not isinstance(piece, CopyRange):
            return piece
        data = self._fetch(piece)
        self._requests.add_fetched(len(data))
        return data

    def _copy(self, upload: MultipartUpload, source: CopyRange, number: int) -> SentPart:
        def attempt(**condition: str) -> str:
            return self._uploader.retry.call(lambda: self._copy_once(upload, source, number, condition))

        try:
            if source.etag is None:
                etag = attempt()
            else:
                etag = self._etags.call(source.etag, lambda form: attempt(CopySourceIfMatch=form))
        except NoSuchKey as error:
            raise no_such_key(self._url, source.key) from error
        except _REFUSALS as error:
            self._fetch(source.cut(source.length - 1, source.length))  # if it is the source, this tells
            raise CannotCopy(f"cannot copy from {self._url.display} {source.key}: {error}") from error
        self._requests.add_copied(source.length)
        return SentPart(number, source.length, etag)

    def _copy_once(
        self, upload: MultipartUpload, source: CopyRange, number: int, condition: dict[str, str]
    ) -> str:
        reply: dict[str, Any] = self._uploader.client.call(
            "upload_part_copy",
            upload.key,
            UploadId=upload.upload_id,
            PartNumber=number,
            # boto3 encodes the key as a header needs it
            CopySource={"Bucket": self._url.bucket, "Key": f"{self._url.root}/{source.key}"},
            CopySourceRange=f"bytes={source.start}-{source.start + source.length - 1}",
            **condition,
        )
        result = reply.get("CopyPartResult")
        if not result:  # such a store takes it for a part without bytes
            raise NotUnderstood("a reply that does not say what was copied")
        return etag_of(result, upload.key)
