"""What every store does: one class of tests, run against memory, files and a real S3 server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import crc32c
import pytest

from compactor.store import (
    CopyRange,
    NoSuchKey,
    Piece,
    PreconditionFailed,
    Stat,
    Store,
    StoreOptions,
    Upload,
    open_store,
    probe,
)
from ourdb.errors import DamageError, InvalidError
from ourdb.units import KIB, MIB

OPTIONS = StoreOptions(put_bytes_max=MIB, part_bytes=5 * MIB)
SEGMENTS = "segments/00000000000000aa/"


@pytest.fixture(params=["memory", "file", pytest.param("s3", marks=pytest.mark.s3)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "memory":
        return f"memory://{tmp_path.name.replace('_', '-')}/prefix/name"
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    opened = open_store(url, options=OPTIONS)
    yield opened
    opened.close()


def listed(store: Store, prefix: str = "", start_after: str = "") -> list[Stat]:
    return [entry for page in store.list(prefix, start_after) for entry in page.entries]


def sent(store: Store) -> dict[str, int]:
    return {kind: count for kind, count in store.requests.counts().items() if count}


class TestReading:
    def test_object_comes_back_with_etag_and_times(self, store: Store) -> None:
        put = store.put_if_absent("head", b"some bytes")
        reply = store.get("head")
        assert (reply.data, reply.etag) == (b"some bytes", put.etag)
        assert abs(reply.modified_ms - put.modified_ms) <= 1000
        assert abs(reply.date_ms - reply.modified_ms) < 60_000

    def test_missing_object_is_no_such_key_and_named_as_it_was_asked_for(self, store: Store) -> None:
        for read in (
            lambda: store.get("head"),
            lambda: store.get_if_changed("head", '"x"'),
            lambda: store.get_range("head", 0, 1),
            lambda: store.get_tail("head", 1),
        ):
            with pytest.raises(NoSuchKey) as found:
                read()
            assert found.value.fields["key"] == "head"
        assert store.head("head") is None

    def test_unchanged_object_is_none_and_one_request(self, store: Store) -> None:
        etag = store.put_if_absent("head", b"one").etag
        assert store.get_if_changed("head", etag) is None
        assert sent(store) == {"PUT": 1, "GET": 1}

    def test_changed_object_is_its_new_bytes(self, store: Store) -> None:
        etag = store.put_if_absent("head", b"one").etag
        store.put_if_match("head", b"two", etag)
        reply = store.get_if_changed("head", etag)
        assert reply is not None
        assert (reply.data, reply.etag == etag) == (b"two", False)

    def test_range_is_exact(self, store: Store) -> None:
        store.put_stream("lists/a", [b"0123456789"])
        assert store.get_range("lists/a", 0, 10) == b"0123456789"
        assert store.get_range("lists/a", 3, 4) == b"3456"
        assert store.get_range("lists/a", 9, 1) == b"9"
        assert store.get_range("lists/a", 10, 0) == b""

    @pytest.mark.parametrize(("start", "length"), [(8, 3), (10, 1), (100, 5)])
    def test_range_beyond_the_end_is_damage(self, store: Store, start: int, length: int) -> None:
        store.put_stream("lists/a", [b"0123456789"])
        with pytest.raises(DamageError, match="10 bytes") as caught:
            store.get_range("lists/a", start, length)
        assert caught.value.kind == "store_damaged"

    @pytest.mark.parametrize(("data", "tail"), [(b"0123456789", b"789"), (b"01", b"01"), (b"", b"")])
    def test_tail_is_what_there_is_at_the_end(self, store: Store, data: bytes, tail: bytes) -> None:
        etag = store.put_stream("lists/a", [data]).etag
        assert store.get_tail("lists/a", 3) == (tail, len(data), etag)

    def test_head_has_size_etag_and_checksum_if_any(self, store: Store) -> None:
        put = store.put_stream("lists/a", [b"some bytes"])
        found = store.head("lists/a")
        assert found is not None
        assert (found.key, found.bytes, found.etag) == ("lists/a", 10, put.etag)
        assert put.crc32c == crc32c.crc32c(b"some bytes")
        assert found.crc32c in (put.crc32c, None)


class TestConditions:
    def test_second_create_is_refused_and_changes_nothing(self, store: Store) -> None:
        store.put_if_absent("head", b"one")
        with pytest.raises(PreconditionFailed) as caught:
            store.put_if_absent("head", b"two")
        assert caught.value.status == 412
        assert store.get("head").data == b"one"

    def test_replace_with_the_current_etag_gives_another(self, store: Store) -> None:
        first = store.put_if_absent("head", b"one")
        second = store.put_if_match("head", b"two", first.etag)
        assert second.etag == store.get("head").etag != first.etag
        assert store.get("head").data == b"two"

    def test_replace_with_an_old_etag_is_refused(self, store: Store) -> None:
        first = store.put_if_absent("head", b"one")
        store.put_if_match("head", b"two", first.etag)
        with pytest.raises(PreconditionFailed) as caught:
            store.put_if_match("head", b"three", first.etag)
        assert caught.value.status == 412
        assert store.get("head").data == b"two"

    def test_replace_of_a_missing_object_is_refused(self, store: Store) -> None:
        etag = store.put_if_absent("head", b"one").etag
        with pytest.raises(PreconditionFailed) as caught:
            store.put_if_match("other", b"two", etag)
        assert caught.value.status in (404, 412)
        assert store.head("other") is None

    @pytest.mark.parametrize("etag", ["", '""', "*"])
    def test_condition_that_is_none_is_refused(self, store: Store, etag: str) -> None:
        store.put_if_absent("head", b"one")
        with pytest.raises(InvalidError):
            store.put_if_match("head", b"two", etag)
        assert store.get("head").data == b"one"

    def test_one_of_many_creators_wins(self, store: Store) -> None:
        barrier = threading.Barrier(6)

        def create(number: int) -> bool:
            barrier.wait()
            try:
                store.put_if_absent("head", b"%d" % number)
            except PreconditionFailed:
                return False
            return True

        with ThreadPoolExecutor(6) as pool:
            won = list(pool.map(create, range(6)))
        assert won.count(True) == 1
        assert store.get("head").data == b"%d" % won.index(True)

    def test_no_increment_of_many_threads_is_lost(self, store: Store) -> None:
        store.put_if_absent("head", b"0 start")

        def increment(thread: int) -> None:
            done = 0
            while done < 3:
                reply = store.get("head")
                count = int(reply.data.split()[0])
                try:
                    store.put_if_match("head", b"%d %d %d" % (count + 1, thread, done), reply.etag)
                except PreconditionFailed:
                    continue
                done += 1

        with ThreadPoolExecutor(3) as pool:
            list(pool.map(increment, range(3)))
        assert store.get("head").data.split()[0] == b"9"

    def test_probe_trusts_it_and_leaves_nothing(self, store: Store) -> None:
        result = probe(store)
        assert (result.cas, result.why) == (True, "")
        assert listed(store) == []


class TestStreams:
    def test_small_stream_is_one_put(self, store: Store) -> None:
        began: list[str] = []
        put = store.put_stream("lists/a", iter([b"one", b"", b"two"]), on_begin=began.append)
        assert store.get("lists/a").data == b"onetwo"
        assert (put.bytes, began) == (6, [])
        assert sent(store) == {"PUT": 1, "GET": 1}

    def test_empty_stream_is_an_empty_object(self, store: Store) -> None:
        assert store.put_stream("lists/a", []).bytes == 0
        assert store.get("lists/a").data == b""

    def test_large_stream_comes_back_whole(self, store: Store) -> None:
        began: list[str] = []
        chunks = [bytes([number]) * MIB for number in range(11)]
        put = store.put_stream("lists/a", iter(chunks), on_begin=began.append)
        whole = b"".join(chunks)
        assert (put.bytes, put.crc32c) == (len(whole), crc32c.crc32c(whole))
        assert len(began) == 1
        assert sent(store) == {"POST": 2, "PUT": 3}
        assert store.get("lists/a").data == whole
        assert store.get_range("lists/a", 5 * MIB - 1, 2) == b"\x04\x05"
        found = store.head("lists/a")
        assert found is not None
        assert (found.bytes, found.etag) == (put.bytes, put.etag)

    @pytest.mark.parametrize("size", [3, 8 * MIB])
    def test_source_that_fails_leaves_nothing(self, store: Store, size: int) -> None:
        def chunks() -> Iterator[bytes]:
            yield bytes(size)
            raise OSError("the source failed")

        with pytest.raises(OSError, match="the source failed"):
            store.put_stream("lists/a", chunks())
        assert store.head("lists/a") is None
        assert listed(store) == []

    def test_nothing_is_sent_if_the_upload_cannot_be_noted(self, store: Store) -> None:
        def refuse(upload_id: str) -> None:
            raise RuntimeError("cannot note it")

        with pytest.raises(RuntimeError, match="cannot note it"):
            store.put_stream("lists/a", [bytes(8 * MIB)], on_begin=refuse)
        assert store.requests.counts()["PUT"] == 0
        assert store.head("lists/a") is None

    def test_abort_of_an_upload_that_is_gone_is_no_error(self, store: Store) -> None:
        began: list[str] = []
        store.put_stream("lists/a", [bytes(2 * MIB)], on_begin=began.append)
        store.abort_upload("lists/a", began[0])
        assert store.get_tail("lists/a", 1)[:2] == (b"\0", 2 * MIB)

    def test_streams_of_several_threads_do_not_mix(self, store: Store) -> None:
        def put(number: int) -> None:
            store.put_stream(f"lists/{number}", [bytes([number]) * (MIB + number)])

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(put, range(8)))
        for number in range(8):
            assert store.get(f"lists/{number}").data == bytes([number]) * (MIB + number)


class TestAssembling:
    """SOURCE: an object of 40 MiB whose every KiB is another."""

    SOURCE = b"".join(number.to_bytes(4, "big") * 256 for number in range(40 * 1024))

    @pytest.fixture
    def source(self, store: Store) -> Stat:
        with closing(open_store(store.url.display, options=OPTIONS)) as another:
            return another.put_stream(SEGMENTS + "source.seg", [self.SOURCE])

    def assembled(self, store: Store, *pieces: Piece) -> bytes:
        size = sum(piece.length if isinstance(piece, CopyRange) else len(piece) for piece in pieces)
        put = store.assemble(SEGMENTS + "a.seg", iter(pieces), size_hint=size)
        reply = store.get(SEGMENTS + "a.seg")
        assert (put.key, put.bytes, put.etag) == (SEGMENTS + "a.seg", len(reply.data), reply.etag)
        assert put.crc32c in (None, crc32c.crc32c(reply.data))
        return reply.data

    def test_small_object_of_bytes_is_one_put(self, store: Store) -> None:
        pieces = (b"one", bytearray(b"two"), memoryview(b"three")[1:], b"")
        assert self.assembled(store, *pieces) == b"onetwohree"
        assert sent(store) == {"PUT": 1, "GET": 1}

    def test_no_pieces_are_an_empty_object(self, store: Store) -> None:
        assert self.assembled(store) == b""

    def test_short_range_is_fetched_and_sent_in_one_put(self, store: Store, source: Stat) -> None:
        piece = CopyRange(source.key, source.etag, 3 * KIB - 2, 4 + 6 * KIB)
        whole = self.assembled(store, b"before", piece, b"after")
        assert whole == b"before" + self.SOURCE[3 * KIB - 2 : 9 * KIB + 2] + b"after"
        assert sent(store) == {"GET": 2, "PUT": 1}
        assert (store.requests.bytes_copied, store.requests.bytes_fetched) == (0, piece.length)

    def test_long_range_is_copied_in_the_store(self, store: Store, source: Stat) -> None:
        began: list[str] = []
        pieces = (CopyRange(source.key, source.etag, 1000, 39 * MIB), b"index")
        put = store.assemble(SEGMENTS + "a.seg", pieces, size_hint=40 * MIB, on_begin=began.append)
        assert put.bytes == 39 * MIB + 5
        assert len(began) == 1
        assert sent(store) == {"POST": 2, "COPY": 1, "PUT": 1}
        assert (store.requests.bytes_copied, store.requests.bytes_fetched) == (39 * MIB, 0)
        assert store.get(SEGMENTS + "a.seg").data == self.SOURCE[1000 : 1000 + 39 * MIB] + b"index"

    def test_bytes_before_a_long_range_are_filled_up_from_its_start(self, store: Store, source: Stat) -> None:
        data = self.assembled(store, b"x" * MIB, CopyRange(source.key, None, 7, 20 * MIB))
        assert data == b"x" * MIB + self.SOURCE[7 : 7 + 20 * MIB]
        assert sent(store) == {"POST": 2, "GET": 1 + 1, "PUT": 1, "COPY": 1}
        assert (store.requests.bytes_copied, store.requests.bytes_fetched) == (16 * MIB, 4 * MIB)

    def test_short_and_long_ranges_and_bytes_keep_their_order(self, store: Store, source: Stat) -> None:
        def of(start: int, length: int) -> CopyRange:
            return CopyRange(source.key, source.etag, start, length)

        pieces: list[Piece] = [
            of(0, 17 * MIB),
            of(5, 100),
            b"a" * 100,
            of(20 * MIB + 1, 17 * MIB),
            of(9, 9 * MIB),
            b"z",
        ]
        spans = [(0, 17 * MIB), (5, 105), None, (20 * MIB + 1, 37 * MIB + 1), (9, 9 + 9 * MIB)]
        parts = [self.SOURCE[slice(*span)] if span else b"a" * 100 for span in spans]
        assert self.assembled(store, *pieces) == b"".join(parts) + b"z"

    def test_namespace_of_a_name_that_is_encoded_is_copied_from(self, url: str) -> None:
        with closing(
            open_store(url.removesuffix("name") + "na%C3%AFve%20%E2%9C%93", options=OPTIONS)
        ) as named:
            named.put_stream("lists/a", [self.SOURCE])
            assert (
                self.assembled(named, CopyRange("lists/a", None, 1, 30 * MIB))
                == self.SOURCE[1 : 30 * MIB + 1]
            )
            assert named.requests.counts()["COPY"] == 1

    @pytest.mark.parametrize("length", [100, 20 * MIB])
    def test_source_that_is_gone_is_named_and_leaves_nothing(self, store: Store, length: int) -> None:
        with pytest.raises(NoSuchKey) as caught:
            store.assemble("lists/a", [b"x", CopyRange("lists/gone", None, 0, length)], size_hint=length + 1)
        assert caught.value.fields["key"] == "lists/gone"
        assert listed(store) == []

    @pytest.mark.parametrize("length", [100, 20 * MIB])
    def test_source_of_another_etag_is_damage(self, store: Store, source: Stat, length: int) -> None:
        other = store.put_if_absent("head", b"another object").etag
        with pytest.raises(DamageError, match="ETag") as caught:
            store.assemble("lists/a", [CopyRange(source.key, other, 0, length)], size_hint=length)
        assert (caught.value.kind, caught.value.fields["key"]) == ("store_damaged", source.key)
        assert store.head("lists/a") is None

    @pytest.mark.parametrize(
        ("start", "length"), [(40 * MIB - 99, 100), (30 * MIB, 20 * MIB), (41 * MIB, 20 * MIB)]
    )
    def test_source_that_is_shorter_is_damage(
        self, store: Store, source: Stat, start: int, length: int
    ) -> None:
        with pytest.raises(DamageError, match=f"{40 * MIB} bytes") as caught:
            store.assemble("lists/a", [CopyRange(source.key, source.etag, start, length)], size_hint=length)
        assert (caught.value.kind, caught.value.fields["key"]) == ("store_damaged", source.key)
        assert store.head("lists/a") is None

    @pytest.mark.parametrize("size", [3, 8 * MIB])
    def test_pieces_that_fail_leave_nothing(self, store: Store, size: int) -> None:
        def pieces() -> Iterator[bytes]:
            yield bytes(size)
            raise OSError("the source failed")

        with pytest.raises(OSError, match="the source failed"):
            store.assemble("lists/a", pieces(), size_hint=2 * size)
        assert listed(store) == []

    def test_nothing_is_sent_if_the_upload_cannot_be_noted(self, store: Store, source: Stat) -> None:
        def refuse(upload_id: str) -> None:
            raise RuntimeError("cannot note it")

        piece = CopyRange(source.key, source.etag, 0, 20 * MIB)
        with pytest.raises(RuntimeError, match="cannot note it"):
            store.assemble("lists/a", [piece], size_hint=20 * MIB, on_begin=refuse)
        assert (store.requests.counts()["COPY"], store.requests.counts()["PUT"]) == (0, 0)
        assert store.head("lists/a") is None


class TestUploads:
    def test_upload_that_is_under_way_is_listed_and_gone_in_the_end(self, store: Store) -> None:
        began: list[str] = []
        seen: list[Upload] = []

        def chunks() -> Iterator[bytes]:
            yield bytes(8 * MIB)
            seen.extend(store.list_uploads())
            yield b"end"

        put = store.put_stream(SEGMENTS + "a.seg", chunks(), on_begin=began.append)
        assert [upload.upload_id for upload in seen] == began
        assert seen[0].key.startswith(SEGMENTS)
        assert abs(seen[0].initiated_ms - put.modified_ms) < 60_000
        assert list(store.list_uploads()) == []

    def test_listed_upload_can_be_aborted(self, store: Store) -> None:
        def pieces() -> Iterator[bytes]:
            yield bytes(8 * MIB)
            for upload in store.list_uploads():
                store.abort_upload(upload.key, upload.upload_id)
            assert list(store.list_uploads()) == []
            raise RuntimeError("aborted by somebody else")

        with pytest.raises(RuntimeError, match="aborted by somebody else"):
            store.assemble(SEGMENTS + "a.seg", pieces(), size_hint=9 * MIB)
        assert listed(store) == []

    def test_uploads_of_neighbours_are_not_listed(self, store: Store, url: str) -> None:
        seen: list[Upload] = []

        def chunks() -> Iterator[bytes]:
            yield bytes(8 * MIB)
            seen.extend(store.list_uploads())

        with closing(open_store(url + "-2", options=OPTIONS)) as neighbour:
            neighbour.put_stream("lists/a", chunks())
        assert seen == []


class TestListing:
    def test_missing_namespace_is_empty(self, store: Store) -> None:
        assert listed(store) == []

    def test_entries_have_key_size_and_times(self, store: Store) -> None:
        put = store.put_stream(SEGMENTS + "a.seg", [b"12345"])
        pages = list(store.list())
        (entry,) = [entry for page in pages for entry in page.entries]
        assert (entry.key, entry.bytes, entry.etag) == (SEGMENTS + "a.seg", 5, put.etag)
        assert abs(entry.modified_ms - put.modified_ms) <= 1000
        assert entry.date_ms == pages[0].date_ms

    def test_prefix_and_start_choose_what_is_listed(self, store: Store) -> None:
        keys = ["head", "lists/a.json", "lists/b.json", SEGMENTS + "a.seg", SEGMENTS + "b.seg"]
        for key in keys:
            store.put_stream(key, [b"x"])
        assert sorted(entry.key for entry in listed(store)) == keys
        assert [entry.key for entry in listed(store, "lists/")] == keys[1:3]
        assert [entry.key for entry in listed(store, "lists/b")] == keys[2:3]
        assert [entry.key for entry in listed(store, SEGMENTS, SEGMENTS + "a.seg")] == keys[4:]
        assert [entry.key for entry in listed(store, SEGMENTS, SEGMENTS + "aa")] == keys[4:]
        assert [entry.key for entry in listed(store, SEGMENTS, SEGMENTS + "b.seg")] == []
        assert [entry.key for entry in listed(store, "lists/", "head")] == keys[1:3]
        assert [entry.key for entry in listed(store, "lists/", "z")] == []

    def test_neighbours_with_a_longer_name_are_not_listed(self, store: Store, url: str) -> None:
        neighbour = open_store(url + "-2")
        neighbour.put_if_absent("head", b"x")
        neighbour.close()
        assert listed(store) == []

    def test_1500_objects_come_in_pages_in_order(self, store: Store) -> None:
        keys = [f"{SEGMENTS}{number:04}.seg" for number in range(1500)]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda key: store.put_stream(key, [b"x"]), reversed(keys)))
        pages = list(store.list(SEGMENTS))
        assert len(pages) > 1
        assert [entry.key for page in pages for entry in page.entries] == keys
        assert [entry.key for entry in listed(store, SEGMENTS, keys[1200])] == keys[1201:]
        assert store.delete_many(keys) == ()
        assert listed(store) == []
        assert store.requests.counts()["DELETE"] == 2


class TestDeleting:
    def test_deleted_objects_are_gone_and_others_stay(self, store: Store) -> None:
        for key in ("lists/a", "lists/b"):
            store.put_stream(key, [b"x"])
        assert store.delete_many(["lists/a", "lists/none", "lists/a/below"]) == ()
        assert [entry.key for entry in listed(store)] == ["lists/b"]

    def test_deleting_nothing_sends_nothing(self, store: Store) -> None:
        assert store.delete_many([]) == ()
        assert sent(store) == {}


class TestNames:
    @pytest.mark.parametrize(
        "name", ["my%20backup", "na%C3%AFve%20%E2%9C%93", ".hidden", "a_41", "a%2Fb", "%00"]
    )
    def test_namespace_of_any_name_works_beside_others(self, url: str, name: str) -> None:
        other = open_store(url)
        named = open_store(url.removesuffix("name") + name)
        named.put_if_absent("head", name.encode())
        named.put_stream(SEGMENTS + "a.seg", [b"x"])
        assert named.get("head").data == name.encode()
        assert [entry.key for entry in listed(named)] == ["head", SEGMENTS + "a.seg"]
        assert other.head("head") is None
        assert listed(other) == []
        other.close()
        named.close()

    @pytest.mark.parametrize(
        "key", ["", "/head", "lists/", "a//b", "../head", ".lock", "lists/.x", "a\\b", "ä"]
    )
    def test_key_that_some_store_cannot_keep_is_refused(self, store: Store, key: str) -> None:
        with pytest.raises(InvalidError):
            store.put_stream(key, [b"x"])
        assert sent(store) == {}

    def test_enclosing_namespace_is_found(self, store: Store, url: str) -> None:
        inside = open_store(url + "/deeper/below")
        assert inside.heads_above() is None
        store.put_if_absent("head", b"x")
        found = inside.heads_above()
        assert found is not None
        assert found.endswith("/name/head")
        assert store.heads_above() is None
        inside.close()

    def test_namespace_that_is_named_head_is_no_head(self, store: Store, url: str) -> None:
        named_head = open_store(url.removesuffix("name") + "head")
        named_head.put_if_absent("head", b"x")
        above = open_store(url.removesuffix("/name"))  # where it is a directory named head
        assert store.heads_above() is None
        assert above.head("head") is None
        with pytest.raises(NoSuchKey):
            above.get("head")
        named_head.close()
        above.close()

    def test_looking_above_costs_one_request_a_part(self, store: Store) -> None:
        assert store.heads_above() is None
        assert sent(store) == {"HEAD": len(store.url.prefix)}
