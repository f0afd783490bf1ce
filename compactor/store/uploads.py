"""Multipart uploads of a bucket that were begun and never ended, as far as the store tells."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial

from compactor.store.base import NotSupported, Upload
from compactor.store.retry import Retry
from compactor.store.s3_client import S3Client
from compactor.store.s3_errors import NotUnderstood
from ourdb.errors import RefusedError, TemporaryError

_log = logging.getLogger(__name__)


def list_uploads(client: S3Client, retry: Retry, root: str) -> Iterator[Upload]:
    """Those of keys that begin with `root`, which is taken off their keys. None if the store cannot list
    them, or does not permit it."""
    for prefix in (root, ""):  # MinIO knows no prefixes here: the exact key, or the whole bucket
        found = False
        try:
            for upload in _listed(client, retry, root, prefix):
                found = True
                yield upload
        except (NotSupported, NotUnderstood, RefusedError) as error:
            _log.info("unfinished uploads cannot be listed: %s", error)
            return
        if found:
            return


def _listed(client: S3Client, retry: Retry, root: str, prefix: str) -> Iterator[Upload]:
    place: dict[str, str] = {}
    while True:
        reply = retry.call(partial(client.call, "list_multipart_uploads", "", Prefix=prefix, **place))
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
