"""Restore targets: exactly what was asked for, or an error that names the nearest points."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backup.restoring.target import Wanted, find_target
from compactor.fetch import SegmentFetcher
from compactor.generations import Began, Forgotten
from compactor.index_points import Point
from ourdb.errors import FencedError, InvalidError, NotFoundError, UnreachableError
from ourdb.units import format_time
from tests.worlds import DAY_0, HOUR, UUID, Log, World, Write, memory_world, writes

G1, G2, G3, G4 = "1" * 16, "2" * 16, "3" * 16, "4" * 16


def find(world: World, generation: str | None = None, **wanted: object) -> Point | None:
    fetcher = SegmentFetcher(world.store, UUID.hex())
    return find_target(world.view, fetcher, Wanted.of(**wanted), generation)  # type: ignore[arg-type]


def seq_of(world: World, generation: str | None = None, **wanted: object) -> tuple[str, int]:
    point = find(world, generation, **wanted)
    assert point is not None
    assert point.time == world.logs[point.generation].time(point.seq)
    return point.generation, point.seq


def unreachable(
    world: World, generation: str | None = None, **wanted: object
) -> tuple[int | None, int | None]:
    """The seqs of the nearest points that the error names."""
    with pytest.raises(UnreachableError) as caught:
        find(world, generation, **wanted)
    assert caught.value.exit_code == 13
    points = []
    for side in ("nearest_before", "nearest_after"):
        point = caught.value.fields[side]
        if point is not None:
            log = world.logs[point["generation"]]
            assert point["time"] == format_time(log.time(point["seq"]))
            assert point["seq"] in log.ends()
        points.append(point and point["seq"])
    return points[0], points[1]


def batches() -> World:
    """Seq 1..3 at 0 s, 4 at 10 s, 5..8 at 20 s, 9 and 10 both at 30 s, 11..12 at 40 s; cut behind 4 and 8."""
    log = Log()
    log.batch([(1, b"a"), (2, b"b"), (3, b"c")], DAY_0)
    log.batch([(1, b"d")], DAY_0 + 10_000)
    log.batch([(n, b"e") for n in range(4)], DAY_0 + 20_000)
    log.batch([(1, b"f")], DAY_0 + 30_000)
    log.batch([(2, b"g")], DAY_0 + 30_000)
    log.batch([(2, None), (3, b"h")], DAY_0 + 40_000)
    world = memory_world()
    world.line(G1, log, [4, 8], as_of=DAY_0 + 60_000)
    world.publish()
    return world


def test_no_target_is_the_newest_point_and_needs_no_request():
    world = batches()
    view, sent = world.view, world.store.requests.counts()
    point = find_target(view, SegmentFetcher(world.store, UUID.hex()), Wanted.of())
    assert point == Point(12, DAY_0 + 40_000, G1)
    assert world.store.requests.counts() == sent


@pytest.mark.parametrize(
    ("seconds", "seq"),
    [(0, 3), (9.999, 3), (10, 4), (19.999, 4), (20, 8), (30, 10), (39.999, 10), (40, 12), (60, 12)],
)
def test_at_is_the_last_batch_end_up_to_that_time(seconds, seq):
    assert seq_of(batches(), at=DAY_0 + int(seconds * 1000)) == (G1, seq)


@pytest.mark.parametrize(
    ("seconds", "seq"), [(0.001, 3), (10, 3), (10.001, 4), (30, 8), (40, 10), (60, 12), (60.001, 12)]
)
def test_before_leaves_that_time_itself_out(seconds, seq):
    assert seq_of(batches(), before=DAY_0 + int(seconds * 1000)) == (G1, seq)


@pytest.mark.parametrize("seq", [3, 4, 8, 9, 10, 12])
def test_a_seq_that_ends_a_batch_is_itself(seq):
    assert seq_of(batches(), seq=seq) == (G1, seq)


@pytest.mark.parametrize(
    ("seq", "nearest"),
    [(1, (None, 3)), (2, (None, 3)), (5, (4, 8)), (7, (4, 8)), (11, (10, 12)), (13, (12, None))],
)
def test_a_seq_inside_a_batch_or_beyond_the_end_is_unreachable(seq, nearest):
    assert unreachable(batches(), seq=seq) == nearest


def test_a_time_after_all_that_is_known_is_unreachable():
    assert unreachable(batches(), at=DAY_0 + 60_001) == (12, None)
    assert unreachable(batches(), before=DAY_0 + 60_002) == (12, None)


def test_the_time_of_the_last_record_is_reachable_although_as_of_is_older():
    world = memory_world()
    world.line(G1, writes(5), as_of=DAY_0)
    world.publish()
    assert seq_of(world, at=DAY_0 + 5000) == (G1, 5)
    assert unreachable(world, at=DAY_0 + 5001) == (5, None)


def test_a_time_before_the_first_record_is_unreachable():
    assert unreachable(batches(), at=DAY_0 - 1) == (None, 3)
    assert unreachable(batches(), before=DAY_0) == (None, 3)
    assert unreachable(batches(), before=0) == (None, 3)


def test_nearest_before_takes_what_the_error_would_name():
    world = batches()
    assert seq_of(world, seq=7, nearest_before=True) == (G1, 4)
    assert seq_of(world, seq=99, nearest_before=True) == (G1, 12)
    assert seq_of(world, at=DAY_0 + HOUR, nearest_before=True) == (G1, 12)
    assert seq_of(world, at=DAY_0 + 10_000, nearest_before=True) == (G1, 4)


def test_nearest_before_without_any_point_before_is_unreachable():
    assert unreachable(batches(), at=DAY_0 - 1, nearest_before=True) == (None, 3)


def test_times_are_taken_as_text_datetime_and_milliseconds():
    world, time = batches(), DAY_0 + 10_000
    for when in (time, format_time(time), datetime.fromtimestamp(time / 1000, UTC)):
        assert seq_of(world, at=when) == (G1, 4)


@pytest.mark.parametrize(
    "wanted",
    [
        {"at": 1, "seq": 1},
        {"at": 1, "before": 1},
        {"nearest_before": True},
        {"seq": 0},
        {"at": "yesterdayish"},
    ],
)
def test_targets_that_say_two_things_or_none_are_invalid(wanted):
    with pytest.raises(InvalidError):
        Wanted.of(**wanted)


def test_only_the_segment_that_holds_the_time_is_looked_into():
    world = batches()
    view, before = world.view, world.store.requests.counts()
    find_target(view, SegmentFetcher(world.store, UUID.hex()), Wanted.of(at=DAY_0 + 25_000))
    assert world.store.requests.counts() == before
    find_target(view, SegmentFetcher(world.store, UUID.hex()), Wanted.of(at=DAY_0 + 35_000))
    assert world.store.requests.counts()["GET"] == before["GET"] + 1


def test_what_a_merge_gave_up_is_unreachable_and_pins_are_not():
    world = memory_world()
    world.line(G1, writes(40), [40])
    world.segments.clear()
    world.segment(G1, 1, 30, [(7, 7), (20, 30)], level=1)
    world.segment(G1, 31, 40)
    world.publish()
    assert seq_of(world, seq=7) == (G1, 7)
    assert seq_of(world, seq=20) == (G1, 20)
    assert seq_of(world, at=DAY_0 + 7999) == (G1, 7)
    assert unreachable(world, at=DAY_0 + 8000) == (7, 20)
    assert unreachable(world, seq=12) == (7, 20)
    assert unreachable(world, at=DAY_0 + 5000) == (None, 7)
    assert seq_of(world, at=DAY_0 + 30_500) == (G1, 30)
    assert seq_of(world, seq=12, nearest_before=True) == (G1, 7)


def test_a_missing_segment_makes_a_gap_that_nothing_falls_into():
    world = memory_world()
    world.line(G1, writes(40), [10, 20])
    del world.segments[1]
    world.publish()
    assert seq_of(world, at=DAY_0 + 9_999) == (G1, 9)
    assert unreachable(world, at=DAY_0 + 10_000) == (10, None)
    assert unreachable(world, at=DAY_0 + 35_000) == (10, None)
    assert seq_of(world, seq=10) == (G1, 10)
    assert unreachable(world, seq=30) == (10, None)


def test_several_batches_of_one_millisecond_over_segments_end_at_the_last():
    log = Log(Write(n, b"x", DAY_0 if n <= 8 else DAY_0 + 1) for n in range(1, 11))
    world = memory_world()
    world.line(G1, log, [3, 5])
    world.publish()
    assert seq_of(world, at=DAY_0) == (G1, 8)
    assert seq_of(world, before=DAY_0 + 1) == (G1, 8)


def restored_copy(as_of: int = DAY_0 + 50_000) -> World:
    """G1 wrote 30 records to DAY_0 + 30 s; G2 left it at 20, took over, and began an hour later."""
    first = writes(30)
    second = first.copy(20)
    for n in range(1, 11):
        second.append(Write(n, b"second", DAY_0 + HOUR + n * 1000))
    world = memory_world()
    world.line(G1, first, [15], as_of=as_of)
    world.line(G2, second, [25], parent=(G1, 20), takes_over=G1, as_of=DAY_0 + 2 * HOUR)
    world.publish()
    return world


def test_a_seq_means_the_open_line():
    world = restored_copy()
    assert seq_of(world, seq=20) == (G1, 20)
    assert seq_of(world, seq=22) == (G2, 22)
    assert seq_of(world) == (G2, 30)


def test_a_time_before_the_copy_began_is_looked_up_on_the_line_it_took_over():
    world = restored_copy()
    assert seq_of(world, at=DAY_0 + 25_000) == (G1, 25)
    assert seq_of(world, at=DAY_0 + 50_000) == (G1, 30)
    assert seq_of(world, at=DAY_0 + HOUR + 1000) == (G2, 21)


def test_a_time_between_two_lines_is_unreachable_and_names_both():
    world = restored_copy()
    assert unreachable(world, at=DAY_0 + 50_001) == (30, 21)
    assert unreachable(world, at=DAY_0 + HOUR) == (30, 21)
    with pytest.raises(UnreachableError, match=rf"{G1}.*{G2}"):
        find(world, at=DAY_0 + HOUR)
    assert seq_of(world, at=DAY_0 + HOUR, nearest_before=True) == (G1, 30)


def test_an_explicit_generation_is_the_line_up_to_its_end():
    world = restored_copy()
    assert seq_of(world, G1) == (G1, 30)
    assert seq_of(world, G1, seq=25) == (G1, 25)
    assert unreachable(world, G1, at=DAY_0 + HOUR) == (30, None)
    assert seq_of(world, G2, seq=25) == (G2, 25)


def test_a_copy_of_a_copy_finds_times_along_all_lines():
    world = restored_copy()
    third = world.logs[G2].copy(18)
    third.append(Write(1, b"third", DAY_0 + 5 * HOUR))
    world.line(G3, third, parent=(G1, 18), takes_over=G2)
    world.publish()
    assert seq_of(world, at=DAY_0 + 25_000) == (G1, 25)
    assert seq_of(world, at=DAY_0 + HOUR + 3000) == (G2, 23)
    assert seq_of(world, at=DAY_0 + 5 * HOUR) == (G3, 19)
    assert seq_of(world, seq=18) == (G1, 18)
    assert unreachable(world, seq=25) == (19, None)
    assert unreachable(world, at=DAY_0 + 4 * HOUR) == (30, 19)


# -- lines that were cut, and a generation that holds what lay before it


def cut(world: World, name: str, kept_to: int, **changes: object) -> World:
    """The generation is kept to this seq only; segments that begin behind it leave."""
    world.generations[name] = replace(world.generations[name], kept_to=kept_to, **changes)
    world.segments = [s for s in world.segments if s.generation != name or s.first_seq <= kept_to]
    world.publish()
    return world


def test_what_a_superseded_line_is_not_kept_for_is_unreachable_by_time_and_by_seq():
    world = cut(restored_copy(), G1, 20, kept_until=DAY_0 + 21_000)
    assert seq_of(world, at=DAY_0 + 12_000) == (G1, 12)
    assert seq_of(world, at=DAY_0 + 20_999) == (G1, 20)
    for time in (DAY_0 + 21_000, DAY_0 + 25_000, DAY_0 + 50_000, DAY_0 + HOUR):
        assert unreachable(world, at=time) == (20, 21)
    assert seq_of(world, at=DAY_0 + HOUR + 1000) == (G2, 21)
    assert seq_of(world, seq=20) == (G1, 20)
    assert seq_of(world, G1) == (G1, 20)
    assert seq_of(world, G1, seq=18) == (G1, 18)
    assert unreachable(world, G1, seq=21) == (20, None)
    assert unreachable(world, G1, at=DAY_0 + 22_000) == (20, None)


def test_a_cut_of_which_nobody_knows_when_the_rest_began_answers_no_time_of_that_run():
    world = cut(restored_copy(), G1, 20)
    assert unreachable(world, at=DAY_0 + 20_000) == (20, 21)
    assert seq_of(world, at=DAY_0 + 12_000) == (G1, 12)  # of the segment before
    assert seq_of(world, seq=20) == (G1, 20)


def test_a_cut_inside_a_run_does_not_answer_up_to_the_end_of_that_run():
    world = restored_copy()
    world.segments = [s for s in world.segments if (s.generation, s.first_seq) != (G1, 16)]
    world.segment(G1, 16, 30, [(16, 25), (30, 30)], level=1)
    world = cut(world, G1, 20)
    assert unreachable(world, G1, at=DAY_0 + 22_000) == (20, None)
    assert seq_of(world, at=DAY_0 + 12_000) == (G1, 12)


def test_a_cut_behind_a_segment_knows_the_time_of_the_next_one():
    world = restored_copy()
    world.generations[G2] = replace(world.generations[G2], parent=None, began=Began(21, DAY_0 + HOUR + 1000))
    world.segment(G2, 1, 25)
    world = cut(world, G1, 15, kept_until=DAY_0 + 16_000)
    assert seq_of(world, at=DAY_0 + 15_999) == (G1, 15)
    assert unreachable(world, G1, at=DAY_0 + 16_000) == (15, None)


def inherited(*, forgets: bool, took_over: tuple[int, ...] = (21,)) -> World:
    """As restored_copy, after a merge wrote 1..25 into G2; G1 is forgotten, or still there."""
    world = restored_copy()
    began = Began(21, DAY_0 + HOUR + 1000, took_over)
    world.generations[G2] = replace(world.generations[G2], parent=None, began=began)
    world.segment(G2, 1, 25, level=1)
    world.segments = [s for s in world.segments if s.generation == G1 or s.first_seq != 21]
    if forgets:
        del world.generations[G1]
        world.segments = [s for s in world.segments if s.generation == G2]
    world.publish()
    return world


def test_times_before_a_generation_that_holds_all_are_looked_up_on_the_line_it_took_over():
    world = inherited(forgets=False)
    assert seq_of(world, seq=12) == (G2, 12)
    assert seq_of(world, at=DAY_0 + 12_000) == (G1, 12)
    assert seq_of(world, at=DAY_0 + 25_000) == (G1, 25)
    assert unreachable(world, at=DAY_0 + HOUR) == (30, 21)
    assert seq_of(world, at=DAY_0 + HOUR + 3000) == (G2, 23)


def test_times_that_a_cut_line_has_no_more_are_those_of_the_generation_that_holds_all():
    world = cut(inherited(forgets=False), G1, 3, kept_until=DAY_0 + 4000)
    assert seq_of(world, at=DAY_0 + 3000) == (G1, 3)
    assert seq_of(world, at=DAY_0 + 12_000) == (G2, 12)
    assert unreachable(world, at=DAY_0 + 20_000) == (20, 21)
    assert unreachable(world, at=DAY_0 + 25_000) == (20, 21)


def test_between_the_branch_point_and_its_own_first_record_nothing_tells_what_was_forgotten():
    world = inherited(forgets=True)
    assert seq_of(world, at=DAY_0 + 19_999) == (G2, 19)
    for time in (DAY_0 + 20_000, DAY_0 + 25_000, DAY_0 + HOUR):
        assert unreachable(world, at=time) == (20, 21)
        assert seq_of(world, at=time, nearest_before=True) == (G2, 20)
    assert seq_of(world, at=DAY_0 + HOUR + 1000) == (G2, 21)
    assert seq_of(world) == (G2, 30)


def test_a_fork_that_holds_all_held_what_it_left_with_until_it_wrote():
    world = inherited(forgets=True, took_over=())
    assert seq_of(world, at=DAY_0 + HOUR) == (G2, 20)


def test_an_older_take_over_inside_what_was_merged_is_a_gap_too():
    world = inherited(forgets=True, took_over=(11, 21))
    assert seq_of(world, at=DAY_0 + 9999) == (G2, 9)
    assert unreachable(world, at=DAY_0 + 10_500) == (10, 11)
    assert seq_of(world, at=DAY_0 + 11_000) == (G2, 11)


def test_a_child_whose_line_end_was_forgotten_does_not_answer_for_it():
    """G2 left G1 at 20 and took over from another generation, which is forgotten."""
    world = restored_copy()
    world.generations[G1] = replace(world.generations[G1], successor=None, kept_to=20, kept_until=None)
    world.forgotten = (Forgotten(G3, G2),)
    world.publish()
    assert unreachable(world, at=DAY_0 + HOUR) == (20, 21)
    assert seq_of(world, at=DAY_0 + 12_000) == (G1, 12)


def forked() -> World:
    """As restored_copy, but G2 stands beside G1."""
    world = restored_copy()
    world.generations[G1] = type(world.generations[G1])(**{**vars(world.generations[G1]), "successor": None})
    world.publish()
    return world


def test_two_open_lines_need_a_choice():
    world = forked()
    with pytest.raises(FencedError) as caught:
        find(world)
    assert (caught.value.kind, caught.value.exit_code) == ("two_lines", 16)
    assert {g["generation"]: g["last_seq"] for g in caught.value.fields["generations"]} == {G1: 30, G2: 30}
    assert seq_of(world, G1) == (G1, 30)


def test_a_time_on_a_fork_before_it_began_is_where_it_left():
    world = forked()
    assert seq_of(world, G2, at=DAY_0 + 12_000) == (G1, 12)
    assert seq_of(world, G2, at=DAY_0 + 25_000) == (G1, 20)
    assert seq_of(world, G1, at=DAY_0 + 25_000) == (G1, 25)


@pytest.mark.parametrize("forgets", [False, True])
@pytest.mark.parametrize("left", [15, 20])
def test_a_fork_of_what_a_merge_gave_a_generation_is_where_it_left_until_it_began(left, forgets):
    """Neither the generation's own records nor the line that it took over from count for it."""
    world = inherited(forgets=forgets)
    fork = world.logs[G2].copy(left)
    fork.append(Write(1, b"fork", DAY_0 + 5 * HOUR))
    world.line(G3, fork, parent=(G2, left))
    world.publish()
    assert seq_of(world, G3, at=DAY_0 + 12_000)[1] == 12
    for time in (left * 1000, 25_000, HOUR, HOUR + 3000, 5 * HOUR - 1):
        assert seq_of(world, G3, at=DAY_0 + time) == (G2, left)
    assert seq_of(world, G3, at=DAY_0 + 5 * HOUR) == (G3, left + 1)


def test_a_fork_of_what_a_merge_gave_a_generation_knows_the_older_take_overs():
    world = inherited(forgets=True, took_over=(11, 21))
    fork = world.logs[G2].copy(15)
    fork.append(Write(1, b"fork", DAY_0 + 5 * HOUR))
    world.line(G3, fork, parent=(G2, 15))
    world.publish()
    assert unreachable(world, G3, at=DAY_0 + 10_500) == (10, 11)
    assert seq_of(world, G3, at=DAY_0 + 14_000) == (G2, 14)


def test_the_same_seq_of_an_older_line_is_not_taken_for_the_branch_point():
    """G2 left G1 at 20, and took over from what is forgotten. Before G1 began, G4 had a seq 20."""
    world = memory_world()
    world.line(G4, writes(25))
    first = world.logs[G4].copy(10)
    for n in range(10):
        first.append(Write(n, b"first", DAY_0 + HOUR + n * 1000))
    world.line(G1, first, parent=(G4, 10), takes_over=G4)
    second = first.copy(20)
    second.append(Write(1, b"second", DAY_0 + 3 * HOUR))
    world.line(G2, second, parent=(G1, 20))
    world.generations[G1] = replace(world.generations[G1], kept_to=20, kept_until=DAY_0 + 2 * HOUR)
    world.forgotten = (Forgotten(G3, G2),)
    world.publish()
    assert seq_of(world, at=DAY_0 + 20_500) == (G4, 20)
    assert seq_of(world, at=DAY_0 + HOUR + 8999) == (G1, 19)
    assert unreachable(world, at=DAY_0 + HOUR + 9500) == (20, 21)


def test_an_unknown_generation_is_not_found():
    with pytest.raises(NotFoundError) as caught:
        find(batches(), G3)
    assert (caught.value.kind, caught.value.exit_code) == ("no_generation", 10)


def test_a_namespace_into_which_nothing_was_written_has_only_its_empty_end():
    world = memory_world()
    world.publish()
    assert find(world) is None
    assert unreachable(world, seq=1) == (None, None)
    assert unreachable(world, at=DAY_0) == (None, None)


def test_a_large_segment_is_searched_by_page():
    log = Log(Write(n % 11, b"", DAY_0 + n // 3 * 10, n % 3 != 2) for n in range(70_000))
    world = memory_world()
    world.line(G1, log)
    world.publish()
    for seq in (3, 65_535, 65_536, 66_000, 69_999):
        assert seq_of(world, at=log.time(seq)) == (G1, seq + (-seq % 3))
        assert seq_of(world, seq=seq, nearest_before=True) == (G1, seq - seq % 3)
    assert unreachable(world, seq=65_536) == (65_535, 65_538)


@st.composite
def logs(draw: st.DrawFn) -> Log:
    log, time = Log(), DAY_0
    for _ in range(draw(st.integers(1, 8))):
        time += draw(st.sampled_from([0, 1, 5]))
        log.batch([(n, b"v") for n in range(draw(st.integers(1, 4)))], time)
    return log


@settings(max_examples=60, deadline=None)
@given(logs(), st.data())
def test_any_log_cut_anywhere_gives_the_last_batch_end_of_any_time(log, data):
    world = memory_world()
    ends = log.ends()
    cuts = sorted(data.draw(st.sets(st.sampled_from(ends)), label="cuts") - {len(log)})
    world.line(G1, log, cuts, as_of=log.time(len(log)) + 3)
    world.publish()
    view, fetcher = world.view, SegmentFetcher(world.store, UUID.hex())
    for time in range(DAY_0 - 1, log.time(len(log)) + 4):
        wanted = max((seq for seq in ends if log.time(seq) <= time), default=None)
        try:
            found = find_target(view, fetcher, Wanted.of(at=time))
        except UnreachableError:
            assert wanted is None
        else:
            assert found == Point(wanted or 0, log.time(wanted or 0), G1)
    for seq in range(1, len(log) + 2):
        before = max((end for end in ends if end <= seq), default=None)
        try:
            found = find_target(view, fetcher, Wanted.of(seq=seq, nearest_before=True))
        except UnreachableError:
            assert before is None
        else:
            assert found is not None
            assert found.seq == before
