"""Where the records of ids lie: found in the index columns along a path, newest segment first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from backup.reading.indexes import FINDING, Asked, Indexes, ahead
from backup.restoring.layout import located
from compactor.path import Step
from ourdb.record import TOMBSTONE
from ourdb.segment.page import Page
from ourdb.segment.reader import SegmentReader

Ids = npt.NDArray[np.int64]
IN_FLIGHT_MAX = 1 << 40  # columns are few bytes; their number is what is bounded


@dataclass(frozen=True, eq=False)
class Hits:
    """Records of one page of the index of a step's segment: rows of the page, ascending, and of each the id,
    seq, time (ms), and whether it is no tombstone."""

    step: int
    page: int
    rows: npt.NDArray[np.intp]
    ids: npt.NDArray[np.uint32]
    seqs: npt.NDArray[np.uint64]
    times: npt.NDArray[np.uint64]
    alive: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, chosen: slice | npt.NDArray[Any]) -> Hits:
        """Those of a slice, a mask, or of ascending indexes."""
        return Hits(
            self.step,
            self.page,
            self.rows[chosen],
            self.ids[chosen],
            self.seqs[chosen],
            self.times[chosen],
            self.alive[chosen],
        )


class IdSearch:
    """Searches the steps of a path, which are the log up to a point with what merges kept of it. count: of
    indexes that are fetched ahead. Raises NoSuchKey and DamageError (with `key`)."""

    def __init__(self, steps: Sequence[Step], indexes: Indexes, *, count: int) -> None:
        self._steps, self._indexes, self._count = steps, indexes, count

    def newest(self, ids: Ids) -> Iterator[Hits]:
        """The newest record of each of these ids (ascending, distinct) that has one. Older segments are not
        looked at once all were found."""
        wanted = ids
        for number, at, page in self._backwards(ids, wary=True):
            hits = self._match(number, at, page, wanted)
            if len(hits):
                _, last = np.unique(hits.ids[::-1], return_index=True)
                hits = hits[np.sort(len(hits) - 1 - last)]
                wanted = np.setdiff1d(wanted, hits.ids.astype(np.int64), assume_unique=True)
                yield hits
            if not len(wanted):
                return

    def versions(self, id: int, *, all: bool) -> Iterator[Hits]:  # noqa: A002
        """The records of an id, those of newer pages first. all: all of them are wanted."""
        ids = np.array([id], np.int64)
        for number, at, page in self._backwards(ids, wary=not all):
            hits = self._match(number, at, page, ids)
            if len(hits):
                yield hits

    def log(self, behind: int = 0) -> Iterator[Hits]:
        """All records behind a seq, in log order."""
        steps = [number for number, step in enumerate(self._steps) if step.upto > behind]
        for number, at, page in self._pages(steps, partial(self._numbers, behind=behind)):
            hits = self._match(number, at, page, None, behind)
            if len(hits):
                yield hits

    def _backwards(self, ids: Ids, *, wary: bool) -> Iterator[tuple[int, int, Page]]:
        """Pages that may have one of these ids, the newest first."""
        lowest = int(ids[0])
        may_hold = [
            number
            for number, step in enumerate(self._steps)
            if step.segment.highest_id is None or step.segment.highest_id >= lowest
        ]
        return self._pages(may_hold[::-1], partial(self._numbers_with, ids), wary=wary)

    def _pages(
        self, steps: Sequence[int], choose: Callable[[int, SegmentReader], list[int]], *, wary: bool = False
    ) -> Iterator[tuple[int, int, Page]]:
        """The chosen pages of these steps, each with the numbers of step and page. Where the index came with
        the tail, a page needs no request: those of the next segments do not wait for it."""
        asked: Iterator[Asked[int, SegmentReader]] = (
            (number, 0, partial(self._indexes.reader, self._steps[number].segment)) for number in steps
        )
        for number, reader in ahead(asked, count=self._count, bytes_max=IN_FLIGHT_MAX, wary=wary):
            entry = self._steps[number].segment
            pages: Iterator[Asked[int, Page]] = (
                (at, 0, partial(self._indexes.page, entry, reader, at, *FINDING))
                for at in choose(number, reader)
            )
            for at, page in ahead(pages, count=self._count, bytes_max=IN_FLIGHT_MAX, wary=wary):
                yield number, at, page

    def _numbers(self, number: int, reader: SegmentReader, behind: int = 0) -> list[int]:
        """The pages of a step that reach beyond a seq."""
        step = self._steps[number]
        return reader.find_pages(first_seq=max(step.after, behind) + 1, last_seq=step.upto)

    def _numbers_with(self, ids: Ids, number: int, reader: SegmentReader) -> list[int]:
        """The pages of a step that may hold one of these ids, the newest first."""
        found = self._numbers(number, reader)
        lows = np.array([reader.pages[at].lowest_id for at in found], np.int64)
        highs = np.array([reader.pages[at].highest_id for at in found], np.int64)
        some = np.searchsorted(ids, lows) < np.searchsorted(ids, highs, "right")
        return [at for at, good in zip(found, some.tolist(), strict=True) if good][::-1]

    def _match(self, number: int, at: int, page: Page, ids: Ids | None, behind: int = 0) -> Hits:
        step = self._steps[number]
        with located(step):
            its_ids, seqs, flags, times = (page.column(name) for name in FINDING)
        bounds = np.array([max(step.after, behind) + 1, step.upto + 1], np.uint64)
        begin, end = np.searchsorted(seqs, bounds).tolist()
        if ids is None:
            rows = np.arange(begin, end)
        elif len(ids) == 1:
            rows = np.flatnonzero(its_ids[begin:end] == np.uint32(ids[0])) + begin
        else:
            rows = np.flatnonzero(np.isin(its_ids[begin:end], ids)) + begin
        return Hits(
            number,
            at,
            rows,
            its_ids[rows].astype(np.uint32, copy=False),
            seqs[rows].astype(np.uint64, copy=False),
            times[rows].astype(np.uint64, copy=False),
            (flags[rows] & np.uint16(TOMBSTONE)) == 0,
        )
