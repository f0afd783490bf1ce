"""A bucket in this process that can copy, and fails where it is told to: before or after the effect."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import unquote

import crc32c

from tests.stub_s3 import DROP, Answer, Request, refusal, xml
from tests.stub_store import MODIFIED

ROOT = "/bucket/prefix/name/"


@dataclass(frozen=True)
class Fault:
    """answer: in place of the real one. has_effect: whether the request is carried out all the same."""

    answer: Answer
    has_effect: bool = False


LOST_REPLY = Fault(DROP, has_effect=True)


@dataclass
class StubBucket:
    """objects: by key within the namespace. faults: by step, what the next requests of it meet. steps: those
    that came, in order. before: is called with each step before it is carried out."""

    objects: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    before: Callable[[str], None] = lambda step: None
    steps: list[str] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)
    part_sizes: list[int] = field(default_factory=list)

    def __call__(self, request: Request) -> Answer:
        step = self._step(request)
        self.before(step)
        self.steps.append(step)
        self.requests.append(request)
        faults = self.faults.get(step)
        fault = faults.pop(0) if faults else None
        if fault and not fault.has_effect:
            return fault.answer
        answer: Answer = getattr(self, f"_{step}")(request, unquote(request.path).removeprefix(ROOT))
        return fault.answer if fault else answer

    def etag(self, key: str) -> str:
        return _etag(self.objects[key])

    def _step(self, request: Request) -> str:
        if "uploads" in request.query:
            return "begin"
        if request.method == "PUT" and "uploadId" in request.query:
            return "copy" if "x-amz-copy-source" in request.headers else "part"
        ofs = {"POST": "complete", "DELETE": "abort", "HEAD": "head", "PUT": "put", "GET": "get"}
        return ofs[request.method]

    def _begin(self, request: Request, key: str) -> Answer:
        upload_id = f"up{len(self.uploads)}"
        self.uploads[upload_id] = {}
        assert "x-amz-checksum-algorithm" not in request.headers, "copies into an upload with checksums"
        return xml("InitiateMultipartUploadResult", f"<UploadId>{upload_id}</UploadId>")

    def _part(self, request: Request, key: str) -> Answer:
        if "x-amz-checksum-crc32c" in request.headers:
            return refusal(400, "InvalidRequest", "Checksum Type mismatch occurred")
        return Answer(200, {"ETag": self._keep(request, request.body)})

    def _copy(self, request: Request, key: str) -> Answer:
        source = unquote(request.headers["x-amz-copy-source"])
        source_key = ("/" + source.removeprefix("/")).removeprefix(ROOT)
        data = self.objects.get(source_key)
        if data is None:
            return refusal(404, "NoSuchKey")
        if request.headers.get("x-amz-copy-source-if-match", _etag(data)) != _etag(data):
            return refusal(412, "PreconditionFailed")
        start, end = _bounds(request.headers["x-amz-copy-source-range"])
        if end > len(data):
            return refusal(400, "InvalidArgument", "Range specified is not valid for source object")
        return xml("CopyPartResult", f"<ETag>{self._keep(request, data[start:end])}</ETag>")

    def _keep(self, request: Request, data: bytes) -> str:
        self.uploads[request.query["uploadId"][0]][int(request.query["partNumber"][0])] = data
        return _etag(data)

    def _complete(self, request: Request, key: str) -> Answer:
        parts = self.uploads.pop(request.query["uploadId"][0], None)
        if parts is None:
            return refusal(404, "NoSuchUpload")
        told = re.findall(rb"<PartNumber>(\d+)</PartNumber>", request.body)
        numbers = sorted(int(number) for number in told)
        tags = re.findall(r"<ETag>(.*?)</ETag>", request.body.decode().replace("&quot;", '"'))
        assert tags == [_etag(parts[number]) for number in numbers]
        self.part_sizes = [len(parts[number]) for number in numbers]
        self.objects[key] = b"".join(parts[number] for number in numbers)
        return xml("CompleteMultipartUploadResult", f"<ETag>{self.etag(key)}</ETag>")

    def _abort(self, request: Request, key: str) -> Answer:
        gone = self.uploads.pop(request.query["uploadId"][0], None) is None
        return refusal(404, "NoSuchUpload") if gone else Answer(204)

    def _put(self, request: Request, key: str) -> Answer:
        self.objects[key] = request.body
        return Answer(200, {"ETag": self.etag(key)})

    def _head(self, request: Request, key: str) -> Answer:
        answer = self._whole(key)
        return Answer(404) if answer is None else answer

    def _get(self, request: Request, key: str) -> Answer:
        answer = self._whole(key)
        if answer is None:
            return refusal(404, "NoSuchKey")
        start, end = _bounds(request.headers["range"])
        if start >= len(answer.body):
            return refusal(416, "InvalidRange")
        return Answer(206, answer.headers, answer.body[start:end])

    def _whole(self, key: str) -> Answer | None:
        data = self.objects.get(key)
        return None if data is None else Answer(200, {"ETag": _etag(data), **MODIFIED}, data)


def _etag(data: bytes) -> str:
    return f'"{crc32c.crc32c(data):x}-{len(data):x}"'


def _bounds(header: str) -> tuple[int, int]:
    first, _, last = header.removeprefix("bytes=").partition("-")
    return int(first), int(last) + 1
