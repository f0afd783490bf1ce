"""Batch ends of an exact range, looked up in a segment's index: a few columns of a page or two, no blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from compactor.fetch import SegmentFetcher
from compactor.windows import Reach
from ourdb.record import BATCH_GOES_ON, SEQ_MAX, TIME_MAX
from ourdb.segment.page import Page
from ourdb.segment.reader import SegmentReader
from ourdb.units import format_time


@dataclass(frozen=True)
class Point:
    """A seq that can be restored, with its time (ms) and the generation that owns it."""

    seq: int
    time: int
    generation: str

    def as_json(self) -> dict[str, Any]:
        return {"seq": self.seq, "time": format_time(self.time), "generation": self.generation}


class IndexPoints:
    """Looks up points, and keeps the tails that it read. What the run's own entry tells needs no request.

    All methods raise NoSuchKey, and DamageError for an index that is not what was written.
    """

    def __init__(self, fetcher: SegmentFetcher) -> None:
        self._fetcher = fetcher
        self._readers: dict[str, SegmentReader] = {}

    def last(self, reach: Reach, *, seq_max: int = SEQ_MAX, time_max: int = TIME_MAX) -> Point | None:
        """The last batch end up to this seq and this time, ends included."""
        run = reach.run
        if reach.last_seq == run.last_seq <= seq_max and run.last_time <= time_max:
            return Point(run.last_seq, run.last_time, reach.segment.generation)
        if run.first_time > time_max:
            return None
        high = min(seq_max, reach.last_seq)
        pages = self._pages(reach, high)
        # The last page that begins in time has the point, unless a batch fills it from its start.
        at = _bisect(pages, lambda page: int(page.column("time")[0]) > time_max)
        for page in reversed(pages[:at]):
            seqs, times = _ends(page, reach, high)
            chosen = np.flatnonzero(times <= np.uint64(time_max))
            if len(chosen):
                return _point(reach, seqs, times, int(chosen[-1]))
        return None

    def first(self, reach: Reach, *, seq_min: int = 1, time_above: int = -1) -> Point | None:
        """The first batch end from this seq on that is later than a time."""
        run = reach.run
        if reach.first_seq == reach.last_seq == run.last_seq:
            good = seq_min <= run.last_seq and run.last_time > time_above
            return Point(run.last_seq, run.last_time, reach.segment.generation) if good else None
        pages = self._pages(reach, reach.last_seq)
        at = _bisect(pages, lambda page: int(page.column("time")[-1]) > time_above)
        for page in pages[at:]:
            seqs, times = _ends(page, reach, reach.last_seq)
            chosen = (seqs >= np.uint64(seq_min)) & (times.astype(np.int64) > time_above)
            if chosen.any():
                return _point(reach, seqs, times, int(np.argmax(chosen)))
        return None

    def at(self, reach: Reach, seq: int) -> Point | None:
        """The point at a seq, None if that is inside a batch."""
        found = self.last(reach, seq_max=seq)
        return found if found and found.seq == seq else None

    def count(self, reach: Reach) -> int:
        """How many batch ends there are."""
        pages = self._pages(reach, reach.last_seq)
        return sum(len(_ends(page, reach, reach.last_seq)[0]) for page in pages)

    def _pages(self, reach: Reach, high: int) -> list[Page]:
        key = reach.segment.key
        if key not in self._readers:
            self._readers[key] = self._fetcher.open(reach.segment)
        reader = self._readers[key]
        return [reader.page(number) for number in reader.find_pages(first_seq=reach.first_seq, last_seq=high)]


def _bisect(pages: list[Page], beyond: Callable[[Page], bool]) -> int:
    """The number of the first page of which `beyond` is true: false ones come first."""
    low, high = 0, len(pages)
    while low < high:
        middle = (low + high) // 2
        if beyond(pages[middle]):
            high = middle
        else:
            low = middle + 1
    return low


def _ends(page: Page, reach: Reach, high: int) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Seqs and times of the batch ends of a page, from the range's first seq up to `high`."""
    page.load("seq", "flags", "time")
    seqs, flags = page.column("seq"), page.column("flags")
    ends = ((flags & np.uint16(BATCH_GOES_ON)) == 0) | (seqs == np.uint64(reach.run.last_seq))
    ends &= (seqs >= np.uint64(reach.first_seq)) & (seqs <= np.uint64(high))
    return seqs[ends].astype(np.uint64, copy=False), page.column("time")[ends].astype(np.uint64, copy=False)


def _point(reach: Reach, seqs: npt.NDArray[np.uint64], times: npt.NDArray[np.uint64], at: int) -> Point:
    return Point(int(seqs[at]), int(times[at]), reach.segment.generation)


def best(found: Iterable[Point | None]) -> Point | None:
    """The first that is one."""
    return next((point for point in found if point is not None), None)
