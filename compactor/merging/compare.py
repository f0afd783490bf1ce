"""Whether what a merge wrote holds the states that its sources hold: told from columns alone, and without
anything that decided what the merge keeps.

A state is, for each id, which record is its newest. It is followed as a sum over ids, so that one pass over
the columns tells it at any number of seqs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ourdb.errors import DamageError
from ourdb.record import TOMBSTONE
from ourdb.segment.columns import Columns
from ourdb.segment.summary import Run

SLOTS_MAX = 1 << 22  # ids that are followed in one pass: 12 bytes each
_DENSE_IDS = 1 << 20  # up to here, and where most ids are in use, an id is its own slot
_DENSE_FACTOR = 4
_PIECE_RECORDS = 1 << 15

ReadColumns = Callable[[], Iterable[Columns]]
_Sums = npt.NDArray[np.uint64]


def compare_states(
    sources: ReadColumns, results: ReadColumns, runs: Sequence[Run], *, from_start: bool, records: int
) -> None:
    """DamageError (field `seq`) unless both hold the same state at the start and the end of each exact run.

    sources, results: all columns, in order of seq; read several times. from_start: nothing lies before them,
    so that a deletion is the same as nothing. records: how many the sources have.
    """
    points = sorted({seq for run in runs for seq in (run.first_seq, run.last_seq)})
    slots = _Slots(sources, records)
    wanted, found = (_states(read, points, slots, from_start) for read in (sources, results))
    for seq, one, two in zip(points, wanted.tolist(), found.tolist(), strict=True):
        if one != two:
            raise DamageError(f"merged segment does not hold the state of its sources at seq {seq}", seq=seq)


class _Slots:
    """Numbers for ids: the ids themselves, or, where most of them are not in use, their places among all."""

    def __init__(self, read: ReadColumns, records: int) -> None:
        highest = max((int(piece.id.max()) for piece in read() if len(piece)), default=0)
        self._ids: npt.NDArray[np.uint32] | None = None
        self.count = highest + 1
        if highest > max(_DENSE_IDS, _DENSE_FACTOR * records):
            self._ids = np.unique(np.concatenate([np.unique(piece.id) for piece in read()]))
            self.count = len(self._ids)

    def find(self, ids: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
        """The slot of each id; DamageError for one that the sources have not."""
        slots = ids.astype(np.int64) if self._ids is None else np.searchsorted(self._ids, ids)
        wrong = slots >= self.count
        if self._ids is not None:
            wrong |= self._ids[np.minimum(slots, self.count - 1)] != ids
        if wrong.any():
            raise DamageError(f"merged segment has an id that its sources have not: {ids[wrong][0]}")
        return slots


def _states(read: ReadColumns, points: Sequence[int], slots: _Slots, from_start: bool) -> _Sums:
    """A number for the state at each point."""
    total = np.zeros(len(points), np.uint64)
    for base in range(0, slots.count, SLOTS_MAX):
        total += _Pass(slots, base, from_start).follow(read(), points)
    return total


class _Pass:
    """Follows the ids of SLOTS_MAX slots, from `base` on. newest: a number for the newest record of each, 0:
    none."""

    def __init__(self, slots: _Slots, base: int, from_start: bool) -> None:
        self._slots, self._base, self._from_start = slots, base, from_start
        size = min(SLOTS_MAX, slots.count - base)
        self._newest = np.zeros(size, np.uint64)
        self._index = np.zeros(size, np.uint32)
        self._sum = np.uint64(0)

    def follow(self, pieces: Iterable[Columns], points: Sequence[int]) -> _Sums:
        sums = np.zeros(len(points), np.uint64)
        seqs = np.array(points, np.uint64)
        done = 0
        for piece in _in_parts(pieces):
            behind = int(np.searchsorted(seqs, piece.seq[-1]))  # points that more records may belong to
            ends = np.searchsorted(piece.seq, seqs[done:behind], "right").tolist()
            for at, (begin, end) in enumerate(pairwise([0, *ends]), done):
                self._add(piece[begin:end])
                sums[at] = self._sum
            self._add(piece[ends[-1] if ends else 0 :])
            done = behind
        sums[done:] = self._sum
        return sums

    def _add(self, columns: Columns) -> None:
        if not len(columns):
            return
        slots = self._slots.find(columns.id) - self._base
        if self._slots.count > SLOTS_MAX:
            here = (slots >= 0) & (slots < len(self._newest))
            slots, columns = slots[here], columns[here]
        index = np.arange(len(slots), dtype=np.uint32)
        self._index[slots] = index  # the last one wins
        last = self._index[slots] == index
        slots, newest = slots[last], _number(columns[last], self._from_start)
        with np.errstate(over="ignore"):
            self._sum += newest.sum(dtype=np.uint64) - self._newest[slots].sum(dtype=np.uint64)
        self._newest[slots] = newest


def _number(columns: Columns, from_start: bool) -> _Sums:
    """A number for each record that hardly two have; 0 for one that is the same as none."""
    mixed = columns.id.astype(np.uint64) << np.uint64(32) | columns.crc
    for value in (columns.seq, columns.flags & np.uint16(TOMBSTONE)):
        mixed = _mix(mixed ^ value.astype(np.uint64))
    if from_start:
        mixed[(columns.flags & np.uint16(TOMBSTONE)) != 0] = 0
    return mixed


def _mix(value: npt.NDArray[np.uint64]) -> npt.NDArray[Any]:
    """The finalizer of splitmix64: each bit of the result depends on all bits."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _in_parts(pieces: Iterable[Columns]) -> Iterator[Columns]:
    for piece in pieces:
        for start in range(0, len(piece), _PIECE_RECORDS):
            yield piece[start : start + _PIECE_RECORDS]
