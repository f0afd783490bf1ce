"""Restore over merged segments: exact wherever they claim it, refused with the nearest points elsewhere."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ourdb
from backup.points import points
from backup.restoring import local_files
from backup.restoring.restore import restore
from compactor.fetch import SegmentFetcher
from compactor.path import route
from ourdb.config import Config
from ourdb.errors import DamageError, UnreachableError
from ourdb.log import LogReader
from tests.merged import IDS, merged_worlds, offered
from tests.worlds import DAY_0, HOUR, UUID, Log, World, Write, memory_world, writes

G1, G2 = "1" * 16, "2" * 16


@pytest.fixture(autouse=True)
def meta_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURDB_META", str(tmp_path_factory.mktemp("meta") / "meta.db"))


def kept_seqs(world: World, generation: str, seq: int, without: Collection[str] = ()) -> list[int]:
    """The records that the path to a point has, as the indexes say."""
    fetcher = SegmentFetcher(world.store, UUID.hex())
    found: list[int] = []
    for step in route(world.view, generation, seq, without=without) or []:
        for columns in fetcher.open(step.segment).columns():
            found += [one for one in columns.seq.tolist() if step.after < one <= step.upto]
    return found


def assert_exact(path: Path, log: Log, seq: int, kept: list[int]) -> None:
    """State, chain, highest id, and of the history what was kept."""
    with LogReader(path) as reader:
        end = reader.find_end()
        assert (end.seq, end.chain, end.highest_id) == (seq, log.chains[seq], log.highest[seq])
    with ourdb.open(path) as db:
        assert dict(db.items()) == log.state(seq)
        for id_ in range(IDS + 3):
            wanted = [(n, log.writes[n - 1].value) for n in kept if log.writes[n - 1].id == id_]
            found = [(version.seq, version.value) for version in db.get_history(id_)]
            assert found == wanted[::-1]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(merged_worlds(), st.randoms(use_true_random=False))
def test_a_point_that_is_offered_is_exact_with_its_history_as_kept(tmp_path_factory, world, rng):
    folder, found = tmp_path_factory.mktemp("restored"), offered(world)
    for number, (line, seq) in enumerate(rng.sample(found, min(5, len(found)))):
        path = folder / f"db{number}"
        restore(world.url, path, seq=seq, generation=line, meta=folder / "meta.db")
        assert_exact(path, world.logs[line], seq, kept_seqs(world, line, seq))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(merged_worlds(), st.data())
def test_every_other_target_is_refused_with_the_nearest_points(world, data):
    line = data.draw(st.sampled_from(sorted(world.logs)), label="line")
    here = [seq for name, seq in offered(world) if name == line]
    others = [seq for seq in range(1, len(world.logs[line]) + 2) if seq not in here]
    for seq in data.draw(st.lists(st.sampled_from(others), max_size=6, unique=True), label="targets"):
        asked = {"generation": line, "seq": seq, "dry_run": True}
        with pytest.raises((UnreachableError, DamageError)) as caught:
            restore(world.url, "nowhere", **asked)
        if isinstance(caught.value, DamageError):
            assert not here
            continue
        before, after = (caught.value.fields[side] for side in ("nearest_before", "nearest_after"))
        assert (before and before["seq"]) == next((s for s in reversed(here) if s < seq), None)
        assert (after and after["seq"]) == next((s for s in here if s > seq), None)
        if before:
            assert restore(world.url, "nowhere", **asked, nearest_before=True).seq == before["seq"]


def merged_world() -> World:
    """A month as a compactor leaves it: pins of 17 and 70, a window from 81 on, the newest not merged."""
    log = writes(100)
    world = memory_world()
    world.line(G1, log, [100])
    world.segments.clear()
    world.segment(G1, 1, 40, [(17, 17), (40, 40)], level=2)
    world.segment(G1, 41, 90, [(70, 70), (81, 90)], level=1)
    world.segment(G1, 91, 95)
    world.segment(G1, 96, 100)
    world.publish()
    return world


EXACT = [17, 40, 70, *range(81, 101)]


def test_every_write_in_the_window_and_every_pin_is_exact(tmp_path):
    world = merged_world()
    windows = [(window.first_seq, window.last_seq) for window in points(world.url).windows]
    assert windows == [(17, 17), (40, 40), (70, 70), (81, 100)]
    for seq in EXACT:
        restore(world.url, tmp_path / f"by-seq-{seq}", seq=seq)
        assert_exact(tmp_path / f"by-seq-{seq}", world.logs[G1], seq, kept_seqs(world, G1, seq))


def test_times_mean_the_point_that_held_then_or_are_refused_with_the_nearest():
    world = merged_world()
    for half_second in range(2, 201):
        time, held = DAY_0 + half_second * 500, half_second // 2
        if held in EXACT:
            assert restore(world.url, "nowhere", at=time, dry_run=True).seq == held
            continue
        with pytest.raises(UnreachableError) as caught:
            restore(world.url, "nowhere", at=time, dry_run=True)
        at = bisect_left(EXACT, held)
        before, after = (caught.value.fields[side] for side in ("nearest_before", "nearest_after"))
        assert (before and before["seq"]) == (EXACT[at - 1] if at else None)
        assert after["seq"] == EXACT[bisect_right(EXACT, held)]
        if before:
            found = restore(world.url, "nowhere", at=time, nearest_before=True, dry_run=True)
            assert found.seq == EXACT[at - 1]


class TestDamage:
    """Of merged segments whose sources are there still, or the other way round."""

    def world(self) -> World:
        log = writes(60)
        world = memory_world()
        world.line(G1, log, [20, 40])
        world.segment(G1, 1, 40, [(10, 10), (30, 40)], level=1)
        world.publish()
        return world

    @pytest.mark.parametrize("how", ["missing", "cut off", "90", "-20"])
    @pytest.mark.parametrize("target", [{"seq": 35}, {"at": DAY_0 + 35_500}, {}])
    def test_a_merged_segment_is_gone_around_by_its_sources(self, tmp_path, how, target):
        world = self.world()
        merged = world.segments[3]
        if how == "missing":
            world.change_object(merged.key, None)
        elif how == "cut off":
            world.change_object(merged.key, lambda data: data[:-7])
        else:
            world.flip(merged.key, int(how))
        seq = 35 if target else 60
        report = restore(world.url, tmp_path / "db", **target)
        assert (report.seq, report.left_out) == (seq, (merged.key,))
        assert_exact(tmp_path / "db", world.logs[G1], seq, list(range(1, seq + 1)))

    @pytest.mark.parametrize("target", [{"seq": 35}, {"seq": 10}, {"at": DAY_0 + 40_500}, {}])
    def test_sources_that_are_gone_are_not_missed_where_the_merged_one_is_exact(self, tmp_path, target):
        world = self.world()
        for source in world.segments[:2]:
            world.change_object(source.key, None)
        report = restore(world.url, tmp_path / "db", **target)
        kept = kept_seqs(world, G1, report.seq, report.left_out)
        assert_exact(tmp_path / "db", world.logs[G1], report.seq, kept)

    def test_a_target_that_only_the_damaged_source_has_exactly_names_what_is_lost(self, tmp_path):
        world = self.world()
        world.change_object(world.segments[0].key, None)
        with pytest.raises(DamageError) as caught:
            restore(world.url, tmp_path / "db", seq=15)
        fields = caught.value.fields
        assert (caught.value.kind, fields["first_seq"], fields["last_seq"]) == ("store_damaged", 1, 20)
        assert list(tmp_path.iterdir()) == []


def test_an_inexact_piece_that_no_data_file_holds_is_refused_or_gone_around(tmp_path, monkeypatch):
    log = Log(Write(n, bytes(900), DAY_0 + n) for n in range(60))
    world = memory_world()
    world.config = Config(file_size=16 << 10)
    world.line(G1, log, [60])
    world.segments.clear()
    merged = world.segment(G1, 1, 50, [(50, 50)], level=1)
    world.segment(G1, 51, 60)
    world.publish()
    monkeypatch.setattr(local_files, "_FILE_BYTES_MAX", 16 << 10)
    with pytest.raises(DamageError, match="seq 1 to 50 cannot be restored") as caught:
        restore(world.url, tmp_path / "db")
    assert (caught.value.exit_code, caught.value.fields["key"]) == (14, merged.key)
    assert list(tmp_path.iterdir()) == []
    for last in range(10, 60, 10):
        world.segment(G1, last - 9, last)
    world.publish()
    report = restore(world.url, tmp_path / "db")
    assert report.left_out == (merged.key,)
    assert_exact(tmp_path / "db", log, 60, list(range(1, 61)))


@pytest.mark.parametrize("file_size", [1 << 20, 8 << 10])
def test_a_merged_segment_that_is_left_at_a_pin_is_followed_by_one_that_goes_on_there(tmp_path, file_size):
    log = Log(Write(n % 7, b"%d-" % n * 300, DAY_0 + n * 1000) for n in range(1, 61))
    world = memory_world()
    world.config = Config(file_size=file_size, record_size_max=2 << 10)
    world.line(G1, log, [60])
    world.segments.clear()
    world.segment(G1, 1, 30, [(17, 17), (30, 30)], level=1)
    world.segment(G1, 18, 60)
    world.publish()
    for seq in (17, 31, 40, 60):
        restore(world.url, tmp_path / f"db{seq}", seq=seq)
        assert_exact(tmp_path / f"db{seq}", log, seq, kept_seqs(world, G1, seq))


def test_a_copy_goes_on_from_a_pin_of_a_merged_parent(tmp_path):
    log = writes(30)
    second = log.copy(17)
    for n in range(1, 11):
        second.append(Write(n, b"second", DAY_0 + HOUR + n * 1000))
    world = memory_world()
    world.line(G1, log, [30])
    world.segments.clear()
    world.segment(G1, 1, 30, [(17, 17), (30, 30)], level=1)
    world.line(G2, second, parent=(G1, 17))
    world.publish()
    for seq in (17, 18, 27):
        restore(world.url, tmp_path / f"db{seq}", seq=seq, generation=G2)
        assert_exact(tmp_path / f"db{seq}", second, seq, kept_seqs(world, G2, seq))


@pytest.mark.parametrize("takes_over", [None, G1])
def test_where_the_start_of_a_line_is_damaged_its_times_do_not_mean_the_line_before(
    tmp_path: Path, takes_over: str | None
) -> None:
    """The name of the damaged segment still tells when the line began; before that, nothing is lost."""
    first = writes(30)
    second = first.copy(20)
    for n in range(10):
        second.append(Write(n, b"second", DAY_0 + HOUR + n * 1000))
    world = memory_world()
    world.line(G1, first, [15], as_of=DAY_0 + 2 * HOUR)
    world.line(G2, second, [25], parent=(G1, 20), takes_over=takes_over)
    world.publish()
    damaged = world.segments[2]
    world.flip(damaged.key, -20)
    for seconds in (0, 2):
        with pytest.raises(DamageError) as caught:
            restore(world.url, tmp_path / "a", at=DAY_0 + HOUR + seconds * 1000, generation=G2)
        assert caught.value.fields["key"] == damaged.key
    report = restore(world.url, tmp_path / "b", at=DAY_0 + 12_000, generation=G2)
    assert (report.generation, report.seq) == (G1, 12)
