"""Segments whose time is over: they lie before the window, and most of their points may go. Pure.

A strategy chooses by size and number, and what it has closed it never touches again. What such a segment
still holds for points that have left the window is collected here, alone, at most once: afterwards it is
exact at single points only (docs/decisions/auto-strategy.md).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from compactor.entries import SegmentEntry
from compactor.path import Step

SHARE_MAX = 0.8  # of its bytes, that may be left: below, it is written anew


def aged_units(
    units: Sequence[Sequence[Step]], since_ms: int, *, without: Collection[str]
) -> Iterator[tuple[SegmentEntry, ...]]:
    """The segments of those units of a path (one, or the parts of a stretch) that end before the window, and
    are exact at more than single points.

    since_ms: where the window begins. without: keys of segments that somebody else merges, or of which
    nothing is to be gained.
    """
    for unit in units:
        segments = tuple(step.segment for step in unit)
        if segments[-1].name.last_time >= since_ms or any(s.key in without for s in segments):
            continue
        if any(run.first_seq < run.last_seq for s in segments for run in s.exact_runs):
            yield segments
