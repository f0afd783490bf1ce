"""The strategy that is left switched on: a short path for few bytes written again.

What it guarantees, why, and what it costs over a year: docs/decisions/auto-strategy.md.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from compactor.strategies.units import Span, Strategy, Unit, check_threshold
from ourdb.errors import InvalidError
from ourdb.units import GIB


@dataclass(frozen=True, kw_only=True)
class Auto(Strategy):
    """Segments of like size wait until there are `threshold` of them, and become one of the next class.

    A segment above half of segment_bytes_max is closed: it is never merged again. Those behind the newest
    closed one are open; classes divide them by size, each up to `threshold` times as large as the class below
    it. A segment counts in the class of the largest that is as new or newer: what is small between large
    ones has to go with them.

    threshold: at least 2 segments; it is also the factor between classes. segment_bytes_max: no set is
    larger, in bytes of its objects; at least 2.
    """

    name: ClassVar[str] = "auto"
    threshold: int = 8
    segment_bytes_max: int = 4 * GIB

    def __post_init__(self) -> None:
        check_threshold(self.threshold)
        if self.segment_bytes_max < 2:
            raise InvalidError(f"segment_bytes_max must be at least 2 bytes: {self.segment_bytes_max}")

    def _choose(self, units: Sequence[Unit]) -> Iterable[Span]:
        row = [Span(nr, nr + 1, unit.bytes) for nr, unit in enumerate(units)]
        closed = self._count_closed(row)
        done, opened = row[:closed], row[closed:]
        while (fewer := self._relieve(opened)) is not None:
            closed = self._count_closed(fewer)
            done += fewer[:closed]
            opened = fewer[closed:]
        return [*self._pack(done), *opened]

    @cached_property
    def _open_bytes_max(self) -> int:
        return self.segment_bytes_max // 2

    @cached_property
    def _class_bytes_max(self) -> list[int]:
        """The largest size of each class, ascending; what is above the last one is closed."""
        sizes = [self._open_bytes_max]
        while sizes[-1] >= self.threshold:
            sizes.append(sizes[-1] // self.threshold)
        return sizes[::-1]

    def _class_of(self, span: Span) -> int:
        return bisect_left(self._class_bytes_max, span.bytes)

    def _count_closed(self, row: Sequence[Span]) -> int:
        """Up to the newest closed one."""
        return next((nr for nr in range(len(row), 0, -1) if self._closed(row[nr - 1])), 0)

    def _closed(self, span: Span) -> bool:
        return span.bytes > self._open_bytes_max

    def _relieve(self, opened: list[Span]) -> list[Span] | None:
        """The open ones after the newest full class was merged; None: no class is full."""
        for size_class, start, end in self._groups(opened):
            members = opened[start:end]
            merged = self._merge(members, size_class)
            if len(merged) < len(members):
                return [*opened[:start], *merged, *opened[end:]]
        return None

    def _groups(self, opened: Sequence[Span]) -> Iterator[tuple[int, int, int]]:
        """(class, start, end) of the neighbours that count in one class, newest first."""
        end, largest = len(opened), 0
        for nr in range(len(opened) - 1, -1, -1):
            size_class = self._class_of(opened[nr])
            if size_class > largest:
                if nr + 1 < end:
                    yield largest, nr + 1, end
                end, largest = nr + 1, size_class
        if end:
            yield largest, 0, end

    def _merge(self, members: list[Span], size_class: int) -> list[Span]:
        """What a class becomes, itself if it is not full. The last class is full as soon as it fills a closed
        segment: that is the last time that its bytes are written."""
        grows = sum(span.bytes for span in members) > self._class_bytes_max[size_class]
        last = size_class == len(self._class_bytes_max) - 1
        if len(members) < self.threshold and not (grows and last):
            return members
        return self._gather(members) if grows else self._join_small(members, size_class)

    def _gather(self, members: list[Span]) -> list[Span]:
        """All in one, or closed ones, the oldest first, and what is left over as it is: a closed one is full
        with the first member that takes it above half, so that it stays within the maximum."""
        if sum(span.bytes for span in members) <= self.segment_bytes_max:
            return [_joined(members)]
        merged: list[Span] = []
        start, size = 0, 0
        for nr, span in enumerate(members, 1):
            size += span.bytes
            if size > self._open_bytes_max:
                merged.append(_joined(members[start:nr]))
                start, size = nr, 0
        return merged + members[start:]

    def _join_small(self, members: list[Span], size_class: int) -> list[Span]:
        """Those that are smaller than the class go into the next newer one that is not. Together they would
        not grow out of their class; so fewer than the threshold are left."""
        merged: list[Span] = []
        start = 0
        for nr, span in enumerate(members, 1):
            if self._class_of(span) == size_class:
                merged.append(_joined(members[start:nr]))
                start = nr
        return merged

    def _pack(self, done: Iterable[Span]) -> list[Span]:
        """What is left between closed ones, joined as far as the maximum allows: nothing joins it later."""
        packed: list[Span] = []
        joins = False
        for span in done:
            is_open = not self._closed(span)
            if is_open and joins and packed[-1].bytes + span.bytes <= self.segment_bytes_max:
                packed[-1] = _joined([packed[-1], span])
            else:
                packed.append(span)
            joins = is_open
        return packed


def _joined(spans: Sequence[Span]) -> Span:
    return Span(spans[0].start, spans[-1].end, sum(span.bytes for span in spans))
