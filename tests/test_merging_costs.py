"""What a merge fetches, copies within the store, decodes and writes: in bytes, and in requests by kind."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

import compactor.merging.writer
from compactor.merging import Merge
from compactor.store import open_store
from ourdb.segment.reader import TAIL_BYTES
from ourdb.units import MIB
from tests.merging_tools import G1, merger_of, read_segment, records_of, steps_of, world_of
from tests.worlds import DAY_0, Log, World, writes

VALUE = 8_000
BLOCK = 5 * (VALUE + 36)  # the blocks of a world have five records
_noise = random.Random(5).randbytes(16 << 20)


def noise(n: int) -> bytes:
    """A value that does not compress, nor beside its neighbours."""
    at = n * (VALUE + 9) % (len(_noise) - VALUE)
    return _noise[at : at + VALUE]


def noise_log(records: int, ids: int) -> Log:
    """Ids in turn."""
    log = Log()
    for n in range(records):
        log.batch([(n % ids, noise(n))], DAY_0 + n)
    return log


@pytest.fixture(scope="module")
def large() -> World:
    """Three segments of 17 MiB, in which every record lives."""
    return world_of(noise_log(6_600, 6_600), 2_200, 4_400)


@contextmanager
def decoding() -> Iterator[list[int]]:
    """Stored bytes of each block that a merge decodes."""
    decoded: list[int] = []
    real = compactor.merging.writer.decode_block

    def decode(entry, stored, **options):  # type: ignore[no-untyped-def]
        decoded.append(entry.stored_bytes)
        return real(entry, stored, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compactor.merging.writer, "decode_block", decode)
        yield decoded


def test_a_merge_of_large_segments_that_only_grew_fetches_indexes_only(large: World) -> None:
    world = large
    with merger_of(world) as merger:
        merge = Merge.of(merger.open(steps_of(world.segments)), horizon=None, pins=(), from_start=True)
        before = world.store.requests.counts()
        with decoding() as decoded:
            figures = merge.write(generation=G1, made=1).figures
    size = sum(entry.bytes for entry in world.segments)
    assert decoded == []
    assert figures.bytes_decoded == figures.bytes_fetched == 0
    assert figures.bytes_copied > 0.99 * size
    assert figures.index_bytes < 0.03 * size
    assert figures.bytes_written < 0.01 * size
    sent = {kind: count - before[kind] for kind, count in world.store.requests.counts().items()}
    assert (sent["COPY"], sent["POST"], sent["PUT"]) == (3, 2, 1)
    assert figures.requests == merge.figures.requests


def test_progress_counts_what_is_fetched_and_what_is_copied(large: World) -> None:
    told: list[int] = []
    with merger_of(large, on_bytes=told.append) as merger:
        merge = Merge.of(merger.open(steps_of(large.segments)), horizon=None, pins=(), from_start=True)
        assert sum(told) == merge.figures.index_bytes
        figures = merge.write(generation=G1, made=1).figures
    assert sum(told) == figures.index_bytes + figures.bytes_copied


def test_each_store_copies_long_ranges_itself(store_url: str) -> None:
    """One that lives, and one of which the first half of each block is dead."""
    log = noise_log(4_400, 4_400)
    for n in range(2_200, 4_400):
        if n % 5 < 2:
            log.batch([(n, b"short")], DAY_0 + 10_000 + n)
    with closing(open_store(store_url)) as store:
        world = World(store)
        world.line(G1, log, (2_200, 4_400))
        with merger_of(world) as merger:
            merge = Merge.of(
                merger.open(steps_of(world.segments)), horizon=len(log), pins=(), from_start=True
            )
            written = merge.write(generation=G1, made=1)
        figures = written.figures
        assert figures.bytes_copied > 2_200 * VALUE
        assert figures.bytes_fetched <= 1.05 * figures.bytes_decoded
        assert figures.requests == merge.figures.requests
        assert [record.seq for record in records_of(store, steps_of(written.entries))] == [
            *range(1, 2_201),
            *(seq for seq in range(2_201, 4_401) if (seq - 1) % 5 >= 2),
            *range(4_401, len(log) + 1),
        ]


def test_small_segments_are_fetched_once_and_never_decoded() -> None:
    world = world_of(writes(2_000, ids=2_000), *range(40, 2_000, 40))
    with merger_of(world) as merger:
        merge = Merge.of(merger.open(steps_of(world.segments)), horizon=None, pins=(), from_start=True)
        with decoding() as decoded:
            figures = merge.write(generation=G1, made=1).figures
    assert decoded == []
    assert figures.bytes_fetched == figures.bytes_copied == 0
    assert figures.requests == dict.fromkeys(figures.requests, 0) | {"GET": 50 + 1, "PUT": 1}
    read_back = min(figures.bytes_after, TAIL_BYTES)
    assert figures.index_bytes == sum(entry.bytes for entry in world.segments) + read_back


def test_what_is_between_is_fetched_in_few_requests() -> None:
    world = world_of(noise_log(1_000, 1_000), 500)
    with merger_of(world) as merger:
        merge = Merge.of(merger.open(steps_of(world.segments)), horizon=None, pins=(), from_start=True)
        with decoding() as decoded:
            figures = merge.write(generation=G1, made=1).figures
    assert decoded == []
    assert figures.bytes_copied == 0
    data = sum(entry.bytes - entry.index_bytes for entry in world.segments)
    assert 0 < data - figures.bytes_fetched < 2 * TAIL_BYTES  # the rest came with the indexes
    assert figures.requests["GET"] <= 2 + 2 * 1 + 1 + 1 + 1  # tails, halves of 4 MB, header, read back
    assert figures.requests == merge.figures.requests


def test_dead_blocks_are_never_fetched_and_only_mixed_ones_decoded() -> None:
    """The first half of the blocks: of four, two are dead, one is mixed, and one lives."""
    log, ids = Log(), iter(range(10_000, 1_000_000))
    for block in range(400):
        for n in range(5):
            dies = block % 4 in (0, 1) or (block % 4 == 2 and n < 3)
            log.batch([(n if dies else next(ids), noise(5 * block + n))], DAY_0 + block * 5 + n)
    log.batch([(n, b"new") for n in range(5)], DAY_0 + 2_000)
    world = world_of(log)
    with merger_of(world) as merger:
        merge = Merge.of(merger.open(steps_of(world.segments)), horizon=len(log), pins=(), from_start=True)
        with decoding() as decoded:
            written = merge.write(generation=G1, made=1)
    assert len(decoded) == 100
    assert written.figures.bytes_decoded == sum(decoded) <= 100 * BLOCK
    assert written.figures.bytes_fetched <= 200 * BLOCK
    assert written.figures.bytes_fetched == merge.figures.bytes_fetched
    assert abs(written.figures.bytes_after - merge.figures.bytes_after) < 0.02 * written.figures.bytes_after
    read_segment(world.store, written.entries[0])


def test_half_of_the_blocks_dead_costs_what_the_mixed_ones_have() -> None:
    """Long ago: blocks of which three records in five still live, then as many that are dead; since then one
    long part that lives."""
    log = noise_log(4_000, 4_000)
    overwritten = [n for n in range(4_000) if n >= 2_000 or n % 5 < 2]
    for at, n in enumerate(overwritten):
        log.batch([(n, b"short")], DAY_0 + 10_000 + at)
    for n in range(2_500):
        log.batch([(50_000 + n, noise(n))], DAY_0 + 20_000 + n)
    world = world_of(log, 4_000)
    with merger_of(world) as merger:
        merge = Merge.of(merger.open(steps_of(world.segments)), horizon=len(log), pins=(), from_start=True)
        figures = merge.write(generation=G1, made=1).figures
    assert 390 * BLOCK < figures.bytes_decoded <= 400 * BLOCK
    assert figures.bytes_fetched <= 1.05 * figures.bytes_decoded
    assert figures.bytes_copied > 2_400 * VALUE


def test_memory_does_not_grow_with_the_sources(large: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compactor.merging.writer, "WAITING_BYTES", 8 * MIB)
    with merger_of(large, threads=2) as merger:
        merge = Merge.of(
            merger.open(steps_of(large.segments)), horizon=None, pins=(), from_start=True, copy_min=1 << 60
        )
        taken = 0
        tracemalloc.start()
        try:
            for piece in merge._body(0, G1, 1, 1).pieces():
                assert isinstance(piece, bytes | memoryview)
                taken += len(piece)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert taken > 50 * MIB
    assert peak < 25 * MIB
