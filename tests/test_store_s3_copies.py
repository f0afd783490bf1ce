"""Objects put together in a bucket whose server fails at each step, or cannot copy at all."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import pytest

from compactor.store import CopyRange, NoAnswer, NoSuchKey, NotSupported, Piece
from compactor.store.s3 import S3Store
from ourdb.errors import DamageError, Error, InvalidError, RefusedError
from ourdb.units import MIB
from tests.stub_bucket import LOST_REPLY, Fault, StubBucket
from tests.stub_s3 import DROP, Answer, Request, refusal
from tests.stub_store import SLOW_DOWN, store_at, stubbed

pytestmark = pytest.mark.usefixtures("stub_credentials")
SOURCE = b"".join(number.to_bytes(4, "big") * 256 for number in range(20 * 1024))  # 20 MiB
PIECES: list[Piece] = [
    b"first",
    CopyRange("a", None, 9, 17 * MIB),
    b"x" * MIB,
    CopyRange("a", None, 1, 16 * MIB),
]
WHOLE = b"first" + SOURCE[9 : 9 + 17 * MIB] + b"x" * MIB + SOURCE[1 : 1 + 16 * MIB]
PARTS = [5 * MIB, 12 * MIB + 5, 5 * MIB, 12 * MIB]  # bytes before a copy are filled up to 5 MiB
FAULTS = [Fault(SLOW_DOWN), Fault(DROP), LOST_REPLY, Fault(refusal(200, "InternalError"))]
CANNOT = [
    refusal(501, "NotImplemented"),
    refusal(405, "MethodNotAllowed"),
    refusal(400, "InvalidArgument"),
    refusal(400, "InvalidRequest"),
    Answer(200, {"ETag": '"of an empty part"'}),
]


def assembled(bucket: StubBucket, pieces: list[Piece] = PIECES, *, times: int = 1) -> tuple[bytes, S3Store]:
    """The object as the bucket has it in the end."""
    with stubbed(bucket) as (store, _):
        for number in range(times):
            put = store.assemble(f"out{number}", pieces, size_hint=40 * MIB)
        data = bucket.objects[f"out{times - 1}"]
        assert (put.bytes, put.etag) == (len(data), bucket.etag(f"out{times - 1}"))
        return data, store


class TestFaults:
    def test_well_behaved_server_copies_and_gets_parts_of_the_right_sizes(self) -> None:
        bucket = StubBucket({"a": SOURCE})
        data, store = assembled(bucket)
        assert data == WHOLE
        assert bucket.part_sizes == PARTS
        assert store.requests.bytes_copied == PARTS[1] + PARTS[3]
        assert store.requests.bytes_fetched == PARTS[0] - 5 + PARTS[2] - MIB
        assert bucket.uploads == {}

    @pytest.mark.parametrize(
        ("step", "fault"),
        [
            *((step, fault) for step in ("begin", "part", "copy", "complete") for fault in FAULTS),
            ("get", FAULTS[0]),
            ("get", FAULTS[1]),
        ],
    )
    def test_fault_of_the_moment_is_tried_again(self, step: str, fault: Fault) -> None:
        bucket = StubBucket({"a": SOURCE}, {step: [fault] * 2})
        data, _ = assembled(bucket)
        assert data == WHOLE

    def test_each_copy_carries_its_range_and_the_etag(self) -> None:
        bucket = StubBucket({"a": SOURCE})
        assembled(bucket, [CopyRange("a", bucket.etag("a"), 5, 16 * MIB)])
        (copy,) = (request for request in bucket.requests if "x-amz-copy-source" in request.headers)
        assert copy.headers["x-amz-copy-source-range"] == f"bytes=5-{16 * MIB + 4}"
        assert copy.headers["x-amz-copy-source-if-match"] == bucket.etag("a")

    @pytest.mark.parametrize("copied", [0, 1])
    def test_source_that_vanishes_is_named_and_nothing_is_left(self, copied: int) -> None:
        """copied: how many ranges were, before."""

        def vanish(step: str) -> None:
            if step == "copy" and bucket.steps.count("copy") == copied:
                bucket.objects.pop("a", None)

        bucket = StubBucket({"a": SOURCE}, before=vanish)
        piece = CopyRange("a", None, 0, 16 * MIB)
        with stubbed(bucket) as (store, _), pytest.raises(NoSuchKey) as caught:
            store.assemble("out", [piece, b"x" * 6 * MIB, piece], size_hint=38 * MIB)
        assert caught.value.fields["key"] == "a"
        assert (bucket.uploads, bucket.objects) == ({}, {})

    def test_source_that_was_replaced_is_damage_and_nothing_is_left(self) -> None:
        bucket = StubBucket({"a": SOURCE})
        piece = CopyRange("a", '"another"', 0, 16 * MIB)
        with stubbed(bucket) as (store, _), pytest.raises(DamageError, match="ETag") as caught:
            store.assemble("out", [piece], size_hint=16 * MIB)
        assert (caught.value.kind, caught.value.fields["key"]) == ("store_damaged", "a")
        assert (bucket.uploads, list(bucket.objects)) == ({}, ["a"])

    def test_copy_that_stays_without_answer_aborts_the_upload(self) -> None:
        bucket = StubBucket({"a": SOURCE}, {"copy": [Fault(DROP)] * 100})
        with stubbed(bucket) as (store, _), pytest.raises(NoAnswer):
            store.assemble("out", PIECES, size_hint=40 * MIB)
        assert (bucket.uploads, list(bucket.objects)) == ({}, ["a"])

    def test_completion_that_stays_without_answer_is_no_answer(self) -> None:
        """The object is there, or is not: only a read can tell."""
        bucket = StubBucket({"a": SOURCE}, {"complete": [LOST_REPLY] * 100, "head": [Fault(SLOW_DOWN)] * 100})
        with stubbed(bucket) as (store, _), pytest.raises(NoAnswer):
            store.assemble("out", PIECES, size_hint=40 * MIB)
        assert bucket.objects["out"] == WHOLE

    def test_upload_that_somebody_aborted_is_an_error(self) -> None:
        bucket = StubBucket({"a": SOURCE}, {"complete": [Fault(refusal(404, "NoSuchUpload"))]})
        with stubbed(bucket) as (store, _), pytest.raises(Error, match="aborted by somebody else"):
            store.assemble("out", PIECES, size_hint=40 * MIB)

    def test_copy_that_is_not_permitted_is_refused(self) -> None:
        bucket = StubBucket({"a": SOURCE}, {"copy": [Fault(refusal(403, "AccessDenied"))]})
        with stubbed(bucket) as (store, _), pytest.raises(RefusedError):
            store.assemble("out", PIECES, size_hint=40 * MIB)
        assert bucket.uploads == {}

    def test_part_altered_on_the_way_is_sent_again(self) -> None:
        bucket = StubBucket({"a": SOURCE}, {"part": [Fault(refusal(400, "BadDigest"))]})
        data, _ = assembled(bucket)
        assert data == WHOLE
        parts = [request for request in bucket.requests if request.query.get("partNumber") and request.body]
        assert all("content-md5" in request.headers for request in parts)

    def test_store_that_wants_etags_without_quotes_gets_them_so(self) -> None:
        def bare(request: Request) -> Answer:
            wanted = request.headers.get("x-amz-copy-source-if-match")
            if wanted is None:
                return bucket(request)
            if '"' in wanted:
                return refusal(412, "PreconditionFailed")
            return bucket(
                replace(request, headers={**request.headers, "x-amz-copy-source-if-match": f'"{wanted}"'})
            )

        bucket = StubBucket({"a": SOURCE})
        piece = CopyRange("a", bucket.etag("a"), 0, 16 * MIB)
        with stubbed(bare) as (store, requests):
            for number in range(3):
                store.assemble(f"out{number}", [piece], size_hint=16 * MIB)
            asked = [request for request in requests if "x-amz-copy-source" in request.headers]
            assert len(asked) == 4


class TestWithoutCopies:
    @pytest.mark.parametrize("answer", CANNOT)
    def test_store_that_cannot_copy_is_fetched_from(self, answer: Answer) -> None:
        bucket = StubBucket({"a": SOURCE}, {"copy": [Fault(answer)]})
        data, store = assembled(bucket)
        assert data == WHOLE
        assert bucket.part_sizes == [*[5 * MIB] * 6, 4 * MIB + 5]
        assert (store.requests.bytes_copied, store.requests.bytes_fetched) == (0, 33 * MIB)
        assert bucket.uploads == {}

    def test_it_is_asked_once_and_said_once(self, caplog: pytest.LogCaptureFixture) -> None:
        bucket = StubBucket({"a": SOURCE}, {"copy": [Fault(CANNOT[0])] * 100})
        with caplog.at_level(logging.WARNING):
            data, _ = assembled(bucket, times=2)
        assert data == WHOLE
        assert bucket.steps.count("copy") == 1
        (record,) = caplog.records
        assert "not copied, from here on" in record.message

    def test_assemblies_at_once_all_learn_it(self) -> None:
        bucket = StubBucket({"a": SOURCE}, {"copy": [Fault(CANNOT[0])] * 100})
        with stubbed(bucket) as (store, _), ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda key: store.assemble(key, PIECES, size_hint=40 * MIB), ("x", "y", "z")))
        assert {bucket.objects[key] for key in ("x", "y", "z")} == {WHOLE}
        assert bucket.steps.count("copy") <= 3

    def test_etag_is_compared_where_ranges_are_fetched(self) -> None:
        bucket = StubBucket({"a": SOURCE}, {"copy": [Fault(CANNOT[0])]})
        with stubbed(bucket) as (store, _):
            store.assemble("out", [CopyRange("a", bucket.etag("a"), 0, 16 * MIB)], size_hint=16 * MIB)
            bucket.objects["a"] += b"longer"
            with pytest.raises(DamageError, match="ETag"):
                store.assemble("other", [CopyRange("a", '"e"', 0, 16 * MIB)], size_hint=16 * MIB)

    def test_range_beyond_the_source_does_not_stop_copying(self) -> None:
        """400 too, but it is the source that is short: the next one is copied."""
        bucket = StubBucket({"a": SOURCE})
        with stubbed(bucket) as (store, _):
            with pytest.raises(DamageError, match=f"{len(SOURCE)} bytes"):
                store.assemble("out", [CopyRange("a", None, 0, 50 * MIB)], size_hint=50 * MIB)
            store.assemble("other", [CopyRange("a", None, 0, 17 * MIB)], size_hint=17 * MIB)
            assert store.requests.bytes_copied == 17 * MIB

    def test_store_that_copied_once_and_then_refuses_is_an_error(self) -> None:
        bucket = StubBucket({"a": SOURCE})
        with stubbed(bucket) as (store, _):
            store.assemble("out", PIECES, size_hint=40 * MIB)
            bucket.faults["copy"] = [Fault(CANNOT[0])]
            with pytest.raises(NotSupported, match="cannot copy"):
                store.assemble("other", PIECES, size_hint=40 * MIB)
        assert bucket.uploads == {}

    def test_store_that_wants_even_parts_is_known_by_its_host(self) -> None:
        for host, copies in (("account.eu.r2.cloudflarestorage.com", False), ("s3.example.org", True)):
            with closing(store_at(f"https://{host}")) as store:
                assert store._assembler.copies is copies


class TestLimits:
    def test_more_than_10000_parts_are_refused_and_aborted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("compactor.store.multipart.PARTS_MAX", 3)
        bucket = StubBucket()
        with stubbed(bucket) as (store, _), pytest.raises(InvalidError, match="size_hint"):
            store.assemble("out", [bytes(20 * MIB)], size_hint=1)
        assert (bucket.uploads, bucket.objects) == ({}, {})

    def test_as_many_parts_as_threads_are_taken_ahead(self) -> None:
        taken: list[int] = []
        ahead: list[int] = []

        def pieces() -> Iterator[bytes]:
            for number in range(8):
                taken.append(number)
                yield bytes(5 * MIB)

        def note(step: str) -> None:
            if step == "part":
                ahead.append(len(taken) - bucket.steps.count("part"))

        bucket = StubBucket(before=note)
        with stubbed(bucket) as (store, _):
            store.assemble("out", pieces(), size_hint=40 * MIB)
        assert max(ahead) <= 2 + 2  # threads, the one that waits, and the one that is cut
