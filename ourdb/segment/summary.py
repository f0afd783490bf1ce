"""What a segment covers, and what of it can be restored exactly (docs/format.md#exact-runs)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from ourdb.errors import DamageError, InvalidError
from ourdb.record import ID_MAX, SEQ_MAX, TIME_MAX
from ourdb.segment.columns import Columns, as_pieces, batch_ends, extend_chain


@dataclass(frozen=True, kw_only=True)
class Run:
    """A range of seq, ends included, in which every record is there: each batch end in it can be restored.

    first_time, last_time: ms, of its first and last batch end. next_time: ms, of the record after it, None if
    the run ends its segment. chain_before, chain_after: of the seqs before first_seq and at last_seq.
    highest_before: the highest id ever given before first_seq, None: none was.
    """

    first_seq: int
    last_seq: int
    first_time: int
    last_time: int
    next_time: int | None
    chain_before: int
    chain_after: int
    highest_before: int | None

    def validate(self) -> Run:
        """Self, or DamageError."""
        if not 1 <= self.first_seq <= self.last_seq <= SEQ_MAX:
            raise DamageError(f"exact run with an impossible range: {self.first_seq} to {self.last_seq}")
        next_time = self.last_time if self.next_time is None else self.next_time
        if not 0 <= self.first_time <= self.last_time <= next_time <= TIME_MAX:
            raise DamageError(f"exact run whose times go backwards, from seq {self.first_seq}")
        if self.first_seq == 1 and (self.chain_before != 0 or self.highest_before is not None):
            raise DamageError("exact run from seq 1 with something before it")
        return self


@dataclass(frozen=True)
class Stretch:
    """One part of a stretch that is not exact and was cut: random id (u64), part from 1 to parts."""

    id: int
    part: int
    parts: int


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a segment covers, ends included: all that the path, the head and the footer need to know.

    records: how many are there. highest_id: the highest ever given up to last_seq, None: not known. Chains
    are None where a stretch is cut and they are not known. level: 0 as uploaded, else one above the highest
    source.
    """

    first_seq: int
    last_seq: int
    first_time: int
    last_time: int
    runs: tuple[Run, ...]
    records: int
    highest_id: int | None
    chain_before: int | None
    chain_after: int | None
    level: int = 0
    stretch: Stretch | None = None

    @property
    def horizon(self) -> int:
        """Start of the last exact run; 0: there is none."""
        return self.runs[-1].first_seq if self.runs else 0

    @property
    def exact(self) -> bool:
        """Every record of the range is there."""
        return (
            len(self.runs) == 1
            and self.runs[0].first_seq == self.first_seq
            and self.runs[0].last_seq == self.last_seq
        )

    def find_run(self, seq: int) -> Run | None:
        """The exact run that holds `seq`, if any."""
        return next((run for run in self.runs if run.first_seq <= seq <= run.last_seq), None)

    def serves(self, seq: int) -> bool:
        """Whether `seq`, if it ends a batch, can be restored with this as the last segment of the path."""
        return self.find_run(seq) is not None

    def validate(self) -> Summary:
        """Self, or DamageError if the claims contradict each other."""
        if not 1 <= self.first_seq <= self.last_seq <= SEQ_MAX:
            raise DamageError(f"segment with an impossible range: {self.first_seq} to {self.last_seq}")
        if not 0 <= self.first_time <= self.last_time <= TIME_MAX:
            raise DamageError(f"segment whose times go backwards, from seq {self.first_seq}")
        span = self.last_seq - self.first_seq + 1
        if not 1 <= self.records <= span or (self.exact and self.records != span):
            raise DamageError(f"segment of {span} seqs with {self.records} records, from {self.first_seq}")
        if self.highest_id is not None and not 0 <= self.highest_id <= ID_MAX:
            raise DamageError(f"highest id out of range: {self.highest_id}")
        if self.first_seq == 1 and self.chain_before not in (0, None):
            raise DamageError("segment from seq 1 with a chain before it")
        self._validate_runs()
        self._validate_stretch()
        return self

    def _validate_runs(self) -> None:
        before = self.first_seq - 2  # runs that touch would be one run
        for run in self.runs:
            run.validate()
            if run.first_seq < before + 2 or run.last_seq > self.last_seq:
                raise DamageError(f"exact run overlaps, or lies outside: {run.first_seq} to {run.last_seq}")
            if run.first_time < self.first_time or run.last_time > self.last_time:
                raise DamageError(f"exact run outside of its segment's times, from seq {run.first_seq}")
            if (run.next_time is None) != (run.last_seq == self.last_seq):
                raise DamageError(f"exact run with a wrong time of its next record, to seq {run.last_seq}")
            if run.first_seq == self.first_seq and run.chain_before != self.chain_before:
                raise DamageError(f"chain before seq {run.first_seq} is said twice, and differs")
            if run.last_seq == self.last_seq and run.chain_after != self.chain_after:
                raise DamageError(f"chain after seq {run.last_seq} is said twice, and differs")
            if run.highest_before is not None and run.highest_before > _known(self.highest_id):
                raise DamageError(f"highest id before seq {run.first_seq} is above the segment's")
            before = run.last_seq

    def _validate_stretch(self) -> None:
        if self.stretch is None:
            if None in (self.chain_before, self.chain_after):
                raise DamageError(f"chain is not known, from seq {self.first_seq}, and it is no part")
            if not self.runs or self.runs[-1].last_seq != self.last_seq:
                raise DamageError(f"segment is not exact at its own end: {self.last_seq}")
            return
        part, parts = self.stretch.part, self.stretch.parts
        if parts < 2 or not 1 <= part <= parts:
            raise DamageError(f"impossible part of a stretch: {part} of {parts}")
        if (part == 1 and self.chain_before is None) or (part == parts and self.chain_after is None):
            raise DamageError(f"chain at the end of a stretch is not known: part {part} of {parts}")


def fold_run(columns: Columns | Iterable[Columns], run: Run, seq: int) -> tuple[int, int]:
    """The highest id ever given and the chain at `seq`, inside `run`.

    columns: records in seq order, whole or in pieces, of which those from run.first_seq to `seq` count; all
    of them have to be there. InvalidError if seq is not in the run, DamageError if a record is missing.
    """
    if not run.first_seq <= seq <= run.last_seq:
        raise InvalidError(f"seq {seq} is not in the exact run {run.first_seq} to {run.last_seq}")
    fold = RunFold(run, seq)
    for piece in as_pieces(columns):
        fold.add(piece)
    chain = fold.finish().chain_after
    return fold.known_highest, chain


def cut_summary(summary: Summary, columns: Columns | Iterable[Columns], upto_seq: int) -> Summary:
    """The summary of the same segment cut behind `upto_seq`, which ends a batch in one of its exact runs.

    columns: those of the segment from its start on, whole or in pieces; none after upto_seq is needed.
    InvalidError if the segment is not exact there.
    """
    run = summary.find_run(upto_seq)
    if run is None:
        raise InvalidError(f"segment {summary.first_seq} to {summary.last_seq} is not exact at {upto_seq}")
    if upto_seq == summary.last_seq:
        return summary
    fold = RunFold(run, upto_seq)
    records = 0
    for piece in as_pieces(columns):
        here = piece[: int(np.searchsorted(piece.seq, np.uint64(upto_seq), "right"))]
        records += len(here)
        fold.add(here)
    last = fold.finish()
    earlier = tuple(other for other in summary.runs if other.last_seq < run.first_seq)
    return replace(
        summary,
        last_seq=upto_seq,
        last_time=last.last_time,
        runs=(*earlier, last),
        records=records,
        highest_id=fold.highest,
        chain_after=last.chain_after,
    ).validate()


def unmerged_summary(
    columns: Columns | Iterable[Columns], chain_before: int, highest_before: int | None, level: int = 0
) -> Summary:
    """The summary of a segment that holds every record of its range: these, in seq order, at least one.

    chain_before, highest_before: at the seq before the first one (0 and None at seq 1).
    """
    fold: RunFold | None = None
    for piece in as_pieces(columns):
        if len(piece):
            if fold is None:
                fold = RunFold.begin(int(piece.seq[0]), chain_before, highest_before)
            fold.add(piece)
    if fold is None or fold.start_time is None:
        raise InvalidError("a segment holds at least one record")
    run = fold.finish()
    return Summary(
        first_seq=run.first_seq,
        last_seq=run.last_seq,
        first_time=fold.start_time,
        last_time=run.last_time,
        runs=(run,),
        records=run.last_seq - run.first_seq + 1,
        highest_id=fold.highest,
        chain_before=run.chain_before,
        chain_after=run.chain_after,
        level=level,
    ).validate()


class RunFold:
    """Follows an exact run from its start over pieces of columns, and tells the run up to `upto_seq` (None:
    to the last record that was added)."""

    def __init__(self, run: Run, upto_seq: int | None) -> None:
        self.highest = run.highest_before
        self.start_time: int | None = None  # of the first record
        self._run = run
        self._upto = upto_seq
        self._chain = run.chain_before
        self._last_seq = run.first_seq - 1
        self._last_time = 0
        self._first_end: int | None = None

    @property
    def known_highest(self) -> int:
        """The highest id given up to the last record that was added, of which there is one."""
        assert self.highest is not None
        return self.highest

    @classmethod
    def begin(
        cls, first_seq: int, chain_before: int, highest_before: int | None, upto_seq: int | None = None
    ) -> RunFold:
        """A run of which only the start is known."""
        start = Run(
            first_seq=first_seq,
            last_seq=SEQ_MAX,
            first_time=0,
            last_time=0,
            next_time=None,
            chain_before=chain_before,
            chain_after=0,
            highest_before=highest_before,
        )
        return cls(start, upto_seq)

    def add(self, columns: Columns) -> None:
        """The next records in seq order; those outside of the run are skipped."""
        upto = self._run.last_seq if self._upto is None else self._upto
        begin, end = np.searchsorted(columns.seq, np.array([self._run.first_seq, upto + 1], np.uint64))
        here = columns[int(begin) : int(end)]
        if not len(here):
            return
        if int(here.seq[0]) != self._last_seq + 1 or int(here.seq[-1]) - self._last_seq != len(here):
            raise DamageError(f"records are missing in an exact run, after seq {self._last_seq}")
        if self.start_time is None:
            self.start_time = int(here.time[0])
        if self._first_end is None:
            ends = batch_ends(here, closed=False)
            self._first_end = int(here.time[int(np.argmax(ends))]) if ends.any() else None
        self.highest = max(int(here.id.max()), _known(self.highest, none=-1))
        self._chain = extend_chain(self._chain, here.crc)
        self._last_seq, self._last_time = int(here.seq[-1]), int(here.time[-1])

    def finish(self, next_time: int | None = None) -> Run:
        """The run that was followed. DamageError if records are missing at its end."""
        if self._last_seq < self._run.first_seq or self._upto not in (None, self._last_seq):
            raise DamageError(f"records are missing in an exact run, after seq {self._last_seq}")
        return replace(
            self._run,
            last_seq=self._last_seq,
            first_time=self._last_time if self._first_end is None else self._first_end,
            last_time=self._last_time,
            next_time=next_time,
            chain_after=self._chain,
        )


def _known(highest: int | None, *, none: int = ID_MAX) -> int:
    return none if highest is None else highest
