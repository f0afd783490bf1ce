"""For tests of merging: histories cut into segments, and the plainest merge there is, to compare with."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from compactor.entries import SegmentEntry
from compactor.merging import Merger
from compactor.path import Step
from compactor.store import Store
from ourdb.record import TOMBSTONE
from ourdb.segment.reader import SegmentReader
from ourdb.segment.summary import Summary
from tests.worlds import UUID, Log, World, memory_world

G1, G2 = "1" * 16, "2" * 16


@dataclass(frozen=True)
class Record:
    seq: int
    id: int
    deleted: bool
    raw: bytes


def steps_of(entries: Iterable[SegmentEntry], upto: int | None = None) -> list[Step]:
    """Each from its start on; the last one up to `upto`."""
    steps = [Step(entry, entry.first_seq - 1, entry.last_seq) for entry in entries]
    return steps if upto is None else [*steps[:-1], steps[-1]._replace(upto=upto)]


def merger_of(world: World, **options: object) -> Merger:
    return Merger(world.store, UUID.hex(), **options)  # type: ignore[arg-type]


def world_of(log: Log, *cuts: int) -> World:
    """One generation, cut behind these seqs."""
    world = memory_world()
    world.line(G1, log, cuts)
    return world


def read_segment(store: Store, entry: SegmentEntry) -> SegmentReader:
    """All of it, verified."""
    data = store.get(entry.key).data
    reader = SegmentReader(
        len(data),
        lambda offset, length: data[offset : offset + length],
        expect_name=entry.file_name,
        expect_uuid=UUID,
    )
    reader.check_all()
    assert (len(data), reader.footer.index_bytes, reader.summary) == (
        entry.bytes,
        entry.index_bytes,
        entry.summary(),
    )
    return reader


def records_of(store: Store, steps: Iterable[Step]) -> list[Record]:
    """Downloaded, decoded, one by one."""
    found = []
    for step in steps:
        for columns, raw in read_segment(store, step.segment).blocks():
            place = 0
            for seq, id_, flags, size in zip(
                columns.seq.tolist(),
                columns.id.tolist(),
                columns.flags.tolist(),
                columns.raw_sizes.tolist(),
                strict=True,
            ):
                if seq <= step.upto:
                    deleted = bool(flags & TOMBSTONE)
                    found.append(Record(seq, id_, deleted, bytes(raw[place : place + size])))
                place += size
    return found


def exact_seqs(summaries: Iterable[Summary], upto: int | None = None) -> set[int]:
    found = {
        seq for summary in summaries for run in summary.runs for seq in range(run.first_seq, run.last_seq + 1)
    }
    return {seq for seq in found if upto is None or seq <= upto}


def keep(
    records: Sequence[Record],
    exact: Collection[int],
    last: int,
    *,
    horizon: int | None,
    pins: Collection[int],
    versions: int,
    from_start: bool,
) -> tuple[list[Record], set[int]]:
    """What a merge keeps and where it is exact, by definition: one version of one id at a time."""
    if horizon is None:
        return list(records), set(exact)
    points = {seq for seq in exact if seq >= horizon or seq in pins or seq == last}
    by_id: dict[int, list[Record]] = {}
    for record in records:
        by_id.setdefault(record.id, []).append(record)
    kept: list[Record] = []
    for versions_of_id in by_id.values():
        ends = [*(record.seq for record in versions_of_id[1:]), last + 1]
        live = [
            record
            for at, (record, end) in enumerate(zip(versions_of_id, ends, strict=True))
            if any(record.seq <= point < end for point in points) or at >= len(versions_of_id) - versions
        ]
        while from_start and live and live[0].deleted and live[0].seq not in points:
            live.pop(0)
        kept += live
    return sorted(kept, key=lambda record: record.seq), points
