"""How the records that a merge keeps are cut into files: pure, of columns.

A file ends where its range is exact and a batch ends. A stretch that is not exact and larger than a file
is cut into parts, whose chain inside is not known (docs/format.md#exact-runs).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ourdb.merge import fold_ranges
from ourdb.segment.columns import Columns, batch_ends
from ourdb.segment.summary import Run, Stretch, Summary

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


class Cutter:
    """Cuts records into files as they come, in order. runs: where they are exact; bytes_max: of the records
    of a file, each counted with `extra` bytes for the index."""

    def __init__(self, first_seq: int, runs: Sequence[Run], bytes_max: int, extra: int) -> None:
        self._runs, self._bytes_max, self._extra = runs, bytes_max, extra
        self._first_seq = first_seq
        self._sizes: list[NDArray[np.int64]] = []
        self._seqs: list[NDArray[np.uint64]] = []
        self._times: list[NDArray[np.uint64]] = []
        self._ends: list[NDArray[np.bool_]] = []

    def add(self, columns: Columns, *, closed: bool) -> None:
        """Records that are kept. closed: the last of these ends its file, and with it a batch."""
        ends = batch_ends(columns, closed=closed)
        exact = np.zeros(len(columns), np.bool_)
        for run in self._runs:
            begin, stop = np.searchsorted(columns.seq, np.array([run.first_seq, run.last_seq + 1], np.uint64))
            exact[int(begin) : int(stop)] = True
        self._sizes.append(columns.raw_sizes + self._extra)
        self._seqs.append(columns.seq)
        self._times.append(columns.time)
        self._ends.append(ends & exact)

    def cuts(self) -> Iterator[Cut]:
        """The files, in order."""
        sizes = np.cumsum(np.concatenate(self._sizes))
        seqs, times = np.concatenate(self._seqs), np.concatenate(self._times)
        ends = np.flatnonzero(np.concatenate(self._ends))
        start, inside = 0, False
        while start < len(seqs):
            done = int(sizes[start - 1]) if start else 0
            fit = int(np.searchsorted(sizes, done + self._bytes_max, "right"))
            possible = ends[int(np.searchsorted(ends, start)) : int(np.searchsorted(ends, fit))]
            # A stretch that was cut ends at its first exact seq: what follows it is no part.
            stop = int(possible[0 if inside else -1]) + 1 if len(possible) else max(fit, start + 1)
            goes_on = not len(possible)
            last_seq = int(seqs[stop - 1])
            yield Cut(
                first_seq=self._first_seq,
                last_seq=last_seq,
                records=stop - start,
                first_time=int(times[start]),
                last_time=int(times[stop - 1]),
                goes_on=goes_on,
            )
            self._first_seq, start, inside = last_seq + 1, stop, goes_on


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
                highest_id=whole.highest_id if last else (following.highest_before if following else None),
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
