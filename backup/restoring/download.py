"""Fetches what a restore needs: indexes ahead of their use, then blocks, several ranges at a time.

Memory is bounded: ranges of stored blocks and their records that are in flight have a limit together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from backup.restoring.layout import located
from backup.restoring.local_files import FilePlan, Slice
from compactor.fetch import STORED_BYTES_MAX
from compactor.path import Step
from compactor.spool import IndexSpool
from ourdb.build import SealedFileBuilder
from ourdb.record import RECORD_HEADER_BYTES
from ourdb.segment.block import verify_records
from ourdb.segment.columns import Columns
from ourdb.segment.page import BLOCK_COLUMNS, Page
from ourdb.segment.reader import SegmentReader
from ourdb.units import MIB

RAW_BYTES_MAX = 16 * MIB  # of their records
IN_FLIGHT_BYTES_MAX = 64 * MIB  # of all ranges that are fetched and written at a time, or one larger block


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
