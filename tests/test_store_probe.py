"""The probe finds each way in which a store may ignore a condition."""

from __future__ import annotations

import pytest

from compactor.store.base import Etag, PreconditionFailed, Stat
from compactor.store.memory import Bucket, MemoryStore
from compactor.store.probe import probe
from compactor.url import parse_url

URL = parse_url("memory://bucket/prefix/name")


class IgnoresCreate(MemoryStore):
    def put_if_absent(self, key: str, data: bytes) -> Stat:
        return self.put_stream(key, [data])


class IgnoresWrongEtag(MemoryStore):
    def put_if_match(self, key: str, data: bytes, etag: Etag) -> Stat:
        found = self.head(key)
        return super().put_if_match(key, data, found.etag if found else etag)


class IgnoresMissingKey(MemoryStore):
    def put_if_match(self, key: str, data: bytes, etag: Etag) -> Stat:
        return super().put_if_match(key, data, etag) if self.head(key) else self.put_stream(key, [data])


class RefusesEveryMatch(MemoryStore):
    def put_if_match(self, key: str, data: bytes, etag: Etag) -> Stat:
        raise PreconditionFailed("never", status=412, key=key)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (IgnoresCreate, "If-None-Match"),
        (IgnoresWrongEtag, "old ETag"),
        (IgnoresMissingKey, "missing key"),
        (RefusesEveryMatch, "current ETag is refused"),
    ],
)
def test_store_that_ignores_a_condition_is_not_trusted(kind: type[MemoryStore], why: str) -> None:
    bucket = Bucket()
    result = probe(kind(URL, bucket=bucket))
    assert not result.cas
    assert why in result.why
    assert bucket.objects == {}


def test_store_that_honours_them_is_trusted_for_six_requests() -> None:
    bucket = Bucket()
    store = MemoryStore(URL, bucket=bucket)
    result = probe(store)
    assert (result.cas, result.why) == (True, "")
    assert store.requests.counts() == dict.fromkeys(store.requests.counts(), 0) | {"PUT": 5, "DELETE": 1}
    assert bucket.objects == {}


def test_objects_of_the_namespace_are_not_touched() -> None:
    bucket = Bucket()
    store = MemoryStore(URL, bucket=bucket)
    before = store.put_if_absent("head", b"state")
    probe(IgnoresCreate(URL, bucket=bucket))
    assert store.get("head").etag == before.etag


class LosesOnce(MemoryStore):
    """Whoever probes slept, and a prune has deleted the key meanwhile."""

    lost = False

    def put_if_match(self, key: str, data: bytes, etag: Etag) -> Stat:
        if not self.lost:
            self.lost = True
            self.delete_many([key])
        return super().put_if_match(key, data, etag)


def test_probe_whose_key_was_deleted_meanwhile_is_made_again() -> None:
    bucket = Bucket()
    assert probe(LosesOnce(URL, bucket=bucket)).cas
    assert bucket.objects == {}
