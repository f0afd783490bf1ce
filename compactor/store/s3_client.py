"""One bucket through boto3: requests counted as sent, one attempt each, errors in our families."""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import threading
from typing import Any, Literal

import boto3
import botocore.loaders
import botocore.session
from botocore.config import Config

from compactor.store.base import Bytes, StoreOptions
from compactor.store.requests import RequestCounter
from compactor.store.s3_errors import WantsMd5, translated
from compactor.url import StoreUrl

REGION_DEFAULT = "us-east-1"
_loader = botocore.loaders.create_loader()
_making_client = threading.Lock()
_log = logging.getLogger(__name__)
_KIND_OF = {
    "GetObject": "GET",
    "PutObject": "PUT",
    "UploadPart": "PUT",
    "UploadPartCopy": "COPY",
    "HeadObject": "HEAD",
    "HeadBucket": "HEAD",  # boto3's own, to find the region of a bucket
    "ListObjectsV2": "LIST",
    "ListMultipartUploads": "LIST",
    "DeleteObject": "DELETE",
    "DeleteObjects": "DELETE",
    "AbortMultipartUpload": "DELETE",
    "CreateMultipartUpload": "POST",
    "CompleteMultipartUpload": "POST",
}


class S3Client:
    """For several threads. Retries are the caller's: boto3's own would repeat conditional puts."""

    def __init__(self, url: StoreUrl, options: StoreOptions, requests: RequestCounter) -> None:
        self._url = url
        self._requests = requests
        self._md5 = False  # set once the store wants Content-MD5
        endpoint = url.endpoint_url
        style: Literal["path", "auto"] = (
            "path" if url.path_style or (url.path_style is None and endpoint) else "auto"
        )
        with _making_client, translated(url, endpoint or "Amazon S3", ""):
            session = _session()
            region = url.region or session.region_name or os.environ.get("AWS_REGION") or REGION_DEFAULT
            # typed as Any: the stubs want each operation's arguments spelled out at each call
            self._client: Any = session.client(
                "s3",
                region_name=region,
                endpoint_url=endpoint,
                config=Config(
                    s3={"addressing_style": style},
                    retries={"mode": "standard", "total_max_attempts": 1},
                    max_pool_connections=2 * options.threads + 2,  # callers' threads and those for parts
                    connect_timeout=options.connect_seconds,
                    read_timeout=options.read_seconds,
                    tcp_keepalive=True,
                    # our CRC32C goes as a header: MinIO blocks a key whose checksum trailer is cut off
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                    user_agent_extra="ourdb",
                ),
            )
        self.endpoint: str = self._client.meta.endpoint_url
        events = self._client.meta.events
        events.register("before-send.s3", self._count)
        events.register("before-sign.s3.DeleteObjects", self._add_md5)

    def call(self, operation: str, key: str, **parameters: Any) -> dict[str, Any]:
        """The reply to one request, its body read: `Body` is bytes.

        A store that wants Content-MD5 (411, MissingContentMD5, or 501 to a newer checksum) has refused
        before any effect: it gets the request once more with it, and all later ones so.
        """
        try:
            return self._send(operation, key, parameters)
        except WantsMd5 as error:
            if self._md5 or not ("Body" in parameters or "Delete" in parameters):
                raise
            _log.warning("uploads go with Content-MD5 in place of CRC32C from here on: %s", error)
            self._md5 = True
            return self._send(operation, key, parameters)

    def close(self) -> None:
        self._client.close()

    def _send(self, operation: str, key: str, parameters: dict[str, Any]) -> dict[str, Any]:
        if self._md5 and "Body" in parameters:
            parameters = {name: value for name, value in parameters.items() if name != "ChecksumCRC32C"}
            parameters["ContentMD5"] = md5_base64(parameters["Body"])
        if key:
            parameters = {"Key": key, **parameters}
        named = key.removeprefix(self._url.root + "/")  # as the caller names it
        with translated(self._url, self.endpoint, named):
            reply: dict[str, Any] = getattr(self._client, operation)(Bucket=self._url.bucket, **parameters)
            if "Body" in reply:
                with reply["Body"] as body:
                    reply["Body"] = body.read()
            return reply

    def _count(self, event_name: str, **event: Any) -> None:
        self._requests.add(_KIND_OF[event_name.rpartition(".")[2]])

    def _add_md5(self, request: Any, **event: Any) -> None:
        if self._md5:
            request.headers["Content-MD5"] = md5_base64(request.body)


def _session() -> boto3.session.Session:
    """A session of its own for each store, because sessions are not for several threads; but the
    description of S3, a megabyte of JSON, is read once."""
    core = botocore.session.get_session()
    core.register_component("data_loader", _loader)
    return boto3.session.Session(botocore_session=core)


def md5_base64(data: Bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
