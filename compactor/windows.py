"""What can be restored now, from the head alone: exact ranges of each generation, windows and gaps. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compactor.entries import SegmentEntry
from compactor.generations import Generation
from compactor.lineage import HeadView, ancestry, segments_of
from compactor.path import exact_ranges, route
from ourdb.errors import DamageError
from ourdb.segment.summary import Run


@dataclass(frozen=True, kw_only=True)
class Reach:
    """A range of seq, ends included, in which each batch end can be restored: of one exact run of a segment.

    first_time: ms, of the run's first batch end, perhaps before first_seq. last_time: of the batch end at
    last_seq, None if that is in the middle of the run, where the index has to tell. next_time: of the record
    after it, None: that is not known, or there is none yet.
    """

    segment: SegmentEntry
    run: Run
    first_seq: int
    last_seq: int
    first_time: int
    last_time: int | None
    next_time: int | None

    def serves(self, time_ms: int) -> bool:
        """Whether the last batch end up to this time lies in the run."""
        return self.first_time <= time_ms and (self.next_time is None or time_ms < self.next_time)


@dataclass(frozen=True, kw_only=True)
class Window:
    """A range of seq of one generation, ends included, with its times in ms (None: nothing tells it)."""

    generation: str
    first_seq: int
    last_seq: int
    first_time: int | None
    last_time: int | None
    segments: tuple[str, ...] = ()


def reaches(view: HeadView, generation: Generation, upto: int | None = None) -> list[Reach]:
    """All that the store restores of a generation's own seqs up to `upto` (None: its end), by first seq.
    Where another line left it at `upto`, nothing comes after that; where it was cut before, something did."""
    upto = generation.last_seq if upto is None else min(upto, generation.last_seq)
    end = min(upto, generation.end_seq)
    parent = generation.parent
    if end < generation.first_seq or (parent and route(view, parent.generation, parent.seq) is None):
        return []
    segments = segments_of(view, generation.id)
    following = {segment.first_seq: segment.name.first_time for segment in segments}
    found = []
    for segment, run, first in exact_ranges(
        segments, generation.first_seq - 1, parent.chain if parent else 0
    ):
        if first <= end:
            found.append(_reach(segment, run, first, end, generation, following, cut=end < upto))
    return found


def _reach(
    segment: SegmentEntry,
    run: Run,
    first: int,
    end: int,
    generation: Generation,
    following: dict[int, int],
    *,
    cut: bool,
) -> Reach:
    next_time = run.next_time
    if cut and end <= run.last_seq:
        # Where nothing tells when the rest began, no time is answered: only the seqs are.
        known = next_time if end == run.last_seq else None
        next_time = known or generation.kept_until or run.first_time
    elif next_time is None and run.last_seq < generation.last_seq:
        # Where what comes next is missing, at its own last time there may have been more batches.
        next_time = following.get(run.last_seq + 1, run.last_time)
    clipped = end < run.last_seq
    return Reach(
        segment=segment,
        run=run,
        first_seq=first,
        last_seq=min(run.last_seq, end),
        first_time=run.first_time,
        last_time=None if clipped else run.last_time,
        next_time=None if end <= run.last_seq and not cut else next_time,
    )


def windows_of(found: Sequence[Reach], generation: str) -> list[Window]:
    """Maximal ranges, joined from exact ranges that touch or overlap."""
    groups: list[list[Reach]] = []
    last_seq = -1
    for reach in sorted(found, key=lambda reach: (reach.first_seq, reach.last_seq)):
        if not groups or reach.first_seq > last_seq + 1:
            groups.append([])
        groups[-1].append(reach)
        last_seq = max(last_seq, reach.last_seq)
    return [_window(group, generation) for group in groups]


def _window(group: Sequence[Reach], generation: str) -> Window:
    """What ranges that touch or overlap are together; they are in order of first seq."""
    furthest = max(group, key=lambda reach: (reach.last_seq, reach.last_time is not None))
    return Window(
        generation=generation,
        first_seq=group[0].first_seq,
        last_seq=furthest.last_seq,
        first_time=group[0].first_time,
        last_time=furthest.last_time,
        segments=tuple(reach.segment.key for reach in group),
    )


def gaps_of(generation: Generation, windows: Sequence[Window], upto: int | None = None) -> list[Window]:
    """The seqs up to `upto` (None: its end) that a generation owns and nothing restores. The times of a gap
    are those of the points around it: no time between them can be restored."""
    last_seq = generation.end_seq if upto is None else min(upto, generation.end_seq)
    gaps = []
    before: Window | None = None
    at = generation.first_seq
    for window in [*windows, None]:
        end = window.first_seq - 1 if window else last_seq
        if at <= end:
            gaps.append(
                Window(
                    generation=generation.id,
                    first_seq=at,
                    last_seq=end,
                    first_time=before.last_time if before else None,
                    last_time=window.first_time if window else generation.last_time,
                )
            )
        if window:
            before, at = window, window.last_seq + 1
    return gaps


def lost_range(view: HeadView, generation: Generation) -> DamageError:
    """The error for a line whose end the head names and no path leads to: it names the first range that is
    lost."""
    for owner, upto in reversed(list(ancestry(view.head, generation.id))):
        for gap in gaps_of(owner, windows_of(reaches(view, owner), owner.id)):
            if gap.first_seq <= upto <= gap.last_seq:
                return DamageError(
                    f"the head names no path to the end of generation {generation.id}: "
                    f"seq {gap.first_seq} to {gap.last_seq} of generation {owner.id} are lost",
                    kind="store_damaged",
                    generation=owner.id,
                    first_seq=gap.first_seq,
                    last_seq=gap.last_seq,
                )
    raise AssertionError("a path leads to where there is no gap")
