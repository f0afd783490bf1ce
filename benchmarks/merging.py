"""Merging segments of a store, beside a naive merge of the same segments in the same run.

The naive merge decides by the same rules, but downloads all sources, decodes every block, and encodes and
uploads what is kept. Rounds are interleaved; medians count. `python -m benchmarks.run --only merging`.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import zstandard

from compactor.entries import SegmentEntry
from compactor.merging import Figures, Merge, Merger
from compactor.path import Step
from compactor.store import Store, open_store
from ourdb.config import Config
from ourdb.merge import SourceColumns, plan_merge
from ourdb.record import encode_record
from ourdb.segment.block import ZSTD_LEVEL, cut_blocks, encode_block
from ourdb.segment.columns import Columns, columns_at
from ourdb.segment.footer import segment_name
from ourdb.segment.header import Header
from ourdb.segment.leftovers import gather_records, pick_records
from ourdb.segment.reader import SegmentReader
from ourdb.segment.summary import Summary, unmerged_summary
from ourdb.segment.writer import FooterPlan, SegmentWriter
from ourdb.units import MIB

ROUNDS = 3
THREADS = 4
VALUE_BYTES = 1_000
GENERATION = "b" * 16
_UUID = bytes(range(16))
_HEADER = Header(uuid=_UUID, generation=0xB, file_nr=0, file_id=1, first_seq=1, config=Config())
_TIME_MS = 1_800_000_000_000


@dataclass(frozen=True)
class Case:
    """ids: of the records, in order of seq. cuts: how many of them each segment ends with, the last one all.
    window: how many of the last ones are protected; None: all records are kept."""

    name: str
    ids: Sequence[int]
    cuts: Sequence[int]
    window: int | None


@dataclass(frozen=True)
class Merging:
    """seconds: median, of ours and of the naive merge; requests and bytes of one round. index_bytes:
    downloaded of indexes, which is all of a segment up to 64 KiB; data_downloaded: of blocks beside."""

    store: str
    case: str
    segments: int
    data_bytes: int
    seconds: float
    naive_seconds: float
    requests: int
    naive_requests: int
    index_bytes: int
    data_downloaded: int
    decoded: int
    copied: int


def cases(*, quick: bool) -> list[Case]:
    """A thousand small ones, whole and with a window; large ones that only grew; large ones of which half
    the blocks are dead."""
    chance, count = random.Random(1), 100 if quick else 1_000
    small = [chance.randrange(count * 4) for _ in range(count * 60)]
    cuts = range(60, len(small) + 1, 60)
    large = 40_000 if quick else 90_000  # records of a segment: of 16 MiB and more, stored
    grown = range(large * (3 if quick else 10))
    mixed = [n for n in range(large) if n % 5 < 2]  # of each block two records in five die ...
    dead = range(large, 2 * large)  # ... and all of these
    live = range(2 * large, 4 * large)
    halves = [*range(2 * large), *mixed, *dead, *live]
    return [
        Case(f"{count:,} small, all kept", small, cuts, None),
        Case(f"{count:,} small, window of a tenth", small, cuts, len(small) // 10),
        Case(f"{3 if quick else 10} large, only grown", grown, range(large, len(grown) + 1, large), None),
        Case("3 large, half of the blocks dead", halves, [large, 2 * large, len(halves)], 1),
    ]


def measure(name: str, url: str, case: Case, *, rounds: int = ROUNDS) -> Merging:
    """Uploads the sources, then merges them in both ways, each round to keys of its own."""
    with closing(open_store(url)) as store:
        entries = list(upload(store, case))
        horizon = None if case.window is None else len(case.ids) - case.window + 1
        times: dict[str, list[float]] = {"ours": [], "naive": []}
        figures, counts = None, {"ours": 0, "naive": 0}
        for _ in range(rounds):
            for way, merge in (("naive", merge_naively), ("ours", merge_well)):
                before, began = sum(store.requests.counts().values()), time.perf_counter()
                made, found = merge(store, entries, horizon)
                times[way].append(time.perf_counter() - began)
                counts[way] = sum(store.requests.counts().values()) - before
                figures = found or figures
                store.delete_many(made)
        store.delete_many([entry.key for entry in entries])
    assert figures is not None
    return Merging(
        store=name,
        case=case.name,
        segments=len(entries),
        data_bytes=sum(entry.bytes for entry in entries),
        seconds=median(times["ours"]),
        naive_seconds=median(times["naive"]),
        requests=counts["ours"],
        naive_requests=counts["naive"],
        index_bytes=figures.index_bytes,
        data_downloaded=figures.bytes_fetched,
        decoded=figures.bytes_decoded,
        copied=figures.bytes_copied,
    )


def merge_well(
    store: Store, entries: Sequence[SegmentEntry], horizon: int | None
) -> tuple[list[str], Figures | None]:
    """The merge of the product, with all of its checks."""
    steps = [Step(entry, entry.first_seq - 1, entry.last_seq) for entry in entries]
    with Merger(store, _UUID.hex(), threads=THREADS) as merger:
        merge = Merge.of(merger.open(steps), horizon=horizon, pins=(), from_start=True)
        written = merge.write(generation=GENERATION, made=1)
    return [entry.key for entry in written.entries], written.figures


def merge_naively(
    store: Store, entries: Sequence[SegmentEntry], horizon: int | None
) -> tuple[list[str], Figures | None]:
    """Download all, decode all, encode all."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(THREADS) as pool:

        def download(entry: SegmentEntry) -> Path:
            path = Path(folder) / entry.file_name
            path.write_bytes(store.get(entry.key).data)
            return path

        readers = [_reader(path) for path in pool.map(download, entries)]
        plan = plan_merge(
            [SourceColumns.of_reader(reader) for reader in readers],
            horizon=horizon,
            pins=(),
            from_start=True,
        )
        segment = _Segment(plan.summary, random.getrandbits(64))
        kept = gather_records(_kept(readers, plan.live))
        return [segment.upload(store, kept).key], None


def upload(store: Store, case: Case) -> Iterator[SegmentEntry]:
    """The sources, as backups would have left them."""
    chance = random.Random(2)
    values = [
        (chance.randbytes(VALUE_BYTES * 2 // 5).hex() + " as text" * 99)[:VALUE_BYTES] for _ in range(997)
    ]
    newest: dict[int, int] = {}
    start, chain, highest = 0, 0, None
    for number, end in enumerate(case.cuts):
        records = []
        for seq, id_ in enumerate(case.ids[start:end], start + 1):
            value = values[seq * 7 % len(values)].encode()
            prev_seq = newest.get(id_, 0)
            records.append(
                encode_record(id_, value, seq=seq, prev_seq=prev_seq, time_ms=_TIME_MS + seq, flags=0)
            )
            newest[id_] = seq
        raw = b"".join(records)
        columns = columns_at(raw, np.cumsum([0, *map(len, records[:-1])]))
        summary = unmerged_summary(columns, chain, highest)
        yield _Segment(summary, number).upload(store, _blocks(columns, records))
        start, chain, highest = end, summary.chain_after or 0, summary.highest_id


def _blocks(columns: Columns, records: Sequence[bytes]) -> Iterator[tuple[Columns, bytes]]:
    start = 0
    for count in cut_blocks(columns.length).tolist():
        yield columns[start : start + count], b"".join(records[start : start + count])
        start += count


class _Segment:
    """One that is encoded and uploaded, in the plainest way. random: part of its name."""

    def __init__(self, summary: Summary, random: int) -> None:
        self._summary, self._random = summary, random

    def upload(self, store: Store, blocks: Iterator[tuple[Columns, bytes]]) -> SegmentEntry:
        name = segment_name(self._summary, made=0, random=self._random)
        key = f"segments/{GENERATION}/{name.format()}"
        stat = store.put_stream(key, self._chunks(blocks))
        index_bytes = self._index_bytes
        return SegmentEntry.of(GENERATION, name, self._summary, size=stat.bytes, index_bytes=index_bytes)

    def _chunks(self, blocks: Iterator[tuple[Columns, bytes]]) -> Iterator[bytes]:
        ready: list[bytes] = []
        plan = FooterPlan(summary=self._summary, generation=int(GENERATION, 16), made=0, random=self._random)
        compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
        with SegmentWriter(_HEADER, plan, lambda data: ready.append(bytes(data))) as writer:
            for columns, raw in blocks:
                writer.add(encode_block(raw, len(columns), compressor), columns)
                yield from ready
                ready.clear()
            self._index_bytes = writer.finish().index_bytes
        yield from ready


def _reader(path: Path) -> SegmentReader:
    def fetch(offset: int, length: int) -> bytes:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(length)

    return SegmentReader(path.stat().st_size, fetch, where=str(path))


def _kept(
    readers: Sequence[SegmentReader], live: Sequence[np.ndarray[tuple[int], np.dtype[np.bool_]]]
) -> Iterator[tuple[Columns, bytes]]:
    for reader, mask in zip(readers, live, strict=True):
        start = 0
        for columns, raw in reader.blocks():
            here = mask[start : start + len(columns)]
            start += len(columns)
            if here.any():
                yield columns[here], pick_records(raw, columns, here)


def table(done: Sequence[Merging]) -> list[str]:
    """In brackets how many times the naive merge takes: above 1, OurDB is faster."""
    lines = [
        f"merging, values of {VALUE_BYTES} bytes; MB/s of the sources, stored, median of {ROUNDS}; in "
        "brackets how many times the naive merge takes; indexes (of small segments all of them), blocks and "
        "copied: downloaded, or copied by the store, of all bytes; mixed: downloaded blocks beside those "
        "that had to be decoded",
        "",
        "| store | segments | stored | merge | naive | requests | naive | indexes | blocks | mixed | "
        "copied |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in done:
        rate = one.data_bytes / one.seconds / 1e6
        naive = one.data_bytes / one.naive_seconds / 1e6
        large = one.decoded and one.data_downloaded
        mixed = f"{one.data_downloaded / one.decoded:.2f}x" if large else ""
        lines.append(
            f"| {one.store} | {one.case} | {one.data_bytes / MIB:.0f} MiB "
            f"| {rate:.0f} ({one.naive_seconds / one.seconds:.1f}x) | {naive:.0f} "
            f"| {one.requests:,} | {one.naive_requests:,} | {one.index_bytes / one.data_bytes:.1%} "
            f"| {one.data_downloaded / one.data_bytes:.1%} | {mixed} | {one.copied / one.data_bytes:.1%} |"
        )
    return lines


def measure_all(store: str, url: str, *, quick: bool) -> Iterator[Merging]:
    """Every case, each in a namespace of its own below `url`. store: the name of its kind."""
    for number, case in enumerate(cases(quick=quick)):
        yield measure(store, f"{url}/case{number}", case, rounds=1 if quick else ROUNDS)
