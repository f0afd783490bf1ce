"""Fetches what a restore needs: indexes ahead of their use, then blocks, several ranges at a time.

Memory is bounded: ranges of stored blocks and their records that are in flight have a limit together.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from backup.layout import located
from backup.local_files import FilePlan, Slice
from compactor.entries import SegmentEntry
from compactor.fetch import INDEX_BYTES_MAX, SegmentFetcher
from compactor.path import Step
from ourdb.build import SealedFileBuilder
from ourdb.files import File, FileSystem
from ourdb.record import RECORD_HEADER_BYTES
from ourdb.segment.block import verify_records
from ourdb.segment.columns import Columns
from ourdb.segment.footer import FOOTER_BYTES
from ourdb.segment.page import BLOCK_COLUMNS, Page
from ourdb.segment.reader import TAIL_BYTES, SegmentReader
from ourdb.units import MIB

STORED_BYTES_MAX = 4 * MIB  # of blocks in one request, unless a block is larger
RAW_BYTES_MAX = 16 * MIB  # of their records
IN_FLIGHT_BYTES_MAX = 64 * MIB  # of all ranges that are fetched and written at a time, or one larger block
_READERS_MAX = 8


@dataclass(frozen=True)
class _Kept:
    """The last `length` bytes of an object, at a place in the spool."""

    place: int
    length: int


def estimate_requests(entry: SegmentEntry) -> int:
    """How many requests a segment needs that is read from end to end, at least."""
    index = entry.index_bytes + FOOTER_BYTES
    tail = max(TAIL_BYTES, index if index <= INDEX_BYTES_MAX else 0)
    beyond = max(0, index - tail)
    blocks = max(0, entry.bytes - max(tail, index))
    return 1 - (-beyond // INDEX_BYTES_MAX) - (-blocks // STORED_BYTES_MAX)


class IndexSpool:
    """The readers of a path's segments. The indexes are fetched a few steps ahead and kept in a temporary
    file, because they are needed three times: to lay out, to copy, and to write the new index. It is about
    8 bytes a record; of segments up to 64 KiB it is all. For several threads; a context manager."""

    def __init__(
        self,
        fetcher: SegmentFetcher,
        steps: Sequence[Step],
        folder: Path,
        pool: ThreadPoolExecutor,
        *,
        ahead: int,
        fs: FileSystem,
    ) -> None:
        self._fetcher, self._steps, self._pool, self._ahead = fetcher, steps, pool, ahead
        self._file = _temporary_file(folder, fs)
        self._end = 0
        self._asked = 0  # steps whose index was asked for
        self._kept: dict[str, Future[_Kept]] = {}
        self._readers: OrderedDict[str, SegmentReader] = OrderedDict()
        self._lock = threading.Lock()

    def __enter__(self) -> IndexSpool:
        return self

    def __exit__(self, *_: object) -> None:
        fetching = list(self._kept.values())
        for future in fetching:
            future.cancel()
        wait(fetching)  # none of them may write once the descriptor can be another file's
        self._file.close()

    def reader(self, number: int) -> SegmentReader:
        """The reader of the segment of a step. Raises NoSuchKey, DamageError."""
        entry = self._steps[number].segment
        with self._lock:
            self._ask(number + 1 + self._ahead)
            if entry.key in self._readers:
                self._readers.move_to_end(entry.key)
                return self._readers[entry.key]
        kept = self._kept[entry.key].result()
        start = entry.bytes - kept.length

        def fetch(offset: int, length: int) -> bytes:
            if offset >= start:
                return self._file.pread(length, kept.place + offset - start)
            return self._fetcher.read(entry, offset, length)

        length = min(kept.length, TAIL_BYTES)
        tail = self._file.pread(length, kept.place + kept.length - length)
        reader = self._fetcher.open(entry, tail=tail, fetch=fetch)
        with self._lock:
            self._readers[entry.key] = reader
            while len(self._readers) > _READERS_MAX:
                self._readers.popitem(last=False)
        return reader

    def _ask(self, upto: int) -> None:
        for step in self._steps[self._asked : upto]:
            self._kept[step.segment.key] = self._pool.submit(self._fetch, step)
        self._asked = max(self._asked, min(upto, len(self._steps)))

    def _fetch(self, step: Step) -> _Kept:
        entry = step.segment
        tail = self._fetcher.read_tail(entry)
        wanted = min(max(entry.index_bytes + FOOTER_BYTES, len(tail)), entry.bytes)
        with self._lock:
            place, self._end = self._end, self._end + wanted
        self._file.pwrite(tail, place + wanted - len(tail))
        start = entry.bytes - wanted
        for offset in range(start, entry.bytes - len(tail), INDEX_BYTES_MAX):
            length = min(INDEX_BYTES_MAX, entry.bytes - len(tail) - offset)
            self._file.pwrite(self._fetcher.read(entry, offset, length), place + offset - start)
        return _Kept(place, wanted)


def _temporary_file(folder: Path, fs: FileSystem) -> File:
    """A file without a name: it goes with its last descriptor."""

    def create() -> int:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.dup(file.fileno())

    return File(fs, fs.call("create", folder, create), folder)


@dataclass(frozen=True)
class _Work:
    """A slice while it is copied. places: of each record of the page in its raw blocks, and where the last
    one ends; offset: of the slice's first record in the new file's record area."""

    reader: SegmentReader
    page: Page
    part: Slice
    step: Step
    places: npt.NDArray[np.int64]
    offset: int

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Ranges of blocks that are fetched by one request each."""
        starts = self.page.block_starts
        first = int(np.searchsorted(starts, self.part.start, "right")) - 1
        end = int(np.searchsorted(starts, self.part.end, "left"))
        stored = self.page.block_offsets
        raw = self.places[starts]
        while first < end:
            by_stored = int(np.searchsorted(stored, int(stored[first]) + STORED_BYTES_MAX, "right")) - 1
            by_raw = int(np.searchsorted(raw, int(raw[first]) + RAW_BYTES_MAX, "right")) - 1
            stop = max(min(by_stored, by_raw, end), first + 1)
            yield first, stop
            first = stop

    def memory(self, first: int, end: int) -> int:
        """Bytes that a range of blocks needs while it is copied."""
        stored = int(self.page.block_offsets[end] - self.page.block_offsets[first])
        starts = self.page.block_starts
        return stored + int(self.places[starts[end]] - self.places[starts[first]])


class FileCopier:
    """Copies the blocks of a planned file to their places, and gives its columns again for its index."""

    def __init__(
        self, spool: IndexSpool, steps: Sequence[Step], pool: ThreadPoolExecutor, *, ahead: int
    ) -> None:
        self._spool, self._steps, self._pool, self._ahead = spool, steps, pool, ahead

    def copy(self, plan: FilePlan, builder: SealedFileBuilder) -> None:
        """All records are in the file when this returns. Raises NoSuchKey, DamageError (with `key`)."""
        running: deque[tuple[Future[None], int]] = deque()
        in_flight = 0
        try:
            for work in self._works(plan):
                for first, end in work.ranges():
                    size = work.memory(first, end)
                    while running and (len(running) >= self._ahead or in_flight + size > IN_FLIGHT_BYTES_MAX):
                        task, freed = running.popleft()
                        task.result()
                        in_flight -= freed
                    running.append((self._pool.submit(_copy_blocks, work, first, end, builder), size))
                    in_flight += size
            for task, _ in running:
                task.result()
        finally:
            for task, _ in running:
                task.cancel()
            wait([task for task, _ in running])  # none of them writes once this has returned

    def columns(self, plan: FilePlan) -> Iterator[Columns]:
        """The columns of its records, slice by slice."""
        for part in plan.slices:
            with located(self._steps[part.step]):
                yield self._spool.reader(part.step).page(part.page).columns()[part.start : part.end]

    def find_damage(self, plan: FilePlan) -> None:
        """Compares each record of the plan's blocks, as the store has them, with the index: raises the
        DamageError of the segment that is not what it claims, if it is the store's fault at all."""
        for work in self._works(plan):
            with located(work.step):
                for first, end in work.ranges():
                    for number, raw in enumerate(work.reader.read_blocks(work.page, first, end), first):
                        offset = int(work.page.block_offsets[number])
                        verify_records(raw, work.page.block_columns(number), offset=offset)

    def _works(self, plan: FilePlan) -> Iterator[_Work]:
        offset = 0
        for part in plan.slices:
            step = self._steps[part.step]
            with located(step):
                reader = self._spool.reader(part.step)
                page = reader.page(part.page)
                page.load(*BLOCK_COLUMNS, "length")
                sizes = page.column("length").astype(np.int64) + RECORD_HEADER_BYTES
                places = np.concatenate([[0], np.cumsum(sizes)])
                yield _Work(reader, page, part, step, places, offset)
            offset += int(places[part.end] - places[part.start])


def _copy_blocks(work: _Work, first: int, end: int, builder: SealedFileBuilder) -> None:
    """What is clipped at the slice's ends belongs to another file, or behind the target."""
    page, part, places = work.page, work.part, work.places
    with located(work.step):
        blocks = work.reader.read_blocks(page, first, end)
    for number, raw in enumerate(blocks, first):
        block_place = int(places[page.block_starts[number]])
        begin = int(places[max(int(page.block_starts[number]), part.start)])
        stop = int(places[min(int(page.block_starts[number + 1]), part.end)])
        builder.put(
            work.offset + begin - int(places[part.start]),
            memoryview(raw)[begin - block_place : stop - block_place],
        )
