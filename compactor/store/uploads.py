"""Multipart uploads of a bucket that were begun and never ended, as far as the store tells."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial

from compactor.store.base import NotSupported, Upload
from compactor.store.retry import Retry
from compactor.store.s3_client import S3Client
from ourdb.errors import RefusedError, TemporaryError


def list_uploads(client: S3Client, retry: Retry, root: str) -> Iterator[Upload]:
    """Those of keys that begin with `root`, which is taken off their keys. None if the store lists none."""
    found = False
    for upload in _listed(client, retry, root, root):
        found = True
        yield upload
    if not found:  # MinIO knows no prefixes here: the exact key, or the whole bucket
        with contextlib.suppress(RefusedError):  # whose credentials end at a prefix may not
            yield from _listed(client, retry, root, "")


def _listed(client: S3Client, retry: Retry, root: str, prefix: str) -> Iterator[Upload]:
    place: dict[str, str] = {}
    while True:
        try:
            reply = retry.call(partial(client.call, "list_multipart_uploads", "", Prefix=prefix, **place))
        except NotSupported:
            return
        for one in reply.get("Uploads", ()):
            key = str(one["Key"])
            if key.startswith(root):
                initiated_ms = int(one["Initiated"].timestamp() * 1000)
                yield Upload(key.removeprefix(root), str(one["UploadId"]), initiated_ms)
        if not reply.get("IsTruncated"):
            return
        following = {
            "KeyMarker": str(reply.get("NextKeyMarker", "")),
            "UploadIdMarker": str(reply.get("NextUploadIdMarker", "")),
        }
        if following == place or not following["KeyMarker"]:
            raise TemporaryError(f"{client.endpoint} cut a listing of uploads off: {root}")
        place = following
