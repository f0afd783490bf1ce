"""What a namespace holds, in figures, and what the shortest path to a point costs. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from compactor.entries import SegmentEntry
from compactor.fetch import estimate_requests
from compactor.path import Step


@dataclass(frozen=True, kw_only=True)
class Holding:
    """Live segments in figures. first_seq, last_seq: the least and the greatest, 0 if there is none; times in
    ms. levels: how many segments there are of each, 0: never merged. records: as the segments keep them."""

    segments: int
    bytes: int
    records: int
    first_seq: int
    last_seq: int
    first_time: int | None
    last_time: int | None
    levels: Mapping[int, int]

    @classmethod
    def of(cls, entries: Sequence[SegmentEntry]) -> Holding:
        first = min(entries, key=lambda entry: entry.first_seq, default=None)
        last = max(entries, key=lambda entry: entry.last_seq, default=None)
        return cls(
            segments=len(entries),
            bytes=sum(entry.bytes for entry in entries),
            records=sum(entry.records for entry in entries),
            first_seq=first.first_seq if first else 0,
            last_seq=last.last_seq if last else 0,
            first_time=first.name.first_time if first else None,
            last_time=last.name.last_time if last else None,
            levels=dict(sorted(Counter(entry.level for entry in entries).items())),
        )


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """A line, and the shortest restore path to one of its points.

    live: its segments, by first and last seq. line: all of them; generations: those that each of them owns,
    the oldest first. elsewhere: what other lines of the namespace have. path: fewest segments, then fewest
    bytes; beside: the live segments of the line that it does not use, because they serve older points, or
    nothing. path_requests: that reading the path from end to end needs at least.
    """

    live: tuple[SegmentEntry, ...]
    line: Holding
    generations: Mapping[str, Holding]
    elsewhere: Holding
    path: tuple[Step, ...]
    path_bytes: int
    path_requests: int
    beside: Holding


def analyze_line(
    segments: Iterable[SegmentEntry], owners: Mapping[str, int], path: Sequence[Step]
) -> Analysis:
    """The figures of a line. segments: the live ones of the namespace. owners: the generations that the line
    goes through, the oldest first, and up to which of their seqs they count. path: as planned."""
    by_owner: dict[str, list[SegmentEntry]] = {name: [] for name in owners}
    elsewhere: list[SegmentEntry] = []
    for entry in segments:
        on_line = entry.first_seq <= owners.get(entry.generation, 0)
        (by_owner[entry.generation] if on_line else elsewhere).append(entry)
    live = _ordered(entry for entries in by_owner.values() for entry in entries)
    used = {step.segment.key for step in path}
    return Analysis(
        live=live,
        line=Holding.of(live),
        generations={name: Holding.of(entries) for name, entries in by_owner.items()},
        elsewhere=Holding.of(elsewhere),
        path=tuple(path),
        path_bytes=sum(step.segment.bytes for step in path),
        path_requests=sum(estimate_requests(step.segment) for step in path),
        beside=Holding.of([entry for entry in live if entry.key not in used]),
    )


def _ordered(entries: Iterable[SegmentEntry]) -> tuple[SegmentEntry, ...]:
    return tuple(sorted(entries, key=lambda entry: (entry.first_seq, entry.last_seq, entry.generation)))
