"""Prune and points: superseded lines age out, dead ones are dropped, and nothing else changes its meaning."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import backup
from backup.restoring.target import Times, Wanted, find_target
from backup.retention.cuts import Cuts, plan_cuts
from backup.retention.prune import prune_session
from backup.retention.report import PruneReport
from backup.verify import verify
from compactor.fetch import SegmentFetcher
from compactor.generations import Began, Generation, Pin
from compactor.head import Head
from compactor.index_points import IndexPoints
from compactor.lineage import began_with, open_lines
from compactor.meta.index import MetaIndex
from compactor.path import route
from compactor.policy import DAY_MS, Anchor, Policy, boundaries
from compactor.publish import Patience
from compactor.session import Session
from compactor.store.memory import shared_bucket
from ourdb.errors import InvalidError, NotFoundError, TemporaryError, UnreachableError
from ourdb.segment.summary import Stretch
from tests.backup_tools import Machine, Shop, shop
from tests.faulty import FaultyStore
from tests.worlds import DAY_0, HOUR, UUID, Log, World, Write, file_world, memory_world, writes

G1, G2, G3, G4 = "1" * 16, "2" * 16, "3" * 16, "4" * 16
BEGAN = DAY_0 + HOUR + 1000  # of G2
KNOWN_TO = DAY_0 + 50_000  # of G1: its as_of
__all__ = ["shop"]


@dataclass
class Yard:
    """A world on a clock that stands at the time of its newest record, and who prunes it."""

    world: World
    folder: Path
    skew_ms: int = 0

    def __post_init__(self) -> None:
        shared_bucket(self.world.store.url.bucket).clock_ms = lambda: self.now
        self.store = FaultyStore(self.world.store)

    @property
    def now(self) -> int:
        return max(generation.last_time for generation in self.world.generations.values())

    @property
    def head(self) -> Head:
        return self.world.view.head

    def prune(self, **options: Any) -> PruneReport:
        with MetaIndex.open(self.folder / "meta.db") as meta:
            session = Session(self.store, meta)
            session.namespace.single_writer = False
            return prune_session(
                session,
                clock_ms=lambda: self.now + self.skew_ms,
                patience=Patience(0.1, sleep=lambda _: None),
                **options,
            )

    def find(self, generation: str | None = None, **wanted: Any) -> tuple[str, int] | tuple[Any, Any]:
        """Generation and seq of a target; or the seqs of the nearest points that its error names."""
        fetcher = SegmentFetcher(self.world.store, UUID.hex())
        try:
            point = find_target(self.world.view, fetcher, Wanted.of(**wanted), generation)
        except UnreachableError as error:
            sides = (error.fields[side] for side in ("nearest_before", "nearest_after"))
            before, after = (side and side["seq"] for side in sides)
            return before, after
        assert point is not None
        return point.generation, point.seq


def superseded(
    age_ms: int, folder: Path, *, policy: Policy | None = None, pins: tuple[Pin, ...] = ()
) -> Yard:
    """G1 wrote 30 records, in segments of 1..15, 16..23 and 24..30; G2 left it at 20, took over and began an
    hour later. Its newest record is so much younger than that."""
    first = writes(30)
    second = first.copy(20)
    for n in range(10):
        second.append(Write(n, b"second", BEGAN + n * 1000))
    second.append(Write(7, b"newest", BEGAN + age_ms))
    world = memory_world()
    world.line(G1, first, [15, 23], as_of=KNOWN_TO)
    world.line(G2, second, [25], parent=(G1, 20), takes_over=G1)
    world.pins, world.policy = pins, (policy or Policy(window_ms=DAY_MS)).as_json()
    world.publish()
    return Yard(world, folder)


def reason(report: PruneReport, generation: str) -> str:
    return next(one.reason for one in report.points if one.generation == generation)


def keys(yard: Yard, generation: str) -> list[int]:
    return [s.first_seq for s in yard.world.view.segments if s.generation == generation]


# -- aging out


def test_a_superseded_line_is_kept_while_a_time_in_the_window_means_it(tmp_path: Path) -> None:
    window = 10 * DAY_MS
    kept = superseded(window + KNOWN_TO - BEGAN, tmp_path, policy=Policy(window_ms=window))
    assert "the window begins at" in reason(kept.prune(), G1)
    assert kept.head.generations[G1].kept_to is None
    aged = superseded(window + KNOWN_TO - BEGAN + 1, tmp_path, policy=Policy(window_ms=window))
    report = aged.prune()
    assert aged.head.generations[G1].kept_to == 20
    assert keys(aged, G1) == [1, 16]
    gone = [(p.first_seq, p.last_seq, p.goes) for p in report.points if p.generation == G1]
    assert gone == [(1, 20, False), (21, 30, True), (20, 20, False)]
    assert "branch point of generation 2222222222222222" in [p.reason for p in report.points]


def test_a_line_that_went_on_after_its_successor_began_is_kept_while_the_window_holds_a_write_of_it(
    tmp_path: Path,
) -> None:
    for age_ms, kept_to in ((HOUR, None), (HOUR + 1, 20)):
        first = writes(30)
        second = first.copy(20)
        first.append(Write(1, b"went on", BEGAN + HOUR))
        second.append(Write(2, b"second", BEGAN))
        second.append(Write(3, b"newest", BEGAN + HOUR + age_ms))
        world = memory_world()
        world.line(G1, first, [15, 23], as_of=BEGAN + HOUR)
        world.line(G2, second, parent=(G1, 20), takes_over=G1)
        world.policy = Policy(window_ms=HOUR).as_json()
        world.publish()
        yard = Yard(world, tmp_path / str(age_ms))
        yard.prune()
        assert yard.head.generations[G1].kept_to == kept_to


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        (Policy(window_ms=HOUR // 2), True),
        (Policy(window_ms=0, hourly=1), True),
        (Policy(window_ms=0), False),
    ],
)
def test_what_a_line_wrote_after_a_dropped_successor_had_begun_is_kept_as_long_as_the_policy_says(
    tmp_path: Path, policy: Policy, kept: bool
) -> None:
    """G2 took over from G1, which went on meanwhile; G3 left G1 early. With G2 gone a line ends in G1."""
    first = writes(30)
    second = first.copy(20)
    first.append(Write(1, b"went on", BEGAN + HOUR // 2))
    second.append(Write(2, b"second", BEGAN))
    hour = (BEGAN // HOUR + 1) * HOUR
    third = first.copy(10)
    third.append(Write(3, b"third", hour + 1000))
    world = memory_world()
    world.line(G1, first, [15, 23], as_of=hour)
    world.line(G2, second, parent=(G1, 20), takes_over=G1)
    world.line(G3, third, parent=(G1, 10))
    world.policy = policy.as_json()
    world.publish()
    yard = Yard(world, tmp_path)
    yard.prune(drop_generation=G2)
    assert [*yard.head.generations] == [G1, G3]
    assert yard.head.generations[G1].kept_to == (31 if kept else 10)
    assert yard.find(G1) == (G1, 31 if kept else 10)


def test_restores_by_time_on_both_sides_of_a_cut(tmp_path: Path) -> None:
    yard = superseded(10 * DAY_MS, tmp_path)
    before = {time: yard.find(at=DAY_0 + time) for time in range(1000, 31_000, 500)}
    yard.prune()
    for time, found in before.items():
        assert yard.find(at=DAY_0 + time) == (found if time < 21_000 else (20, 21))
    assert yard.find(at=BEGAN - 1) == (20, 21)
    assert yard.find(at=BEGAN) == (G2, 21)
    assert yard.find() == (G2, 31)
    assert yard.find(G1) == (G1, 20)
    assert yard.find(G1, seq=25) == (20, None)
    assert yard.head.generations[G1].kept_until == DAY_0 + 21_000


def test_without_window_or_policy_nothing_ages_out(tmp_path: Path) -> None:
    yard = superseded(999 * DAY_MS, tmp_path, policy=Policy(daily=1))
    assert "no window" in reason(yard.prune(), G1)
    assert yard.head.generations[G1].kept_to is None


@pytest.mark.parametrize("skew_ms", [-10 * DAY_MS, 10 * DAY_MS, 301_000])
def test_where_the_clocks_differ_nothing_ages_out_unless_forced(tmp_path: Path, skew_ms: int) -> None:
    yard = superseded(30 * DAY_MS, tmp_path)
    yard.skew_ms = skew_ms
    report = yard.prune()
    assert "clocks" in reason(report, G1)
    assert any("clocks" in note for note in report.notes)
    assert yard.head.generations[G1].kept_to is None
    yard.prune(force=True)
    assert yard.head.generations[G1].kept_to == 20


def test_a_clock_that_is_ahead_does_not_make_old_what_nobody_wrote_behind(tmp_path: Path) -> None:
    """The window is counted back from the newest record, if that is the earliest."""
    yard = superseded(HOUR, tmp_path)
    shared_bucket(yard.world.store.url.bucket).clock_ms = lambda: yard.now + 900 * DAY_MS
    yard.skew_ms = 900 * DAY_MS
    assert "the window begins at" in reason(yard.prune(), G1)


def test_a_keep_rule_whose_time_means_a_point_behind_the_branch_keeps_the_line(tmp_path: Path) -> None:
    """The hour that ended just after G1's last record held what G1 had then."""
    hour_end = DAY_0 // HOUR * HOUR + HOUR - 1
    assert hour_end >= DAY_0 + 21_000
    for count, kept in ((400, True), (3, False)):
        yard = superseded(10 * DAY_MS, tmp_path, policy=Policy(window_ms=0, hourly=count))
        yard.world.generations[G1] = replace(yard.world.generations[G1], as_of=hour_end)
        yard.world.publish()
        report = yard.prune()
        assert ("keep rule" in reason(report, G1)) == kept
        assert yard.find(at=hour_end) == ((G1, 30) if kept else (20, 21))


def test_a_keep_rule_that_means_a_point_before_the_branch_needs_nothing_behind_it(tmp_path: Path) -> None:
    hour_end = DAY_0 // HOUR * HOUR + HOUR - 1
    yard = superseded(10 * DAY_MS, tmp_path, policy=Policy(window_ms=0, hourly=400))
    for log in yard.world.logs.values():
        log.writes = [
            replace(w, time=w.time + (hour_end - DAY_0 - 20_500 if n >= 20 else 0))
            for n, w in enumerate(log.writes)
        ]
    first = Log(yard.world.logs[G1].writes)
    world = memory_world()
    world.line(G1, first, [15, 23])
    second = first.copy(20)
    second.append(Write(1, b"x", hour_end + HOUR))
    second.append(Write(1, b"y", hour_end + 10 * DAY_MS))
    world.line(G2, second, parent=(G1, 20), takes_over=G1)
    world.policy = Policy(window_ms=0, hourly=400).as_json()
    world.publish()
    yard = Yard(world, tmp_path)
    assert yard.find(at=hour_end) == (G1, 20)
    yard.prune()
    assert yard.head.generations[G1].kept_to == 20
    assert yard.find(at=hour_end) == (G1, 20)


def test_a_pin_keeps_its_point_and_what_lies_before(tmp_path: Path) -> None:
    pin = Pin(name="p", generation=G1, seq=25, time=DAY_0 + 25_000)
    yard = superseded(10 * DAY_MS, tmp_path, pins=(pin,))
    report = yard.prune()
    assert yard.head.generations[G1].kept_to == 25
    assert "pin p" in [one.reason for one in report.points]
    assert yard.find(at=DAY_0 + 25_999) == (G1, 25)
    assert yard.find(at=DAY_0 + 26_000) == (25, 21)
    yard.world = replace(yard.world, revision=yard.head.revision)
    assert yard.prune().committed == 0


def test_the_branch_point_is_kept_as_long_as_the_child_lives(tmp_path: Path) -> None:
    """child-unprotected: the start of a line that is open is never cut."""
    yard = superseded(900 * DAY_MS, tmp_path, policy=Policy(window_ms=0))
    for _ in range(3):
        yard.prune(grace_ms=0)
    assert route(yard.world.view, G2, 31) is not None
    assert yard.find(seq=20) == (G1, 20)
    assert verify_problems(yard) == []


def verify_problems(yard: Yard) -> list[str]:
    found = verify(yard.world.url, data=True, meta=yard.folder / "meta.db")
    return [problem.message for problem in found.problems]


def test_points_that_two_segments_offer_count_once(tmp_path: Path) -> None:
    yard = superseded(10 * DAY_MS, tmp_path, policy=Policy(window_ms=DAY_MS, minimum=32))
    yard.world.segment(G2, 21, 30)
    yard.world.publish()
    assert "has 31 points, fewer than 32" in reason(yard.prune(), G1)


def test_a_cut_behind_what_was_written_on_leaves_those_times_to_the_dropped_successor(tmp_path: Path) -> None:
    """G1 went on when G2 had begun; a pin keeps the first of these points, and G2 is gone."""
    yard = chained(tmp_path)
    first = yard.world.logs[G1]
    for n in range(2):
        first.append(Write(1, b"went on", BEGAN + 500 + n * 1000))
    world = memory_world()
    world.line(G1, first, [15, 23])
    world.line(G2, yard.world.logs[G2], parent=(G1, 20), takes_over=G1)
    world.line(G3, yard.world.logs[G3], parent=(G1, 18), takes_over=G2)
    world.pins = (Pin(name="p", generation=G1, seq=31, time=BEGAN + 500),)
    world.policy = Policy(window_ms=0).as_json()
    world.publish()
    yard = Yard(world, tmp_path)
    yard.prune(drop_generation=G2)
    left = yard.head.generations[G1]
    assert (left.successor, left.kept_to, left.kept_until) == (G3, 31, BEGAN)
    assert yard.find(at=BEGAN - 1) == (G1, 30)
    assert yard.find(at=BEGAN + 600) == (31, 19)


@pytest.mark.parametrize(("least", "goes"), [(11, True), (31, True), (32, False)])
def test_the_minimum_counts_the_points_of_the_open_line(tmp_path: Path, least: int, goes: bool) -> None:
    policy = Policy(window_ms=DAY_MS, minimum=least)
    yard = superseded(10 * DAY_MS, tmp_path, policy=policy)
    report = yard.prune()
    assert (yard.head.generations[G1].kept_to == 20) == goes
    assert goes or "fewer than 32" in reason(report, G1)


def test_parts_of_a_stretch_stay_together(tmp_path: Path) -> None:
    yard = superseded(10 * DAY_MS, tmp_path)
    world = yard.world
    world.segments = [s for s in world.segments if s.generation == G2]
    world.segment(G1, 1, 15)
    world.segment(G1, 16, 23, [(20, 20)], stretch=Stretch(7, 1, 2))
    world.segment(G1, 24, 30, [(30, 30)], stretch=Stretch(7, 2, 2))
    world.publish()
    assert yard.find(seq=20) == (G1, 20)
    yard.prune()
    assert keys(yard, G1) == [1, 16, 24]
    assert yard.find(seq=20) == (G1, 20)


def test_a_segment_that_is_damaged_keeps_no_line_from_aging_out_but_answers_no_time(tmp_path: Path) -> None:
    yard = superseded(10 * DAY_MS, tmp_path)
    crossing = next(s for s in yard.world.segments if s.first_seq == 16)
    yard.world.flip(crossing.key, -20)
    yard.prune()
    first = yard.head.generations[G1]
    assert (first.kept_to, first.kept_until) == (20, DAY_0 + 16_000)  # of the run: no time of it is answered
    assert yard.find(at=DAY_0 + 12_000) == (G1, 12)


def test_what_a_keep_rule_means_in_a_damaged_segment_is_kept(tmp_path: Path) -> None:
    hour_end = DAY_0 // HOUR * HOUR + HOUR - 1
    yard = superseded(10 * DAY_MS, tmp_path, policy=Policy(window_ms=0, hourly=400))
    first = yard.world.logs[G1]
    spread = Log(replace(w, time=DAY_0 + n * (hour_end - DAY_0) // 28) for n, w in enumerate(first.writes))
    second = spread.copy(20)
    second.append(Write(1, b"x", hour_end + 10 * DAY_MS))
    world = memory_world()
    world.line(G1, spread, [15, 23])
    world.line(G2, second, parent=(G1, 20), takes_over=G1)
    world.policy = Policy(window_ms=0, hourly=400).as_json()
    late = world.segments[2]
    assert late.name.first_time <= hour_end < late.name.last_time
    world.publish()
    world.flip(late.key, -20)
    yard = Yard(world, tmp_path)
    assert "cannot be told" in reason(yard.prune(), G1)
    assert yard.head.generations[G1].kept_to is None


# -- a merge across the branch point


def whole(yard: Yard) -> Yard:
    """As compaction leaves it: G2 holds 1..25 itself."""
    world = yard.world
    world.revision = yard.head.revision
    world.generations = dict(yard.head.generations)
    world.forgotten = yard.head.forgotten
    world.generations[G2] = replace(world.generations[G2], parent=None, began=Began(21, BEGAN, (21,)))
    world.segments = [s for s in yard.world.view.segments if (s.generation, s.first_seq) != (G2, 21)]
    world.segment(G2, 1, 25, level=1)
    world.publish()
    return yard


def test_a_parent_whose_child_holds_all_is_forgotten_and_its_directory_superseded(tmp_path: Path) -> None:
    yard = whole(superseded(10 * DAY_MS, tmp_path))
    before = [yard.find(at=DAY_0 + time) for time in range(1000, 20_000, 500)]
    report = yard.prune()
    assert [*yard.head.generations] == [G2]
    assert [(one.generation, one.successor) for one in yard.head.forgotten] == [(G1, G2)]
    assert reason(report, G1).startswith("superseded, and no time")
    assert all(one.goes for one in report.points if one.generation == G1)
    after = [yard.find(at=DAY_0 + time) for time in range(1000, 20_000, 500)]
    assert [seq for _, seq in after] == [seq for _, seq in before]
    assert yard.find(at=DAY_0 + 25_000) == (20, 21)
    assert verify_problems(yard) == []


def test_a_cut_parent_whose_child_holds_all_is_forgotten(tmp_path: Path) -> None:
    yard = superseded(10 * DAY_MS, tmp_path)
    yard.prune()
    whole(yard)
    yard.prune()
    assert [*yard.head.generations] == [G2]
    assert yard.find(seq=12) == (G2, 12)


def test_a_keep_rule_that_the_child_answers_does_not_keep_the_parent(tmp_path: Path) -> None:
    hour_end = DAY_0 // HOUR * HOUR + HOUR - 1
    for last, kept in ((19, False), (30, True)):  # of G1, up to the end of that hour
        first = Log(Write(n, b"x", DAY_0 + n if n < last else hour_end + n) for n in range(30))
        second = first.copy(20)
        second.append(Write(1, b"x", hour_end + HOUR))
        second.append(Write(1, b"y", hour_end + 9 * DAY_MS))
        world = memory_world()
        world.line(G1, first, as_of=max(hour_end, first.time(30)))
        world.line(G2, second, parent=(G1, 20), takes_over=G1)
        world.generations[G2] = replace(
            world.generations[G2], parent=None, began=Began(21, hour_end + HOUR, (21,))
        )
        world.segments = world.segments[:1]
        world.segment(G2, 1, 22, level=1)
        world.policy = Policy(window_ms=0, hourly=400).as_json()
        world.publish()
        yard = Yard(world, tmp_path)
        before = yard.find(at=hour_end)
        yard.prune()
        assert (G1 in yard.head.generations) == kept
        assert yard.find(at=hour_end)[1] == before[1]


# -- dead lines


def forked(folder: Path, pins: tuple[Pin, ...] = ()) -> Yard:
    """G2 stands beside G1, which it left at 20."""
    yard = superseded(HOUR, folder, policy=Policy(), pins=pins)
    yard.world.generations[G1] = replace(yard.world.generations[G1], successor=None)
    yard.world.publish()
    return yard


def test_a_dead_line_is_dropped_at_once(tmp_path: Path) -> None:
    yard = forked(tmp_path)
    report = yard.prune(drop_generation=G2)
    assert [*yard.head.generations] == [G1]
    assert reason(report, G2) == "dropped by --drop-generation"
    assert keys(yard, G2) == []
    assert yard.find() == (G1, 30)
    assert yard.prune(drop_generation=G2).committed == 0  # a run whose reply was lost
    assert verify_problems(yard) == []


def test_a_dead_line_that_another_left_keeps_its_start_and_is_open_no_more(tmp_path: Path) -> None:
    yard = forked(tmp_path)
    yard.prune(drop_generation=G1)
    assert [g.id for g in open_lines(yard.head)] == [G2]
    assert yard.head.generations[G1].kept_to == 20
    assert yard.find() == (G2, 31)
    assert yard.find(seq=12) == (G1, 12)
    assert verify_problems(yard) == []


def test_a_dead_line_that_another_left_at_its_end_loses_no_time(tmp_path: Path) -> None:
    world = memory_world()
    second = writes(31)
    world.line(G1, second.copy(30))
    world.line(G2, second, parent=(G1, 30))
    world.publish()
    yard = Yard(world, tmp_path)
    yard.prune(drop_generation=G1)
    left = yard.head.generations[G1]
    assert (left.open, left.kept_to, left.kept_until) == (False, 30, None)


def test_the_only_open_line_and_one_with_pins_are_not_dropped(tmp_path: Path) -> None:
    yard = superseded(HOUR, tmp_path)
    before = yard.head
    with pytest.raises(InvalidError, match="only line that is open"):
        yard.prune(drop_generation=G2)
    with pytest.raises(NotFoundError) as caught:
        yard.prune(drop_generation=G3)
    assert caught.value.kind == "no_generation"
    assert yard.head == before
    pinned = forked(tmp_path, pins=(Pin(name="mine", generation=G2, seq=22, time=BEGAN + 1000),))
    with pytest.raises(InvalidError, match="mine"):
        pinned.prune(drop_generation=G2)
    assert pinned.head.generations[G2].open


def test_a_superseded_line_is_dropped_although_the_window_means_it(tmp_path: Path) -> None:
    yard = superseded(HOUR, tmp_path, policy=Policy())
    assert yard.find(at=DAY_0 + 25_000) == (G1, 25)
    yard.prune(drop_generation=G1)
    assert yard.head.generations[G1].kept_to == 20
    assert yard.find(at=DAY_0 + 25_000) == (20, 21)


def chained(folder: Path) -> Yard:
    """G2 took over from G1, and G3 from G2; both left G1, at 20 and at 18."""
    yard = superseded(HOUR, folder, policy=Policy())
    third = yard.world.logs[G2].copy(18)
    third.append(Write(1, b"third", BEGAN + 2 * HOUR))
    yard.world.line(G3, third, parent=(G1, 18), takes_over=G2)
    yard.world.publish()
    return yard


def test_what_was_taken_over_by_a_dropped_line_was_taken_over_by_its_successor(tmp_path: Path) -> None:
    yard = chained(tmp_path)
    yard.prune(drop_generation=G2)
    assert yard.head.generations[G1].successor == G3
    assert (yard.head.generations[G1].kept_to, yard.head.generations[G1].kept_until) == (None, BEGAN)
    assert yard.find(at=DAY_0 + 25_000) == (G1, 25)
    assert yard.find(at=BEGAN + HOUR) == (30, 19)
    assert yard.find() == (G3, 19)


def test_times_that_a_dropped_line_answered_are_not_answered_by_the_one_before(tmp_path: Path) -> None:
    """G1 was written still when G2, which took over, had begun."""
    yard = chained(tmp_path)
    yard.world.generations[G1] = replace(yard.world.generations[G1], as_of=BEGAN + 5000)
    yard.world.publish()
    assert yard.find(at=BEGAN + 2000) == (G2, 23)
    assert yard.find(at=BEGAN - 1) == (G1, 30)
    yard.prune(drop_generation=G2)
    assert yard.find(at=BEGAN + 2000) == (30, 19)
    assert yard.find(at=BEGAN - 1) == (G1, 30)


@pytest.mark.parametrize(("hourly", "kept"), [(400, True), (3, False)])
def test_a_keep_rule_keeps_a_line_also_where_nobody_goes_on_from_it(
    tmp_path: Path, hourly: int, kept: bool
) -> None:
    hour_end = DAY_0 // HOUR * HOUR + HOUR - 1
    world = memory_world()
    world.line(G1, writes(30), as_of=hour_end)
    world.line(G2, writes(5, start=BEGAN), takes_over=G1)
    world.line(G3, writes(5, start=DAY_0 + 10 * DAY_MS))
    world.policy = Policy(window_ms=0, hourly=hourly).as_json()
    world.publish()
    yard = Yard(world, tmp_path)
    yard.prune(drop_generation=G2)
    assert (G1 in yard.head.generations) == kept
    assert [g.id for g in open_lines(yard.head)] == [G3]


def test_whom_a_dropped_line_took_over_stays_closed_and_ages_out(tmp_path: Path) -> None:
    yard = superseded(HOUR, tmp_path, policy=Policy())
    fork = yard.world.logs[G1].copy(10)
    fork.append(Write(1, b"fork", BEGAN))
    fork.append(Write(1, b"fork", BEGAN + 90 * DAY_MS))
    yard.world.line(G3, fork, parent=(G1, 10))
    yard.world.publish()
    yard.prune(drop_generation=G2)
    first = yard.head.generations[G1]
    assert (first.open, first.successor, first.kept_to) == (False, None, 30)
    assert yard.find(G1) == (G1, 30)
    yard.world.generations = dict(yard.head.generations)
    yard.world.segments = list(yard.world.view.segments)
    yard.world.revision, yard.world.forgotten = yard.head.revision, yard.head.forgotten
    yard.world.policy = Policy(window_ms=DAY_MS).as_json()
    yard.world.publish()
    yard.prune()
    assert yard.head.generations[G1].kept_to == 10
    assert yard.find() == (G3, 12)


def test_a_drop_that_lost_the_race_is_decided_anew(tmp_path: Path) -> None:
    yard = forked(tmp_path)

    def pinned() -> None:
        yard.world.pins = (Pin(name="mine", generation=G2, seq=22, time=BEGAN + 1000),)
        yard.world.publish()

    yard.store.interleave("put_if_match", "head", pinned)
    with pytest.raises(InvalidError, match="mine"):
        yard.prune(drop_generation=G2)
    assert yard.head.generations[G2].open


@pytest.mark.parametrize("how", ["before", "after"])
def test_a_drop_without_an_answer_is_ended_by_the_next_run(tmp_path: Path, how: Any) -> None:
    yard = forked(tmp_path)
    yard.store.fail("put_if_match", "head", how, times=2)
    try:
        yard.prune(drop_generation=G2)
    except TemporaryError:
        yard.prune(drop_generation=G2)
    assert [*yard.head.generations] == [G1]


# -- the directory of a line that was let go of


def test_a_directory_whose_line_was_dropped_is_told_so_and_may_fork(shop: Shop) -> None:
    machine = Machine(shop).write(10)
    machine.run()
    fork = machine.twin().write(3)
    machine.write(1).run()
    fork.run(how="fork")
    assert len(open_lines(shop.view().head)) == 2

    def drop(name: str) -> None:
        with MetaIndex.open(shop.folder / "keeper.db") as meta:
            prune_session(Session(shop.store(), meta), drop_generation=name)

    drop(fork.line.generation)
    for _ in range(2):
        with pytest.raises(Exception, match="has let go of generation") as caught:
            fork.write(1).run()
        assert (caught.value.kind, caught.value.exit_code) == ("superseded", 16)  # type: ignore[attr-defined]
    machine.write(2).run()
    again = fork.run(how="fork")
    assert fork.stored() == fork.log
    drop(machine.line.generation)  # its start is the fork's
    with pytest.raises(Exception, match="has let go of generation"):
        machine.write(1).run()
    assert fork.stored(again.generation) == fork.log


# -- the commands


def test_restore_reads_both_sides_of_a_cut_and_refuses_what_went(tmp_path: Path) -> None:
    made = superseded(10 * DAY_MS, tmp_path).world
    world = file_world(tmp_path / "store")
    world.line(G1, made.logs[G1], [15, 23], as_of=KNOWN_TO)
    world.line(G2, made.logs[G2], [25], parent=(G1, 20), takes_over=G1)
    world.policy = Policy(window_ms=DAY_MS).as_json()
    world.publish()
    meta = tmp_path / "m.db"
    report = backup.prune(world.url, force=True, meta=meta, drop_generation=G1)
    assert report.as_json()["committed"] == 1
    assert backup.restore(world.url, tmp_path / "a", at=DAY_0 + 20_999, meta=meta).seq == 20
    assert backup.restore(world.url, tmp_path / "b", at=BEGAN, meta=meta).seq == 21
    with pytest.raises(UnreachableError):
        backup.restore(world.url, tmp_path / "c", at=DAY_0 + 21_000, meta=meta)
    points = backup.points(world.url, meta=meta).as_json()
    assert [(w["generation"], w["first_seq"], w["last_seq"]) for w in points["windows"]] == [
        (G1, 1, 20),
        (G2, 21, 31),
    ]
    assert points["gaps"] == []
    assert [g["kept_to"] for g in points["generations"]] == [20, None]
    owned = backup.segments(world.url, generation=G1, meta=meta).segments
    assert [one.segment.first_seq for one in owned] == [1, 16]


# -- any lines


@dataclass(frozen=True)
class Lines:
    world: World
    policy: Policy


@st.composite
def lines(draw: st.DrawFn) -> Lines:
    """Generations that take over from, or stand beside one another, some of which hold all themselves."""
    world = memory_world()
    time = DAY_0
    names = [G1, G2, G3, G4][: draw(st.integers(2, 4))]
    for number, name in enumerate(names):
        if number == 0:
            log, parent, taken = Log(), None, None
        else:
            left = draw(st.sampled_from(names[:number]))
            log = world.logs[left].copy(draw(st.integers(1, len(world.logs[left]))))
            parent = owner_at(world, left, len(log))
            end = left
            while world.generations[end].successor:
                end = world.generations[end].successor or end
            taken = end if draw(st.booleans()) else None
        for _ in range(draw(st.integers(1, 6))):
            time += draw(st.sampled_from([0, 1, 1000, HOUR // 2, DAY_MS]))
            log.append(Write(draw(st.integers(0, 3)), b"%d" % time, time))
        cuts = sorted(draw(st.sets(st.integers((parent[1] if parent else 0) + 1, len(log)), max_size=2)))
        as_of = time + draw(st.sampled_from([0, 5, HOUR]))
        time += draw(st.sampled_from([0, 6, 2 * HOUR]))
        world.line(name, log, cuts, parent=parent, takes_over=taken, as_of=as_of)
    for name in names[1:]:
        if world.generations[name].parent and draw(st.integers(0, 3)) == 0:
            inherit(world, name)
    for number in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from(names))
        first, last = world.generations[name].first_seq, world.generations[name].last_seq
        seq = draw(st.integers(first, last))
        world.pins += (Pin(name=f"{number}", generation=name, seq=seq, time=world.logs[name].time(seq)),)
    policy = Policy(
        window_ms=draw(st.sampled_from([0, 1000, HOUR, DAY_MS, 3 * DAY_MS])),
        hourly=draw(st.sampled_from([0, 2, 30])),
        daily=draw(st.integers(0, 3)),
    )
    world.policy = policy.as_json()
    world.publish()
    return Lines(world, policy)


def owner_at(world: World, name: str, seq: int) -> tuple[str, int]:
    at: Generation = world.generations[name]
    while at.parent and seq <= at.parent.seq:
        at = world.generations[at.parent.generation]
    return at.id, seq


def inherit(world: World, name: str) -> None:
    """A merge across the branch point into this generation."""
    child = world.generations[name]
    view = Head(
        uuid=UUID.hex(),
        namespace="n",
        revision=1,
        run="0" * 16,
        host="h",
        config={},
        generations=world.generations,
    )
    began = began_with(view, name, world.logs[name].time(child.first_seq))
    world.generations[name] = replace(child, parent=None, began=began)
    world.segments = [s for s in world.segments if s.generation != name]
    world.segment(name, 1, child.last_seq, level=1)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(made=lines(), skew=st.sampled_from([0, 100, HOUR, 5 * DAY_MS]))
def test_any_cut_keeps_the_meaning_of_every_time_that_is_kept_and_changes_none(
    made: Lines, skew: int
) -> None:
    view, policy = made.world.view, made.policy
    newest = max(g.last_time for g in view.head.generations.values()) + skew
    anchor = Anchor(time_ms=newest, trusted=True)
    points = IndexPoints(SegmentFetcher(made.world.store, UUID.hex()))
    cuts: Cuts = plan_cuts(view, policy, anchor, points)
    after = cuts.after
    window = anchor.time_ms - (policy.window_ms or 0)
    kept = {*boundaries(policy, anchor.time_ms), window}
    times = {g.as_of for g in view.head.generations.values()} | kept
    for log in made.world.logs.values():
        times |= {w.time + n for w in log.writes for n in (-1, 0, 1)}
    for end in view.head.generations.values():
        if end.successor is not None:
            continue
        left = after.head.generations.get(end.id)
        assert left is not None
        was, now = Times(view, points, end), Times(after, points, left)
        for time in sorted(times):
            before, found = was.find(time), now.find(time)
            if time >= window or time in kept:
                assert (before and (before.seq, before.time)) == (found and (found.seq, found.time)), time
            elif found is not None:
                assert before is not None
                assert (before.seq, before.time) == (found.seq, found.time)
    for pin in view.head.pins:
        assert route(after, pin.generation, pin.seq) is not None
    for generation in after.head.generations.values():
        assert route(after, generation.id, generation.end_seq) is not None
        if generation.parent:
            assert route(after, generation.id, generation.parent.seq) is not None


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(made=lines())
def test_any_cut_is_taken_by_the_rules_of_a_head(
    made: Lines, tmp_path_factory: pytest.TempPathFactory
) -> None:
    yard = Yard(made.world, tmp_path_factory.mktemp("any"))
    yard.prune()
    assert yard.prune(dry_run=True).committed == 0
    assert all(not one.goes for one in yard.prune(dry_run=True).points)
