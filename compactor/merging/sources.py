"""What is merged: the indexes of all sources, fetched several at a time, checked, and decoded once."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from compactor.fetch import SegmentFetcher, located
from compactor.merging.figures import Spent, Tally
from compactor.merging.records import Records
from compactor.path import Step
from compactor.spool import IndexSpool, temporary_file
from compactor.store.base import CopyRange, Store
from ourdb.errors import InvalidError
from ourdb.files import FileSystem
from ourdb.merge import SourceColumns
from ourdb.segment.claims import ClaimChecker
from ourdb.segment.index import LAYOUTS
from ourdb.segment.page import Page
from ourdb.segment.summary import Summary, cut_summary


class Merger:
    """Merges segments of one store, one set at a time. A context manager; one thread, which has `threads` for
    fetching, decoding and compressing.

    uuid: of the database, 32 hex digits. folder: for temporary files (about 40 bytes a record, and all of
    each segment up to 64 KiB), None: the system's. on_bytes: is told how many bytes of the sources were
    fetched, or given to the store to be copied; by any thread.
    """

    def __init__(
        self,
        store: Store,
        uuid: str,
        *,
        threads: int = 4,
        folder: Path | None = None,
        on_bytes: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.store = store
        self.tally = Tally()
        self.fetcher = SegmentFetcher(store, uuid, self._count)
        self._on_bytes = on_bytes
        self.folder = folder or Path(tempfile.gettempdir())
        self._ahead = 16 * threads  # indexes; they wait in a file
        self.fs = FileSystem()
        self._threads = threads
        self._stack = ExitStack()
        self._opened = ExitStack()

    def __enter__(self) -> Merger:
        self.pool = self._stack.enter_context(ThreadPoolExecutor(self._threads, "merge"))
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()
        self._stack.close()

    def open(self, steps: Sequence[Step]) -> Sources:
        """Fetches and checks the indexes of neighbours. Lets go of what was opened before.

        steps: at least one, in order; each segment from its start on, and to its end, or to a seq at which it
        is exact (where a line branches off). Raises InvalidError, NoSuchKey, DamageError (`store_damaged`,
        with `key`), StorageError for temporary files.
        """
        self._opened.close()
        for step in steps:
            if step.after != step.segment.first_seq - 1:
                raise InvalidError(f"a merge takes a segment from its start on: {step.segment.key}")
        return self._opened.enter_context(Sources(self, steps))

    def spent(self) -> Spent:
        """Up to now, with whatever others have sent through the same store."""
        return Spent.now(self.tally, self.store.requests)

    def spool(self, steps: Sequence[Step]) -> IndexSpool:
        """The readers of other segments, as a context manager."""
        return IndexSpool(self.fetcher, steps, self.folder, self.pool, ahead=self._ahead, fs=self.fs)

    def copied(self, size: int) -> None:
        """So many bytes were given to the store to be copied."""
        self._on_bytes(size)

    def _count(self, size: int) -> None:
        self.tally.add(fetched=size)
        self._on_bytes(size)


class Sources:
    """Segments that are open to be merged. columns: what each has, as far as its step goes; records: of all;
    header: of the first, encoded; spent: to fetch all that. Merger.open makes it."""

    def __init__(self, merger: Merger, steps: Sequence[Step]) -> None:
        if not steps:
            raise InvalidError("a merge needs at least one source")
        self.merger, self.steps = merger, steps
        before = merger.spent()
        with ExitStack() as stack:
            self._spool = stack.enter_context(merger.spool(steps))
            self.records = Records(stack.enter_context(temporary_file(merger.folder, merger.fs)))
            self.raw_bytes = 0
            counts = [0]
            summaries = []
            for number, step in enumerate(steps):
                with located(step.segment):
                    summaries.append(self._take(number, step))
                counts.append(counts[-1] + summaries[-1].records)
            self.records.close()
            self.columns: tuple[SourceColumns, ...] = tuple(
                SourceColumns(
                    summary=summary,
                    keys=partial(self.records.keys, begin=begin, end=begin + summary.records),
                    columns=partial(self.records.columns, begin=begin, end=begin + summary.records),
                )
                for summary, begin in zip(summaries, counts, strict=False)
            )
            with located(steps[0].segment):
                self.header = self._spool.reader(0).header().encode()
            self.spent = merger.spent().since(before)
            self._stack = stack.pop_all()

    def __enter__(self) -> Sources:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self, number: int, offset: int, length: int) -> bytes:
        """Bytes of a source, by one request at most."""
        return self._spool.read(number, offset, length)

    def held_from(self, number: int) -> int:
        """From which offset on a source was fetched with its index."""
        return self._spool.start(number)

    def range(self, number: int, offset: int, length: int) -> CopyRange:
        """Bytes of a source, for the store to copy."""
        self.merger.copied(length)
        return CopyRange(self.steps[number].segment.key, self._spool.etag(number), offset, length)

    def _take(self, number: int, step: Step) -> Summary:
        """Checks the columns of a source, and keeps those up to the step's end."""
        reader = self._spool.reader(number)
        claims = ClaimChecker(reader.summary)
        for page in map(reader.page, range(len(reader.pages))):
            page.load(*LAYOUTS)  # by one read
            claims.add(page.columns())
            self._keep(number, page, step.upto)
        claims.finish()
        if step.upto == reader.summary.last_seq:
            return reader.summary
        return cut_summary(reader.summary, reader.columns(), step.upto)

    def _keep(self, number: int, page: Page, upto: int) -> None:
        columns, blocks = page.columns(), page.blocks
        end = int(np.searchsorted(columns.seq, np.uint64(upto), "right"))
        if not end:
            return
        count = int(np.searchsorted(page.block_starts, end))  # blocks that hold the first `end` records
        records = int(page.block_starts[count])
        self.raw_bytes += int(blocks.raw_bytes[:count].sum(dtype=np.int64))
        self.records.add(
            number, columns[:records], blocks[:count], page.entry.first_block_offset, records - end
        )
