"""Whether the records of a segment bear out what its summary claims."""

from __future__ import annotations

import numpy as np

from ourdb.errors import DamageError, UnknownFormatError
from ourdb.record import KNOWN_FLAGS
from ourdb.segment.columns import Columns
from ourdb.segment.summary import Run, RunFold, Summary


class ClaimChecker:
    """Takes the columns of a segment piece by piece, in order, and raises DamageError (field `seq`) where
    they contradict the summary: order, range, times, count, highest id; and for each exact run that no record
    is missing, its chain, its times, and the time of the record after it. Pieces of some 10,000 records are
    best.
    """

    def __init__(self, summary: Summary) -> None:
        self._summary = summary.validate()
        self._records = 0
        self._last_seq = summary.first_seq - 1
        self._last_time = summary.first_time
        self._highest = -1
        self._run = 0  # the first run that did not end yet
        self._fold: RunFold | None = None
        self._followed: Run | None = None  # the run that ended last

    def add(self, columns: Columns) -> None:
        """The next records, in seq order."""
        if not len(columns):
            return
        self._check_order(columns)
        self._check_next_time(columns)
        runs = self._summary.runs
        while self._run < len(runs) and runs[self._run].first_seq <= int(columns.seq[-1]):
            if not self._follow(runs[self._run], columns):
                break
            self._run += 1
        self._records += len(columns)
        self._last_seq, self._last_time = int(columns.seq[-1]), int(columns.time[-1])
        self._highest = max(self._highest, int(columns.id.max()))

    def finish(self) -> None:
        """All records were added."""
        summary = self._summary
        if self._records != summary.records or self._run != len(summary.runs):
            raise DamageError(
                f"segment has {self._records} of {summary.records} records, to seq {self._last_seq}",
                seq=self._last_seq,
            )
        if summary.highest_id is not None and self._highest > summary.highest_id:
            raise DamageError(f"id {self._highest} is above the highest id: {summary.highest_id}")

    def _check_order(self, columns: Columns) -> None:
        summary, seqs, times = self._summary, columns.seq, columns.time
        first, last = int(seqs[0]), int(seqs[-1])
        if first <= self._last_seq or last > summary.last_seq or not (seqs[1:] > seqs[:-1]).all():
            raise DamageError(f"records are not in order of seq, or out of range, from {first}", seq=first)
        going_back = int(times[0]) < self._last_time or not (times[1:] >= times[:-1]).all()
        if going_back or int(times[-1]) > summary.last_time:
            raise DamageError(f"times go backwards, or are out of range, from seq {first}", seq=first)
        if (first == summary.first_seq and int(times[0]) != summary.first_time) or (
            last == summary.last_seq and int(times[-1]) != summary.last_time
        ):
            raise DamageError("first or last time is not that of the first or last record", seq=first)
        if (columns.flags & ~np.uint16(KNOWN_FLAGS)).any():
            raise UnknownFormatError(f"unknown record flags, from seq {first}", seq=first)

    def _follow(self, run: Run, columns: Columns) -> bool:
        """Whether the run, which began in these columns or before, ends in them too."""
        if self._fold is None:
            before = int(np.searchsorted(columns.seq, np.uint64(run.first_seq)))
            highest = max(self._highest, int(columns.id[:before].max()) if before else -1)
            if run.highest_before is not None and highest > run.highest_before:
                raise DamageError(f"highest id before seq {run.first_seq} is too low", seq=run.first_seq)
            self._fold = RunFold(run, run.last_seq)
        self._fold.add(columns)
        if run.last_seq > int(columns.seq[-1]):
            return False
        found = self._fold.finish(run.next_time)
        if found != run:
            raise DamageError(
                f"chain or times of exact run {run.first_seq} to {run.last_seq} do not match",
                seq=run.last_seq,
            )
        highest_id = self._summary.highest_id
        if run.last_seq == self._summary.last_seq and highest_id not in (None, self._fold.known_highest):
            raise DamageError(f"highest id is {self._fold.known_highest}, not {highest_id}", seq=run.last_seq)
        self._fold, self._followed = None, run
        after = columns[int(np.searchsorted(columns.seq, np.uint64(run.last_seq), "right")) :]
        self._check_next_time(after)
        return True

    def _check_next_time(self, columns: Columns) -> None:
        """The first record after a run, which need not be the next one, is not before the run's next time."""
        run, self._followed = self._followed, None if len(columns) else self._followed
        if run is None or run.next_time is None or not len(columns):
            return
        seq, time = int(columns.seq[0]), int(columns.time[0])
        if time < run.next_time or (seq == run.last_seq + 1 and time != run.next_time):
            raise DamageError(f"time of the record after seq {run.last_seq} does not match", seq=seq)
