"""What leaves with the sources of a merge, and what has to stay beside its result."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compactor.compaction.protect import Protection, Rules
from compactor.compaction.sets import find_sets
from compactor.compaction.superseded import find_superseded
from compactor.policy import Policy, boundaries
from compactor.strategies import All
from tests.compacting import G1, Bench
from tests.worlds import HOUR, writes

LOG = writes(50, step=HOUR)
EVERYTHING = Rules(since_ms=None)


def rebuilt(folder: Path) -> Bench:
    """A merged segment (exact at 8 and from 30 on), one behind it, and the old ones that it was made of."""
    bench = Bench(folder)
    bench.world.line(G1, LOG.copy(50), [10, 20, 30, 40])
    bench.world.segment(G1, 1, 40, [(8, 8), (30, 40)])
    bench.world.publish()
    return bench


def superseded(
    bench: Bench, runs: list[tuple[int, int]], rules: Rules, horizon: int | None
) -> list[tuple[int, int]]:
    """Of the set up to the end, with a result of these exact runs."""
    view = bench.view
    by_key = {segment.key: segment for segment in bench.segments()}
    [chosen] = find_sets(view, All())
    result = bench.world.segment(G1, chosen.first_seq, 50, runs)
    found = find_superseded(
        view, chosen, [result], view.head.generations[G1], rules, Protection(horizon=horizon)
    )
    return sorted((by_key[key].first_seq, by_key[key].last_seq) for key in found)


@pytest.mark.parametrize(
    ("runs", "rules", "horizon"),
    [
        ([(1, 50)], EVERYTHING, None),
        ([(8, 8), (35, 50)], Rules(since_ms=LOG.time(35), marked={8: "pin"}), 35),
    ],
)
def test_what_offers_nothing_protected_leaves_with_the_sources(
    tmp_path: Path, runs: list[tuple[int, int]], rules: Rules, horizon: int | None
) -> None:
    everything = [(1, 10), (1, 40), (11, 20), (21, 30), (31, 40), (41, 50)]
    assert superseded(rebuilt(tmp_path), runs, rules, horizon) == everything


@pytest.mark.parametrize(
    ("rules", "horizon", "left"),
    [
        (EVERYTHING, None, [(1, 10), (11, 20), (21, 30)]),
        (Rules(since_ms=LOG.time(35), marked={14: "pin"}), 35, [(1, 10), (11, 20)]),
        (Rules(since_ms=LOG.time(35), boundaries=[LOG.time(4) + 5, LOG.time(8) + 5]), 35, [(1, 10)]),
    ],
)
def test_what_leads_to_a_protected_point_stays(
    tmp_path: Path, rules: Rules, horizon: int | None, left: list[tuple[int, int]]
) -> None:
    everything = [(1, 10), (1, 40), (11, 20), (21, 30), (31, 40), (41, 50)]
    gone = superseded(rebuilt(tmp_path), [(8, 8), (30, 50)], rules, horizon)
    assert sorted([*gone, *left]) == everything


def test_sources_stay_where_a_protected_point_is_reached_through_them_alone(tmp_path: Path) -> None:
    def bench(folder: Path) -> Bench:
        found = Bench(folder)
        found.world.line(G1, LOG.copy(50), [10])
        found.world.segments.pop()
        found.world.segment(G1, 11, 30, [(30, 30)])
        found.world.segment(G1, 31, 50)
        found.world.segment(G1, 11, 29)  # exact at 20, and reached through the first one
        found.world.publish()
        return found

    rules = Rules(since_ms=LOG.time(45))
    gone = superseded(bench(tmp_path), [(45, 50)], rules, 45)
    assert gone == [(1, 10), (11, 29), (11, 30), (31, 50)]
    pinned = Rules(since_ms=LOG.time(45), marked={20: "pin"})
    assert superseded(bench(tmp_path), [(45, 50)], pinned, 45) == []


def test_merge_takes_what_it_makes_useless_with_it(tmp_path: Path) -> None:
    bench = rebuilt(tmp_path)
    bench.pin("old", 14)
    report = bench.compact("all", window=15 * HOUR)
    assert report.sets[0].beside == 2
    assert [(s.first_seq, s.last_seq) for s in bench.segments()] == [(1, 10), (11, 20), (1, 50)]
    assert {14, *range(35, 51)} <= set(bench.assert_exact())


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_whatever_lies_around_a_compaction_goes_through_and_loses_nothing(data: st.DataObject) -> None:
    """Any heap of segments that overlap, exact or not."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        cuts = data.draw(st.lists(st.integers(1, 49), max_size=6, unique=True))
        bench.world.line(G1, LOG.copy(50), sorted(cuts))
        missing = data.draw(st.sets(st.sampled_from(bench.world.segments), max_size=2))
        bench.world.segments = [segment for segment in bench.world.segments if segment not in missing]
        for _ in range(data.draw(st.integers(0, 6))):
            first = data.draw(st.integers(1, 50))
            last = data.draw(st.integers(first, 50))
            exact = data.draw(st.none() | st.integers(first, last))
            bench.world.segment(G1, first, last, None if exact is None else [(exact, last)])
        bench.world.publish()
        before = set(bench.points())
        if 50 not in before:
            return
        pins = data.draw(st.lists(st.sampled_from(sorted(before)), max_size=2, unique=True))
        for seq in pins:
            bench.pin(f"pin {seq}", seq)
        window = data.draw(st.integers(0, 40)) * HOUR
        bench.set_policy(window_ms=window, hourly=data.draw(st.integers(0, 30)))
        since = LOG.time(50) - window
        asked = [*range(since, LOG.time(50) + 1, HOUR // 2), *hours(bench)]
        meant = {time: seq for time in asked if (seq := bench.meant(time))}
        bench.compact(data.draw(st.sampled_from(["all", "log", "auto"])))
        after = set(bench.assert_exact())
        assert {*pins, *(seq for seq in before if LOG.time(seq) > since)} <= after
        assert {time: bench.meant(time) for time in meant} == meant


def hours(bench: Bench) -> list[int]:
    head = bench.view.head
    return boundaries(Policy.of(head), LOG.time(50))


def test_time_between_two_segments_that_overlap_means_what_it_meant(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.world.line(G1, LOG.copy(50), [1, 2])
    bench.world.segment(G1, 1, 20)
    bench.world.publish()
    bench.set_policy(window_ms=0, hourly=30)
    time = LOG.time(21) - 1
    assert bench.meant(time) == 20
    bench.compact("all")
    assert bench.meant(time) == 20
