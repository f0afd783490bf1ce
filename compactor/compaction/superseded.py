"""What a head lets go of when it names the result of a merge: its sources, and live segments that became
useless beside it. Pure.

Usually nothing but the sources lies in the range of a set. After a head was rebuilt from a listing there may
be more: what earlier merges replaced, what others merged at the same time. Such a segment offers points only
where a path leads to it, so that one may need another; whatever goes, the protected points stay.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import groupby

from compactor.compaction.protect import FOREVER, Protection, Rules
from compactor.compaction.sets import MergeSet
from compactor.entries import SegmentEntry
from compactor.generations import Generation
from compactor.lineage import HeadView, Shape, segments_of
from compactor.offers import Ranges, holds, offered
from compactor.windows import reaches


def find_superseded(
    view: HeadView,
    chosen: MergeSet,
    entries: Sequence[SegmentEntry],
    generation: Generation,
    rules: Rules,
    kept: Protection,
) -> list[str]:
    """The keys of the live segments that leave when a head names these entries for a set.

    generation: as that head says it. kept: what the result keeps. Of what lies within the set, what begins
    last goes first, because what leads to a point begins before it. Nothing at all goes, the sources neither,
    if points that are protected would be lost with them: the path is shorter all the same.
    """
    live = segments_of(view, generation.id)
    sources = [segment.key for segment in live if segment.key in chosen.keys]
    others = [
        segment
        for segment in live
        if segment.key not in chosen.keys
        and segment.first_seq <= chosen.last_seq
        and segment.last_seq >= chosen.first_seq
    ]
    if not others:
        return sources
    check = _Check(view, entries, generation, rules, kept)
    if check.loses(sources):
        return []
    groups = _within(others, chosen)
    low, high = 0, len(groups)  # the first `low` groups may go, more than `high` may not
    while low < high:
        middle = (low + high + 1) // 2
        if check.loses([*sources, *_keys(groups[:middle])]):
            high = middle - 1
        else:
            low = middle
    return [*sources, *_keys(groups[:low])]


def _within(others: Sequence[SegmentEntry], chosen: MergeSet) -> list[list[SegmentEntry]]:
    """Those that lie within a set, parts of a stretch together, those first that begin last."""

    def unit_of(segment: SegmentEntry) -> tuple[int, str]:
        return (segment.stretch.id, "") if segment.stretch else (-1, segment.key)

    units = [list(unit) for _, unit in groupby(sorted(others, key=unit_of), unit_of)]
    inside = [
        unit
        for unit in units
        if all(chosen.first_seq <= s.first_seq and s.last_seq <= chosen.last_seq for s in unit)
    ]
    return sorted(inside, key=lambda unit: -min(segment.first_seq for segment in unit))


def _keys(groups: Sequence[Sequence[SegmentEntry]]) -> list[str]:
    return [segment.key for group in groups for segment in group]


class _Check:
    """Compares what is offered now with what would be."""

    def __init__(
        self,
        view: HeadView,
        entries: Sequence[SegmentEntry],
        generation: Generation,
        rules: Rules,
        kept: Protection,
    ) -> None:
        self._view, self._entries, self._generation = view, entries, generation
        before, horizon, since = view.head.generations[generation.id], kept.horizon or 0, rules.since_ms or 0
        was = offered(before, segments_of(view, generation.id))
        answered = _answered(view, before)
        self._seqs = [(max(first, horizon), last) for first, last in was if last >= horizon]
        self._seqs += [(seq, seq) for seq in rules.marked if holds(was, seq, seq)]
        self._times = [(max(first, since), last) for first, last in answered if last >= since]
        self._times += [(time, time) for time in rules.boundaries if holds(answered, time, time)]

    def loses(self, dropped: Collection[str]) -> bool:
        """Whether a seq or a time that is protected would be lost with these segments."""
        gone = frozenset(dropped)
        left = [segment for segment in self._view.segments if segment.key not in gone]
        head = self._view.head
        after = Shape(
            replace(head, generations={**head.generations, self._generation.id: self._generation}),
            sorted([*left, *self._entries], key=lambda segment: segment.order),
        )
        seqs = offered(self._generation, segments_of(after, self._generation.id))
        if not all(holds(seqs, first, last) for first, last in self._seqs):
            return True
        times = _answered(after, self._generation)
        return not all(holds(times, first, last) for first, last in self._times)


def _answered(view: HeadView, generation: Generation) -> Ranges:
    """The times (ms) that a generation answers for, ends included, in order and apart. Where a path joins a
    run behind its start, only the index tells from when on: that counts for nothing."""
    joined: list[tuple[int, int]] = []
    whole = [reach for reach in reaches(view, generation) if reach.first_seq == reach.run.first_seq]
    for first, end in sorted(
        (each.first_time, FOREVER if each.next_time is None else each.next_time) for each in whole
    ):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(end - 1, joined[-1][1])
        elif first < end:
            joined.append((first, end - 1))
    return joined
