"""What of the sources goes into one segment, and what it will cost to bring it there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from compactor.fetch import INDEX_BYTES_MAX
from compactor.merging.extents import Extent, Fragment, find_fragments, join_fragments
from compactor.merging.records import Records
from compactor.store.base import StoreOptions
from compactor.store.parts import COPY_BYTES_MAX
from ourdb.segment.footer import FOOTER_BYTES, RUN_BYTES
from ourdb.segment.header import HEADER_BYTES
from ourdb.segment.index import PAGE_ENTRY_BYTES, PAGE_RECORDS_MAX
from ourdb.segment.summary import Summary

_RECORD_BYTES, _BLOCK_BYTES = 8, 12  # of an index, as a rule
_RECORD_BYTES_MAX, _BLOCK_BYTES_MAX = 30, 18


class Selection:
    """`live` of all records, of these the range of an output. copy_min: as for join_fragments."""

    def __init__(
        self, records: Records, live: npt.NDArray[np.bool_], summary: Summary, copy_min: int
    ) -> None:
        self.summary = summary
        self._records, self._live, self._copy_min = records, live, copy_min

    def extents(self) -> Iterator[Extent]:
        """The ranges of the sources that have any of it, in order."""
        return join_fragments(self._fragments(), self._copy_min)

    def mask(self, number: int) -> npt.NDArray[np.bool_]:
        """Which records of a piece it has."""
        entry, summary = self._records.pieces[number], self.summary
        mask = self._live[entry.start : entry.start + entry.records]
        if entry.extra:
            mask = np.concatenate([mask, np.zeros(entry.extra, np.bool_)])
        before = self._records.pieces[number - 1].last_seq if number else 0
        if before + 1 < summary.first_seq or entry.last_seq > summary.last_seq:
            seqs = self._records.piece(number).columns.seq
            mask = mask & (seqs >= np.uint64(summary.first_seq)) & (seqs <= np.uint64(summary.last_seq))
        return mask

    def _fragments(self) -> Iterator[Fragment]:
        before = 0
        for number, entry in enumerate(self._records.pieces):
            if before < self.summary.last_seq and entry.last_seq >= self.summary.first_seq:
                yield from find_fragments(number, self._records.blocks(number), self.mask(number))
            before = entry.last_seq


class Estimate:
    """What a segment will cost. Stored bytes: fetched, copied, decoded; after: of the result; most: that it
    can have. held_from: from which offset on a source is here already."""

    def __init__(self, selection: Selection, held_from: Callable[[int], int]) -> None:
        self.fetched = self.copied = self.decoded = 0
        self.requests: Counter[str] = Counter()
        summary = selection.summary
        blocks, other = 0, HEADER_BYTES + FOOTER_BYTES + RUN_BYTES * len(summary.runs)
        other += PAGE_ENTRY_BYTES * (1 + summary.records // (PAGE_RECORDS_MAX // 2))
        self.after = self.most = other
        for extent in selection.extents():
            self._add(extent, held_from(extent.source))
            blocks += sum(fragment.end - fragment.first for fragment in extent.fragments)
        index = _RECORD_BYTES * summary.records + _BLOCK_BYTES * blocks
        self.after += index
        self.most += _RECORD_BYTES_MAX * summary.records + _BLOCK_BYTES_MAX * blocks
        self._add_upload(index)

    def _add(self, extent: Extent, held_from: int) -> None:
        self.after += sum(fragment.after for fragment in extent.fragments)
        self.most += extent.length - extent.decoded + extent.decoded_raw
        if extent.copied:
            self.copied += extent.length
            self.requests["COPY"] += -(-extent.length // COPY_BYTES_MAX)
            return
        self.decoded += extent.decoded
        missing = min(max(held_from - extent.offset, 0), extent.length)
        self.fetched += missing
        self.requests["GET"] += 1 if missing else 0

    def _add_upload(self, index_bytes: int) -> None:
        options = StoreOptions()
        sent = self.after - self.copied
        self.requests["GET"] += max(1, -(-index_bytes // INDEX_BYTES_MAX))  # what is read back
        if self.copied or sent > options.put_bytes_max:
            self.requests["POST"] += 2
            self.requests["PUT"] += -(-sent // options.part_bytes)
        else:
            self.requests["PUT"] += 1
