"""Compactions that meet others, lose replies, or die: nothing is lost, garbage at most is left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compactor.compaction.options import CompactOptions
from compactor.generations import Parent
from compactor.meta.index import MetaIndex
from compactor.store import StoreOptions, open_store
from compactor.store.base import NoAnswer
from ourdb.errors import DamageError, InvalidError, TemporaryError
from tests.compacting import G1, G2, Bench
from tests.faulty import FaultyStore
from tests.worlds import HOUR, Log, Write, writes


class Killed(BaseException):
    """The process ends here."""


class Mortal(FaultyStore):
    """dies_at: the request (from 1) that is the last. after: that one still takes effect."""

    dies_at, after = 0, False

    def _send(self, method: str, key: str, send: Any) -> Any:
        if self.dies_at and len(self.log) >= self.dies_at:
            raise Killed
        if self.dies_at == len(self.log) + 1:
            if self.after:
                super()._send(method, key, send)
            self.log.append((method, key))
            raise Killed
        return super()._send(method, key, send)


def hourly(count: int = 60) -> Log:
    return writes(count, step=HOUR)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Sixty writes in segments of four, on a store whose compare-and-swap is proven."""
    found = Bench(tmp_path).line(hourly(), 4)
    for meta in ("meta.db", "other.db"):
        found.session(meta=meta).namespace.ensure_trusted()
    return found


def faulty(bench: Bench) -> FaultyStore:
    return FaultyStore(open_store(bench.world.url))


def test_backups_that_commit_first_are_followed(bench: Bench) -> None:
    store = faulty(bench)
    store.interleave("put_if_match", "head", lambda: bench.back_up(3), times=3)
    report = bench.compact("all", window=HOUR, store=store)
    assert store.sent("assemble") == 1
    assert store.sent("put_if_match", "head") == 4
    assert [segment.last_seq for segment in bench.segments()] == [60, 63, 66, 69]
    assert bench.assert_exact() == [59, *range(60, 70)]
    assert [done.outcome for done in report.sets] == ["merged"]
    assert not bench.garbage()


def test_pin_that_appears_meanwhile_is_not_lost(bench: Bench) -> None:
    store = faulty(bench)
    store.interleave("put_if_match", "head", lambda: bench.pin("sudden", 30))
    bench.compact("all", window=HOUR, store=store)
    assert bench.assert_exact() == [30, 59, 60]
    assert store.sent("assemble") == 2
    assert len(bench.garbage()) == 1


def test_pin_on_what_is_kept_costs_no_second_merge(bench: Bench) -> None:
    store = faulty(bench)
    store.interleave("put_if_match", "head", lambda: bench.pin("sudden", 59))
    bench.compact("all", window=HOUR, store=store)
    assert bench.assert_exact() == [59, 60]
    assert store.sent("assemble") == 1


def test_branch_that_begins_meanwhile_is_not_lost(bench: Bench) -> None:
    def branch() -> None:
        log = bench.world.logs[G1]
        other = bench.world.logs[G2] = log.copy(30)
        for write in writes(2, start=log.time(30) + 1).writes:
            other.append(write)
        entry = bench.world.segment(G2, 31, 32)
        end = bench.view.head.generations[G1]
        child = replace(
            end,
            id=G2,
            parent=Parent(G1, 30, log.chains[30]),
            last_seq=32,
            last_time=other.time(32),
            chain=other.chains[32],
            as_of=other.time(32),
        )
        bench.change(add=[entry], generations={G2: child})

    store = faulty(bench)
    store.interleave("put_if_match", "head", branch)
    bench.compact("all", window=HOUR, store=store)
    assert bench.assert_exact(G1) == [30, 59, 60]
    assert bench.assert_exact(G2) == [31, 32]


def test_newest_points_before_a_branch_that_begins_meanwhile_are_not_lost(bench: Bench) -> None:
    """The branch point itself is kept in any case, by a pin."""
    bench.set_policy(window_ms=0, last=3)
    bench.pin("p", 30)
    log = bench.world.logs[G1].copy(30)
    log.append(Write(1, b"branch", log.time(30) + 1))

    def branch() -> None:
        bench.world.logs[G2] = log
        entry = bench.world.segment(G2, 31, 31)
        child = replace(
            bench.view.head.generations[G1],
            id=G2,
            parent=Parent(G1, 30, log.chains[30]),
            last_seq=31,
            last_time=log.time(31),
            chain=log.chains[31],
            highest_id=log.highest[31],
            as_of=log.time(31),
        )
        bench.change(add=[entry], generations={G2: child})

    store = faulty(bench)
    store.interleave("put_if_match", "head", branch)
    bench.compact("all", store=store)
    assert bench.assert_exact(G1) == [28, 29, 30, 58, 59, 60]


def test_policy_that_grows_meanwhile_is_followed(bench: Bench) -> None:
    bench.set_policy(window_ms=HOUR)
    store = faulty(bench)
    store.interleave("put_if_match", "head", lambda: bench.set_policy(window_ms=20 * HOUR))
    bench.compact("all", store=store)
    assert bench.assert_exact() == list(range(40, 61))


def test_policy_that_comes_in_the_middle_drops_nothing_where_the_clocks_differ(bench: Bench) -> None:
    bench.skew_ms = 365 * 24 * HOUR
    points = bench.points()
    store = faulty(bench)
    store.interleave("put_if_match", "head", lambda: bench.set_policy(window_ms=0))
    bench.compact("all", store=store)
    assert bench.view.head.policy
    assert bench.points() == points


def test_policy_that_grows_beyond_the_window_told_ends_the_run(bench: Bench) -> None:
    store = faulty(bench)
    store.interleave("put_if_match", "head", lambda: bench.set_policy(window_ms=20 * HOUR))
    with pytest.raises(InvalidError) as caught:
        bench.compact("all", window=HOUR, store=store)
    assert caught.value.kind == "below_policy"
    assert bench.assert_exact() == list(range(1, 61))


def test_two_compactors_at_once_do_no_harm(bench: Bench) -> None:
    store = faulty(bench)
    store.interleave("put_if_match", "head", lambda: bench.compact("all", window=HOUR, meta="other.db"))
    report = bench.compact("log", window=2 * HOUR, store=store)
    assert [done.outcome for done in report.sets] == ["overtaken"] * 3
    assert bench.assert_exact() == [59, 60]
    assert len(bench.segments()) == 1
    assert len(bench.garbage()) == 1  # what the loser uploaded before it saw that; of the other sets nothing


def test_what_was_published_before_a_set_is_overtaken_is_reported(bench: Bench) -> None:
    store = faulty(bench)
    store.interleave("put_if_match", "head", lambda: None)
    store.interleave("put_if_match", "head", lambda: bench.compact("all", meta="other.db"))
    report = bench.compact("log", store=store)
    assert [done.outcome for done in report.sets] == ["merged", "overtaken", "overtaken"]
    assert report.segments_after == len(bench.segments()) == 1
    assert bench.assert_exact() == list(range(1, 61))
    assert store.sent("assemble") == 2  # the third set is not even read


@pytest.mark.parametrize("how", ["before", "after", "late", "twice"])
def test_put_without_an_answer_ends_as_if_it_had_one(bench: Bench, how: Any) -> None:
    store = faulty(bench)
    store.fail("put_if_match", "head", how)
    report = bench.compact("all", window=HOUR, store=store)
    store.land()
    assert [done.outcome for done in report.sets] == ["merged"]
    assert bench.assert_exact() == [59, 60]
    assert not bench.garbage()
    assert store.sent("assemble") == 1


def test_commit_whose_every_reply_is_lost_is_found_in_the_head(bench: Bench) -> None:
    store = faulty(bench)
    store.fail("put_if_match", "head", "after", times=2)
    report = bench.compact("all", window=HOUR, store=store)
    assert [done.outcome for done in report.sets] == ["merged"]
    assert store.sent("put_if_match", "head") == 2  # it is in: no third one
    assert bench.assert_exact() == [59, 60]


def test_store_that_never_answers_ends_the_run_in_bounded_time(bench: Bench) -> None:
    store = faulty(bench)
    store.fail("put_if_match", "head", "before", times=10**6)
    quick = CompactOptions(threads=1, wait_seconds=0.05)
    with pytest.raises(TemporaryError):
        bench.compact("all", store=store, options=quick)
    assert bench.assert_exact() == list(range(1, 61))


def test_result_that_was_let_go_of_meanwhile_is_uploaded_anew(bench: Bench) -> None:
    store = faulty(bench)

    def let_go() -> None:
        bench.change(let_go=sorted(bench.garbage()))

    store.interleave("put_if_match", "head", let_go)
    bench.compact("all", window=HOUR, store=store)
    assert bench.assert_exact() == [59, 60]
    assert store.sent("assemble") == 2
    assert not {segment.key for segment in bench.segments()} & bench.view.gone_keys


def test_source_that_is_deleted_after_it_was_replaced_is_no_damage(bench: Bench) -> None:
    store = faulty(bench)

    def replace_and_delete() -> None:
        sources = [segment.key for segment in bench.segments()]
        bench.compact("all", window=HOUR, meta="other.db")
        assert not bench.world.store.delete_many(sources)

    store.interleave("get_tail", "segments/", replace_and_delete)
    report = bench.compact("log", store=store)
    assert {done.outcome for done in report.sets} == {"overtaken"}
    assert bench.assert_exact() == [59, 60]


def test_source_that_is_missing_though_the_head_names_it_is_damage(bench: Bench) -> None:
    key = bench.segments()[1].key
    bench.world.change_object(key, None)
    with pytest.raises(DamageError, match="the head names a segment that is missing") as caught:
        bench.compact("log")
    assert caught.value.fields["key"] == key


def test_upload_that_fails_ends_the_run_and_publishes_nothing(bench: Bench) -> None:
    store = faulty(bench)
    store.fail("assemble", "segments/", "before")
    with pytest.raises(NoAnswer):
        bench.compact("all", store=store)
    assert bench.assert_exact() == list(range(1, 61))


def test_upload_in_parts_is_noted_until_it_is_complete(bench: Bench) -> None:
    parts = StoreOptions(put_bytes_max=100)
    store = FaultyStore(open_store(bench.world.url, options=parts))
    store.fail("assemble", "segments/", "middle")
    with pytest.raises(NoAnswer):
        bench.compact("all", store=store)
    with MetaIndex.open(bench.folder / "meta.db") as meta:
        [left] = meta.uploads(store.url.identity)
        assert (left.key[:9], left.since_ms) == ("segments/", bench.now_ms)
        assert [upload.upload_id for upload in store.list_uploads()] == [left.upload_id]
        bench.compact("all", store=FaultyStore(open_store(bench.world.url, options=parts)))
        assert meta.uploads(store.url.identity) == [left]  # what was completed is forgotten again


@pytest.mark.parametrize("after", [False, True])
def test_run_that_dies_at_any_request_leaves_garbage_at_most(tmp_path: Path, after: bool) -> None:
    since = 50
    for dies_at in range(1, 100):
        bench = Bench(tmp_path / str(dies_at)).line(hourly(), 10)
        bench.folder.mkdir()
        bench.pin("monday", 15)
        store = Mortal(open_store(bench.world.url))
        store.dies_at, store.after = dies_at, after
        try:
            bench.compact("log", window=10 * HOUR, store=store)
        except Killed:
            assert {15, *range(since, 61)} <= set(bench.assert_exact())
            assert bench.compact("all", window=10 * HOUR).segments_after == 1
            assert bench.assert_exact() == [15, *range(since, 61)]
        else:
            assert dies_at > 10
            break
    else:
        raise AssertionError("it never got through")
