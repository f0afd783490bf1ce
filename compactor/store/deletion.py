"""Deleting many objects: in as few requests as the store knows how to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

from compactor.store.base import FailedDelete, NoAnswer, NoSuchKey, NotSupported
from compactor.store.retry import Retry
from compactor.store.s3_client import S3Client
from compactor.store.s3_errors import BUSY
from ourdb.errors import RefusedError, TemporaryError

KEYS_MAX = 1000


class Deleter:
    """root: what comes before every key. One that is not there counts as deleted."""

    def __init__(self, client: S3Client, retry: Retry, root: str) -> None:
        self._client = client
        self._retry = retry
        self._root = root
        self._one_by_one = False  # set once the store turns out to know no other way

    def delete(self, keys: Sequence[str]) -> Iterator[FailedDelete]:
        """Deletes all of them, and gives those that the store kept."""
        rest = iter(keys)
        while several := list(islice(rest, KEYS_MAX)):
            if not self._one_by_one:
                try:
                    yield from self._delete_several(several)
                    continue
                except NotSupported:  # Google
                    self._one_by_one = True
            for key in several:
                yield from self._delete_one(key)

    def _delete_several(self, keys: Sequence[str]) -> Sequence[FailedDelete]:
        left = keys
        failures: list[FailedDelete] = []

        def attempt() -> None:
            """Deletes what is left; repeated for those keys that the store was too busy for."""
            nonlocal left
            objects = [{"Key": self._root + key} for key in left]
            reply = self._client.call("delete_objects", "", Delete={"Objects": objects, "Quiet": True})
            kept = [self._told(error) for error in reply.get("Errors", ())]
            failures.extend(
                FailedDelete(key, reason) for key, code, reason in kept if code not in (*BUSY, "NoSuchKey")
            )
            left = [key for key, code, _ in kept if code in BUSY]
            if left:
                raise NoAnswer(f"{self._client.endpoint} is too busy to delete {len(left)} objects")

        try:
            self._retry.call(attempt)
        except TemporaryError as error:
            if len(left) == len(keys):
                raise
            failures += [FailedDelete(key, str(error)) for key in left]
        return failures

    def _told(self, error: dict[str, Any]) -> tuple[str, str, str]:
        code = str(error.get("Code"))
        return str(error["Key"]).removeprefix(self._root), code, f"{code}: {error.get('Message')}"

    def _delete_one(self, key: str) -> Iterator[FailedDelete]:
        try:
            with contextlib.suppress(NoSuchKey):
                self._retry.call(partial(self._client.call, "delete_object", self._root + key))
        except RefusedError as error:
            yield FailedDelete(key, str(error))
