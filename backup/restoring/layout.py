"""Reads the indexes along a restore path, verifies them, and lays the records out in data files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import groupby

import numpy as np

from backup.restoring.local_files import FileCutter, FilePlan, Piece, Slice, StepStart
from compactor import fetch
from compactor.path import Step
from ourdb.errors import DamageError
from ourdb.segment.claims import ClaimChecker
from ourdb.segment.columns import Columns
from ourdb.segment.reader import SegmentReader
from ourdb.segment.summary import Run, RunFold, Stretch

OpenReader = Callable[[int], SegmentReader]


class Layout:
    """The data files of a path. chain: after `files` is exhausted, that of the path's last seq.

    open_reader: of the segment of a step, by its number. Columns are verified whole, also beyond the step's
    end: order, counts, times, and the chain of each exact run, which has to join that of the path so far.
    """

    def __init__(self, steps: Sequence[Step], open_reader: OpenReader, file_size: int) -> None:
        self.chain = 0
        self.records = 0
        self._steps = steps
        self._open_reader = open_reader
        self._cutter = FileCutter(file_size)

    def files(self) -> Iterator[FilePlan]:
        """Each data file as soon as it is full. Raises DamageError (with `key`), NoSuchKey."""
        for number, stretch in enumerate(_renumbered(self._steps)):
            step = self._steps[number]
            with located(step):
                yield from self._add_step(number, step, stretch)
        yield from self._cutter.finish()
        self.chain = self._cutter.chain or 0

    def _add_step(self, number: int, step: Step, stretch: Stretch | None) -> Iterator[FilePlan]:
        reader, cutter = self._open_reader(number), self._cutter
        summary = reader.summary
        join = _Join(step, reader, cutter.chain)
        yield from cutter.begin(
            StepStart(
                seq=step.after + 1,
                time=summary.first_time,
                exact=summary.serves(step.after + 1),
                level=summary.level,
                stretch=stretch,
            )
        )
        claims = ClaimChecker(summary)
        time = summary.first_time
        for page in range(len(reader.pages)):
            columns = reader.page(page).columns()
            claims.add(columns)
            join.add(columns)
            for piece in _pieces(columns, summary.runs, step, Slice(number, page, 0, len(columns))):
                yield from cutter.add(piece)
                self.records += len(piece.columns)
                time = int(piece.columns.time[-1])
        claims.finish()
        if step.upto == summary.last_seq:
            cutter.end(step.upto, summary.last_time, summary.chain_after, summary.highest_id)
        else:
            cutter.end(step.upto, time)


class _Join:
    """Whether a segment has the chain that the path has where the segment is entered."""

    def __init__(self, step: Step, reader: SegmentReader, chain: int | None) -> None:
        self._after, self._wanted = step.after, chain
        self._fold: RunFold | None = None
        summary = reader.summary
        run = summary.find_run(step.after)
        if step.after == summary.first_seq - 1:
            self._compare(summary.chain_before)
        elif run is None:
            following = next((r for r in summary.runs if r.first_seq == step.after + 1), None)
            self._compare(following.chain_before if following else None)
        elif run.last_seq == step.after:
            self._compare(run.chain_after)
        else:
            self._fold = RunFold(run, step.after)

    def add(self, columns: Columns) -> None:
        if self._fold is not None:
            self._fold.add(columns)
            if int(columns.seq[-1]) >= self._after:
                self._compare(self._fold.finish().chain_after)
                self._fold = None

    def _compare(self, found: int | None) -> None:
        if found != self._wanted:
            raise DamageError(f"chain does not join what comes before, at seq {self._after}", seq=self._after)


def _pieces(columns: Columns, runs: Sequence[Run], step: Step, place: Slice) -> Iterator[Piece]:
    """The records of a page that the step uses, cut where an exact run begins or ends."""
    seqs = columns.seq
    begin, end = np.searchsorted(seqs, np.array([step.after + 1, step.upto + 1], np.uint64)).tolist()
    at = begin
    for run in runs:
        first, last = np.searchsorted(seqs, np.array([run.first_seq, run.last_seq + 1], np.uint64)).tolist()
        first, last = max(first, begin), min(last, end)
        if first < last:
            if at < first:
                yield Piece(columns[at:first], None, replace(place, start=at, end=first))
            yield Piece(columns[first:last], run, replace(place, start=first, end=last))
            at = last
    if at < end:
        yield Piece(columns[at:end], None, replace(place, start=at, end=end))


def _renumbered(steps: Sequence[Step]) -> Iterator[Stretch | None]:
    """What part of which stretch each step is. A path that ends inside of one has fewer parts of it."""
    for _, group in groupby(steps, key=lambda step: step.segment.stretch and step.segment.stretch.id):
        members = [step.segment.stretch for step in group]
        for part, stretch in enumerate(members, 1):
            yield replace(stretch, part=part, parts=len(members)) if stretch and len(members) > 1 else None


def located(step: Step) -> AbstractContextManager[None]:
    """Adds to a DamageError in which object, and in which range of seq, it showed."""
    return fetch.located(step.segment)
