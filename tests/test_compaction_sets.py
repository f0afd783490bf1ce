"""Which segments a compaction merges, also across branch points, and of a generation that is cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from backup.retention.prune import prune_session
from compactor.compaction.sets import MergeSet, find_sets
from compactor.meta.index import MetaIndex
from compactor.session import Session
from compactor.strategies import All, Auto, Levels
from compactor.strategies import Log as Halves
from ourdb.segment.summary import Stretch
from tests.compacting import G1, G2, G3, Bench
from tests.worlds import DAY_0, HOUR, Log, World, Write, memory_world, writes


def spans(sets: list[MergeSet]) -> list[tuple[str, int, int]]:
    return [(chosen.generation.id[0], chosen.first_seq, chosen.last_seq) for chosen in sets]


def grown(log: Log, upto: int, count: int, step: int = HOUR) -> Log:
    """A copy of a log up to a seq that goes on by so many writes of its own."""
    other = log.copy(upto)
    for write in writes(count, start=log.time(upto) + 7, step=step, ids=5).writes:
        other.append(write)
    return other


@pytest.fixture
def world() -> World:
    return memory_world()


def test_sets_are_those_of_the_strategy_on_each_generation(world: World) -> None:
    log = writes(60)
    world.line(G1, log, range(4, 60, 4))
    world.line(G2, grown(log, 30, 20), [40], parent=(G1, 30))
    world.publish()
    assert spans(find_sets(world.view, All())) == [("1", 1, 60), ("2", 31, 50)]
    halves = [("1", 1, 28), ("1", 29, 44), ("1", 45, 52)]
    assert spans(find_sets(world.view, Halves())) == halves
    assert [len(chosen.later) for chosen in find_sets(world.view, Halves())] == [8, 4, 2]
    assert find_sets(world.view, Halves())[2].later == (56, 60)
    assert find_sets(world.view, Levels(threshold=16)) == []


def test_segments_that_overlap_on_the_path_divide_it(world: World) -> None:
    log = writes(60)
    world.line(G1, log, range(10, 40, 10))
    world.segments = [segment for segment in world.segments if segment.last_seq <= 30]
    for first, last in ((25, 44), (45, 50), (51, 60)):
        world.segment(G1, first, last)
    world.publish()
    assert spans(find_sets(world.view, All())) == [("1", 1, 30), ("1", 45, 60)]


def test_parts_of_a_stretch_go_together(world: World) -> None:
    log = writes(30)
    world.line(G1, log, range(5, 30, 5))
    world.segments = [segment for segment in world.segments if segment.first_seq > 10]
    world.segment(G1, 1, 5, [], stretch=Stretch(7, 1, 2))
    world.segment(G1, 6, 10, [(10, 10)], stretch=Stretch(7, 2, 2))
    world.publish()
    [chosen] = find_sets(world.view, All())
    assert (spans([chosen]), len(chosen.steps)) == ([("1", 1, 30)], 6)
    alone = find_sets(world.view, Auto(threshold=4))
    assert all(chosen.first_seq in (1, 11) for chosen in alone)


def test_lonely_segment_is_a_set_only_for_all_and_only_if_something_may_go(world: World) -> None:
    world.line(G1, writes(9))
    world.publish()
    assert find_sets(world.view, All()) == find_sets(world.view, Auto(), since_ms=0) == []
    assert spans(find_sets(world.view, All(), since_ms=0)) == [("1", 1, 9)]


def test_namespace_without_records_has_no_sets(world: World) -> None:
    world.line(G1, Log())
    world.publish()
    assert find_sets(world.view, All(), since_ms=0) == []


# -- lines that took over


def succession(folder: Path) -> Bench:
    """G1 to 60, taken over at 40 by G2, which was taken over at its 60 by G3."""
    bench, first = Bench(folder), writes(60, step=HOUR)
    second = grown(first, 40, 30)
    third = grown(second, 60, 10)
    bench.world.line(G1, first, range(10, 60, 10))
    bench.world.line(G2, second, range(45, 70, 5), parent=(G1, 40), takes_over=G1)
    bench.world.line(G3, third, [65], parent=(G2, 60), takes_over=G2)
    bench.world.publish()
    return bench


def test_all_goes_across_the_points_where_a_line_took_over(tmp_path: Path) -> None:
    bench = succession(tmp_path)
    before = {name: bench.points(name) for name in (G1, G2, G3)}
    [chosen] = find_sets(bench.view, All())
    assert (chosen.across, chosen.from_start, spans([chosen])) == (True, True, [("3", 1, 70)])
    report = bench.compact("all")
    third = bench.view.head.generations[G3]
    assert third.parent is None
    assert third.began is not None
    assert (third.began.seq, third.began.time) == (61, bench.world.logs[G3].time(61))
    assert third.began.took_over == (41, 61)
    assert bench.assert_exact(G3) == list(range(1, 71))
    assert [len(bench.segments(name)) for name in (G1, G2, G3)] == [6, 6, 1]
    assert {name: bench.assert_exact(name) for name in (G1, G2)} == {name: before[name] for name in (G1, G2)}
    assert (report.segments_before, report.segments_after) == (4 + 4 + 2, 1)
    assert bench.compact("all").segments_after == 1


def test_times_mean_the_same_after_a_merge_across_branch_points(tmp_path: Path) -> None:
    bench = succession(tmp_path)
    times = [DAY_0 + n * HOUR // 2 for n in range(200)]
    before = {time: bench.meant(time) for time in times}
    bench.compact("all", window=30 * HOUR)
    since = max(log.time(len(log)) for log in bench.world.logs.values()) - 30 * HOUR
    assert {time: bench.meant(time) for time in times if time >= since} == {
        time: seq for time, seq in before.items() if time >= since
    }


def left_late(folder: Path, left: int) -> Bench:
    """G1 went on behind 20 when G2, which left it at 10, had taken over; then G3 left G1, and took over."""
    bench, first = Bench(folder), writes(20)
    second, began = first.copy(10), DAY_0 + HOUR
    for n in range(20):
        first.append(Write(n % 5, b"went on", began + 500 + n * 1000))
        second.append(Write(n % 5, b"second", began + n * 1000))
    third = first.copy(left)
    third.append(Write(1, b"third", began + 2 * HOUR))
    bench.world.line(G1, first, [20, 30])
    bench.world.line(G2, second, [20], parent=(G1, 10), takes_over=G1)
    bench.world.line(G3, third, parent=(G1, left), takes_over=G2)
    bench.world.publish()
    return bench


@pytest.mark.parametrize("forgets", [False, True])
@pytest.mark.parametrize("left", [20, 30])
def test_line_that_left_behind_what_was_written_after_a_take_over_stays_as_it_is(
    tmp_path: Path, left: int, forgets: bool
) -> None:
    """Merged across, and without G2, it would answer with G1 for times at which G2 was meant."""
    bench = left_late(tmp_path, left)
    times = [DAY_0 + 1000 * n for n in range(10)] + [DAY_0 + HOUR + 250 * n for n in range(100)]
    before = {time: bench.meant(time) for time in times}
    if forgets:
        meta = MetaIndex.open(bench.folder / "prune.db")
        prune_session(Session(bench.world.store, meta), drop_generation=G2, clock_ms=lambda: bench.now_ms)
        assert [*bench.view.head.generations] == [G1, G3]
    bench.compact("all")
    assert (bench.view.head.generations[G3].parent is None) == (left == 20)
    after = {time: bench.meant(time) for time in times}
    assert all(seq in (before[time], None) for time, seq in after.items())
    assert forgets or after == before


def test_line_on_whose_way_segments_overlap_is_not_merged_across(tmp_path: Path) -> None:
    bench = succession(tmp_path)
    bench.world.segments = [s for s in bench.world.segments if (s.generation, s.first_seq) != (G1, 11)]
    bench.world.segment(G1, 6, 20)
    bench.world.publish()
    assert not any(chosen.across for chosen in find_sets(bench.view, All()))


def test_line_whose_ancestor_is_written_still_is_merged_by_itself(tmp_path: Path) -> None:
    bench, first = Bench(tmp_path), writes(60)
    bench.world.line(G1, first, range(10, 60, 10))
    bench.world.line(G2, grown(first, 40, 30), range(45, 70, 5), parent=(G1, 40))
    bench.world.publish()
    assert spans(find_sets(bench.view, All())) == [("1", 1, 60), ("2", 41, 70)]


def test_branch_beside_a_line_that_took_over_is_merged_by_itself(tmp_path: Path) -> None:
    bench, first = Bench(tmp_path), writes(60)
    bench.world.line(G1, first, range(10, 60, 10))
    bench.world.line(G2, grown(first, 40, 30), [50], parent=(G1, 40), takes_over=G1)
    bench.world.line(G3, grown(first, 20, 30), [30], parent=(G1, 20))
    bench.world.publish()
    assert spans(find_sets(bench.view, All())) == [("2", 1, 70), ("3", 21, 50)]
    bench.compact("all")
    assert bench.assert_exact(G3) == list(range(21, 51))


def test_ancestors_are_merged_by_themselves_once_nobody_needs_them(tmp_path: Path) -> None:
    bench = succession(tmp_path)
    bench.compact("all")
    bench.compact("all", window=1000 * HOUR)
    assert [len(bench.segments(name)) for name in (G1, G2, G3)] == [1, 1, 1]
    assert bench.assert_exact(G1) == list(range(1, 61))


def test_cut_generation_is_merged_up_to_the_cut(tmp_path: Path) -> None:
    bench = succession(tmp_path)
    first = bench.view.head.generations[G1]
    gone = [segment.key for segment in bench.segments(G1) if segment.first_seq > 40]
    bench.change(generations={G1: replace(first, kept_to=40)}, drop=gone)
    assert ("1", 1, 40) in spans(find_sets(bench.view, Auto(threshold=4)))
    bench.compact("auto", threshold=4)
    assert [(s.first_seq, s.last_seq) for s in bench.segments(G1)] == [(1, 40)]
    assert bench.assert_exact(G1) == list(range(1, 41))


def test_what_was_let_go_of_within_a_segment_is_not_merged(tmp_path: Path) -> None:
    bench = succession(tmp_path)
    first = bench.view.head.generations[G1]
    gone = [segment.key for segment in bench.segments(G1) if segment.first_seq > 50]
    bench.change(generations={G1: replace(first, kept_to=45)}, drop=gone)
    assert bench.segments(G1)[-1].last_seq == 50
    bench.compact("log")
    bench.compact("auto", threshold=2)
    assert bench.segments(G1)[-1].last_seq == 45
    assert bench.assert_exact(G1) == list(range(1, 46))
    assert bench.view.head.generations[G1].last_seq == 60


def test_newest_points_of_a_line_lie_in_its_ancestors_too(tmp_path: Path) -> None:
    bench = succession(tmp_path)
    bench.set_policy(window_ms=0, last=4)
    bench.compact("levels", threshold=2)
    assert bench.assert_exact(G1) == [37, 38, 39, 40, 57, 58, 59, 60]
    assert bench.assert_exact(G2) == [57, 58, 59, 60, 67, 68, 69, 70]
    assert bench.assert_exact(G3) == [67, 68, 69, 70]
