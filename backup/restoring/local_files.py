"""How the records of a restore path are laid out in data files: cut at batch ends, each with its summary.

A value comes out of columns alone, before any block is fetched. A file is cut where the path is exact and
a batch ends, before it would grow beyond its size; parts of a stretch keep files of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ourdb.active import ENDING_BYTES, ENDING_BYTES_A_RECORD
from ourdb.errors import DamageError
from ourdb.record import BATCH_GOES_ON
from ourdb.segment.columns import Columns
from ourdb.segment.header import HEADER_BYTES
from ourdb.segment.summary import Run, RunFold, Stretch, Summary
from ourdb.units import GIB

_FILE_BYTES_MAX = 4 * GIB - 1  # of a data file, whatever its configured size


@dataclass(frozen=True)
class Slice:
    """Records `start` to `end` (exclusive) of a page of the index of a step's segment."""

    step: int
    page: int
    start: int
    end: int


@dataclass(frozen=True)
class FilePlan:
    """A data file to be: what its footer will say, the bytes of its records, and where these come from."""

    summary: Summary
    raw_bytes: int
    slices: tuple[Slice, ...]


@dataclass(frozen=True)
class Piece:
    """Records in seq order, none of them outside of `run`, or all of them outside of any (None).

    ends: which of them end a batch.
    """

    columns: Columns
    run: Run | None
    place: Slice

    def split(self, at: int) -> tuple[Piece, Piece]:
        """The first `at` records, and the others."""
        middle = self.place.start + at
        return (
            Piece(self.columns[:at], self.run, replace(self.place, end=middle)),
            Piece(self.columns[at:], self.run, replace(self.place, start=middle)),
        )

    def ends(self) -> npt.NDArray[np.intp]:
        """The records behind which a file may be cut, as counts of records."""
        if self.run is None:
            return np.empty(0, np.intp)
        ends = (self.columns.flags & np.uint16(BATCH_GOES_ON)) == 0
        ends |= self.columns.seq == np.uint64(self.run.last_seq)
        return np.flatnonzero(ends) + 1


class _Part(NamedTuple):
    """A piece as it waits and is taken: the columns only of an exact run, which have to be followed."""

    place: Slice
    run: Run | None
    columns: Columns | None
    first_seq: int
    last_seq: int
    first_time: int
    last_time: int
    records: int
    raw_bytes: int

    @classmethod
    def of(cls, piece: Piece) -> _Part:
        columns = piece.columns
        return cls(
            piece.place,
            piece.run,
            columns if piece.run else None,
            int(columns.seq[0]),
            int(columns.seq[-1]),
            int(columns.time[0]),
            int(columns.time[-1]),
            len(columns),
            int(columns.raw_sizes.sum()),
        )

    @property
    def cost(self) -> int:
        return self.raw_bytes + ENDING_BYTES_A_RECORD * self.records


@dataclass(frozen=True, kw_only=True)
class StepStart:
    """A step of the path. seq: its first; time: ms, of what the segment covers first. exact: whether it
    begins inside of an exact run. level: of its segment. stretch: it is this part of one."""

    seq: int
    time: int
    exact: bool
    level: int
    stretch: Stretch | None


@dataclass
class _Open:
    """A file while it is filled."""

    first_seq: int
    first_time: int
    chain_before: int | None
    stretch: Stretch | None = None
    level: int = 0
    runs: list[Run] = field(default_factory=list)
    slices: list[Slice] = field(default_factory=list)
    records: int = 0
    raw_bytes: int = 0


class FileCutter:
    """Takes a path step by step: begin, add its pieces in order, end; then finish. Yields files as they are
    full. Memory: one batch of columns, and the slices of one file."""

    def __init__(self, file_size: int) -> None:
        self._bytes_max = file_size - HEADER_BYTES - ENDING_BYTES
        self._file: _Open | None = None
        self._waiting: list[_Part] = []  # behind the last place where the file may be cut
        self._fold: RunFold | None = None  # of the run that is open
        self._done: RunFold | None = None  # of the run that ended last
        self._seq, self._time = 0, 0  # of the last record that is in a file
        self._chain: int | None = 0  # there, None: not known
        self._highest: int | None = None
        self._next_time: int | None = None  # of the record after it, where it is known
        self._step: StepStart | None = None

    @property
    def chain(self) -> int | None:
        """At the end of all that was added, None: not known."""
        return self._chain

    def begin(self, step: StepStart) -> Iterator[FilePlan]:
        """The next step of the path, which begins where the one before ended."""
        if step.stretch or not step.exact or (self._step and self._step.stretch):
            yield from self._close()
            self._next_time = step.time
        self._step = step

    def add(self, piece: Piece) -> Iterator[FilePlan]:
        """The next records. DamageError if an exact run lacks some."""
        while len(piece.columns):
            ends = piece.ends()
            if not len(ends) or (self._step and self._step.stretch):
                self._waiting.append(_Part.of(piece))
                return
            taken = self._fitting(piece, ends)
            if taken:
                head, piece = piece.split(taken)
                self._take([*self._waiting, _Part.of(head)])
                self._waiting = []
            else:
                yield from self._close()

    def end(self, seq: int, time: int, chain: int | None = None, highest: int | None = None) -> None:
        """The step ends here: exactly, unless it is a part of a stretch, which is taken as it is. chain,
        highest: what a part that is not exact there says of its end, None: nothing."""
        if self._step and self._step.stretch:
            self._take(self._waiting)
            self._waiting = []
            if self._seq_of_run() != seq:
                self._fold, self._chain, self._highest = None, chain, highest
                self._seq, self._time = seq, time
        if self._waiting or self._seq != seq:
            raise DamageError(f"the path is not exact at seq {seq}, where a segment is left", seq=seq)

    def finish(self) -> Iterator[FilePlan]:
        """The path ends."""
        yield from self._close()

    def _fitting(self, piece: Piece, ends: npt.NDArray[np.intp]) -> int:
        """How many records of the piece can be taken, up to a place where the file may be cut; 0: it is full.

        An empty file takes at least what comes before the first such place.
        """
        room = self._bytes_max - sum(part.cost for part in self._waiting)
        filled = self._file is not None and self._file.records > 0
        if self._file:
            room -= self._file.raw_bytes + ENDING_BYTES_A_RECORD * self._file.records
        costs = np.cumsum(piece.columns.raw_sizes + ENDING_BYTES_A_RECORD)[ends - 1]
        fitting = int(np.searchsorted(costs, room, "right"))
        return int(ends[max(fitting, 0 if filled else 1) - 1]) if fitting or not filled else 0

    def _take(self, parts: list[_Part]) -> None:
        for part in parts:
            file = self._file or self._open(part)
            self._put(file, part.place)
            file.records += part.records
            file.raw_bytes += part.raw_bytes
            if part.run is not None and part.columns is not None:
                self._follow(file, part.columns, part.first_seq, part.run)
            self._seq, self._time = part.last_seq, part.last_time
        if self._file:
            _require_below_limit(self._file, self._seq)

    def _open(self, part: _Part) -> _Open:
        step = self._step
        assert step is not None
        first_time = part.first_time
        if self._next_time is not None and part.first_seq > self._seq + 1:
            first_time = self._next_time
        self._file = _Open(self._seq + 1, first_time, self._chain, step.stretch, step.level)
        return self._file

    def _put(self, file: _Open, place: Slice) -> None:
        last = file.slices[-1] if file.slices else None
        if last and (last.step, last.page, last.end) == (place.step, place.page, place.start):
            file.slices[-1] = replace(last, end=place.end)
        else:
            file.slices.append(place)
        file.level = max(file.level, self._step.level if self._step else 0)

    def _follow(self, file: _Open, columns: Columns, first_seq: int, run: Run) -> None:
        """Carries the chain and the highest id on through records of an exact run."""
        if self._fold is None and file.runs and file.runs[-1].last_seq == first_seq - 1:
            # Its segment goes on without what comes next, and another one, entered here, has that.
            file.runs.pop()
            self._fold = self._done
        if self._fold is None or first_seq != self._seq + 1:
            starts = first_seq == run.first_seq
            chain = run.chain_before if starts else self._chain
            highest = run.highest_before if starts else self._highest
            if chain is None:
                raise DamageError(f"no chain is known before seq {first_seq}", seq=first_seq)
            self._fold = RunFold.begin(first_seq, chain, highest)
        self._fold.add(columns)
        done = self._fold.finish()
        self._chain, self._highest = done.chain_after, self._fold.known_highest
        self._next_time = None
        if done.last_seq == run.last_seq and run.next_time is not None:
            file.runs.append(replace(done, next_time=run.next_time))
            self._fold, self._done, self._next_time = None, self._fold, run.next_time

    def _seq_of_run(self) -> int:
        """Where the exact run ends that was followed last, 0: none in this file."""
        if self._fold is not None:
            return self._fold.finish().last_seq
        return self._file.runs[-1].last_seq if self._file and self._file.runs else 0

    def _close(self) -> Iterator[FilePlan]:
        """Ends the file behind the last record that it took."""
        file, self._file = self._file, None
        if file is None:
            return
        runs = list(file.runs)
        if self._fold is not None:
            runs.append(self._fold.finish())
        elif runs and runs[-1].last_seq == self._seq:
            runs[-1] = replace(runs[-1], next_time=None)
        known = file.stretch is not None or (bool(runs) and runs[-1].last_seq == self._seq)
        yield FilePlan(
            Summary(
                first_seq=file.first_seq,
                last_seq=self._seq,
                first_time=file.first_time,
                last_time=self._time,
                runs=tuple(runs),
                records=file.records,
                highest_id=self._highest if known else None,
                chain_before=file.chain_before,
                chain_after=self._chain if known else None,
                level=file.level,
                stretch=file.stretch,
            ).validate(),
            file.raw_bytes,
            tuple(file.slices),
        )
        self._fold = None  # if the run goes on, then in the next file with what is known here


def _require_below_limit(file: _Open, last_seq: int) -> None:
    """What is not exact cannot be cut: whoever writes more than a file may hold has to write it in parts."""
    size = HEADER_BYTES + ENDING_BYTES + ENDING_BYTES_A_RECORD * file.records + file.raw_bytes
    if size > _FILE_BYTES_MAX:
        raise DamageError(
            f"seq {file.first_seq} to {last_seq} cannot be restored: merged into one piece, nowhere exact "
            f"before its end, of more than the {_FILE_BYTES_MAX} bytes of a data file",
            seq=last_seq,
        )
