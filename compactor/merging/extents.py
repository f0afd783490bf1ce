"""Which ranges of the sources a merge copies, fetches, or leaves alone: pure, of block tables and masks.

A block whose records all live is taken as it is, one with some that live is decoded, and one without any is
never fetched. Blocks that touch are one range; if it is long enough, the store copies it itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from compactor.merging.records import Blocks
from ourdb.units import MIB

READ_BYTES = 4 * MIB  # stored bytes of one request, or one larger block
RAW_BYTES = 4 * MIB  # of the records that one request may bring to be decoded, or one larger block

DEAD, WHOLE, MIXED = 0, 1, 2


class Fragment(NamedTuple):
    """Neighbouring blocks of a piece, `first` to `end` (exclusive), of one source: all of them whole-live or
    all of them mixed. offset, length: of their stored bytes in the source. raw: bytes of their records;
    after: stored bytes that what is kept of them will have, presumably."""

    piece: int
    first: int
    end: int
    source: int
    offset: int
    length: int
    raw: int
    after: int
    mixed: bool

    def touches(self, other: Fragment) -> bool:
        """Whether the other one begins where this one ends."""
        return self.source == other.source and self.offset + self.length == other.offset


@dataclass(frozen=True)
class Extent:
    """A range of one source. copied: by the store; else one request fetches it."""

    copied: bool
    fragments: tuple[Fragment, ...]

    @property
    def source(self) -> int:
        return self.fragments[0].source

    @property
    def offset(self) -> int:
        return self.fragments[0].offset

    @property
    def length(self) -> int:
        last = self.fragments[-1]
        return last.offset + last.length - self.offset

    @property
    def decoded(self) -> int:
        """Stored bytes of the blocks that are decoded."""
        return sum(fragment.length for fragment in self.fragments if fragment.mixed)

    @property
    def decoded_raw(self) -> int:
        """Bytes of the records of those blocks."""
        return sum(fragment.raw for fragment in self.fragments if fragment.mixed)


def find_fragments(number: int, blocks: Blocks, live: npt.NDArray[np.bool_]) -> Iterator[Fragment]:
    """The fragments of a piece. live: which of its records are kept."""
    table, offsets = blocks.table, blocks.offset
    records = table.records.astype(np.int64)
    ends = np.cumsum(records)
    kept = np.add.reduceat(live, ends - records, dtype=np.int64)
    kinds = np.where(kept == 0, DEAD, np.where(kept == records, WHOLE, MIXED))
    kept_bytes = table.stored_bytes * kept // records
    stops = offsets + table.stored_bytes
    raw_ends = np.cumsum(table.raw_bytes, dtype=np.int64)
    changes = np.flatnonzero((np.diff(kinds) != 0) | (np.diff(blocks.source) != 0)) + 1
    for first, end in pairwise([0, *changes.tolist(), len(kinds)]):
        kind = int(kinds[first])
        while kind != DEAD and first < end:
            begin, raw_begin = int(offsets[first]), int(raw_ends[first]) - int(table.raw_bytes[first])
            by_stored = first + int(np.searchsorted(stops[first:end], begin + READ_BYTES, "right"))
            by_raw = first + int(np.searchsorted(raw_ends[first:end], raw_begin + RAW_BYTES, "right"))
            stop = max(min(by_stored, by_raw), first + 1)
            length, raw = int(stops[stop - 1]) - begin, int(raw_ends[stop - 1]) - raw_begin
            after, source = int(kept_bytes[first:stop].sum()), int(blocks.source[first])
            yield Fragment(number, first, stop, source, begin, length, raw, after, kind == MIXED)
            first = stop


def join_fragments(fragments: Iterable[Fragment], copy_min: int) -> Iterator[Extent]:
    """What touches, joined: runs of whole blocks of `copy_min` bytes and more are copied."""
    joiner = _Joiner(copy_min)
    for fragment in fragments:
        yield from joiner.add(fragment)
    yield from joiner.finish()


class _Joiner:
    def __init__(self, copy_min: int) -> None:
        self._copy_min = copy_min
        self._run: list[Fragment] = []  # whole blocks that touch, as long as more may follow
        self._run_bytes = 0
        self._read: list[Fragment] = []  # of one request
        self._read_bytes = self._read_raw = 0

    def add(self, fragment: Fragment) -> Iterator[Extent]:
        if self._run and (fragment.mixed or not self._run[-1].touches(fragment)):
            yield from self._end_run()
        if fragment.mixed:
            yield from self._add_to_read(fragment)
        else:
            self._run.append(fragment)
            self._run_bytes += fragment.length

    def finish(self) -> Iterator[Extent]:
        yield from self._end_run()
        yield from self._end_read()

    def _end_run(self) -> Iterator[Extent]:
        run, size = self._run, self._run_bytes
        self._run, self._run_bytes = [], 0
        if size >= self._copy_min:
            yield from self._end_read()
            yield Extent(True, tuple(run))
        else:
            for fragment in run:
                yield from self._add_to_read(fragment)

    def _add_to_read(self, fragment: Fragment) -> Iterator[Extent]:
        raw = fragment.raw if fragment.mixed else 0
        full = self._read_bytes + fragment.length > READ_BYTES or self._read_raw + raw > RAW_BYTES
        if self._read and (full or not self._read[-1].touches(fragment)):
            yield from self._end_read()
        self._read.append(fragment)
        self._read_bytes += fragment.length
        self._read_raw += raw

    def _end_read(self) -> Iterator[Extent]:
        if self._read:
            yield Extent(False, tuple(self._read))
        self._read, self._read_bytes, self._read_raw = [], 0, 0
