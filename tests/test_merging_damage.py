"""Merging what is damaged, gone, or comes out wrong: an error that names the object, and nothing is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest

import compactor.fetch
import compactor.merging.merge
from compactor.merging import Merge
from compactor.merging.compare import compare_states
from compactor.store.base import NoSuchKey
from ourdb.errors import DamageError
from ourdb.record import gather_headers
from ourdb.segment.columns import Columns, columns_of
from ourdb.segment.header import HEADER_BYTES
from ourdb.segment.summary import Run
from tests.merging_tools import G1, merger_of, steps_of, world_of
from tests.worlds import DAY_0, Log, World, Write


@pytest.fixture
def world() -> World:
    """Every other record is overwritten, so that each block is mixed, or whole if all is kept."""
    return world_of(Log(Write(n % 2 * n, b"%d" % n * 9, DAY_0 + n) for n in range(1, 301)), 100, 200)


def merge(world: World, horizon: int | None = None) -> None:
    with merger_of(world) as merger:
        sources = merger.open(steps_of(world.segments))
        Merge.of(sources, horizon=horizon, pins=(), from_start=True).write(generation=G1, made=1)


def assert_named(world: World, number: int, act: Callable[[], None]) -> None:
    """It fails on this segment, and writes nothing."""
    before = {stat.key for page in world.store.list() for stat in page.entries}
    with pytest.raises(DamageError) as caught:
        act()
    assert caught.value.kind == "store_damaged"
    assert caught.value.fields["key"] == world.segments[number].key
    assert {stat.key for page in world.store.list() for stat in page.entries} == before


@pytest.mark.parametrize("horizon", [None, 290])
@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("tail", [1, 1 << 16])
def test_damaged_block_is_found_and_named(
    world: World, monkeypatch: pytest.MonkeyPatch, number: int, horizon: int | None, tail: int
) -> None:
    """Whether it is copied as it is or decoded, and whether it came with the index or not."""
    monkeypatch.setattr(compactor.fetch, "TAIL_BYTES", tail)
    entry = world.segments[number]
    world.flip(entry.key, entry.bytes - entry.index_bytes - 300)
    assert_named(world, number, lambda: merge(world, horizon))


@pytest.mark.parametrize("number", [0, 2])
@pytest.mark.parametrize("offset", [-1, -200, -500])
def test_damaged_index_is_found_and_named(world: World, number: int, offset: int) -> None:
    world.flip(world.segments[number].key, offset)
    assert_named(world, number, lambda: merge(world))


def test_damaged_header_is_found_and_named(world: World) -> None:
    world.flip(world.segments[0].key, HEADER_BYTES - 20)
    assert_named(world, 0, lambda: merge(world))


def test_segment_that_is_another_one_is_found_and_named(world: World) -> None:
    other = world.store.get(world.segments[0].key).data
    world.change_object(world.segments[1].key, lambda data: other[: len(data)].ljust(len(data), b"\0"))
    assert_named(world, 1, lambda: merge(world))


def test_damaged_block_in_which_nothing_lives_does_no_harm() -> None:
    log = Log(Write(n % 5, b"%d" % n, DAY_0 + n) for n in range(60))
    world = world_of(log, 30)
    world.flip(world.segments[0].key, HEADER_BYTES + 5)
    merge(world, horizon=60)


def test_source_that_is_gone_is_no_damage(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compactor.fetch, "TAIL_BYTES", 1)
    key = world.segments[1].key
    with merger_of(world) as merger:
        plan = Merge.of(merger.open(steps_of(world.segments)), horizon=None, pins=(), from_start=True)
        assert not world.store.delete_many([key])
        with pytest.raises(NoSuchKey) as caught:
            plan.write(generation=G1, made=1)
        assert caught.value.fields["key"] == key
        with pytest.raises(NoSuchKey) as caught:
            merger.open(steps_of(world.segments))
        assert caught.value.fields["key"] == key


def test_source_that_is_another_object_now_is_not_copied(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compactor.fetch, "TAIL_BYTES", 1)
    with merger_of(world) as merger:
        sources = merger.open(steps_of(world.segments))
        plan = Merge.of(sources, horizon=None, pins=(), from_start=True)
        world.flip(world.segments[1].key, HEADER_BYTES + 5)
        with pytest.raises(DamageError) as caught:
            plan.write(generation=G1, made=1)
        assert caught.value.fields["key"] == world.segments[1].key


def test_result_that_is_not_what_was_written_is_damage(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that answers with an older merge of the same range, or with other bytes."""
    with merger_of(world) as merger:
        sources = merger.open(steps_of(world.segments))
        narrow = Merge.of(sources, horizon=250, pins=(), from_start=True)
        wide = Merge.of(sources, horizon=50, pins=(), from_start=True)
        first = narrow.write(generation=G1, made=1, random_u64=lambda: 7).entries[0]
        real = world.store.assemble

        def swapped(key, pieces, **options):  # type: ignore[no-untyped-def]
            stat = real(key, pieces, **options)
            world.change_object(key, lambda data: world.store.get(first.key).data)
            return stat

        monkeypatch.setattr(world.store, "assemble", swapped)
        with pytest.raises(DamageError) as caught:
            wide.write(generation=G1, made=1)
        assert caught.value.fields["key"] not in {entry.key for entry in (*world.segments, first)}


def test_index_that_was_altered_on_its_way_is_damage(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    real = world.store.assemble

    def altering(key, pieces, **options):  # type: ignore[no-untyped-def]
        stat = real(key, pieces, **options)
        world.flip(key, -400)
        return stat

    monkeypatch.setattr(world.store, "assemble", altering)
    with pytest.raises(DamageError, match="checksum"):
        merge(world)


def test_merge_that_keeps_too_little_does_not_come_through(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is wrong with what decides over life and death: the states are compared without it."""
    with merger_of(world) as merger:
        sources = merger.open(steps_of(world.segments))
        plan = Merge.of(sources, horizon=280, pins=(), from_start=True)
        lost = int(np.flatnonzero(plan.live)[0])
        live = plan.live.copy()
        live[lost] = False
        records = plan.summary.records - 1
        outputs = tuple(replace(summary, records=records) for summary in plan.outputs)
        with pytest.raises(DamageError, match="does not hold the state of its sources at seq 280") as caught:
            replace(plan, live=live, outputs=outputs).write(generation=G1, made=1)
        assert caught.value.kind == "store_damaged"


def columns(log: Log, seqs: Sequence[int]) -> Columns:
    raw = [log.raw[seq - 1] for seq in seqs]
    return columns_of(gather_headers(b"".join(raw), np.cumsum([0, *map(len, raw[:-1])])))


def states_differ(
    log: Log, seqs: Sequence[int], runs: list[tuple[int, int]], *, from_start: bool
) -> int | None:
    """The first seq at which these records do not hold what all of them do."""

    def pieces(some: Sequence[int]) -> Iterator[Columns]:
        whole = columns(log, some)
        return iter([whole[at : at + 4] for at in range(0, len(whole), 4)])

    everything = range(1, len(log) + 1)
    exact: list[Run] = [log.run(a, b, len(log)) for a, b in runs]
    try:
        compare_states(
            lambda: pieces(everything), lambda: pieces(seqs), exact, from_start=from_start, records=len(log)
        )
    except DamageError as error:
        return int(error.fields["seq"])
    return None


@pytest.mark.parametrize("spread", [1, 100_000_007])
@pytest.mark.parametrize("slots", [3, 1 << 20])
def test_states_are_told_apart(monkeypatch: pytest.MonkeyPatch, spread: int, slots: int) -> None:
    monkeypatch.setattr("compactor.merging.compare.SLOTS_MAX", slots)
    log = Log(
        Write(n * 7 % 11 * spread % 2**32, None if n % 6 == 0 else b"%d" % n, DAY_0 + n) for n in range(1, 61)
    )
    runs = [(20, 20), (40, 60)]
    kept = log.kept(1, 60, runs)
    assert states_differ(log, kept, runs, from_start=False) is None
    assert states_differ(log, range(1, 61), runs, from_start=False) is None
    for missing in kept:
        found = states_differ(log, [seq for seq in kept if seq != missing], runs, from_start=False)
        needed = [point for point in (20, 40, 60) if missing in newest(log, point)]
        assert found == (needed[0] if needed else None)


def newest(log: Log, point: int) -> set[int]:
    """The seqs of the newest records at a point."""
    return set({log.writes[seq - 1].id: seq for seq in range(1, point + 1)}.values())


def test_deletions_count_unless_nothing_lies_before() -> None:
    log = Log([Write(1, b"a", DAY_0), Write(1, None, DAY_0), Write(2, b"b", DAY_0)])
    assert states_differ(log, [3], [(3, 3)], from_start=True) is None
    assert states_differ(log, [3], [(3, 3)], from_start=False) == 3
    assert states_differ(log, [1, 3], [(3, 3)], from_start=True) == 3


def test_an_id_that_the_sources_have_not_is_damage() -> None:
    log = Log([Write(5, b"a", DAY_0), Write(7, b"b", DAY_0)])
    some, other = columns(log, [1]), columns(log, [2])
    for ids in (7, 4_000_000_000):
        other = replace(other, id=np.array([ids], np.uint32))
        with pytest.raises(DamageError, match="an id that its sources have not"):
            compare_states(lambda: [some], lambda o=other: [some, o], [], from_start=True, records=1)  # type: ignore[misc]
