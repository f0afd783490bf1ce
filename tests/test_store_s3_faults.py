"""What real S3 stores do now and then, played by a stub: each quirk, and what the store makes of it."""

from __future__ import annotations

import base64
import hashlib
import logging
import subprocess
import sys
from collections.abc import Callable

import crc32c
import pytest

from compactor.store import NoAnswer, NotSupported, PreconditionFailed, Upload, probe
from compactor.store.checksum import encode_composite
from ourdb.errors import DamageError, Error, InvalidError, NotFoundError, RefusedError, TemporaryError
from tests.servers import free_ports
from tests.stub_s3 import DROP, Answer, Request, refusal, xml
from tests.stub_store import (
    LOST,
    MODIFIED,
    SLOW_DOWN,
    MultipartStub,
    composite_checksum,
    crc,
    got,
    store_at,
    stored,
    stubbed,
    whole_checksum,
)

pytestmark = pytest.mark.usefixtures("stub_credentials")


class TestReads:
    @pytest.mark.parametrize(
        "fault",
        [
            SLOW_DOWN,
            refusal(500, "InternalError"),
            refusal(503, "XMinioServerNotInitialized"),
            refusal(429, "TooManyRequests"),
            Answer(502, {}, b"<html>a proxy</html>"),
            Answer(200, MODIFIED, b"half", missing_bytes=4),
            DROP,
        ],
    )
    def test_fault_of_the_moment_is_tried_again_and_counted(self, fault: Answer) -> None:
        with stubbed([fault, fault, got(b"whole")]) as (store, requests):
            assert store.get("head").data == b"whole"
            assert store.requests.counts()["GET"] == len(requests) == 3

    def test_store_that_stays_busy_is_temporary_after_a_bounded_time(self) -> None:
        with stubbed(lambda _: SLOW_DOWN, retry_seconds=20) as (store, requests):
            with pytest.raises(TemporaryError, match=r"127\.0\.0\.1") as caught:
                store.get("head")
            assert caught.value.exit_code == 75
            assert 6 <= len(requests) <= 14

    def test_altered_body_is_read_again(self) -> None:
        altered = got(b"wholf", **{"x-amz-checksum-crc32c": crc(b"whole")})
        right = got(b"whole", **{"x-amz-checksum-crc32c": crc(b"whole")})
        with stubbed([altered, right]) as (store, _):
            assert store.get("head").data == b"whole"

    def test_body_that_stays_altered_is_damage(self) -> None:
        altered = got(b"wholf", **{"x-amz-checksum-crc32c": crc(b"whole")})
        with stubbed(lambda _: altered) as (store, _), pytest.raises(DamageError) as caught:
            store.get("head")
        assert (caught.value.kind, caught.value.exit_code) == ("store_damaged", 14)

    def test_checksum_of_parts_is_not_compared_with_the_whole(self) -> None:
        answer = got(b"whole", **{"x-amz-checksum-crc32c": encode_composite([1, 2])})
        with stubbed([answer]) as (store, _):
            assert store.get("head").data == b"whole"

    def test_etag_that_is_not_understood_is_compared_here(self) -> None:
        with stubbed([got(b"whole"), got(b"whole")]) as (store, _):
            assert store.get_if_changed("head", "e1") is None
            assert store.get_if_changed("head", '"e0"') is not None

    def test_range_that_is_not_heeded_is_cut_out_here(self) -> None:
        with stubbed(lambda _: got(b"0123456789")) as (store, _):
            assert store.get_range("lists/a", 3, 4) == b"3456"
            assert store.get_tail("lists/a", 3) == (b"789", 10, '"e1"')

    def test_reply_without_date_has_none(self) -> None:
        answer = Answer(200, {"ETag": '"e1"', **MODIFIED}, b"x", date=False)
        with stubbed([answer]) as (store, _):
            assert store.get("head").date_ms == 0


class TestConditionalPuts:
    @pytest.mark.parametrize("fault", [SLOW_DOWN, refusal(500, "InternalError"), DROP])
    def test_create_without_answer_is_not_repeated(self, fault: Answer) -> None:
        with stubbed([fault, LOST]) as (store, requests):
            with pytest.raises(NoAnswer):
                store.put_if_absent("head", b"data")
            assert [request.headers["if-none-match"] for request in requests] == ["*"]

    @pytest.mark.parametrize("fault", [SLOW_DOWN, refusal(500, "InternalError"), DROP])
    def test_replace_without_answer_is_not_taken_for_a_lost_race(self, fault: Answer) -> None:
        with stubbed([fault, LOST]) as (store, requests):
            with pytest.raises(NoAnswer):
                store.put_if_match("head", b"data", '"e1"')
            assert len(requests) == 1

    def test_create_that_cannot_be_sent_is_left_to_the_caller(self) -> None:
        store = store_at(f"http://127.0.0.1:{free_ports(1)[0]}")
        with pytest.raises(NoAnswer):
            store.put_if_absent("head", b"data")
        assert store.requests.counts()["PUT"] == 1
        store.close()

    @pytest.mark.parametrize(
        ("answer", "status"),
        [
            (LOST, 412),
            (refusal(409, "ConditionalRequestConflict"), 409),
            (refusal(404, "NoSuchKey"), 404),
        ],
    )
    def test_lost_race_says_with_which_status(self, answer: Answer, status: int) -> None:
        with stubbed(lambda _: answer) as (store, _), pytest.raises(PreconditionFailed) as caught:
            store.put_if_match("head", b"data", '"e1"')
        assert caught.value.status == status

    def test_bytes_altered_on_the_way_are_sent_again(self) -> None:
        with stubbed([refusal(400, "BadDigest"), stored(b"data")]) as (store, requests):
            assert store.put_if_match("head", b"data", '"e1"').etag == '"e2"'
            assert len(requests) == 2

    @pytest.mark.parametrize("method", ["put_if_match", "put_if_absent"])
    def test_reply_with_another_checksum_is_no_answer(self, method: str) -> None:
        with stubbed([stored(b"other"), LOST]) as (store, requests):
            with pytest.raises(NoAnswer):
                getattr(store, method)(*["head", b"data", '"e1"'][: 3 if method == "put_if_match" else 2])
            assert len(requests) == 1

    def test_store_that_wants_no_quotes_gets_none_from_then_on(self) -> None:
        def ceph(request: Request) -> Answer:
            return stored(request.body) if request.headers["if-match"] == "e1" else LOST

        with stubbed(ceph) as (store, requests):
            store.put_if_match("head", b"one", '"e1"')
            store.put_if_match("head", b"two", '"e1"')
            assert [request.headers["if-match"] for request in requests] == ['"e1"', "e1", "e1"]

    def test_store_that_takes_quotes_gets_them_from_then_on(self) -> None:
        with stubbed([stored(b"one"), LOST]) as (store, requests):
            store.put_if_match("head", b"one", '"e1"')
            with pytest.raises(PreconditionFailed):
                store.put_if_match("head", b"two", '"e1"')
            assert [request.headers["if-match"] for request in requests] == ['"e1"', '"e1"']

    def test_store_without_conditional_puts_is_told_apart(self) -> None:
        def backblaze(request: Request) -> Answer:
            conditional = {"if-match", "if-none-match"} & set(request.headers)
            if request.method == "POST":
                return xml("DeleteResult", "")
            return refusal(501, "NotImplemented") if conditional else stored(request.body)

        with stubbed(backblaze) as (store, _):
            result = probe(store)
            assert not result.cas
            assert "does not know conditional puts" in result.why


class TestChecksums:
    def test_put_has_its_checksum_in_the_header_and_no_trailer(self) -> None:
        with stubbed([stored(b"data"), stored(b"data")]) as (store, requests):
            store.put_if_absent("head", b"data")
            store.put_stream("lists/a", [b"data"])
            for request in requests:
                assert request.headers["x-amz-checksum-crc32c"] == crc(b"data")
                assert "x-amz-trailer" not in request.headers
                assert request.headers.get("content-encoding", "") != "aws-chunked"

    @pytest.mark.parametrize(
        "code",
        [
            "BadDigest",
            "InvalidDigest",
            "XAmzContentChecksumMismatch",
            "XAmzContentSHA256Mismatch",
            "IncompleteBody",
        ],
    )
    def test_refused_for_integrity_is_sent_again_then_damage(self, code: str) -> None:
        with stubbed([refusal(400, code), stored(b"data")]) as (store, _):
            assert store.put_stream("lists/a", [b"data"]).bytes == 4
        with stubbed(lambda _: refusal(400, code)) as (store, _), pytest.raises(DamageError):
            store.put_stream("lists/a", [b"data"])

    def test_stored_with_another_checksum_is_sent_again_then_damage(self) -> None:
        with stubbed([stored(b"other"), stored(b"data")]) as (store, requests):
            store.put_stream("lists/a", [b"data"])
            assert len(requests) == 2
        with stubbed(lambda _: stored(b"other")) as (store, _), pytest.raises(DamageError):
            store.put_stream("lists/a", [b"data"])

    @pytest.mark.parametrize(
        "answer",
        [
            refusal(411, "MissingContentLength"),
            refusal(400, "MissingContentMD5"),
            refusal(501, "NotImplemented"),
        ],
    )
    def test_store_that_wants_md5_gets_it_and_it_is_said(
        self, answer: Answer, caplog: pytest.LogCaptureFixture
    ) -> None:
        digest = base64.b64encode(hashlib.md5(b"data").digest()).decode()

        def old(request: Request) -> Answer:
            return stored() if request.headers.get("content-md5") == digest else answer

        with caplog.at_level(logging.WARNING), stubbed(old) as (store, requests):
            store.put_stream("lists/a", [b"data"])
            store.put_stream("lists/b", [b"data"])
            assert len(requests) == 3
            assert "x-amz-checksum-crc32c" not in requests[-1].headers
        assert "Content-MD5" in caplog.text


class TestDeleting:
    def test_store_that_wants_md5_gets_it(self) -> None:
        def old(request: Request) -> Answer:
            digest = base64.b64encode(hashlib.md5(request.body).digest()).decode()
            if request.headers.get("content-md5") != digest:
                return refusal(400, "MissingContentMD5")
            return xml("DeleteResult", "")

        with stubbed(old) as (store, requests):
            assert store.delete_many(["lists/a", "lists/b"]) == ()
            assert len(requests) == 2

    @pytest.mark.parametrize("answer", [refusal(501, "NotImplemented"), refusal(405, "MethodNotAllowed")])
    def test_store_that_deletes_one_at_a_time_is_asked_so(self, answer: Answer) -> None:
        def google(request: Request) -> Answer:
            return answer if request.method == "POST" else Answer(204)

        with stubbed(google) as (store, requests):
            assert store.delete_many(["lists/a", "lists/b"]) == ()
            deleted = [request.path for request in requests if request.method == "DELETE"]
            assert deleted == ["/bucket/prefix/name/lists/a", "/bucket/prefix/name/lists/b"]

    def test_what_was_kept_is_told_and_what_was_busy_is_repeated(self) -> None:
        def error(key: str, code: str) -> str:
            return f"<Error><Key>prefix/name/{key}</Key><Code>{code}</Code><Message>why</Message></Error>"

        first = error("a", "AccessDenied") + error("b", "SlowDown") + error("c", "NoSuchKey")
        with stubbed([xml("DeleteResult", first), xml("DeleteResult", "")]) as (store, requests):
            (failure,) = store.delete_many(["a", "b", "c", "d"])
            assert (failure.key, failure.reason) == ("a", "AccessDenied: why")
            assert b"name/b<" in requests[1].body
            assert b"name/a<" not in requests[1].body


class TestListing:
    ENTRY = (
        "<Contents><Key>prefix/name/{}</Key><LastModified>2026-11-23T02:41:00.000Z</LastModified>"
        '<ETag>"e1"</ETag><Size>5</Size></Contents>'
    )

    def test_empty_page_is_not_the_end(self) -> None:
        more = "<IsTruncated>true</IsTruncated><NextContinuationToken>t{}</NextContinuationToken>"
        pages = [more.format(1), self.ENTRY.format("a") + more.format(2), self.ENTRY.format("b")]
        with stubbed([xml("ListBucketResult", page) for page in pages]) as (store, requests):
            assert [[entry.key for entry in page.entries] for page in store.list()] == [[], ["a"], ["b"]]
            assert [request.query.get("continuation-token") for request in requests] == [None, ["t1"], ["t2"]]

    def test_start_that_is_not_heeded_is_applied_here(self) -> None:
        page = "".join(self.ENTRY.format(key) for key in ("lists/a", "lists/b"))
        with stubbed([xml("ListBucketResult", page)]) as (store, requests):
            (found,) = store.list("lists/", "lists/a")
            assert [entry.key for entry in found.entries] == ["lists/b"]
            assert requests[0].query["start-after"] == ["prefix/name/lists/a"]

    def test_start_outside_of_the_prefix_is_not_sent(self) -> None:
        with stubbed([xml("ListBucketResult", "")]) as (store, requests):
            assert [page.entries for page in store.list("lists/", "a")] == [()]
            assert "start-after" not in requests[0].query

    def test_listing_that_goes_in_circles_is_an_error(self) -> None:
        page = "<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>"
        with stubbed(lambda _: xml("ListBucketResult", page)) as (store, _), pytest.raises(TemporaryError):
            list(store.list())


class TestUploads:
    ONE = (
        "<Upload><Key>{}</Key><UploadId>up</UploadId><Initiated>2026-11-23T02:41:00.000Z</Initiated></Upload>"
    )
    MINE = ONE.format("prefix/name/lists/a")

    def page(self, inside: str, more: str = "") -> Answer:
        return xml("ListMultipartUploadsResult", inside + more)

    def test_pages_are_followed(self) -> None:
        more = (
            "<IsTruncated>true</IsTruncated><NextKeyMarker>prefix/name/lists/a</NextKeyMarker>"
            "<NextUploadIdMarker>up</NextUploadIdMarker>"
        )
        with stubbed([self.page(self.MINE, more), self.page(self.MINE)]) as (store, requests):
            first, second = store.list_uploads()
            assert first == second == Upload("lists/a", "up", 1795401660000)
            assert requests[1].query["key-marker"] == ["prefix/name/lists/a"]
            assert requests[1].query["upload-id-marker"] == ["up"]
            assert store.requests.counts()["LIST"] == 2

    def test_store_that_lists_no_prefixes_is_asked_for_the_whole_bucket(self) -> None:
        def minio(request: Request) -> Answer:
            whole = self.ONE.format("prefix/other/a") + self.MINE + self.ONE.format("prefix/name-2/a")
            return self.page("" if request.query["prefix"] != [""] else whole)

        with stubbed(minio) as (store, _):
            assert [upload.key for upload in store.list_uploads()] == ["lists/a"]

    def test_whole_bucket_that_may_not_be_listed_is_passed_over(self) -> None:
        with stubbed([self.page(""), refusal(403, "AccessDenied")]) as (store, _):
            assert list(store.list_uploads()) == []

    @pytest.mark.parametrize(
        "answer",
        [
            refusal(501, "NotImplemented"),
            refusal(405, "MethodNotAllowed"),
            refusal(400, "InvalidArgument"),
            refusal(403, "AccessDenied"),
        ],
    )
    def test_store_that_lists_none_gives_none(self, answer: Answer) -> None:
        with stubbed(lambda _: answer) as (store, _):
            assert list(store.list_uploads()) == []

    def test_listing_that_goes_in_circles_is_an_error(self) -> None:
        more = "<IsTruncated>true</IsTruncated><NextKeyMarker>k</NextKeyMarker>"
        with stubbed(lambda _: self.page("", more)) as (store, _), pytest.raises(TemporaryError):
            list(store.list_uploads())


class TestMultipart:
    BODY = bytes(range(256)) * (24 * 1024)  # 6 MiB: two parts

    @pytest.mark.parametrize("told", [whole_checksum, composite_checksum, lambda parts: None])
    def test_checksum_of_whole_or_of_parts_or_none_is_fine(
        self, told: Callable[[list[bytes]], str | None]
    ) -> None:
        stub = MultipartStub({}, told)
        with stubbed(stub) as (store, _):
            put = store.put_stream("lists/a", [self.BODY])
        assert (put.bytes, put.etag, put.crc32c) == (len(self.BODY), '"whole-2"', crc32c.crc32c(self.BODY))
        assert stub.parts[1] + stub.parts[2] == self.BODY

    def test_other_checksum_of_the_whole_is_damage(self) -> None:
        with stubbed(MultipartStub({}, lambda parts: crc(b"x"))) as (store, _), pytest.raises(DamageError):
            store.put_stream("lists/a", [self.BODY])

    @pytest.mark.parametrize("step", ["begin", "part", "complete"])
    def test_step_that_fails_once_is_repeated(self, step: str) -> None:
        stub = MultipartStub({step: [SLOW_DOWN, DROP]}, whole_checksum)
        with stubbed(stub) as (store, requests):
            assert store.put_stream("lists/a", [self.BODY]).bytes == len(self.BODY)
            counts = store.requests.counts()
            assert counts["POST"] + counts["PUT"] + counts["HEAD"] == len(requests)
        assert not stub.aborted

    def test_completed_without_answer_is_found_by_size(self) -> None:
        stub = MultipartStub({"complete": [DROP]}, whole_checksum)
        with stubbed(stub) as (store, _):
            assert store.put_stream("lists/a", [self.BODY]).etag == '"whole-2"'

    def test_upload_that_somebody_aborted_is_an_error(self) -> None:
        stub = MultipartStub({"complete": [refusal(404, "NoSuchUpload")]}, whole_checksum)
        with stubbed(stub) as (store, _), pytest.raises(Error, match="aborted by somebody else"):
            store.put_stream("lists/a", [self.BODY])

    def test_error_in_a_reply_of_200_is_seen(self) -> None:
        late = refusal(200, "InternalError")
        stub = MultipartStub({"complete": [late]}, whole_checksum)
        with stubbed(stub) as (store, _):
            assert store.put_stream("lists/a", [self.BODY]).etag == '"whole-2"'

    def test_part_that_is_refused_aborts_the_upload(self) -> None:
        stub = MultipartStub({"part": [refusal(403, "AccessDenied")] * 2}, whole_checksum)
        with stubbed(stub) as (store, _), pytest.raises(RefusedError):
            store.put_stream("lists/a", [self.BODY])
        assert stub.aborted

    def test_upload_id_is_known_before_the_first_part(self) -> None:
        began: list[tuple[str, int]] = []
        stub = MultipartStub({}, whole_checksum)
        with stubbed(stub) as (store, _):
            store.put_stream(
                "lists/a", [self.BODY], on_begin=lambda name: began.append((name, len(stub.parts)))
            )
        assert began == [("up", 0)]


class TestErrors:
    @pytest.mark.parametrize(
        ("answer", "family", "kind"),
        [
            (refusal(404, "NoSuchBucket"), NotFoundError, "no_bucket"),
            (refusal(403, "InvalidAccessKeyId"), RefusedError, "credentials"),
            (refusal(403, "SignatureDoesNotMatch"), RefusedError, "credentials"),
            (refusal(400, "ExpiredToken"), RefusedError, "credentials"),
            (refusal(403, "RequestTimeTooSkewed"), RefusedError, "credentials"),
            (refusal(403, "AccessDenied"), RefusedError, "permission"),
            (refusal(403, "Whatever"), RefusedError, "permission"),
            (refusal(501, "NotImplemented"), NotSupported, "not_supported"),
            (refusal(400, "Whatever"), Error, "failed"),
        ],
    )
    def test_refusal_is_of_its_family_at_once(self, answer: Answer, family: type[Error], kind: str) -> None:
        with stubbed(lambda _: answer) as (store, requests):
            with pytest.raises(family) as caught:
                store.get("head")
            assert (caught.value.kind, len(requests)) == (kind, 1)

    def test_bucket_in_another_region_is_invalid(self) -> None:
        elsewhere = refusal(400, "IllegalLocationConstraintException")
        with stubbed(lambda _: elsewhere) as (store, _), pytest.raises(InvalidError, match="region"):
            store.get("head")

    def test_reply_without_etag_is_no_answer(self) -> None:
        with stubbed(lambda _: Answer()) as (store, requests):
            with pytest.raises(NoAnswer):
                store.put_if_match("head", b"data", '"e1"')
            assert len(requests) == 1

    def test_no_credentials_is_refused_before_anything_is_sent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        with stubbed([]) as (store, requests):
            with pytest.raises(RefusedError, match="AWS_ACCESS_KEY_ID") as caught:
                store.get("head")
            assert (caught.value.kind, requests) == ("credentials", [])

    def test_profile_that_does_not_exist_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_PROFILE", "nobody")
        with pytest.raises(RefusedError, match="nobody") as caught:
            store_at("http://127.0.0.1:1")
        assert caught.value.kind == "credentials"

    @pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
    def test_no_network_is_temporary_and_names_the_endpoint(self, host: str) -> None:
        store = store_at(f"http://{host}:{free_ports(1)[0]}", retry_seconds=1)
        with pytest.raises(TemporaryError, match=host) as caught:
            store.get("head")
        assert not isinstance(caught.value, NoAnswer)
        store.close()

    def test_place_above_that_may_not_be_seen_is_passed_over(self) -> None:
        with stubbed(lambda _: Answer(403)) as (store, requests):
            assert store.heads_above() is None
            assert [request.path for request in requests] == ["/bucket/prefix/head"]


def test_boto3_is_not_imported_before_an_s3_store_is_opened() -> None:
    code = (
        "import sys, compactor.store as s; s.open_store('memory://abc/name'); "
        "s.open_store('file:///nowhere/name'); assert not {'boto3', 'botocore'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
