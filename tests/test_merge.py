"""Merging: what lives and what stays exact, compared with a naive reference over random histories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ourdb.liveness
from ourdb.errors import DamageError, InvalidError
from ourdb.merge import MergePlan, SourceColumns, fold_ranges, plan_merge
from ourdb.segment.claims import ClaimChecker
from ourdb.segment.columns import Columns
from ourdb.segment.summary import Stretch, Summary, cut_summary, fold_run
from tests.segment_tools import Log, build, open_bytes, plain_log


@dataclass(frozen=True)
class Part:
    """A segment of a log as the reference sees it: which seqs it has, and at which it is exact."""

    summary: Summary
    kept: frozenset[int]
    exact: frozenset[int]


def in_pieces(summary: Summary, columns: Columns, size: int) -> SourceColumns:
    """A source whose columns come in pieces of a few records."""
    pieces = [columns[at : at + size] for at in range(0, len(columns), size)]
    keys = [ourdb.liveness.Keys(piece.id, piece.seq, piece.flags) for piece in pieces]
    return SourceColumns(summary=summary, keys=lambda *_: keys, columns=lambda *_: pieces)


def source_of(log: Log, part: Part, size: int = 5) -> SourceColumns:
    return in_pieces(part.summary, log.columns(sorted(part.kept)), size)


def unmerged(log: Log, first: int, last: int) -> Part:
    everything = frozenset(range(first, last + 1))
    return Part(log.summary(first, last), everything, everything)


def reference(
    log: Log, parts: Sequence[Part], horizon: int, pins: set[int], versions: int, from_start: bool
) -> tuple[set[int], set[int]]:
    """Seqs kept and seqs exact, by definition: one version at a time."""
    last = parts[-1].summary.last_seq
    can = {seq for part in parts for seq in part.exact}
    exact = {seq for seq in can if seq >= horizon or seq in pins or seq == last}
    by_id: dict[int, list[int]] = {}
    for seq in sorted(seq for part in parts for seq in part.kept):
        by_id.setdefault(log.writes[seq - 1][0], []).append(seq)
    kept: set[int] = set()
    for seqs in by_id.values():
        ends = [*seqs[1:], last + 1]
        live = [
            seq
            for at, (seq, end) in enumerate(zip(seqs, ends, strict=True))
            if any(seq <= point < end for point in exact) or at >= len(seqs) - versions
        ]
        while from_start and live and log.writes[live[0] - 1][1] is None and live[0] not in exact:
            live.pop(0)
        kept.update(live)
    return kept, exact


def seqs_of(summary: Summary) -> set[int]:
    return {seq for run in summary.runs for seq in range(run.first_seq, run.last_seq + 1)}


def check_merge(log: Log, parts: Sequence[Part], plan: MergePlan, kept: set[int], exact: set[int]) -> Part:
    """The plan is the reference's, its claims are true of the log, and its records bear them out."""
    columns = Columns.concat(
        [log.columns(sorted(part.kept))[mask] for part, mask in zip(parts, plan.live, strict=True)]
    )
    assert columns.seq.tolist() == sorted(kept)
    assert seqs_of(plan.summary) == exact
    assert plan.summary.records == len(kept)
    assert plan.summary.highest_id == log.tops[plan.summary.last_seq]
    assert plan.summary.level == 1 + max(part.summary.level for part in parts)
    claims = ClaimChecker(plan.summary)
    for at in range(0, len(columns), 3):
        claims.add(columns[at : at + 3])
    claims.finish()
    ends = set(log.batch_ends())
    for run in plan.summary.runs:
        assert run.chain_before == log.chains[run.first_seq - 1]
        assert run.chain_after == log.chains[run.last_seq]
        assert run.highest_before == log.tops[run.first_seq - 1]
        inside = [seq for seq in range(run.first_seq, run.last_seq + 1) if seq in ends]
        assert (run.first_time, run.last_time) == (log.time(inside[0]), log.time(inside[-1]))
        assert run.next_time == (
            None if run.last_seq == plan.summary.last_seq else log.time(run.last_seq + 1)
        )
        for seq in inside:
            assert fold_run(columns, run, seq) == (log.tops[seq], log.chains[seq])
    return Part(plan.summary, frozenset(kept), frozenset(exact))


@st.composite
def logs(draw: st.DrawFn) -> Log:
    count = draw(st.integers(3, 30))
    time_ms, writes = 1000, []
    for at in range(count):
        goes_on = at < count - 1 and draw(st.booleans())
        id_ = draw(st.sampled_from([0, 1, 2, 5, 2**32 - 1]))
        value = draw(st.sampled_from([None, b"", b"value"]))
        writes.append((id_, value, time_ms, goes_on))
        if not goes_on:
            time_ms += draw(st.integers(0, 2))
    return Log(writes)


@given(data=st.data(), log=logs())
@settings(max_examples=150, deadline=None)
def test_merges_of_a_random_history_keep_what_the_reference_keeps(data: st.DataObject, log: Log) -> None:
    ends = log.batch_ends()
    cuts = sorted({end for end in ends if data.draw(st.booleans())} | {ends[-1]})
    live = [unmerged(log, first + 1, last) for first, last in zip([0, *cuts], cuts, strict=False)]
    pins: set[int] = set()
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(live) - 1))
        parts = live[at : data.draw(st.integers(at + 1, len(live)))]
        exact = {seq for part in live for seq in part.exact}
        pins |= {end for end in ends if end in exact and data.draw(st.integers(0, 4)) == 0}
        horizon = data.draw(st.integers(1, len(log) + 2))
        versions = data.draw(st.sampled_from([0, 0, 1, 2]))
        from_start = parts[0].summary.first_seq == 1 and data.draw(st.booleans())
        wanted = reference(log, parts, horizon, pins, versions, from_start)
        plan = plan_merge(
            [source_of(log, part, data.draw(st.integers(1, 6))) for part in parts],
            horizon=horizon,
            pins=sorted(pins),
            keep_versions=versions,
            from_start=from_start,
        )
        merged = check_merge(log, parts, plan, *wanted)
        live[at : at + len(parts)] = [merged]
    everything = set().union(*(part.kept for part in live))
    for target in ends:
        tail = next(part for part in live if target <= part.summary.last_seq)
        if target in tail.exact:
            whole = log.state(range(1, target + 1), target)
            assert log.state(everything, target) == whole
            cut = cut_summary(tail.summary, log.columns(sorted(tail.kept)), target)
            assert (cut.last_seq, cut.last_time) == (target, log.time(target))
            assert (cut.chain_after, cut.highest_id) == (log.chains[target], log.tops[target])
            assert cut.records == len([seq for seq in tail.kept if seq <= target])


def test_horizon_none_drops_nothing_and_keeps_exactness() -> None:
    log = plain_log(40)
    parts = [unmerged(log, 1, 20), unmerged(log, 21, 40)]
    first = plan_merge([source_of(log, parts[0])], horizon=15, pins=[4], keep_versions=2, from_start=True)
    kept, exact = reference(log, parts[:1], 15, {4}, 2, True)
    parts[0] = check_merge(log, parts[:1], first, kept, exact)

    plan = plan_merge([source_of(log, part) for part in parts], horizon=None, pins=[], from_start=True)

    check_merge(log, parts, plan, kept | set(range(21, 41)), exact | set(range(21, 41)))


def test_sparse_ids_give_the_same_as_dense_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(7)
    dense = rng.integers(0, 40, 300)
    writes = [
        (int(id_), None if rng.random() < 0.3 else b"x", 1000 + at, False) for at, id_ in enumerate(dense)
    ]
    sparse = Log([(id_ * 100_000_007 % 2**32, *rest) for id_, *rest in writes])  # type: ignore[list-item]
    monkeypatch.setattr(ourdb.liveness, "PART_RECORDS", 16)
    masks = []
    for log in (Log(writes), sparse):
        sources = [
            in_pieces(log.summary(a, b), log.columns(range(a, b + 1)), 50) for a, b in ((1, 120), (121, 300))
        ]
        plan = plan_merge(sources, horizon=250, pins=[60, 130], keep_versions=2, from_start=True)
        masks.append(np.concatenate(plan.live).tolist())
    assert masks[0] == masks[1]
    assert not all(masks[0])


def test_pin_that_an_earlier_merge_gave_up_is_refused() -> None:
    log = plain_log(20)
    plan = plan_merge([source_of(log, unmerged(log, 1, 20))], horizon=15, pins=[], from_start=False)
    columns = log.columns()[plan.live[0]]

    with pytest.raises(InvalidError, match="gave it up: seq 7"):
        plan_merge([in_pieces(plan.summary, columns, 9)], horizon=18, pins=[7], from_start=False)


def test_pin_inside_a_batch_is_refused() -> None:
    log = Log([(1, b"a", 5, False), (2, b"b", 6, True), (3, b"c", 6, False)])
    with pytest.raises(InvalidError, match="does not end a batch: seq 2"):
        plan_merge([source_of(log, unmerged(log, 1, 3))], horizon=3, pins=[2], from_start=False)


def test_sources_with_a_gap_or_other_chain_are_refused() -> None:
    log, other = plain_log(30), plain_log(30, size=40)
    for second in (unmerged(log, 12, 30), unmerged(other, 11, 30)):
        parts = [source_of(log, unmerged(log, 1, 10)), source_of(log, second)]
        with pytest.raises(InvalidError, match="do not join"):
            plan_merge(parts, horizon=None, pins=[], from_start=False)


def test_merge_that_does_not_begin_at_seq_one_cannot_drop_tombstones() -> None:
    log = plain_log(20)
    with pytest.raises(InvalidError, match="does not begin at seq 1"):
        plan_merge([source_of(log, unmerged(log, 5, 20))], horizon=None, pins=[], from_start=True)
    with pytest.raises(InvalidError, match="at least one source"):
        plan_merge([], horizon=None, pins=[], from_start=False)


def test_tombstone_stays_unless_the_merge_begins_at_the_start() -> None:
    log = Log([(1, b"a", 5, False), (1, None, 6, False), (2, b"b", 7, False)])
    source = source_of(log, unmerged(log, 1, 3))
    kept = {
        from_start: plan_merge([source], horizon=3, pins=[], from_start=from_start).live[0].tolist()
        for from_start in (False, True)
    }
    assert kept == {False: [False, True, True], True: [False, False, True]}


def test_tombstone_between_versions_that_stay_is_kept() -> None:
    log = Log(
        [
            (1, b"a", 5, False),
            (1, None, 6, False),
            (2, b"b", 7, False),
            (1, b"c", 8, False),
            (2, b"d", 9, False),
        ]
    )
    source = SourceColumns.of_columns(log.summary(1, 5), log.columns())
    plan = plan_merge([source], horizon=5, pins=[1, 3], from_start=True)
    kept = [seq for seq, live in enumerate(plan.live[0].tolist(), 1) if live]
    assert kept == [1, 2, 3, 4, 5]
    assert log.state(kept, 3) == {2: b"b"}


def as_part(summary: Summary, part: int, parts: int, *, runs: bool) -> Summary:
    """A summary as if the segment were a part of a stretch that was cut."""
    return replace(
        summary,
        stretch=Stretch(99, part, parts),
        runs=summary.runs if runs else (),
        chain_before=summary.chain_before if part == 1 else None,
        chain_after=summary.chain_after if part == parts else None,
    )


def test_parts_of_a_stretch_are_merged_only_all_together() -> None:
    log = plain_log(30)
    summaries = [
        as_part(log.summary(1, 10), 1, 3, runs=False),
        as_part(log.summary(11, 20), 2, 3, runs=False),
    ]
    last = log.summary(30, 30)
    summaries.append(replace(as_part(log.summary(21, 30), 3, 3, runs=False), runs=last.runs))
    sources = [
        in_pieces(summary, log.columns(range(summary.first_seq, summary.last_seq + 1)), 4)
        for summary in summaries
    ]

    plan = plan_merge(sources, horizon=5, pins=[], from_start=False)

    assert seqs_of(plan.summary) == {30}
    assert plan.summary.stretch is None
    assert (plan.summary.chain_before, plan.summary.chain_after) == (0, log.chains[30])
    for some in (sources[:2], sources[1:], sources[2:]):
        with pytest.raises(InvalidError, match="of a stretch is missing"):
            plan_merge(some, horizon=5, pins=[], from_start=False)


def test_sources_that_are_not_exact_at_their_end_are_refused() -> None:
    log = plain_log(10)
    parts = [as_part(log.summary(1, 5), 1, 2, runs=False), as_part(log.summary(6, 10), 2, 2, runs=False)]
    sources = [in_pieces(p, log.columns(range(p.first_seq, p.last_seq + 1)), 4) for p in parts]
    with pytest.raises(InvalidError, match="not exact at their end: seq 10"):
        plan_merge(sources, horizon=None, pins=[], from_start=False)


def test_records_missing_in_a_run_are_damage() -> None:
    log = plain_log(20)
    without = log.columns([seq for seq in range(1, 21) if seq != 9])
    with pytest.raises(DamageError, match="records"):
        plan_merge([in_pieces(log.summary(1, 20), without, 6)], horizon=15, pins=[], from_start=False)


def test_chain_that_the_records_do_not_give_is_damage() -> None:
    log = plain_log(20)
    run = replace(log.summary(1, 20).runs[0], chain_after=1)
    with pytest.raises(DamageError, match="chain at seq 20"):
        fold_ranges(run, [(5, 20)], lambda *_: [log.columns()])


def test_segments_are_merged_through_their_readers() -> None:
    log = plain_log(400)
    parts = [unmerged(log, 1, 250), unmerged(log, 251, 400)]
    readers = [open_bytes(build(log, part.summary, sorted(part.kept), target=900)) for part in parts]

    plan = plan_merge([SourceColumns.of_reader(r) for r in readers], horizon=300, pins=[100], from_start=True)

    kept, exact = reference(log, parts, 300, {100}, 0, True)
    merged = check_merge(log, parts, plan, kept, exact)
    reader = open_bytes(build(log, merged.summary, sorted(kept), target=900))
    reader.check_all()
    assert reader.summary == plan.summary
    assert (
        plan_merge(
            [SourceColumns.of_columns(log.summary(1, 400), log.columns())],
            horizon=300,
            pins=[100],
            from_start=True,
        ).runs
        == plan.runs
    )
