"""An S3Store whose server is a stub, and what stubs answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import crc32c

from compactor.store import StoreOptions
from compactor.store.checksum import encode_composite, encode_crc32c
from compactor.store.retry import Retry
from compactor.store.s3 import S3Store
from compactor.url import parse_url
from ourdb.units import MIB
from tests.stub_s3 import Answer, Request, StubS3, refusal, xml

OPTIONS = StoreOptions(put_bytes_max=MIB, part_bytes=5 * MIB, threads=2, read_seconds=5)
MODIFIED = {"Last-Modified": "Mon, 23 Nov 2026 02:41:00 GMT"}
SLOW_DOWN = refusal(503, "SlowDown")
LOST = refusal(412, "PreconditionFailed")


def crc(data: bytes) -> str:
    return encode_crc32c(crc32c.crc32c(data))


def got(data: bytes, **headers: str) -> Answer:
    return Answer(200, {"ETag": '"e1"', **MODIFIED, **headers}, data)


def stored(data: bytes = b"", etag: str = '"e2"') -> Answer:
    return Answer(200, {"ETag": etag, **({"x-amz-checksum-crc32c": crc(data)} if data else {})})


class FakeTime:
    """A clock that only sleeping moves on."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def store_at(endpoint: str, *, retry_seconds: float = 30) -> S3Store:
    time = FakeTime()
    retry = Retry(retry_seconds, sleep=time.sleep, clock=lambda: time.now)
    return S3Store(parse_url(f"s3://bucket/prefix/name?endpoint={endpoint}"), OPTIONS, retry=retry)


@contextmanager
def stubbed(
    answers: Iterable[Answer] | Callable[[Request], Answer], *, retry_seconds: float = 30
) -> Iterator[tuple[S3Store, list[Request]]]:
    with StubS3(answers) as stub:
        store = store_at(stub.endpoint, retry_seconds=retry_seconds)
        try:
            yield store, stub.requests
        finally:
            store.close()


class MultipartStub:
    """Enough of multipart uploads to let each step fail once, before or after its effect."""

    def __init__(self, faults: dict[str, list[Answer]], told: Callable[[list[bytes]], str | None]) -> None:
        self.faults = faults
        self.told = told
        self.parts: dict[int, bytes] = {}
        self.open = True
        self.aborted = False

    def __call__(self, request: Request) -> Answer:
        step = self._step(request)
        if step == "complete" and self.open:
            self.open = False  # it takes effect, even if the answer is lost
        elif step == "complete" and not self.faults.get(step):
            return refusal(404, "NoSuchUpload")
        if self.faults.get(step):
            return self.faults[step].pop(0)
        answer: Answer = getattr(self, f"_{step}")(request)
        return answer

    def _step(self, request: Request) -> str:
        if "uploads" in request.query:
            return "begin"
        posted = {"PUT": "part", "POST": "complete", "DELETE": "abort", "HEAD": "head"}
        return posted[request.method]

    def _begin(self, request: Request) -> Answer:
        return xml("InitiateMultipartUploadResult", "<UploadId>up</UploadId>")

    def _part(self, request: Request) -> Answer:
        self.parts[int(request.query["partNumber"][0])] = request.body
        return stored(request.body, etag=f'"part{request.query["partNumber"][0]}"')

    def _complete(self, request: Request) -> Answer:
        told = self.told([self.parts[number] for number in sorted(self.parts)])
        inside = f"<ChecksumCRC32C>{told}</ChecksumCRC32C>" if told else ""
        return xml("CompleteMultipartUploadResult", '<ETag>"whole-2"</ETag>' + inside)

    def _abort(self, request: Request) -> Answer:
        self.aborted = True
        return Answer(204)

    def _head(self, request: Request) -> Answer:
        whole = b"".join(self.parts[number] for number in sorted(self.parts))
        return Answer(200, {"ETag": '"whole-2"', **MODIFIED}, whole)


def whole_checksum(parts: list[bytes]) -> str:
    return crc(b"".join(parts))


def composite_checksum(parts: list[bytes]) -> str:
    return encode_composite([crc32c.crc32c(part) for part in parts])
