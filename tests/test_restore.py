"""Restore: the database equals the original at its target, and nothing stands where it should not."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ourdb
from backup.restoring.restore import RestoreOptions, RestoreReport, restore
from compactor.head import Known
from compactor.path import route
from compactor.store import StoreOptions
from ourdb import files, line
from ourdb.config import Config
from ourdb.errors import (
    DamageError,
    ExistsError,
    FencedError,
    InvalidError,
    LockedError,
    NotFoundError,
    StorageError,
    UnreachableError,
)
from ourdb.files import FileSystem, translate
from ourdb.log import LogReader
from ourdb.segment.summary import Stretch
from tests.worlds import DAY_0, HOUR, UUID, Log, World, Write, file_world, memory_world, writes

G1, G2 = "1" * 16, "2" * 16


@pytest.fixture(autouse=True)
def meta_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURDB_META", str(tmp_path_factory.mktemp("meta") / "meta.db"))


def world_of(log: Log, *cuts: int, **options: object) -> World:
    world = memory_world()
    world.line(G1, log, cuts, **options)  # type: ignore[arg-type]
    world.publish()
    return world


def assert_equals(path: Path, log: Log, seq: int) -> None:
    """The database holds the log's state at a seq, and goes on behind it."""
    with LogReader(path) as reader:
        end = reader.find_end()
        assert (end.seq, end.chain) == (seq, log.chains[seq])
        assert end.highest_id == log.highest[seq]
        assert reader.uuid == UUID
    with ourdb.open(path) as db:
        assert dict(db.items()) == log.state(seq)
        assert db.last_seq == seq
    with ourdb.open(path, readonly=True) as db:
        assert db.last_seq == seq


def assert_history(path: Path, log: Log, seq: int) -> None:
    """Every version up to the target is there, and none after it."""
    with ourdb.open(path, readonly=True) as db:
        for id_ in {write.id for write in log.writes}:
            wanted = [(n, w.value) for n, w in enumerate(log.writes[:seq], 1) if w.id == id_]
            found = [(v.seq, v.value) for v in db.get_history(id_)] if wanted else []
            assert found == wanted[::-1]


def left_behind(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.mark.parametrize("seq", [1, 39, 40, 41, 99, 100, 120])
def test_restore_to_a_seq_equals_the_original_with_its_history(tmp_path, seq):
    log = writes(120)
    report = restore(world_of(log, 40, 100).url, tmp_path / "db", seq=seq)
    assert (report.seq, report.time, report.generation, report.records) == (seq, log.time(seq), G1, seq)
    assert_equals(tmp_path / "db", log, seq)
    assert_history(tmp_path / "db", log, seq)
    assert left_behind(tmp_path) == ["db"]


def test_without_a_target_the_newest_is_restored(tmp_path):
    log = writes(50)
    assert restore(world_of(log).url, tmp_path / "db").seq == 50
    assert_equals(tmp_path / "db", log, 50)


def test_a_restored_database_goes_on_where_it_was(tmp_path):
    log = writes(30)
    restore(world_of(log).url, tmp_path / "db", seq=20)
    with ourdb.open(tmp_path / "db") as db:
        db.set(b"new", 3)
        assert db.last_seq == 21
        assert db.get_history(3)[1].seq == max(n for n in range(1, 21) if log.writes[n - 1].id == 3)


def test_ids_go_on_in_incremental_mode(tmp_path):
    world = memory_world()
    world.config = Config(mode="incremental", file_size=64 << 10)
    world.line(G1, Log(Write(n, b"v", DAY_0 + n) for n in range(1, 21)))
    world.publish()
    restore(world.url, tmp_path / "db", seq=15)
    with ourdb.open(tmp_path / "db") as db:
        assert db.set(b"next") == 16


def test_records_are_cut_into_files_of_the_configured_size_at_batch_ends(tmp_path):
    log = Log()
    for n in range(60):
        log.batch([(k, bytes(900)) for k in range(1 + n % 5)], DAY_0 + n)
    world = memory_world()
    world.config = Config(file_size=16 << 10)
    world.line(G1, log, [50])
    world.publish()
    restore(world.url, tmp_path / "db")
    sizes = [entry.stat().st_size for entry in (tmp_path / "db").glob("*.db")]
    assert len(sizes) > 8
    assert max(sizes) <= 16 << 10
    assert_equals(tmp_path / "db", log, len(log))
    with ourdb.open(tmp_path / "db") as db:
        assert db.config == world.config


def test_many_small_segments_become_few_files(tmp_path):
    log = writes(300)
    restore(world_of(log, *range(3, 300, 3)).url, tmp_path / "db")
    assert len(list((tmp_path / "db").glob("*.db"))) <= 3
    assert_equals(tmp_path / "db", log, 300)


def test_extreme_ids_empty_and_large_values_come_back(tmp_path):
    world = memory_world()
    world.config = Config(record_nr_max=2**32 - 1, record_size_max=3 << 20, file_size=8 << 20)
    log = Log(
        [
            Write(0, b"", DAY_0),
            Write(2**32 - 1, os.urandom(3 << 20), DAY_0),
            Write(5, b"x" * (2 << 20), DAY_0 + 1),
            Write(0, b"zero", DAY_0 + 2),
            Write(5, None, DAY_0 + 3),
        ]
    )
    world.line(G1, log, [2])
    world.publish()
    restore(world.url, tmp_path / "db")
    assert_equals(tmp_path / "db", log, 5)


def test_a_merged_path_restores_the_state_and_claims_only_what_is_exact(tmp_path):
    log = writes(100)
    world = memory_world()
    world.line(G1, log, [100])
    world.segments.clear()
    world.segment(G1, 1, 60, [(17, 17), (40, 60)], level=1)
    world.segment(G1, 61, 90, [(70, 70), (90, 90)], level=1)
    world.segment(G1, 91, 100)
    world.publish()
    for number, seq in enumerate((17, 40, 52, 60, 70, 90, 95, 100)):
        path = tmp_path / f"db{number}"
        restore(world.url, path, seq=seq)
        assert_equals(path, log, seq)
        with LogReader(path) as reader:
            reader.find_end()
            for point in range(1, seq + 1):
                chain = reader.chain_at(point)
                assert chain in (None, log.chains[point])
                assert (chain is not None) >= (point == 17 or 40 <= point <= 60 or point in (70, seq))


@pytest.mark.parametrize("seq", [50, 55, 60])
def test_parts_of_a_stretch_are_restored_together(tmp_path, seq):
    log = writes(60)
    world = memory_world()
    world.line(G1, log, [60])
    world.segments.clear()
    world.segment(G1, 1, 20, [], stretch=Stretch(9, 1, 3))
    world.segment(G1, 21, 40, [], stretch=Stretch(9, 2, 3))
    world.segment(G1, 41, 50, [(50, 50)], stretch=Stretch(9, 3, 3))
    world.segment(G1, 51, 60)
    world.publish()
    restore(world.url, tmp_path / "db", seq=seq)
    assert_equals(tmp_path / "db", log, seq)


@pytest.mark.parametrize(
    ("first", "second", "runs"), [((1, 40), (21, 60), None), ((1, 40), (21, 60), [(60, 60)])]
)
def test_overlapping_segments_are_joined_where_both_chains_are_known(tmp_path, first, second, runs):
    log = writes(60)
    world = memory_world()
    world.line(G1, log, [60])
    world.segments.clear()
    world.segment(G1, *first)
    world.segment(G1, *second, runs, level=1)
    world.publish()
    restore(world.url, tmp_path / "db")
    assert_equals(tmp_path / "db", log, 60)


def restored_copy() -> World:
    first = writes(60)
    second = first.copy(40)
    for n in range(1, 21):
        second.append(Write(n, b"second", DAY_0 + HOUR + n * 1000))
    world = memory_world()
    world.line(G1, first, [30], as_of=DAY_0 + 70_000)
    world.line(G2, second, [50], parent=(G1, 40), takes_over=G1, as_of=DAY_0 + 2 * HOUR)
    world.revision, world.kept = 7, Known(7, "7" * 16)
    world.publish()
    return world


def test_a_path_through_the_parent_leaves_it_at_the_branch_point(tmp_path):
    world = restored_copy()
    restore(world.url, tmp_path / "new")
    assert_equals(tmp_path / "new", world.logs[G2], 60)
    report = restore(world.url, tmp_path / "old", at=DAY_0 + 55_000)
    assert (report.generation, report.seq) == (G1, 55)
    assert_equals(tmp_path / "old", world.logs[G1], 55)


def test_the_line_says_where_the_copy_comes_from_and_how_the_store_stood(tmp_path):
    world = restored_copy()
    restore(world.url, tmp_path / "db", at=DAY_0 + 35_000)
    found = line.load(tmp_path / "db")
    assert found is not None
    assert found.start == "plain"
    assert found.generation not in (G1, G2)
    origin, identity = found.origin, world.store.url.identity
    assert origin is not None
    assert (origin.store, origin.generation, origin.seq) == (identity, G1, 35)
    assert origin.chain == world.logs[G1].chains[35]
    assert (origin.end_generation, origin.end_last_seq, origin.end_as_of) == (G2, 60, DAY_0 + 2 * HOUR)
    assert (origin.revision, origin.run) == (7, "7" * 16)
    assert found.known[identity].revision == 7
    mark = found.marks[identity]
    assert (mark.generation, mark.seq, mark.chain) == (G1, 35, origin.chain)


def test_each_restore_begins_a_generation_of_its_own(tmp_path):
    url = world_of(writes(5)).url
    found = set()
    for name in "ab":
        restore(url, tmp_path / name)
        loaded = line.load(tmp_path / name)
        assert loaded is not None
        found.add(loaded.generation)
    assert len(found) == 2


def test_two_open_lines_need_a_generation(tmp_path):
    world = restored_copy()
    world.generations[G1] = world.generations[G1].__class__(
        **{**vars(world.generations[G1]), "successor": None}
    )
    world.publish()
    with pytest.raises(FencedError):
        restore(world.url, tmp_path / "db")
    restore(world.url, tmp_path / "db", generation=G1)
    assert_equals(tmp_path / "db", world.logs[G1], 60)


def test_a_namespace_into_which_nothing_was_written_gives_an_empty_database(tmp_path):
    world = memory_world()
    world.line(G1, Log())
    world.publish()
    report = restore(world.url, tmp_path / "db")
    assert (report.seq, report.time, report.segments) == (0, None, ())
    assert_equals(tmp_path / "db", Log(), 0)


def test_an_unknown_namespace_is_not_found_and_nothing_is_made(tmp_path):
    with pytest.raises(NotFoundError) as caught:
        restore("memory://nowhere/none", tmp_path / "db")
    assert (caught.value.kind, caught.value.exit_code) == ("no_namespace", 10)
    assert left_behind(tmp_path) == []


def test_an_unreachable_target_makes_nothing(tmp_path):
    with pytest.raises(UnreachableError):
        restore(world_of(writes(5)).url, tmp_path / "db", seq=6)
    assert left_behind(tmp_path) == []


def test_a_dry_run_tells_the_plan_and_fetches_no_data(tmp_path):
    world = world_of(writes(300), 100, 200)
    before = world.store.requests.counts()
    report = restore(world.url, tmp_path / "db", seq=200, dry_run=True)
    assert [segment.last_seq for segment in report.segments] == [100, 200]
    assert (report.dry_run, report.records, report.bytes_downloaded) == (True, 0, 0)
    assert report.requests["GET"] == 1
    assert report.requests_estimate == 2
    assert world.store.requests.counts() == before
    assert left_behind(tmp_path) == []
    assert json.loads(json.dumps(report.as_json()))["seq"] == 200


def test_a_report_counts_what_was_fetched(tmp_path):
    world = world_of(writes(40), 20)
    seen: list[tuple[int, int, str]] = []
    report = restore(world.url, tmp_path / "db", progress=lambda *said: seen.append(said))
    stored = sum(segment.bytes for segment in world.segments)
    assert report.bytes == stored
    assert report.bytes_downloaded == stored  # such small ones come whole with their tails
    assert report.requests["GET"] == 3
    assert seen[-1] == (stored, stored, "restoring")
    assert set(report.as_json()) >= {"seq", "time", "segments", "bytes_downloaded", "generation", "requests"}


class TestDestination:
    def test_that_is_not_empty_is_refused_and_untouched(self, tmp_path):
        (tmp_path / "db").mkdir()
        (tmp_path / "db" / "mine").write_text("precious")
        with pytest.raises(ExistsError) as caught:
            restore(world_of(writes(5)).url, tmp_path / "db")
        assert caught.value.exit_code == 17
        assert (tmp_path / "db" / "mine").read_text() == "precious"
        assert left_behind(tmp_path) == ["db"]

    def test_that_is_a_file_is_refused(self, tmp_path):
        (tmp_path / "db").write_text("precious")
        with pytest.raises(ExistsError):
            restore(world_of(writes(5)).url, tmp_path / "db")

    def test_that_is_an_empty_directory_is_taken(self, tmp_path):
        (tmp_path / "db").mkdir()
        log = writes(5)
        restore(world_of(log).url, tmp_path / "db")
        assert_equals(tmp_path / "db", log, 5)

    def test_that_is_there_is_kept_aside_with_force(self, tmp_path):
        log = writes(5)
        with ourdb.open(tmp_path / "db") as db:
            db.set(b"precious", 1)
        report = restore(world_of(log).url, tmp_path / "db", force=True)
        assert_equals(tmp_path / "db", log, 5)
        assert report.replaced is not None
        assert Path(report.replaced).name.startswith("db.before-restore-")
        with ourdb.open(report.replaced) as db:
            assert db[1] == b"precious"

    @pytest.mark.parametrize("offered", [True, False])
    def test_that_is_replaced_is_one_of_both_at_every_moment(self, tmp_path, monkeypatch, offered):
        """offered: whether the file system can exchange two names."""
        real, seen = FileSystem.call, []

        def watching(self: FileSystem, doing: str, path: Path, function: object, *args: object) -> object:
            done = real(self, doing, path, function, *args)  # type: ignore[arg-type]
            if doing == "rename" and (tmp_path / "db") in {path, *args}:
                seen.append((tmp_path / "db").exists())
            return done

        with ourdb.open(tmp_path / "db") as db:
            db.set(b"precious", 1)
        log = writes(5)

        def refusing(first: Path, second: Path) -> None:
            raise OSError(errno.EINVAL, "no")

        if not offered:
            monkeypatch.setattr(files, "_exchange", refusing)
        monkeypatch.setattr(FileSystem, "call", watching)
        report = restore(world_of(log).url, tmp_path / "db", force=True)
        monkeypatch.undo()
        assert_equals(tmp_path / "db", log, 5)
        with ourdb.open(report.replaced) as db:
            assert db[1] == b"precious"
        assert left_behind(tmp_path) == ["db", Path(report.replaced).name]
        assert seen == [True] if offered else seen == [False, True]

    @pytest.mark.parametrize("nth", range(4))
    def test_that_cannot_be_renamed_keeps_what_was_there(self, tmp_path, monkeypatch, nth):
        real, renames = FileSystem.rename, iter(range(9))

        def failing(self: FileSystem, source: Path, target: Path) -> None:
            if target.parent == tmp_path and next(renames) == nth:
                raise translate("rename", target, OSError(errno.EIO, "no"))
            real(self, source, target)

        with ourdb.open(tmp_path / "db") as db:
            db.set(b"precious", 1)
        monkeypatch.setattr(FileSystem, "rename", failing)
        monkeypatch.setattr(FileSystem, "exchange", lambda self, first, second: False)
        with pytest.raises(StorageError):
            restore(world_of(writes(5)).url, tmp_path / "db", force=True)
        monkeypatch.undo()
        with ourdb.open(tmp_path / "db") as db:
            assert db[1] == b"precious"

    def test_that_is_written_by_somebody_is_not_replaced(self, tmp_path):
        with ourdb.open(tmp_path / "db") as db:
            db.set(b"precious", 1)
            with pytest.raises(LockedError):
                restore(world_of(writes(5)).url, tmp_path / "db", force=True)
            assert db[1] == b"precious"
        assert left_behind(tmp_path) == ["db"]

    def test_of_a_failed_restore_keeps_what_was_there(self, tmp_path):
        with ourdb.open(tmp_path / "db") as db:
            db.set(b"precious", 1)
        world = world_of(writes(5))
        world.flip(world.segments[0].key, 100)
        with pytest.raises(DamageError):
            restore(world.url, tmp_path / "db", force=True)
        assert left_behind(tmp_path) == ["db"]
        with ourdb.open(tmp_path / "db") as db:
            assert db[1] == b"precious"

    def test_in_a_directory_that_is_missing_is_an_error(self, tmp_path):
        with pytest.raises(NotFoundError) as caught:
            restore(world_of(writes(5)).url, tmp_path / "no" / "db")
        assert caught.value.kind == "no_directory"

    def test_leftovers_of_a_killed_restore_are_removed_and_others_kept(self, tmp_path):
        old = tmp_path / f".db.restore-{'a' * 16}"
        other = tmp_path / f".other.restore-{'a' * 16}"
        foreign = tmp_path / ".db.restore-notes"
        for folder in (old, other, foreign):
            folder.mkdir()
            (folder / "0.db").write_text("x")
        restore(world_of(writes(5)).url, tmp_path / "db")
        assert left_behind(tmp_path) == sorted([foreign.name, other.name, "db"])

    def test_spaces_and_unicode_in_its_name_are_no_problem(self, tmp_path):
        log = writes(5)
        restore(world_of(log).url, tmp_path / "mein Räum ☃")
        assert_equals(tmp_path / "mein Räum ☃", log, 5)


@pytest.mark.parametrize(
    ("what", "code"),
    [("write", errno.ENOSPC), ("preallocate", errno.ENOSPC), ("fsync", errno.EIO), ("rename", errno.EACCES)],
)
def test_a_system_call_that_fails_leaves_nothing(tmp_path, monkeypatch, what, code):
    real = FileSystem.call

    def failing(self: FileSystem, doing: str, path: Path, function: object, *args: object) -> object:
        if doing == what and ".restore-" in str(path) + str(args):
            raise translate(doing, path, OSError(code, "no"))
        return real(self, doing, path, function, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(FileSystem, "call", failing)
    with pytest.raises(StorageError):
        restore(world_of(writes(60), 20).url, tmp_path / "db")
    monkeypatch.undo()
    assert left_behind(tmp_path) == []


class TestDamage:
    """A segment of the store is altered, cut off, missing or another one."""

    def damaged(self, world: World, how: str, number: int) -> str:
        key = world.segments[number].key
        if how == "missing":
            world.change_object(key, None)
        elif how == "cut off":
            world.change_object(key, lambda data: data[:-7])
        elif how == "longer":
            world.change_object(key, lambda data: data + b"\0")
        elif how == "swapped":
            other = world.store.get(world.segments[number - 1].key).data
            world.change_object(key, lambda data: other[: len(data)].ljust(len(data), b"\0"))
        else:
            world.flip(key, int(how))
        return key

    @pytest.mark.parametrize("how", ["missing", "cut off", "longer", "swapped", "90", "200", "-20", "-150"])
    def test_without_another_path_names_key_and_range(self, tmp_path, how):
        world = world_of(writes(60), 20, 40)
        key = self.damaged(world, how, 1)
        with pytest.raises(DamageError) as caught:
            restore(world.url, tmp_path / "db")
        fields = caught.value.fields
        assert (caught.value.exit_code, caught.value.kind) == (14, "store_damaged")
        assert (fields["key"], fields["first_seq"], fields["last_seq"]) == (key, 21, 40)
        assert left_behind(tmp_path) == []

    @pytest.mark.parametrize("how", ["missing", "cut off", "longer", "-20"])
    def test_where_a_point_would_be_looked_up_names_key_and_range(self, tmp_path, how):
        world = world_of(writes(60), 20, 40)
        key = self.damaged(world, how, 1)
        with pytest.raises(DamageError) as caught:
            restore(world.url, tmp_path / "db", seq=30)
        fields = caught.value.fields
        assert (fields["key"], fields["first_seq"], fields["last_seq"]) == (key, 21, 40)
        assert "seq 21 to 40 are lost" in str(caught.value)

    @pytest.mark.parametrize("how", ["missing", "cut off", "90", "-20"])
    def test_with_another_path_is_gone_around_and_reported(self, tmp_path, how):
        log = writes(60)
        world = world_of(log, 20, 40)
        world.segment(G1, 11, 50)
        world.segment(G1, 1, 60, level=1)
        world.publish()
        key = self.damaged(world, how, 4)
        report = restore(world.url, tmp_path / "db")
        assert report.left_out == (key,)
        assert len(report.segments) == 3
        assert_equals(tmp_path / "db", log, 60)

    def test_of_what_the_target_does_not_need_is_not_noticed(self, tmp_path):
        log = writes(60)
        world = world_of(log, 20, 40)
        self.damaged(world, "missing", 2)
        assert restore(world.url, tmp_path / "db", seq=40).left_out == ()
        assert_equals(tmp_path / "db", log, 40)

    def test_where_the_time_would_be_looked_up_is_damage_and_not_an_unreachable_target(self, tmp_path):
        world = world_of(writes(60), 20, 40)
        self.damaged(world, "missing", 1)
        with pytest.raises(DamageError):
            restore(world.url, tmp_path / "db", at=DAY_0 + 30_000)
        restore(world.url, tmp_path / "db", at=DAY_0 + 10_000)

    def test_a_segment_of_another_history_is_not_joined(self, tmp_path):
        world = world_of(writes(40), 20)
        other = memory_world()
        other.line(G1, writes(40, start=DAY_0 + 1), [20])
        data = other.store.get(other.segments[1].key).data
        world.change_object(world.segments[1].key, lambda _: data)
        with pytest.raises(DamageError):
            restore(world.url, tmp_path / "db")

    def test_of_a_record_under_a_checksum_that_matches_names_the_segment(self, tmp_path):
        log = writes(60)
        broken = bytearray(log.raw[29])
        broken[-1] ^= 1
        log.raw[29] = bytes(broken)
        world = world_of(log, 20, 40)
        with pytest.raises(DamageError, match="seq 30") as caught:
            restore(world.url, tmp_path / "db")
        assert caught.value.fields["key"] == world.segments[1].key
        assert left_behind(tmp_path) == []

    def test_a_head_that_names_no_path_to_its_end_says_what_is_lost(self, tmp_path):
        world = world_of(writes(60), 20, 40)
        del world.segments[1]
        world.publish()
        with pytest.raises(DamageError) as caught:
            restore(world.url, tmp_path / "db")
        assert (caught.value.fields["first_seq"], caught.value.fields["last_seq"]) == (21, 60)


def test_an_object_that_was_replaced_since_is_no_damage(tmp_path, monkeypatch):
    """Rule 7: a compaction and a prune came between our look at the head and our fetch."""
    log = writes(60)
    world = world_of(log, 20, 40)
    from compactor.fetch import SegmentFetcher
    from compactor.store.base import Tail

    real, once = SegmentFetcher.read_end, iter([True])

    def racing(self: SegmentFetcher, entry: object) -> Tail:
        if next(once, False):
            old, world.segments[:] = list(world.segments), []
            world.segment(G1, 1, 60, level=1)
            renamed = world.segments[0]
            world.segments[:] = [renamed]
            for segment in old:
                assert not world.store.delete_many([segment.key])
            world.publish()
        return real(self, entry)  # type: ignore[arg-type]

    monkeypatch.setattr(SegmentFetcher, "read_end", racing)
    report = restore(world.url, tmp_path / "db")
    assert report.left_out == ()
    assert [segment.level for segment in report.segments] == [1]
    assert_equals(tmp_path / "db", log, 60)


def test_a_store_that_went_back_is_noticed_by_the_next_restore(tmp_path):
    world = world_of(writes(10))
    old = world.store.get("head").data
    world.kept = Known(2, "0" * 15 + "2")
    world.revision = 2
    world.publish()
    restore(world.url, tmp_path / "a")
    world.replace_head(old)
    with pytest.raises(DamageError) as caught:
        restore(world.url, tmp_path / "b")
    assert (caught.value.kind, caught.value.exit_code) == ("store_lost_data", 14)


def test_a_large_segment_is_fetched_in_ranges_by_threads(tmp_path):
    log = Log(Write(n % 1000, os.urandom(300), DAY_0 + n // 10) for n in range(30_000))
    world = file_world(tmp_path)
    world.config = Config(file_size=4 << 20)
    world.line(G1, log, [25_000])
    world.publish()
    options = RestoreOptions(threads=3, store=StoreOptions(threads=3))
    report: RestoreReport = restore(world.url, tmp_path / "db", seq=29_000, options=options)
    assert report.requests["GET"] <= 10
    assert_equals(tmp_path / "db", log, 29_000)
    assert len(list((tmp_path / "db").glob("*.db"))) >= 3


@st.composite
def histories(draw: st.DrawFn) -> Log:
    log, time = Log(), DAY_0
    for _ in range(draw(st.integers(1, 12))):
        time += draw(st.sampled_from([0, 1, 1000]))
        ids = draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))
        log.batch([(n, draw(st.sampled_from([None, b"", b"v" * 50, b"w" * 1500]))) for n in ids], time)
    return log


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(histories(), st.data())
def test_any_history_restores_to_any_point_through_any_segments(tmp_path_factory, log, data):
    world = memory_world()
    world.config = Config(file_size=8 << 10, record_size_max=2 << 10)
    ends = log.ends()
    cuts = sorted(data.draw(st.sets(st.sampled_from(ends)), label="cuts") - {len(log)})
    world.line(G1, log, cuts)
    for _ in range(data.draw(st.integers(0, 2), label="merged")):
        first = data.draw(st.sampled_from([0, *cuts]), label="after") + 1
        last = data.draw(st.sampled_from([end for end in [*cuts, len(log)] if end >= first]), label="upto")
        inside = [end for end in ends if first <= end <= last]
        runs = [(data.draw(st.sampled_from(inside), label="horizon"), last)]
        for pin in sorted(data.draw(st.sets(st.sampled_from(inside)), label="pins"), reverse=True):
            if pin < runs[0][0] - 1:
                runs.insert(0, (pin, pin))
        world.segment(G1, first, last, runs, level=1)
    if data.draw(st.booleans(), label="sources are gone"):
        world.segments[:] = [s for s in world.segments if s.level] or world.segments
    world.publish()
    offered = [seq for seq in ends if route(world.view, G1, seq)]
    if not offered:
        return
    seq = data.draw(st.sampled_from(offered), label="target")
    path = tmp_path_factory.mktemp("restored") / "db"
    restore(world.url, path, seq=seq)
    assert_equals(path, log, seq)
    with LogReader(path) as reader:
        reader.find_end()
        for point in ends:
            assert reader.chain_at(point) in (None, log.chains[point])


@pytest.mark.parametrize("threads", [0, 65])
def test_threads_out_of_range_are_refused(threads: int, tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="threads must be 1 to 64"):
        restore("memory://nobody/name", tmp_path / "db", options=RestoreOptions(threads=threads))
