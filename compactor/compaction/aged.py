"""Segments whose time is over: they lie before the window, and most of their points may go. Pure.

A strategy chooses by size and number, and what it has closed it never touches again. What such a segment
still holds for points that have left the window is collected here, alone, at most once: afterwards it is
exact at single points only. What later segments have overwritten no segment can drop alone; so all of them
are merged together whenever they have doubled (docs/decisions/auto-strategy.md).
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
        if not _is_over(unit, since_ms) or any(s.key in without for s in segments):
            continue
        if any(run.first_seq < run.last_seq for s in segments for run in s.exact_runs):
            yield segments


def aged_together(
    units: Sequence[Sequence[Step]],
    since_ms: int,
    *,
    bytes_max: int,
    weighed: Collection[str],
    without: Collection[str],
) -> tuple[SegmentEntry, ...]:
    """The segments from the start of a path up to the window, if they are too large for the strategy to join
    them all, and at least half of them has come since they were weighed together. Else none.

    bytes_max: the strategy's largest set. weighed: keys of segments with which those ended that were weighed
    or merged together before. without: keys of segments that somebody else merges.
    """
    found: list[SegmentEntry] = []
    count = size = known = 0
    for unit in units:
        if not _is_over(unit, since_ms) or any(step.segment.key in without for step in unit):
            break
        found += [step.segment for step in unit]
        count, size = count + 1, size + sum(step.segment.bytes for step in unit)
        if unit[-1].segment.key in weighed:
            known = size
    return tuple(found) if count > 1 and size > bytes_max and size >= 2 * known else ()


def _is_over(unit: Sequence[Step], since_ms: int) -> bool:
    return unit[-1].segment.name.last_time < since_ms
