"""The bytes of a merged segment, in their order: ranges that the store copies, and what is between them.

Blocks that are fetched or decoded pass through a pool, some megabytes a task; memory is that of the tasks
that wait, whatever the sizes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass

import zstandard
from crc32c import crc32c

from compactor.entries import SegmentEntry
from compactor.fetch import located
from compactor.merging.extents import Extent, Fragment
from compactor.merging.records import Piece
from compactor.merging.selection import Selection
from compactor.merging.sources import Sources
from compactor.store.base import Piece as ObjectPiece
from ourdb.errors import DamageError
from ourdb.names import format_generation, segment_key
from ourdb.record import Buffer
from ourdb.segment.block import (
    ZSTD_LEVEL,
    Block,
    BlockEntry,
    BlockTable,
    decode_block,
    encode_block,
    verify_records,
)
from ourdb.segment.columns import Columns
from ourdb.segment.footer import Footer, segment_name
from ourdb.segment.header import HEADER_BYTES
from ourdb.segment.leftovers import gather_records, pick_records
from ourdb.segment.writer import FooterPlan, SegmentWriter
from ourdb.units import MIB

TASK_BYTES = 2 * MIB  # stored bytes and raw bytes to be decoded of one task, or one larger extent
TASK_EXTENTS = 1_000
WAITING_BYTES, WAITING_TASKS = 20 * MIB, 16  # of the tasks that wait or run, or one larger

_local = threading.local()


@dataclass(frozen=True, eq=False)
class _Done:
    """Blocks as they go into the result, and the columns of their records."""

    columns: Columns
    blocks: BlockTable
    stored: Sequence[bytes | memoryview]


class Body:
    """One segment as pieces for a store. key: where it belongs; footer: once all pieces were taken."""

    def __init__(self, sources: Sources, selection: Selection, plan: FooterPlan) -> None:
        self._sources, self._selection, self._plan = sources, selection, plan
        self._generation = format_generation(plan.generation)
        self._name = segment_name(plan.summary, made=plan.made, random=plan.random)
        self._ready: list[ObjectPiece] = []
        self.key = segment_key(self._generation, self._name)
        self.footer: Footer | None = None

    def entry(self, size: int) -> SegmentEntry:
        """What a head says of it, once all pieces were taken. size: bytes of the object."""
        assert self.footer is not None
        return SegmentEntry.of(
            self._generation, self._name, self._plan.summary, size=size, index_bytes=self.footer.index_bytes
        )

    def pieces(self) -> Generator[ObjectPiece, None, None]:
        """To be closed: tasks of the pool end with it. Raises NoSuchKey, DamageError (with `key`, if a source
        is damaged)."""
        with SegmentWriter(self._sources.header, self._plan, self._take) as writer:
            for done in self._done():
                if isinstance(done, Extent):
                    yield from self._copy(done, writer)
                else:
                    for some in done:
                        writer.add_copied(some.blocks, some.columns)
                        self._ready += some.stored
                    del done
                yield from self._drain()
            self.footer = writer.close_index()
            yield from self._drain()
            yield from writer.index()

    def _take(self, data: Buffer) -> None:
        self._ready.append(bytes(data))

    def _drain(self) -> Iterator[ObjectPiece]:
        while self._ready:
            yield self._ready.pop(0)

    def _copy(self, extent: Extent, writer: SegmentWriter) -> Iterator[ObjectPiece]:
        """The range, with the header before it if that is all there is so far."""
        start = extent.offset
        if extent.source == 0 and start == HEADER_BYTES and len(self._ready) == 1:
            self._ready.clear()
            start = 0
        yield from self._drain()
        yield self._sources.range(extent.source, start, extent.offset + extent.length - start)
        for fragment in extent.fragments:
            columns, blocks = _columns_of(self._sources.records.piece(fragment.piece), fragment)
            writer.add_copied(blocks, columns)

    def _done(self) -> Iterator[Extent | list[_Done]]:
        """All extents in order: those that are copied as they are, the others worked on, in groups."""
        waiting: deque[tuple[Extent | Future[list[_Done]], int]] = deque()
        size = 0
        try:
            for task, cost in _tasks(self._selection.extents()):
                while waiting and (size + cost > WAITING_BYTES or len(waiting) == WAITING_TASKS):
                    first, freed = waiting.popleft()
                    size -= freed
                    yield first if isinstance(first, Extent) else first.result()
                    del first
                waiting.append(
                    (
                        task
                        if isinstance(task, Extent)
                        else self._sources.merger.pool.submit(self._work, task),
                        cost,
                    )
                )
                size += cost
            while waiting:
                first, _ = waiting.popleft()
                yield first if isinstance(first, Extent) else first.result()
                del first
        finally:
            left = [future for future, _ in waiting if isinstance(future, Future)]
            for future in left:
                future.cancel()
            wait(left)

    def _work(self, extents: Sequence[Extent]) -> list[_Done]:
        """Fetches, and decodes where it must."""
        work = _Work(self._sources, self._selection)
        for extent in extents:
            work.add(extent)
        return work.finish()


def _tasks(extents: Iterable[Extent]) -> Iterator[tuple[Extent | list[Extent], int]]:
    """Extents that are copied alone, others in groups, each with the bytes that it needs."""
    group: list[Extent] = []
    size = 0
    for extent in extents:
        cost = 0 if extent.copied else extent.length + extent.decoded_raw
        if group and (extent.copied or size + cost > TASK_BYTES or len(group) == TASK_EXTENTS):
            yield group, size
            group, size = [], 0
        if extent.copied:
            yield extent, 0
        else:
            group.append(extent)
            size += cost
    if group:
        yield group, size


class _Work:
    """One task. Neighbouring whole blocks stay together, records of mixed ones are gathered."""

    def __init__(self, sources: Sources, selection: Selection) -> None:
        self._sources, self._selection = sources, selection
        self._done: list[_Done] = []
        self._whole: Fragment | None = None  # whole blocks, of several sources perhaps, ...
        self._stored: list[bytes | memoryview] = []  # ... and their bytes
        self._mixed: list[tuple[Columns, bytes]] = []

    def add(self, extent: Extent) -> None:
        data = memoryview(self._sources.read(extent.source, extent.offset, extent.length))
        self._sources.merger.tally.add(decoded=extent.decoded)
        for fragment in extent.fragments:
            begin = fragment.offset - extent.offset
            stored = data[begin : begin + fragment.length]
            with located(self._sources.steps[fragment.source].segment):
                if fragment.mixed:
                    self._end_whole()
                    self._mixed += self._decode(fragment, stored)
                else:
                    self._end_mixed()
                    self._add_whole(fragment, stored)

    def finish(self) -> list[_Done]:
        self._end_whole()
        self._end_mixed()
        return self._done

    def _add_whole(self, fragment: Fragment, stored: memoryview) -> None:
        blocks = self._sources.records.piece(fragment.piece).blocks
        here = slice(fragment.first, fragment.end)
        offsets, sizes = blocks.offset[here], blocks.table.stored_bytes[here]
        for at, size, crc in zip(
            (offsets - fragment.offset).tolist(), sizes.tolist(), blocks.table.crc[here].tolist(), strict=True
        ):
            if crc32c(stored[at : at + size]) != crc:
                place = fragment.offset + at
                raise DamageError(f"checksum of block does not match at offset {place}", offset=place)
        last = self._whole
        if last and (last.piece, last.end) == (fragment.piece, fragment.first):
            self._whole = last._replace(end=fragment.end)
        else:
            self._end_whole()
            self._whole = fragment
        self._stored.append(stored)

    def _end_whole(self) -> None:
        if self._whole:
            columns, blocks = _columns_of(self._sources.records.piece(self._whole.piece), self._whole)
            self._done.append(_Done(columns, blocks, self._stored))
        self._whole, self._stored = None, []

    def _decode(self, fragment: Fragment, stored: memoryview) -> Iterator[tuple[Columns, bytes]]:
        piece, mask = self._sources.records.piece(fragment.piece), self._selection.mask(fragment.piece)
        table, offsets = piece.blocks.table, piece.blocks.offset
        for number in range(fragment.first, fragment.end):
            offset = int(offsets[number])
            entry = BlockEntry(
                codec=int(table.codec[number]),
                encryption=int(table.encryption[number]),
                stored_bytes=int(table.stored_bytes[number]),
                raw_bytes=int(table.raw_bytes[number]),
                records=int(table.records[number]),
                crc=int(table.crc[number]),
                offset=offset,
            )
            raw = decode_block(entry, stored[offset - fragment.offset :][: entry.stored_bytes])
            records = slice(int(piece.starts[number]), int(piece.starts[number + 1]))
            columns, live = piece.columns[records], mask[records]
            verify_records(raw, columns, offset=offset)
            yield columns[live], pick_records(raw, columns, live)

    def _end_mixed(self) -> None:
        for columns, raw in gather_records(self._mixed):
            block = _compress(raw, len(columns))
            self._done.append(_Done(columns, BlockTable.of([block]), [bytes(block.stored)]))
        self._mixed = []


def _columns_of(piece: Piece, fragment: Fragment) -> tuple[Columns, BlockTable]:
    """Those of a fragment."""
    records = slice(int(piece.starts[fragment.first]), int(piece.starts[fragment.end]))
    return piece.columns[records], piece.blocks.table[fragment.first : fragment.end]


def _compress(raw: bytes, records: int) -> Block:
    compressor: zstandard.ZstdCompressor | None = getattr(_local, "compressor", None)
    if compressor is None:
        compressor = _local.compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
    return encode_block(raw, records, compressor)
