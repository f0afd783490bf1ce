"""A bucket of a real server: what only it can say about credentials, checksums and leftovers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from compactor.store import CopyRange, NoSuchKey, Piece, Store, StoreOptions, open_store
from compactor.store.checksum import encode_crc32c
from compactor.store.retry import Altered
from compactor.store.s3 import S3Store
from compactor.store.s3_client import md5_base64
from compactor.url import parse_url
from ourdb.errors import NotFoundError, RefusedError
from ourdb.units import MIB
from tests.servers import S3Server, client_of

pytestmark = pytest.mark.s3
OPTIONS = StoreOptions(put_bytes_max=MIB, part_bytes=5 * MIB)


@pytest.fixture
def store(s3_url: str) -> Iterator[S3Store]:
    opened = S3Store(parse_url(s3_url), OPTIONS)
    yield opened
    opened.close()


def refused(store: Store) -> str:
    """The kind of error that a first look at a namespace gives."""
    with pytest.raises(RefusedError) as caught:
        store.get("head")
    store.close()
    assert caught.value.exit_code == 18
    return caught.value.kind


def unfinished_uploads(server: S3Server, key: str) -> list[str]:
    """Their ids; of an exact key, because MinIO lists no others."""
    with closing(client_of(server)) as client:
        found = client.list_multipart_uploads(Bucket=server.bucket, Prefix=key)
    return [upload["UploadId"] for upload in found.get("Uploads", [])]


def test_unknown_access_key_is_refused(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    assert refused(open_store(s3_url)) == "credentials"


def test_wrong_secret_is_refused_and_not_repeated_in_the_message(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2-hunter2")
    store = open_store(s3_url)
    with pytest.raises(RefusedError) as caught:
        store.put_if_absent("head", b"state")
    store.close()
    assert caught.value.kind == "credentials"
    assert "hunter2" not in str(caught.value)


def test_bucket_that_is_not_there_is_not_found(s3_environment: S3Server) -> None:
    store = open_store("s3://no-such-bucket-of-ours/prefix/name")
    for look in (
        lambda: store.get("head"),
        lambda: list(store.list()),
        lambda: store.put_if_absent("head", b"state"),
        lambda: store.put_stream("lists/a", [b"bytes"]),
    ):
        with pytest.raises(NotFoundError, match="no-such-bucket-of-ours") as caught:
            look()
        assert (caught.value.kind, caught.value.exit_code) == ("no_bucket", 10)
    store.close()


def test_endpoint_in_the_url_goes_before_the_environment(
    s3_environment: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    store = open_store(f"{s3_url}?endpoint={s3_environment.endpoint}&path_style=true")
    with pytest.raises(NoSuchKey):
        store.get("head")
    store.close()


def test_server_refuses_bytes_that_do_not_match_the_checksum(store: S3Store) -> None:
    key = store.url.root + "/lists/a"
    with pytest.raises(Altered):
        store._client.call("put_object", key, Body=b"data", ChecksumCRC32C=encode_crc32c(1))
    assert store.head("lists/a") is None


def test_stream_that_fails_leaves_no_parts_behind(store: S3Store, s3_environment: S3Server) -> None:
    def chunks() -> Iterator[bytes]:
        yield bytes(11 * MIB)
        raise RuntimeError("the source failed")

    began: list[str] = []
    with pytest.raises(RuntimeError, match="the source failed"):
        store.put_stream("lists/a", chunks(), on_begin=began.append)
    assert len(began) == 1
    assert unfinished_uploads(s3_environment, store.url.root + "/lists/a") == []


def test_upload_of_a_killed_run_is_freed_by_its_id(store: S3Store, s3_environment: S3Server) -> None:
    key = store.url.root + "/lists/a"
    left = store._client.call("create_multipart_upload", key)["UploadId"]
    store._client.call("upload_part", key, UploadId=left, PartNumber=1, Body=b"part")
    assert unfinished_uploads(s3_environment, key) == [left]
    for _ in range(2):
        store.abort_upload("lists/a", left)
    assert unfinished_uploads(s3_environment, key) == []


def test_copies_that_fail_leave_no_parts_behind(store: S3Store, s3_environment: S3Server) -> None:
    def pieces() -> Iterator[Piece]:
        yield CopyRange("lists/a", None, 0, 20 * MIB)
        yield bytes(11 * MIB)
        raise RuntimeError("the source failed")

    store.put_stream("lists/a", [bytes(20 * MIB)])
    began: list[str] = []
    with pytest.raises(RuntimeError, match="the source failed"):
        store.assemble("lists/b", pieces(), size_hint=40 * MIB, on_begin=began.append)
    assert len(began) == 1
    assert unfinished_uploads(s3_environment, store.url.root + "/lists/b") == []


def test_upload_of_a_killed_run_is_listed_and_freed(store: S3Store, s3_environment: S3Server) -> None:
    key = store.url.root + "/lists/a"
    left = store._client.call("create_multipart_upload", key)["UploadId"]
    (upload,) = store.list_uploads()
    assert (upload.key, upload.upload_id) == ("lists/a", left)
    store.abort_upload(upload.key, upload.upload_id)
    assert unfinished_uploads(s3_environment, key) == []


def test_part_that_does_not_match_its_md5_is_refused(store: S3Store) -> None:
    """Parts of an upload that copies have no other checksum."""
    key = store.url.root + "/lists/a"
    left = store._client.call("create_multipart_upload", key)["UploadId"]
    with pytest.raises(Altered):
        store._client.call(
            "upload_part", key, UploadId=left, PartNumber=1, Body=b"data", ContentMD5=md5_base64(b"other")
        )
    store.abort_upload("lists/a", left)


def test_several_assemblies_at_once_share_the_slots(store: S3Store) -> None:
    source = b"".join(bytes([number]) * MIB for number in range(40))
    store.put_stream("lists/source", [source])

    def put(number: int) -> bytes:
        pieces = [bytes([number]) * 100, CopyRange("lists/source", None, number, 30 * MIB), b"end"]
        store.assemble(f"lists/{number}", pieces, size_hint=31 * MIB)
        return store.get(f"lists/{number}").data

    with ThreadPoolExecutor(3) as pool:
        for number, data in enumerate(pool.map(put, range(3))):
            assert data == bytes([number]) * 100 + source[number : number + 30 * MIB] + b"end"


def test_several_large_streams_at_once_share_the_slots(store: S3Store) -> None:
    def put(number: int) -> int:
        return store.put_stream(f"lists/{number}", (bytes([number]) * MIB for _ in range(7))).bytes

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(put, range(3))) == [7 * MIB] * 3
    for number in range(3):
        assert store.get(f"lists/{number}").data == bytes([number]) * (7 * MIB)


def test_connections_are_kept_for_all_threads(store: S3Store, caplog: pytest.LogCaptureFixture) -> None:
    store.put_if_absent("head", b"state")
    with (
        caplog.at_level(logging.WARNING, "urllib3.connectionpool"),
        ThreadPoolExecutor(OPTIONS.threads) as pool,
    ):
        assert set(pool.map(lambda _: store.get("head").data, range(40))) == {b"state"}
    assert caplog.text == ""
