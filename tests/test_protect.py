"""What a set protects, against the definition: what a time meant before the merge, it means after it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compactor.compaction.protect import Protection, Rules, Span, protect, rules_of, spans_of, still_offered
from compactor.generations import Pin
from compactor.policy import Policy, boundaries
from ourdb.errors import DamageError
from ourdb.merge import MergePlan, SourceColumns, plan_merge
from ourdb.record import BATCH_GOES_ON, gather_headers
from ourdb.segment.columns import Columns, columns_of
from ourdb.segment.summary import Summary, unmerged_summary
from tests.worlds import DAY_0, Log, memory_world, writes

TIMES = st.integers(0, 60)
EVERYTHING = Rules(since_ms=None)


@st.composite
def logs(draw: st.DrawFn) -> Log:
    """Batches of one to four records, some at the same time."""
    log, time = Log(), draw(st.integers(5, 20))
    for _ in range(draw(st.integers(1, 14))):
        time += draw(st.integers(0, 5))
        ids = draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))
        log.batch([(id_, draw(st.sampled_from([b"a", b"bb", None]))) for id_ in ids], time)
    return log


def all_columns(log: Log) -> Columns:
    offsets = [0]
    for record in log.raw[:-1]:
        offsets.append(offsets[-1] + len(record))
    return columns_of(gather_headers(b"".join(log.raw), np.array(offsets)))


def source(log: Log, columns: Columns, first: int, last: int) -> SourceColumns:
    """An unmerged segment; its columns come in pieces of three."""
    own = columns[first - 1 : last]
    summary = unmerged_summary(own, log.chains[first - 1], log.highest[first - 1])
    pieces = [own[at : at + 3] for at in range(0, len(own), 3)]
    whole = SourceColumns.of_columns(summary, own)
    return SourceColumns(summary=summary, keys=whole.keys, columns=lambda *_: pieces)


def merged(sources: Sequence[SourceColumns], plan: MergePlan) -> SourceColumns:
    kept = Columns.concat(
        [
            Columns.concat(list(s.columns(1, s.summary.last_seq)))[live]
            for s, live in zip(sources, plan.live, strict=True)
        ]
    )
    return SourceColumns.of_columns(plan.summary, kept)


@st.composite
def rows(draw: st.DrawFn, log: Log) -> list[SourceColumns]:
    """The log cut into segments, some of which an earlier merge made that protected this and that."""
    columns, ends = all_columns(log), log.ends()
    cuts = sorted({*draw(st.sets(st.sampled_from(ends), max_size=5)), ends[-1]})
    row = [source(log, columns, a + 1, b) for a, b in zip([0, *cuts], cuts, strict=False)]
    begin = draw(st.integers(0, len(row)))
    end = draw(st.integers(begin, len(row)))
    if begin < end:
        sources = row[begin:end]
        inside = [seq for seq in ends if sources[0].summary.first_seq <= seq <= sources[-1].summary.last_seq]
        pins = draw(st.sets(st.sampled_from(inside), max_size=3))
        plan = plan_merge(
            sources,
            horizon=draw(st.sampled_from(inside)),
            pins=sorted(pins),
            from_start=begin == 0 and draw(st.booleans()),
        )
        row[begin:end] = [merged(sources, plan)]
    return row


def meant(log: Log, summaries: Sequence[Summary], time: int) -> int | None:
    """The point that a time means, None: nothing was written yet, or it is not exact any more."""
    before = [seq for seq in log.ends() if log.time(seq) <= time]
    if not before or not any(summary.serves(before[-1]) for summary in summaries):
        return None
    return before[-1]


def exact_points(log: Log, summaries: Sequence[Summary]) -> list[int]:
    return [seq for seq in log.ends() if any(summary.serves(seq) for summary in summaries)]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_times_mean_what_they_meant_before_the_merge(data: st.DataObject) -> None:
    log = data.draw(logs())
    row = data.draw(rows(log))
    begin = data.draw(st.integers(0, len(row) - 1))
    end = data.draw(st.integers(begin + 1, len(row)))
    sources, later = row[begin:end], row[end:]
    inside = exact_points(log, [s.summary for s in sources])
    marked = data.draw(st.sets(st.sampled_from(inside), max_size=3)) if inside else set()
    since = data.draw(TIMES)
    boundaries = sorted(data.draw(st.sets(TIMES, max_size=3)))
    newest = data.draw(st.integers(1, 9))
    branches = data.draw(st.sets(st.sampled_from(sorted(marked)), max_size=2)) if marked else set()
    rules = Rules(
        since_ms=since,
        boundaries=boundaries,
        newest=newest,
        marked=dict.fromkeys(marked, "a pin"),
        branches=frozenset(branches),
    )
    kept = protect(sources, rules, later=[s.summary.last_seq for s in later])
    plan = plan_merge(sources, horizon=kept.horizon, pins=kept.pins, from_start=False)
    before = [s.summary for s in row]
    after = [s.summary for s in row[:begin]] + [plan.summary] + [s.summary for s in later]

    for time in [*range(since, 100), *boundaries]:
        assert meant(log, after, time) == meant(log, before, time)
    offered = exact_points(log, after)
    assert marked <= set(offered)

    # nothing is kept that nobody asked for
    wanted = {plan.summary.last_seq, *marked, *inside[max(0, len(inside) - max(0, newest - len(later))) :]}
    for branch in branches:  # all of them lie in the sources
        wanted |= set([seq for seq in inside if seq <= branch][-newest:])
    wanted |= {seq for seq in inside if log.time(seq) > since}
    wanted |= {seq for time in (since, *boundaries) if (seq := meant(log, before, time))}
    assert {seq for seq in offered if plan.summary.first_seq <= seq <= plan.summary.last_seq} == wanted & set(
        inside
    )


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_run_serves_a_time_if_it_holds_what_that_means(data: st.DataObject) -> None:
    log = data.draw(logs())
    row = data.draw(rows(log))
    spans = spans_of((s.summary.first_time, s.summary.runs) for s in row)
    for time in range(100):
        point = meant(log, [s.summary for s in row], time)
        serving = [span.run for span in spans if span.run.first_time <= time < span.until_ms]
        if point is None:
            assert not serving
        else:
            assert [run.first_seq <= point <= run.last_seq for run in serving] == [True]


def three(count: int = 9) -> tuple[Log, list[SourceColumns]]:
    """Nine batches of one at 10, 20, ... ms, three a segment."""
    log = Log()
    for number in range(1, count + 1):
        log.batch([(number % 2, b"value")], number * 10)
    columns = all_columns(log)
    return log, [source(log, columns, first, first + 2) for first in (1, 4, 7)]


def test_no_window_keeps_everything() -> None:
    _, row = three()
    assert protect(row, EVERYTHING) == Protection(horizon=None)


@pytest.mark.parametrize(
    ("since", "horizon"), [(5, 1), (10, 1), (45, 4), (59, 5), (60, 6), (89, 8), (90, 9), (1000, 9)]
)
def test_horizon_is_the_last_batch_end_before_the_window(since: int, horizon: int) -> None:
    _, row = three()
    assert protect(row, Rules(since_ms=since)) == Protection(horizon=horizon)


def test_boundary_whose_point_lies_behind_the_set_keeps_nothing() -> None:
    _, row = three()
    rules = Rules(since_ms=1000, boundaries=[65, 75])
    assert protect(row[:2], rules, later=[9]).points == {}
    assert protect(row[:2], Rules(since_ms=1000, boundaries=[45]), later=[9]).pins == (4,)


def test_what_is_kept_says_why() -> None:
    _, row = three()
    rules = Rules(since_ms=85, boundaries=[25, 86, 99], marked={5: "pin monday", 8: "pin tuesday"})
    kept = protect(row, rules)
    assert kept.horizon == 8
    assert kept.points == {2: "the state at 1970-01-01T00:00:00.025Z", 5: "pin monday"}


def test_newest_points_behind_the_set_count() -> None:
    _, row = three()
    rules = Rules(since_ms=1000, newest=4)
    assert protect(row, rules).horizon == 6
    assert protect(row[:2], rules, later=[9]).horizon == 4
    assert protect(row[:2], rules, later=[7, 8, 9]).horizon == 6
    assert protect(row[:2], rules, later=range(7, 16)).horizon == 6
    assert protect(row, Rules(since_ms=1000, newest=100)).horizon == 1


def test_pin_that_an_earlier_merge_gave_up_is_not_claimed() -> None:
    _, row = three()
    plan = plan_merge(row[:2], horizon=6, pins=(), from_start=True)
    kept = protect([merged(row[:2], plan), row[2]], Rules(since_ms=1000, marked={4: "pin", 6: "pin"}))
    assert kept.pins == (6,)


def test_pin_that_came_later_is_missed_only_where_the_sources_had_it() -> None:
    _, row = three()
    spans = spans_of((s.summary.first_time, s.summary.runs) for s in row)
    runs = plan_merge(row, horizon=7, pins=(2,), from_start=True).runs
    assert still_offered([2, 8, 99], spans, runs)
    assert not still_offered([2, 3], spans, runs)
    assert still_offered([3], [Span(run, 1000) for run in runs], runs)


def test_columns_without_the_first_batch_end_of_their_run_are_damage() -> None:
    log, row = three()
    columns = all_columns(log)[:3]
    columns.flags[:2] |= BATCH_GOES_ON
    damaged = SourceColumns.of_columns(row[0].summary, columns)
    with pytest.raises(DamageError, match="seq 1"):
        protect([damaged], Rules(since_ms=15))


def test_rules_of_a_head_name_its_pins_and_branch_points() -> None:
    world = memory_world()
    world.line("a" * 16, writes(9), [4])
    world.line("b" * 16, writes(12), parent=("a" * 16, 6))
    world.pins = (Pin(name="monday", generation="a" * 16, seq=3, time=DAY_0),)
    world.publish()
    head = world.view.head
    policy = Policy(window_ms=1000, last=5, daily=1)
    rules = rules_of(head, "a" * 16, policy, DAY_0 + 9000)
    assert rules.marked == {3: "pin monday", 6: f"branch point of generation {'b' * 16}"}
    assert rules.branches == {6}
    assert (rules.since_ms, rules.newest, list(rules.boundaries)) == (
        DAY_0 + 8000,
        5,
        boundaries(policy, DAY_0),
    )
    assert rules_of(head, "b" * 16, Policy(), 0) == Rules(since_ms=None, boundaries=[])


def test_newest_points_before_a_branch_that_lies_behind_count_those_between() -> None:
    _, row = three()
    rules = Rules(since_ms=1000, newest=4, marked={8: "branch point"}, branches=frozenset({8}))
    kept = protect(row[:2], rules, later=[7, 8, 9])
    assert (kept.pins, kept.horizon) == ((5,), 6)
    assert protect(row, rules).pins == (5,)
