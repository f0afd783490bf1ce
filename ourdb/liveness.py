"""Which records a merge keeps: masks computed on id, seq and flags, page by page, with no sort of the log."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ourdb.errors import DamageError
from ourdb.record import TOMBSTONE

PART_RECORDS = 1 << 17
_NONE_32 = 2**32 - 1
_SPARSE_FACTOR = 8  # a table over all ids may have this many entries a record


class Keys(NamedTuple):
    """What liveness needs to know of some records, in seq order."""

    id: npt.NDArray[Any]
    seq: npt.NDArray[Any]
    flags: npt.NDArray[Any]


class _Part(NamedTuple):
    """start: index, over all sources, of the first record; slot: which entry of a table its id has."""

    start: int
    slot: npt.NDArray[Any]
    flags: npt.NDArray[Any]


SourceKeys = tuple[int, int, int, Callable[[int, int], Iterable[Keys]]]  # records, first_seq, last_seq, keys


def mask_ranges(
    seqs: npt.NDArray[Any], starts: npt.NDArray[np.uint64], ends: npt.NDArray[np.uint64]
) -> npt.NDArray[np.bool_]:
    """Which seqs lie in one of these ranges (ends included; ascending, without overlap)."""
    at = np.searchsorted(starts, seqs, "right")
    inside = at > 0
    inside[inside] = seqs[inside] <= ends[at[inside] - 1]
    return inside


class Liveness:
    """A mask over the records of all sources, in order; at first none lives.

    Memory: a byte a record, four or eight an id, and the piece that a source gives.
    """

    def __init__(self, sources: Sequence[SourceKeys]) -> None:
        self._sources = sources
        self._lasts = [last for _, _, last, _ in sources]
        self._records = sum(records for records, *_ in sources)
        self._live = np.zeros(self._records, np.bool_)
        highest = max((int(keys.id.max()) for keys in self._keys(1, None)), default=0)
        sparse = highest >= _SPARSE_FACTOR * self._records + (1 << 20)
        self._ids = self._find_ids() if sparse else None
        slots = highest + 1 if self._ids is None else len(self._ids)
        dtype = np.uint32 if self._records < _NONE_32 else np.int64
        self._none = _NONE_32 if dtype is np.uint32 else np.iinfo(np.int64).max
        self._table: npt.NDArray[np.integer[Any]] = np.empty(slots, dtype)

    def keep_all(self) -> None:
        self._live[:] = True

    def keep_runs(self, runs: Sequence[tuple[int, int]]) -> None:
        """Keeps every record of these ranges of seq (ascending, without overlap, no record missing), and the
        newest version of each id as of the start of each. Ids not written since the range before need no
        second look: their newest version is kept already."""
        done_seq = index = 0
        for first, last in runs:
            begin = index
            for part in self._parts(done_seq + 1, first, index):
                self._table[part.slot] = np.arange(
                    part.start, part.start + len(part.slot)
                )  # the last one wins
                index += len(part.slot)
            for part in self._parts(done_seq + 1, first, begin):
                self._live[self._table[part.slot]] = True
            self._live[index - 1 : index + last - first] = True
            done_seq = first

    def keep_versions(self, versions: int) -> None:
        """Keeps besides the newest `versions` versions of each id."""
        if versions < 1:
            return
        counts = np.zeros(len(self._table), np.int64)
        for part in self._parts():
            slots, sizes = np.unique(part.slot, return_counts=True)
            counts[slots] += sizes
        for part in self._parts():  # now the versions of each id that are still to come
            order = np.argsort(part.slot, kind="stable")
            slots, starts, sizes = np.unique(part.slot[order], return_index=True, return_counts=True)
            rank = np.arange(len(order)) - np.repeat(starts, sizes)
            newest = np.repeat(counts[slots], sizes) - rank <= versions
            self._live[part.start + order[newest]] = True
            counts[slots] -= sizes

    def drop_tombstones(self, runs: Sequence[tuple[int, int]]) -> None:
        """Drops the tombstones outside of these ranges (as in keep_runs) below which nothing of their id is
        kept; only right where nothing lies before the sources."""
        exact = self._mask_runs(runs)
        self._table[:] = self._none  # index of the oldest record of each id that stays
        for part in self._parts():
            here = slice(part.start, part.start + len(part.slot))
            tombs = self._live[here] & ~exact[here] & ((part.flags & TOMBSTONE) != 0)
            stays = np.flatnonzero(self._live[here] & ~tombs & (self._table[part.slot] == self._none))[::-1]
            self._table[part.slot[stays]] = part.start + stays  # backwards: the oldest one wins
            index = np.flatnonzero(tombs)
            self._live[part.start + index[self._table[part.slot[index]] > part.start + index]] = False

    def split(self, counts: Sequence[int]) -> tuple[npt.NDArray[np.bool_], ...]:
        """The mask in parts of so many records."""
        ends = np.cumsum(counts).tolist()
        return tuple(self._live[end - count : end] for count, end in zip(counts, ends, strict=True))

    def _mask_runs(self, runs: Sequence[tuple[int, int]]) -> npt.NDArray[np.bool_]:
        mask = np.zeros(self._records, np.bool_)
        starts = np.array([first for first, _ in runs], np.uint64)
        ends = np.array([last for _, last in runs], np.uint64)
        index = 0
        for keys in self._keys(1, None):
            mask[index : index + len(keys.seq)] = mask_ranges(keys.seq, starts, ends)
            index += len(keys.seq)
        return mask

    def _find_ids(self) -> npt.NDArray[Any]:
        """All ids, ascending: their places are the slots where a table over the whole range would be mostly
        empty."""
        return np.unique(np.concatenate([np.unique(keys.id) for keys in self._keys(1, None)]))

    def _parts(self, first_seq: int = 1, last_seq: int | None = None, start: int = 0) -> Iterator[_Part]:
        """The records of a range of seq; `start` is the index of its first one."""
        for keys in self._keys(first_seq, last_seq):
            for begin in range(0, len(keys.id), PART_RECORDS):
                ids = keys.id[begin : begin + PART_RECORDS]
                slot = ids if self._ids is None else np.searchsorted(self._ids, ids)
                yield _Part(start, slot, keys.flags[begin : begin + PART_RECORDS])
                start += len(ids)

    def _keys(self, first_seq: int, last_seq: int | None) -> Iterator[Keys]:
        """The records of a range of seq (inclusive, None: to the end); DamageError if a source does not have
        as many as it says."""
        for at in range(bisect_left(self._lasts, first_seq), len(self._sources)):
            records, source_first, source_last, load = self._sources[at]
            if last_seq is not None and source_first > last_seq:
                break
            first = max(first_seq, source_first)
            last = source_last if last_seq is None else min(last_seq, source_last)
            found = 0
            for keys in load(first, last):
                begin, end = np.searchsorted(keys.seq, np.array([first, last + 1], np.uint64))
                found += int(end - begin)
                if begin < end:
                    yield Keys(*(array[begin:end] for array in keys))
            if found > records or (found < records and (first, last) == (source_first, source_last)):
                raise DamageError(f"columns have {found} of {records} records, from seq {source_first}")
