"""The sets of segments that a compaction merges. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, islice

from compactor.compaction.aged import aged_together, aged_units
from compactor.entries import SegmentEntry
from compactor.generations import Generation
from compactor.head import Head
from compactor.lineage import HeadView, ancestry, begin_time, open_lines, segments_of
from compactor.path import Step, plan_path, route
from compactor.strategies import All, Auto, Strategy
from compactor.windows import lost_range


@dataclass(frozen=True, kw_only=True)
class MergeSet:
    """Neighbours on a generation's path, to become one segment of it. later: where the segments behind them
    end: points of the generation. aged: no strategy asked for it, its time is over; together: with all that
    is older."""

    generation: Generation
    steps: tuple[Step, ...]
    later: tuple[int, ...]
    aged: bool = False
    together: bool = False

    @cached_property
    def segments(self) -> tuple[SegmentEntry, ...]:
        return tuple(step.segment for step in self.steps)

    @cached_property
    def keys(self) -> frozenset[str]:
        return frozenset(step.segment.key for step in self.steps)

    @property
    def first_seq(self) -> int:
        return self.steps[0].after + 1

    @property
    def last_seq(self) -> int:
        return self.steps[-1].upto

    @property
    def bytes(self) -> int:
        """Of the objects."""
        return sum(step.segment.bytes for step in self.steps)

    @property
    def from_start(self) -> bool:
        """Whether nothing can lie below it."""
        return self.first_seq == 1 and (self.generation.parent is None or self.across)

    @property
    def across(self) -> bool:
        """Whether it holds what ancestors wrote: they keep it too, but the generation needs them no more."""
        return self.first_seq < self.generation.first_seq


def find_sets(
    view: HeadView,
    strategy: Strategy,
    *,
    since_ms: int | None = None,
    spent: frozenset[str] = frozenset(),
    weighed: frozenset[str] = frozenset(),
) -> list[MergeSet]:
    """What a strategy merges on the path to the end of each generation.

    since_ms: where the window begins, None: nothing may be dropped. spent: keys of segments of which it is
    known that little can be dropped. weighed: keys of those with which segments ended that were weighed
    together.

    Segments that overlap others on the path stay as they are: where they join is known, and not what they
    hold there. `all` makes one set of an open line, across the points where it took over from what nobody
    writes any more; and if something may be dropped, a segment that lies alone is a set, too. `auto` leaves
    alone what it has closed, until its time is over: then it is a set by itself, or with all that is older
    (aged.py). Raises DamageError (`store_damaged`) that names a range to which no path leads.
    """
    everything = isinstance(strategy, All)
    found = [
        line for end in open_lines(view.head) if everything and (line := _line_across(view, end)) is not None
    ]
    taken = {step.segment.generation for line in found for step in line.steps}
    for generation in view.head.generations.values():
        if generation.id in taken:
            continue
        path = path_of(view, generation)
        for piece in _whole_pieces(path, generation):
            chosen = strategy.partition([step.segment for step in piece])
            if everything and since_ms is not None and not chosen:
                chosen = [tuple(step.segment for step in piece)]
            found += [_set_of(generation, path, segments) for segments in chosen]
            if isinstance(strategy, Auto) and since_ms is not None:
                merged = {segment.key for segments in chosen for segment in segments}
                units = _units(piece)
                old = aged_together(
                    units, since_ms, bytes_max=strategy.segment_bytes_max, weighed=weighed, without=merged
                )
                if old:
                    found.append(replace(_set_of(generation, path, old), aged=True, together=True))
                without = merged | spent | {segment.key for segment in old}
                alone = aged_units(units, since_ms, without=without)
                found += [replace(_set_of(generation, path, segments), aged=True) for segments in alone]
    return found


def sets_around(chosen: MergeSet, damaged: str, strategy: Strategy) -> list[MergeSet]:
    """What a strategy merges of a set without the segment of this key. A set across branch points is not
    divided: what is left of it would not be a line from its start on."""
    if chosen.across:
        return []
    pieces: list[list[Step]] = [[]]
    for unit in _units(chosen.steps):
        if any(step.segment.key == damaged for step in unit):
            pieces.append([])
        else:
            pieces[-1] += unit
    return [
        replace(smaller, later=smaller.later + chosen.later)
        for piece in pieces
        for segments in strategy.partition([step.segment for step in piece])
        for smaller in [_set_of(chosen.generation, chosen.steps, segments)]
    ]


def path_of(view: HeadView, generation: Generation) -> list[Step]:
    """The path through a generation's own segments to its end. Raises DamageError as `find_sets`."""
    parent = generation.parent
    path = plan_path(
        segments_of(view, generation.id),
        generation.first_seq - 1,
        generation.end_seq,
        chain=parent.chain if parent else 0,
    )
    if path is None:
        raise lost_range(view, generation)
    return path


def _line_across(view: HeadView, end: Generation) -> MergeSet | None:
    """A whole line as a set, if it has ancestors, took over from all of them, and the times of what it would
    hold can be told from its seqs."""
    line = [owner for owner, _ in ancestry(view.head, end.id)]
    if len(line) < 2 or not all(_leads_to(view.head, owner, end) for owner in line):
        return None
    if any(_left_late(view, owner) for owner in line if owner.parent):
        return None
    steps = route(view, end.id, end.end_seq)
    if steps is None:
        raise lost_range(view, end)
    units = _units(steps)
    if not all(_begins_whole(step) for step in steps) or not all(map(_has_all_parts, units)):
        return None
    return MergeSet(generation=end, steps=tuple(steps), later=())


def _leads_to(head: Head, owner: Generation, end: Generation) -> bool:
    """Whether a generation's successors lead to this one."""
    while owner.successor is not None and owner is not end:
        owner = head.generations[owner.successor]
    return owner is end


def _left_late(view: HeadView, child: Generation) -> bool:
    """Whether a generation left its parent behind what that one wrote once another had taken over from it, or
    perhaps did: then times mean the other, and the seqs that the two have in common do not tell."""
    head, left = view.head, child.parent
    assert left is not None
    parent = head.generations[left.generation]
    limits: list[int | None] = []
    if parent.successor is not None and parent.successor != child.id:
        limits.append(begin_time(view, head.generations[parent.successor]))
    if any(one.successor == parent.successor for one in head.forgotten):
        limits.append(parent.kept_until)
    runs = (run for segment in segments_of(view, parent.id) for run in segment.exact_runs)
    ends = [run.last_time for run in runs if run.first_seq <= left.seq <= run.last_seq]
    return any(limit is None or min(ends, default=limit) >= limit for limit in limits)


def _whole_pieces(path: Sequence[Step], generation: Generation) -> Iterator[list[Step]]:
    """The path without steps that use only a part of what they name, cut there. Where the generation itself
    is cut is no such part."""
    piece: list[Step] = []
    for unit in _units(path):
        ends = unit[-1].upto in (unit[-1].segment.last_seq, generation.kept_to)
        if ends and all(map(_begins_whole, unit)) and _has_all_parts(unit):
            piece += unit
            continue
        if piece:
            yield piece
        piece = []
    if piece:
        yield piece


def _units(path: Sequence[Step]) -> list[list[Step]]:
    """The steps, those through the parts of one stretch together."""

    def unit_of(numbered: tuple[int, Step]) -> tuple[str, int]:
        number, step = numbered
        stretch = step.segment.stretch
        return ("step", number) if stretch is None else ("stretch", stretch.id)

    return [[step for _, step in steps] for _, steps in groupby(enumerate(path), unit_of)]


def _begins_whole(step: Step) -> bool:
    return step.after + 1 == step.segment.first_seq


def _has_all_parts(unit: Sequence[Step]) -> bool:
    stretch = unit[0].segment.stretch
    return stretch is None or len(unit) == stretch.parts


def _set_of(generation: Generation, path: Sequence[Step], segments: tuple[SegmentEntry, ...]) -> MergeSet:
    begin = bisect_left(path, segments[0].first_seq - 1, key=_begin_of)
    end = bisect_left(path, segments[-1].last_seq, begin, key=_begin_of)
    later = tuple(step.upto for step in islice(path, end, None) if _ends_exactly(step.segment))
    return MergeSet(generation=generation, steps=tuple(path[begin:end]), later=later)


def _begin_of(step: Step) -> int:
    return step.after


def _ends_exactly(segment: SegmentEntry) -> bool:
    return segment.stretch is None or segment.stretch.part == segment.stretch.parts
