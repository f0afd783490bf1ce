"""Reading without restoring: the answers are those of a restored database, and cost what they have to."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ourdb
from backup import open_remote, restore
from backup.reading import index_cache
from backup.reading.database import RemoteDatabase
from backup.reading.index_cache import IndexCache
from backup.reading.remote import RemoteOptions
from backup.restoring.target import Wanted
from compactor import fetch
from compactor.meta.index import MetaIndex
from compactor.session import Session
from ourdb.errors import (
    DamageError,
    FencedError,
    InvalidError,
    MissingIdError,
    NotFoundError,
    UnreachableError,
    UnusableError,
)
from ourdb.history import Version
from ourdb.segment import writer
from ourdb.segment.summary import Stretch
from tests.faulty import FaultyStore
from tests.merged import IDS, merged_worlds, offered
from tests.worlds import DAY_0, HOUR, Log, World, Write, memory_world, writes

G1, G2 = "1" * 16, "2" * 16


@pytest.fixture(autouse=True)
def meta_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURDB_META", str(tmp_path_factory.mktemp("meta") / "meta.db"))


def world_of(log: Log, *cuts: int) -> World:
    world = memory_world()
    world.line(G1, log, cuts)
    world.publish()
    return world


def assert_same(remote: RemoteDatabase, path: Path, ids: range) -> None:
    """As the database that was restored to there."""
    asked = [*reversed(ids), -1, 2**32, ids[0]]
    with ourdb.open(path, readonly=True) as db:
        assert list(remote.items()) == list(db.items("log"))
        assert list(remote) == list(db)
        assert len(remote) == len(db)
        assert remote.get_many(asked, b"none") == db.get_many(asked, b"none")
        assert remote.config == db.config
        for id_ in asked:
            assert remote.get(id_) == db.get(id_)
            assert (id_ in remote) == (id_ in db)
            assert remote.history(id_) == db.get_history(id_)
            for depth in range(3):
                assert remote.history(id_, depth) == db.get_history(id_, depth)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(merged_worlds(), st.data())
def test_answers_are_those_of_a_restore_to_any_point_over_any_segments(tmp_path_factory, world, data):
    points = offered(world)
    if not points:
        return
    folder = tmp_path_factory.mktemp("remote")
    for number in range(2):
        generation, seq = data.draw(st.sampled_from(points), label="target")
        path, meta = folder / f"db{number}", folder / "meta.db"
        restored = restore(world.url, path, seq=seq, generation=generation, meta=meta)
        with open_remote(world.url, seq=seq, generation=generation, meta=meta) as remote:
            assert_same(remote, path, range(IDS + 1))
            assert remote.point is not None
            assert (remote.point.seq, remote.point.generation) == (seq, restored.generation)


def test_times_are_understood_as_a_restore_does(tmp_path):
    world = world_of(writes(60), 20, 40)
    for number, target in enumerate(
        [{"at": DAY_0 + 30_500}, {"before": DAY_0 + 30_000}, {"seq": 7}, {"at": DAY_0 + 60_000}, {}]
    ):
        report = restore(world.url, tmp_path / f"db{number}", **target)
        with open_remote(world.url, **target) as remote:
            assert remote.point is not None
            assert (remote.point.seq, remote.point.time) == (report.seq, report.time)


def test_a_target_that_cannot_be_met_is_refused_as_by_a_restore():
    log = writes(60)
    world = memory_world()
    world.line(G1, log, [60])
    world.segments.clear()
    world.segment(G1, 1, 60, [(10, 10), (40, 60)], level=1)
    world.publish()
    with pytest.raises(UnreachableError) as caught:
        open_remote(world.url, seq=20)
    assert (caught.value.fields["nearest_before"]["seq"], caught.value.fields["nearest_after"]["seq"]) == (
        10,
        40,
    )
    with open_remote(world.url, seq=20, nearest_before=True) as remote:
        assert dict(remote.items()) == log.state(10)
    with pytest.raises(UnreachableError):
        open_remote(world.url, at=DAY_0 + HOUR)
    with pytest.raises(InvalidError):
        open_remote(world.url, at=DAY_0, seq=1)
    with pytest.raises(NotFoundError):
        open_remote(world.url, generation=G2)
    with pytest.raises(NotFoundError):
        open_remote("memory://nowhere/none")


def forked() -> World:
    world = memory_world()
    first = writes(30)
    second = first.copy(20)
    for n in range(10):
        second.append(Write(n, b"second", DAY_0 + HOUR + n * 1000))
    world.line(G1, first, [15])
    world.line(G2, second, parent=(G1, 20))
    world.publish()
    return world


def test_two_open_lines_need_a_generation():
    world = forked()
    with pytest.raises(FencedError) as caught:
        open_remote(world.url)
    assert caught.value.kind == "two_lines"
    for line in (G1, G2):
        with open_remote(world.url, generation=line) as remote:
            assert dict(remote.items()) == world.logs[line].state(30)


def test_a_namespace_without_a_record_is_an_empty_database():
    world = memory_world()
    world.line(G1, Log())
    world.publish()
    with open_remote(world.url) as remote:
        assert (remote.point, len(remote), list(remote.items())) == (None, 0, [])
        assert (remote.get(1), 1 in remote, remote.history(1)) == (None, False, [])


def test_it_is_a_mapping():
    log = writes(60)
    with open_remote(world_of(log, 20).url) as remote:
        state = log.state(60)
        assert remote == state
        assert dict(remote) == state
        assert sorted(remote.keys()) == sorted(state)
        assert list(remote.values()) == [value for _, value in remote.items()]
        id_, value = next(iter(state.items()))
        assert remote[id_] == value
        assert (id_, value) in remote.items()
        assert (id_, b"other") not in remote.items()
        assert id_ in remote
        assert np.uint32(id_) in remote
        assert "text" not in remote
        with pytest.raises(MissingIdError):
            remote[99]
        with pytest.raises(InvalidError):
            remote.get("1")  # type: ignore[call-overload]
        with pytest.raises(InvalidError):
            remote.history(1, -1)


def test_the_history_of_an_id_tells_deletions_with_their_time():
    log = Log([Write(1, b"a", DAY_0), Write(1, None, DAY_0 + 5), Write(1, b"", DAY_0 + 9)])
    with open_remote(world_of(log, 1, 2).url) as remote:
        assert remote.history(1) == [
            Version(3, DAY_0 + 9, b""),
            Version(2, DAY_0 + 5, None),
            Version(1, DAY_0, b"a"),
        ]
        assert [version.seq for version in remote.history(1, 2)] == [3, 2]


def test_once_closed_it_says_so():
    remote = open_remote(world_of(writes(20)).url)
    items = iter(remote.items())
    next(items)
    remote.close()
    remote.close()
    for ask in (lambda: remote.get(1), lambda: remote.history(1), lambda: len(remote), lambda: next(items)):
        with pytest.raises(UnusableError):
            ask()


# -- requests


def large_log(count: int = 3000, size: int = 200) -> Log:
    """More than comes with a tail."""
    return Log(Write(n % 500, os.urandom(size), DAY_0 + n) for n in range(count))


def gets(remote: RemoteDatabase) -> int:
    counts = remote.requests
    assert sum(counts.values()) == counts["GET"]
    return counts["GET"]


def test_the_first_opening_reads_head_and_indexes_and_later_ones_the_head_alone():
    log = large_log()
    world = world_of(log, 1000, 2000)
    for newest, others in ((1, 2), (0, 0)):
        with open_remote(world.url) as remote:
            assert gets(remote) == 1
            assert remote.get(7) == log.state(3000)[7]
            assert gets(remote) == 1 + newest + 1
            assert remote.get(100) == log.state(3000)[100]
            assert gets(remote) == 1 + newest + 2
            assert remote.get(7) == log.state(3000)[7]  # its block is still here
            assert gets(remote) == 1 + newest + 2
            assert remote.history(7)[-1].seq == 8
            assert gets(remote) == 1 + newest + 2 + others + 3


def test_an_older_value_costs_the_indexes_of_what_is_newer():
    log = Log(Write(min(n, 500), os.urandom(2000), DAY_0 + n) for n in range(3000))
    world = world_of(log, *range(300, 3000, 300))
    with open_remote(world.url) as remote:
        assert remote.get(500) == log.state(3000)[500]
        assert gets(remote) == 2  # the tail has its block too
        assert remote.get(400) == log.state(3000)[400]
        assert gets(remote) == 2 + 8 + 1
    with open_remote(world.url) as remote:
        assert remote.get(100) == log.state(3000)[100]
        assert gets(remote) == 1 + 1 + 1


def test_a_past_point_costs_its_index_once():
    world = world_of(large_log(), 1000, 2000)
    for indexes in (1, 0):
        with open_remote(world.url, at=DAY_0 + 1500) as remote:
            assert gets(remote) == 1 + indexes
            assert remote.point is not None
            assert remote.point.seq == 1501


def test_what_is_not_there_or_deleted_needs_no_data():
    log = large_log()
    log.append(Write(3, None, DAY_0 + 10**6))
    world = world_of(log, 1000, 2000)
    with open_remote(world.url) as remote:
        assert (remote.get(3), remote.get(499 + 1), 3 in remote, 4 in remote) == (None, None, False, True)
        assert remote.history(3, 1) == [Version(3001, DAY_0 + 10**6, None)]
        assert gets(remote) == 2


def test_an_id_above_all_that_were_given_costs_no_index():
    with open_remote(world_of(large_log(), 1000, 2000).url) as remote:
        assert remote.get(100_000) is None
        assert gets(remote) == 1


def test_many_values_are_fetched_together_where_they_lie_together():
    log = large_log()
    world = world_of(log, 1000, 2000)
    with open_remote(world.url) as remote:
        remote.get(0)
        before = gets(remote)
        state = log.state(3000)
        assert remote.get_many(range(500)) == [state[n] for n in range(500)]
        assert gets(remote) - before == 1


def test_items_fetch_each_block_once():
    log = large_log(6000)
    world = world_of(log, 2000)
    with open_remote(world.url) as remote:
        assert dict(remote.items()) == log.state(6000)
        assert gets(remote) <= 1 + 2 + 2


def test_small_segments_come_whole_with_their_tails():
    log = writes(60)
    world = world_of(log, 20, 40)
    for expected in (4, 1):
        with open_remote(world.url) as remote:
            assert dict(remote.items()) == log.state(60)
            assert [v.seq for v in remote.history(3)] == [
                n for n in range(60, 0, -1) if log.writes[n - 1].id == 3
            ]
            assert gets(remote) == expected


def test_of_an_index_larger_than_the_tail_only_what_is_needed_is_read(monkeypatch):
    for module in (fetch, index_cache):
        monkeypatch.setattr(module, "INDEX_BYTES_MAX", 1 << 10)
    monkeypatch.setattr(writer, "PAGE_RECORDS_MAX", 4000)
    log = Log(Write(n // 4, b"%d" % n, DAY_0 + n) for n in range(20_000))
    world = world_of(log)
    assert world.segments[0].index_bytes > 80_000
    # Head, tail, what finds it in the first page, what it lies in, the value; of the last page the tail has
    # the columns. Later the head and the value.
    for first, last in ((5, 1), (2, 1)):
        with open_remote(world.url) as remote:
            assert remote.get(100) == b"403"
            assert gets(remote) == first
            assert remote.get(4999) == b"19999"
            assert gets(remote) == first + last
            assert remote.get_many([100, 1100, 2100]) == [b"403", b"4403", b"8403"]
            assert [v.value for v in remote.history(1100)] == [b"4403", b"4402", b"4401", b"4400"]
    with open_remote(world.url) as remote:
        assert list(remote.items()) == list(log.state(20_000).items())


# -- what happens meanwhile


def test_the_point_stays_while_others_back_up():
    log = writes(40)
    world = world_of(log, 20)
    with open_remote(world.url) as remote:
        grown = log.copy(40)
        grown.append(Write(3, b"new", DAY_0 + HOUR))
        world.logs[G1] = grown
        world.segment(G1, 41, 41)
        world.generations[G1] = replace(
            world.generations[G1], last_seq=41, last_time=DAY_0 + HOUR, chain=grown.chains[41]
        )
        world.publish()
        assert dict(remote.items()) == log.state(40)
    with open_remote(world.url) as remote:
        assert remote[3] == b"new"


def compact(world: World, runs: list[tuple[int, int]] | None = None) -> None:
    """Replaces all segments by one, and deletes them."""
    old, world.segments[:] = list(world.segments), []
    last = max(segment.last_seq for segment in old)
    world.segments[:] = old  # names go on
    merged = world.segment(G1, 1, last, runs, level=1)
    world.segments[:] = [merged]
    world.publish()
    for segment in old:
        assert not world.store.delete_many([segment.key])


@pytest.mark.parametrize("runs", [None, [(60, 60)]])
def test_segments_that_were_replaced_since_are_no_damage(runs):
    log = large_log(60, 3000)
    world = world_of(log, 20, 40)
    with open_remote(world.url) as remote:
        assert remote.get(1) == log.state(60)[1]
        compact(world, runs)
        assert remote.get(25) == log.state(60)[25]
        assert remote.left_out == ()
        assert dict(remote.items()) == log.state(60)


def test_items_go_on_where_they_were_when_segments_are_replaced_meanwhile():
    log = large_log(60, 3000)
    world = world_of(log, 20, 40)
    with open_remote(world.url, options=RemoteOptions(threads=1)) as remote:
        items = iter(remote.items())
        found = [next(items)]
        compact(world, [(60, 60)])
        found += items
        assert sorted(found) == sorted(log.state(60).items())
        assert remote.left_out == ()


def test_a_point_that_was_merged_away_since_is_unreachable():
    log = large_log(60, 9000)
    world = world_of(log, 20, 40)
    with open_remote(world.url, seq=30) as remote:
        assert remote.get(1) == log.state(30)[1]
        compact(world, [(60, 60)])
        with pytest.raises(UnreachableError, match="seq 30"):
            remote.get(20)


# -- damage


@pytest.mark.parametrize("how", ["missing", "index", "block"])
def test_damage_is_gone_around_where_another_path_leads_to_the_point(how):
    log = large_log(60, 3000)
    world = world_of(log, 20, 40)
    merged = world.segment(G1, 1, 60, level=1)
    world.publish()
    if how == "missing":
        world.change_object(merged.key, None)
    else:
        world.flip(merged.key, 3 - merged.index_bytes - 172 if how == "index" else 20_000)
    with open_remote(world.url) as remote:
        assert dict(remote.items()) == log.state(60)
        assert remote.get_many(range(60)) == [log.state(60)[n] for n in range(60)]
        assert remote.left_out == (merged.key,)


@pytest.mark.parametrize("how", ["missing", "index", "block"])
def test_damage_without_another_path_names_key_and_range(how):
    world = world_of(large_log(60, 3000), 20, 40)
    key = world.segments[1].key
    if how == "missing":
        world.change_object(key, None)
    else:
        world.flip(key, 3 - world.segments[1].index_bytes - 172 if how == "index" else 20_000)
    with open_remote(world.url) as remote:
        with pytest.raises(DamageError) as caught:
            list(remote.items())
        fields = caught.value.fields
        assert (caught.value.kind, fields["key"]) == ("store_damaged", key)
        assert (fields["first_seq"], fields["last_seq"]) == (21, 40)


def test_damage_that_nobody_asks_for_is_not_noticed():
    log = large_log(60, 3000)
    world = world_of(log, 20, 40)
    world.flip(world.segments[0].key, 20_000)
    with open_remote(world.url) as remote:
        assert remote.get_many(range(20, 60)) == [log.state(60)[n] for n in range(20, 60)]
        assert remote.left_out == ()


def test_a_copy_of_what_was_damaged_is_not_believed_once_the_store_is_mended():
    log = writes(60)
    world = world_of(log)
    key = world.segments[0].key
    world.flip(key, 100)
    with open_remote(world.url) as remote, pytest.raises(DamageError):
        remote.history(1)
    world.flip(key, 100)
    with open_remote(world.url) as remote:
        assert remote.history(1)[-1].seq == 1


def test_parts_of_a_stretch_are_read_together():
    log = writes(60)
    world = memory_world()
    world.line(G1, log, [60])
    world.segments.clear()
    world.segment(G1, 1, 20, [], stretch=Stretch(9, 1, 2))
    world.segment(G1, 21, 60, [(60, 60)], stretch=Stretch(9, 2, 2))
    world.publish()
    with open_remote(world.url) as remote:
        assert dict(remote.items()) == log.state(60)


# -- the cache of indexes


def cached(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_indexes_are_kept_beside_the_meta_index_by_the_names_of_segments(tmp_path):
    world = world_of(large_log(), 1000)
    with open_remote(world.url, meta=tmp_path / "meta.db") as remote:
        len(remote)
    kept = cached(tmp_path / "indexes")
    assert [path.parent.name for path in kept] == [G1, G1]
    assert [path.name for path in kept] == sorted(f"{entry.file_name}.tail" for entry in world.segments)
    assert all(path.stat().st_size < 30_000 for path in kept)


@pytest.mark.parametrize("change", ["flip", "cut", "empty", "other"])
def test_a_damaged_copy_is_dropped_and_fetched_anew(tmp_path, change):
    log = large_log()
    world = world_of(log, 1000)
    with open_remote(world.url, cache=tmp_path) as remote:
        len(remote)
    first, second = cached(tmp_path)
    whole = first.read_bytes()
    if change == "other":
        first.write_bytes(second.read_bytes())
    else:
        flipped = bytearray(whole)
        flipped[50] ^= 1
        first.write_bytes({"flip": bytes(flipped), "cut": whole[:-9], "empty": b""}[change])
    with open_remote(world.url, cache=tmp_path) as remote:
        assert dict(remote.items()) == log.state(3000)
        assert remote.left_out == ()
    assert first.read_bytes() == whole


def test_without_a_place_for_them_indexes_are_fetched_anew(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("OURDB_META", str(tmp_path / "file" / "meta.db"))
    log = large_log()
    world = world_of(log, 1000)
    for _ in range(2):
        with open_remote(world.url) as remote:
            assert remote.get(7) == log.state(3000)[7]
            assert gets(remote) == 3
    with open_remote(world.url, cache=tmp_path / "file") as remote:
        assert remote.get(7) == log.state(3000)[7]


class TestIndexCache:
    entry = world_of(writes(5)).segments[0]

    def named(self, number: int):
        return replace(self.entry, file_name=f"{number:016x}" + self.entry.file_name[16:])

    def test_what_was_not_used_for_longest_goes_first(self, tmp_path):
        cache = IndexCache(tmp_path, bytes_max=1000)
        for number in range(5):
            cache.put(self.named(number), "tail", bytes(100))
            os.utime(cached(tmp_path)[-1], ns=(number, number))
        assert cache.get(self.named(0), "tail", 100) == bytes(100)
        for number in range(5, 11):
            cache.put(self.named(number), "tail", bytes(100))
        cache.trim()
        left = [number for number in range(11) if cache.get(self.named(number), "tail", 100)]
        assert left == [0, *range(2, 11)]

    def test_it_does_not_grow_beyond_its_bound_by_much(self, tmp_path):
        cache = IndexCache(tmp_path, bytes_max=10_000)
        for number in range(300):
            cache.put(self.named(number), "tail", bytes(200))
            assert sum(path.stat().st_size for path in cached(tmp_path)) <= 12_000

    def test_what_is_larger_than_all_is_not_kept(self, tmp_path):
        cache = IndexCache(tmp_path, bytes_max=10)
        cache.put(self.entry, "tail", bytes(11))
        assert cache.get(self.entry, "tail", 11) is None

    def test_what_killed_processes_left_is_removed_in_time(self, tmp_path):
        cache = IndexCache(tmp_path)
        cache.put(self.entry, "tail", b"x")
        folder = tmp_path / self.entry.generation
        (folder / "old.tmp").write_bytes(b"half")
        os.utime(folder / "old.tmp", (0, 0))
        (folder / "new.tmp").write_bytes(b"half")
        cache.trim()
        assert [path.name for path in cached(tmp_path)] == [f"{self.entry.file_name}.tail", "new.tmp"]

    def test_dropping_a_segment_leaves_the_others(self, tmp_path):
        cache = IndexCache(tmp_path)
        for piece in ("tail", "10-20"):
            cache.put(self.entry, piece, b"x")
        cache.put(self.named(9), "tail", b"y")
        assert cache.drop(self.entry)
        assert not cache.drop(self.entry)
        assert cache.get(self.named(9), "tail", 1) == b"y"

    def test_a_folder_that_cannot_be_written_keeps_nothing_and_harms_nothing(self, tmp_path):
        (tmp_path / "file").touch()
        for folder in (None, tmp_path / "file" / "folder"):
            cache = IndexCache(folder)
            cache.put(self.entry, "tail", b"x")
            cache.trim()
            assert cache.get(self.entry, "tail", 1) is None
            assert not cache.drop(self.entry)

    def test_a_folder_that_can_only_be_read_is_used(self, tmp_path, monkeypatch):
        cache = IndexCache(tmp_path)
        cache.put(self.entry, "tail", b"x")

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError

        monkeypatch.setattr(os, "utime", refuse)
        assert cache.get(self.entry, "tail", 1) == b"x"


def test_readers_in_several_threads_share_one(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    log = large_log(2000, 60)
    world = world_of(log, *range(100, 2000, 100))
    state = log.state(2000)
    with open_remote(world.url) as remote, ThreadPoolExecutor(4) as pool:
        assert list(pool.map(remote.get, range(500))) == [state[n] for n in range(500)]


def test_a_request_without_an_answer_is_an_error_and_the_next_one_is_well(tmp_path):
    log = large_log()
    world = world_of(log, 1000)
    store = FaultyStore(world.store)
    with MetaIndex.open(tmp_path / "meta.db") as meta:
        session = Session(store, meta)
        remote = RemoteDatabase(session, Wanted.of(), None, IndexCache(None), threads=2)
        store.fail("get_range", times=1)
        with remote:
            with pytest.raises(ourdb.Error):
                remote.get(7)
            assert remote.get(7) == log.state(3000)[7]


def test_a_real_s3_server_is_asked_for_ranges(tmp_path, s3_environment):
    from backup import backup
    from tests.conftest import RUN

    url = f"s3://{s3_environment.bucket}/{RUN}/remote {tmp_path.name}/name"
    value = os.urandom(2000)
    with ourdb.open(tmp_path / "db") as db:
        db.set_many({n: value[n % 100 :] for n in range(2000)})
        db.delete(7)
        backup(tmp_path / "db", url)
        for indexes in (1, 0):
            with open_remote(url) as remote:
                assert remote.get(3) == db.get(3)
                assert gets(remote) == 1 + indexes + 1
                assert remote.get_many(range(10)) == db.get_many(range(10))
                assert [version.value for version in remote.history(7)] == [None, value[7:]]
                assert gets(remote) == 1 + indexes + 1
        with open_remote(url) as remote:
            assert dict(remote.items()) == dict(db.items())
            assert gets(remote) <= 4
