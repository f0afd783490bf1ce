"""How the records that a merge keeps are cut into files: pure, of columns.

A file ends where its range is exact and a batch ends. A stretch that is not exact and larger than a file
is cut into parts, whose chain inside is not known (docs/format.md#exact-runs).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ourdb.liveness import mask_ranges
from ourdb.merge import SourceColumns, fold_ranges
from ourdb.segment.columns import Columns, batch_ends
from ourdb.segment.summary import Run, Stretch, Summary, fold_run

FetchColumns = Callable[[int, int], Iterable[Columns]]


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A file to be: its range, its records, the times of the first and the last one, and whether it ends
    inside a stretch, which then goes on in the next file."""

    first_seq: int
    last_seq: int
    records: int
    first_time: int
    last_time: int
    goes_on: bool


class _Mark(NamedTuple):
    """A record behind which a file may end. records, bytes: of all up to this one."""

    seq: int
    time: int
    records: int
    bytes: int


@dataclass(frozen=True, eq=False)
class _Piece:
    """Some records. ends: indexes of those behind which a file may end; bytes: as in a mark, of each."""

    columns: Columns
    ends: NDArray[np.intp]
    records: int
    bytes: NDArray[np.int64]

    def mark(self, index: int) -> _Mark:
        columns = self.columns
        return _Mark(
            int(columns.seq[index]),
            int(columns.time[index]),
            self.records + index + 1,
            int(self.bytes[index]),
        )

    def next_time(self, index: int) -> int | None:
        """Of the record behind this one, None if that is in the next piece."""
        return int(self.columns.time[index + 1]) if index + 1 < len(self.columns) else None

    def find_ends(self, begin: int, stop: int) -> NDArray[np.intp]:
        """Those in this range of indexes."""
        first, last = np.searchsorted(self.ends, (begin, stop))
        return self.ends[first:last]


class Cutter:
    """Cuts records into files as they come, in order; memory is that of a piece.

    runs: where they are exact. bytes_max: of the records of a file, each counted with `extra` bytes for the
    index. stretches_only: a file is cut only where nothing is exact within that many bytes.
    """

    def __init__(
        self, first_seq: int, runs: Sequence[Run], bytes_max: int, extra: int, *, stretches_only: bool = False
    ) -> None:
        self._starts = np.array([run.first_seq for run in runs], np.uint64)
        self._lasts = np.array([run.last_seq for run in runs], np.uint64)
        self._bytes_max, self._extra, self._stretches_only = bytes_max, extra, stretches_only
        self._first_seq = first_seq
        self._first_time: int | None = None  # of the file's first record, once that has come
        self._before = self._last = _Mark(0, 0, 0, 0)  # the last record before the file, and of all
        self._end: _Mark | None = None  # the last one in the file
        self._behind_end: int | None = None  # time of the record behind it, once that has come
        self._inside = False  # of a stretch that was cut
        self._cuts: list[Cut] = []

    def add(self, columns: Columns, *, closed: bool) -> None:
        """Records that are kept. closed: the last of these ends its file, and with it a batch."""
        if not len(columns):
            return
        exact = mask_ranges(columns.seq, self._starts, self._lasts)
        piece = _Piece(
            columns,
            np.flatnonzero(batch_ends(columns, closed=closed) & exact),
            self._last.records,
            np.cumsum(columns.raw_sizes + self._extra) + self._last.bytes,
        )
        time = int(columns.time[0])
        self._first_time = time if self._first_time is None else self._first_time
        self._behind_end = time if self._behind_end is None else self._behind_end
        at = 0
        while at < len(columns):
            at = self._take(piece, at)
        self._last = piece.mark(len(columns) - 1)

    def cuts(self) -> list[Cut]:
        """The files, in order, once all records were added."""
        if self._last.records > self._before.records:
            self._cut(self._last, None, goes_on=False)
        return self._cuts

    def _take(self, piece: _Piece, at: int) -> int:
        """Takes records of a piece, from index `at` on, until a file ends; returns the first one that was not
        taken."""
        counted_from = self._end if self._stretches_only and self._end else self._before
        fit = int(np.searchsorted(piece.bytes, counted_from.bytes + self._bytes_max, "right"))
        if fit <= at and piece.records + at == self._before.records:
            fit = at + 1  # a record that is larger than a file has its own
        ends = piece.find_ends(at, fit)
        if self._inside and len(ends):  # the stretch ends at its first exact seq: what follows is no part
            return self._cut_at(piece, int(ends[0]), goes_on=False)
        if len(ends):
            self._end, self._behind_end = piece.mark(int(ends[-1])), piece.next_time(int(ends[-1]))
            if self._stretches_only:
                return int(ends[-1]) + 1
        if fit >= len(piece.columns):
            return len(piece.columns)
        if self._end:
            stop = self._end.records - piece.records
            self._cut(self._end, self._behind_end, goes_on=False)
            return max(at, stop)
        if fit > at:
            return self._cut_at(piece, fit - 1, goes_on=True)
        self._cut(self._last, int(piece.columns.time[at]), goes_on=True)
        return at

    def _cut_at(self, piece: _Piece, index: int, *, goes_on: bool) -> int:
        self._cut(piece.mark(index), piece.next_time(index), goes_on=goes_on)
        return index + 1

    def _cut(self, last: _Mark, next_time: int | None, *, goes_on: bool) -> None:
        """Ends the file behind this record. next_time: of the one that follows."""
        assert self._first_time is not None  # there is a record
        self._cuts.append(
            Cut(
                first_seq=self._first_seq,
                last_seq=last.seq,
                records=last.records - self._before.records,
                first_time=self._first_time,
                last_time=last.time,
                goes_on=goes_on,
            )
        )
        self._before, self._first_seq, self._first_time = last, last.seq + 1, next_time
        self._end, self._inside = None, goes_on


def kept_columns(source: SourceColumns, live: NDArray[np.bool_]) -> Iterator[tuple[Columns, bool]]:
    """The columns of the records that are kept, and whether a piece is the last of its file."""
    start = 0
    for columns in source.columns(source.summary.first_seq, source.summary.last_seq):
        kept = columns[live[start : start + len(columns)]]
        start += len(columns)
        if len(kept):
            yield kept, int(kept.seq[-1]) == source.summary.last_seq


def summarize_cuts(whole: Summary, cuts: Sequence[Cut], columns: FetchColumns) -> list[Summary]:
    """The summary of each file that a merged segment is cut into. columns: of the sources."""
    if len(cuts) == 1:
        return [whole]
    runs = _cut_runs(whole.runs, cuts, columns)
    stretches = list(_stretches(cuts))
    summaries: list[Summary] = []
    chain: int | None = whole.chain_before
    first_time = whole.first_time
    for cut, following_cut, stretch in zip(cuts, [*cuts[1:], None], stretches, strict=True):
        here = [run for run in runs if cut.first_seq <= run.first_seq and run.last_seq <= cut.last_seq]
        following = next((run for run in runs if run.first_seq == cut.last_seq + 1), None)
        next_time = here[-1].next_time if here else None
        if here and here[-1].last_seq == cut.last_seq:
            here[-1] = replace(here[-1], next_time=None)
        last = following_cut is None
        if not cut.goes_on:
            chain_after: int | None = here[-1].chain_after
        else:  # inside a stretch it is known only where a run happens to begin
            chain_after = following.chain_before if following else None
        summaries.append(
            Summary(
                first_seq=cut.first_seq,
                last_seq=cut.last_seq,
                first_time=first_time,
                last_time=whole.last_time if last else cut.last_time,
                runs=tuple(here),
                records=cut.records,
                highest_id=whole.highest_id if last else _highest_id(here, following, cut, columns),
                chain_before=chain,
                chain_after=chain_after,
                level=whole.level,
                stretch=stretch,
            ).validate()
        )
        chain = chain_after
        # Between two parts no moment can be told; elsewhere it is the time of the very next record, kept or
        # not.
        if following_cut:
            first_time = following_cut.first_time if cut.goes_on or next_time is None else next_time
    return summaries


def _highest_id(here: Sequence[Run], following: Run | None, cut: Cut, columns: FetchColumns) -> int | None:
    """The highest id given up to the end of a file, where a run in it or behind it can tell."""
    if following:
        return following.highest_before
    if cut.goes_on:
        return None
    run = here[-1]
    return fold_run(columns(run.first_seq, run.last_seq), run, run.last_seq)[0]


def _cut_runs(runs: Sequence[Run], cuts: Sequence[Cut], columns: FetchColumns) -> list[Run]:
    found: list[Run] = []
    for run in runs:
        ranges = [
            (max(run.first_seq, cut.first_seq), min(run.last_seq, cut.last_seq))
            for cut in cuts
            if cut.first_seq <= run.last_seq and cut.last_seq >= run.first_seq
        ]
        found += fold_ranges(run, ranges, columns)
    return found


def _stretches(cuts: Sequence[Cut]) -> Iterator[Stretch | None]:
    at = 0
    while at < len(cuts):
        end = at
        while cuts[end].goes_on:
            end += 1
        if end == at:
            yield None
        else:
            name, parts = secrets.randbelow(2**64 - 1) + 1, end - at + 1
            yield from (Stretch(name, part, parts) for part in range(1, parts + 1))
        at = end + 1
