"""Merging segments of a store, compared with the plainest merge there is over random histories."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import compactor.fetch
import compactor.merging.compare
import compactor.merging.records
import compactor.merging.writer
from compactor.entries import SegmentEntry
from compactor.merging import Merge, Merger, Written
from compactor.path import Step
from ourdb.errors import InvalidError
from ourdb.segment.summary import Summary
from tests.merging_tools import (
    G1,
    G2,
    exact_seqs,
    keep,
    merger_of,
    read_segment,
    records_of,
    steps_of,
    world_of,
)
from tests.worlds import DAY_0, Log, World, memory_world, writes

VALUES = (None, b"", b"value ", b"v" * 60, b"w" * 300)


@st.composite
def histories(draw: st.DrawFn, log: Log | None = None) -> Log:
    log = log or Log()
    time = log.time(len(log)) if len(log) else DAY_0
    for _ in range(draw(st.integers(2, 14))):
        time += draw(st.sampled_from([0, 1, 1000]))
        ids = draw(st.lists(st.sampled_from([0, 1, 2, 5, 2**32 - 1]), min_size=1, max_size=5))
        log.batch([(id_, draw(st.sampled_from(VALUES))) for id_ in ids], time)
    return log


@st.composite
def cuts(draw: st.DrawFn, log: Log, start: int = 0) -> list[int]:
    return [end for end in log.ends() if start < end < len(log) and draw(st.integers(0, 2)) == 0]


def whole_stretches(entries: Sequence[SegmentEntry], begin: int, end: int) -> list[SegmentEntry]:
    """The entries of a range, and the parts beside it of the stretches in it."""
    while begin and (found := entries[begin].stretch) and found.part > 1:
        begin -= 1
    while (found := entries[end - 1].stretch) and found.part < found.parts:
        end += 1
    return list(entries[begin:end])


def merged_as_the_reference_says(
    data: st.DataObject, world: World, log: Log, merger: Merger, steps: list[Step], generation: str
) -> Written:
    """Merges in a way that is drawn, and checks everything that comes out."""
    sources = merger.open(steps)
    last = steps[-1].upto
    exact = exact_seqs(source.summary for source in sources.columns)
    points = sorted(exact & set(log.ends()))
    horizon = data.draw(st.none() | st.integers(1, len(log) + 1), label="horizon")
    pins = [seq for seq in points if data.draw(st.integers(0, 5), label="pin") == 0]
    versions = data.draw(st.sampled_from([0, 0, 1, 2]), label="keep_versions")
    from_start = steps[0].segment.first_seq == 1
    wanted, still = keep(
        records_of(world.store, steps),
        exact,
        last,
        horizon=horizon,
        pins=pins,
        versions=versions,
        from_start=from_start,
    )
    merge = Merge.of(
        sources,
        horizon=horizon,
        pins=pins,
        keep_versions=versions,
        from_start=from_start,
        stretch_max=data.draw(st.sampled_from([200, 700, 1 << 40]), label="stretch_max"),
        copy_min=data.draw(st.sampled_from([1, 150, 1 << 40]), label="copy_min"),
    )
    written = merge.write(generation=generation, made=9)
    entries = written.entries
    assert records_of(world.store, steps_of(entries)) == wanted
    assert exact_seqs(entry.summary() for entry in entries) == still
    assert [entry.summary() for entry in entries] == list(merge.outputs)
    assert {(entry.generation, entry.made) for entry in entries} == {(generation, 9)}
    assert (entries[0].first_seq, entries[-1].last_seq) == (steps[0].segment.first_seq, last)
    assert merge.drops == (len(wanted) < merge.figures.records_before)
    assert written.figures.bytes_after == sum(entry.bytes for entry in entries)
    assert written.figures.records_after == len(wanted)
    assert written.figures.bytes_decoded == merge.figures.bytes_decoded
    if merge.copy_min > 1_000_000:  # what is shorter no store copies, and it is fetched instead
        assert written.figures.bytes_fetched == merge.figures.bytes_fetched
    assert_true_of(log, merge.outputs)
    return written


def assert_true_of(log: Log, summaries: Sequence[Summary]) -> None:
    """What they claim of the history."""
    for summary in summaries:
        for run in summary.runs:
            assert run == log.run(run.first_seq, run.last_seq, summary.last_seq)
        for seq, chain in (
            (summary.first_seq - 1, summary.chain_before),
            (summary.last_seq, summary.chain_after),
        ):
            assert chain in (log.chains[seq], None)
        assert summary.highest_id in (log.highest[summary.last_seq], None)
    assert summaries[0].chain_before is not None
    assert summaries[-1].chain_after is not None
    assert summaries[-1].highest_id is not None


@given(data=st.data(), log=histories())
@settings(max_examples=80, deadline=None)
def test_merges_of_a_random_history_hold_what_the_reference_keeps(data: st.DataObject, log: Log) -> None:
    world = world_of(log, *data.draw(cuts(log)))
    live = sorted(world.segments, key=lambda entry: entry.order)
    with pytest.MonkeyPatch.context() as patch, merger_of(world, threads=2) as merger:
        patch.setattr(compactor.fetch, "TAIL_BYTES", data.draw(st.sampled_from([1, 1 << 16]), label="tail"))
        patch.setattr(compactor.merging.records, "PIECE_RECORDS", data.draw(st.sampled_from([1, 7, 1000])))
        patch.setattr(compactor.merging.compare, "SLOTS_MAX", data.draw(st.sampled_from([2, 1000])))
        patch.setattr(compactor.merging.writer, "TASK_BYTES", data.draw(st.sampled_from([1, 500, 1 << 20])))
        for _ in range(data.draw(st.integers(1, 3), label="merges")):
            begin = data.draw(st.integers(0, len(live) - 1), label="from")
            some = whole_stretches(live, begin, data.draw(st.integers(begin + 1, len(live)), label="to"))
            written = merged_as_the_reference_says(data, world, log, merger, steps_of(some), G1)
            at = live.index(some[0])
            live[at : at + len(some)] = written.entries


@given(data=st.data(), log=histories())
@settings(max_examples=40, deadline=None)
def test_merge_across_a_branch_point_holds_what_the_reference_keeps(data: st.DataObject, log: Log) -> None:
    world = world_of(log, *data.draw(cuts(log)))
    branch = data.draw(st.sampled_from(log.ends()), label="branch")
    second = data.draw(histories(log.copy(branch)))
    world.line(G2, second, data.draw(cuts(second, branch)), parent=(G1, branch))
    segments = sorted(world.segments, key=lambda entry: entry.order)
    first = [entry for entry in segments if entry.generation == G1 and entry.first_seq <= branch]
    steps = steps_of(first, branch) + steps_of(entry for entry in segments if entry.generation == G2)
    with pytest.MonkeyPatch.context() as patch, merger_of(world) as merger:
        patch.setattr(compactor.fetch, "TAIL_BYTES", data.draw(st.sampled_from([1, 1 << 16]), label="tail"))
        merged_as_the_reference_says(data, world, second, merger, steps, G2)


def plan(merger: Merger, steps: Sequence[Step], **options: object) -> Merge:
    wanted = {"horizon": None, "pins": (), "from_start": steps[0].segment.first_seq == 1} | options
    return Merge.of(merger.open(steps), **wanted)  # type: ignore[arg-type]


def test_files_are_byte_by_byte_what_the_store_would_have(tmp_path: Path) -> None:
    world = world_of(writes(300, ids=150), 20, 45, 180)
    with merger_of(world) as merger:
        merge = plan(merger, steps_of(world.segments), horizon=200, pins=[50], copy_min=500, stretch_max=900)
        written = merge.write(generation=G1, made=4, random_u64=iter(range(99)).__next__)
        before = merger.store.requests.counts()["PUT"]
        paths = merge.write_files(
            tmp_path / "out", generation=G1, made=4, random_u64=iter(range(99)).__next__
        )
    assert len(paths) > 2
    assert [path.relative_to(tmp_path / "out").as_posix() for path in paths] == [
        e.key for e in written.entries
    ]
    assert [path.read_bytes() for path in paths] == [world.store.get(e.key).data for e in written.entries]
    assert world.store.requests.counts()["PUT"] == before


def test_parts_are_cut_only_where_nothing_is_exact() -> None:
    log = writes(400, ids=200)
    world = world_of(log, 150)
    with merger_of(world) as merger:
        merge = plan(merger, steps_of(world.segments), horizon=300, pins=[100], stretch_max=2_000)
    stretches = [summary.stretch for summary in merge.outputs]
    assert [summary.exact for summary in merge.outputs] == [bool(s is None) for s in stretches]
    assert stretches[-1] is None
    assert merge.outputs[-1].first_seq == 301  # the stretch ends at the horizon's first point
    parts = [stretch for stretch in stretches if stretch]
    assert len({stretch.id for stretch in parts}) == 2  # one before the pin, one behind it


def test_a_step_that_begins_inside_of_its_segment_is_refused() -> None:
    world = world_of(writes(30), 10)
    steps = steps_of(world.segments)
    with merger_of(world) as merger:
        with pytest.raises(InvalidError, match="from its start on"):
            merger.open([steps[0]._replace(after=3)])
        with pytest.raises(InvalidError, match="at least one source"):
            merger.open([])


def test_a_clip_where_the_segment_is_not_exact_is_refused() -> None:
    world = memory_world()
    world.logs[G1] = writes(30)
    entry = world.segment(G1, 1, 30, [(12, 12), (25, 30)])
    with merger_of(world) as merger:
        assert len(plan(merger, steps_of([entry], 12)).outputs) == 1
        with pytest.raises(InvalidError, match="not exact at 13"):
            merger.open(steps_of([entry], 13))


def test_highest_level_counts() -> None:
    world = world_of(writes(30))
    world.segment(G1, 1, 20, level=4)
    tail = world.segment(G1, 21, 30)
    with merger_of(world) as merger:
        written = plan(merger, steps_of([world.segments[1], tail])).write(generation=G1, made=1)
    assert [entry.level for entry in written.entries] == [5]
    assert read_segment(world.store, written.entries[0]).summary.level == 5


def test_nothing_is_asked_of_the_store_to_plan() -> None:
    world = world_of(writes(200), 50, 90)
    with merger_of(world) as merger:
        sources = merger.open(steps_of(world.segments))
        before = world.store.requests.counts()
        merges = [Merge.of(sources, horizon=h, pins=[60], from_start=True) for h in (None, 1, 100, 200)]
        assert [merge.drops for merge in merges] == [False, False, True, True]
        assert all(merge.figures.requests["GET"] for merge in merges)
        assert world.store.requests.counts() == before


def test_uploads_in_parts_are_told_before_and_after() -> None:
    chance, log = random.Random(3), Log()
    for n in range(18):
        log.batch([(n, chance.randbytes(1_000_000))], DAY_0 + n)
    world = world_of(log, 9)
    told: list[tuple[str, ...]] = []
    with merger_of(world) as merger:
        written = plan(merger, steps_of(world.segments), horizon=40).write(
            generation=G1,
            made=2,
            on_begin=lambda key, upload_id: told.append(("begin", key, upload_id)),
            on_end=lambda key: told.append(("end", key)),
        )
    key = written.entries[0].key
    assert [entry[:2] for entry in told] == [("begin", key), ("end", key)]


def test_entries_say_what_a_head_names() -> None:
    world = world_of(writes(100), 30)
    with merger_of(world) as merger:
        written = plan(merger, steps_of(world.segments), horizon=60).write(generation=G1, made=2)
    world.segments = list(written.entries)
    world.publish()
    assert list(world.view.segments) == list(written.entries)
