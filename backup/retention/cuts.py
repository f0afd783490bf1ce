"""Lines that age out: what a head keeps no longer of generations that nobody writes any more.

A superseded generation is needed behind its marked points (pins, and where others left it) as long as a time
that the policy keeps means a point there. Then it is cut behind the highest of them, or forgotten where there
is none. Computed on one head and applied to none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from backup.restoring.target import Times
from backup.retention.cut import cut_behind_marks
from compactor.entries import SegmentEntry
from compactor.generations import Generation
from compactor.index_points import IndexPoints, Point
from compactor.lineage import (
    HeadView,
    Shape,
    ancestry,
    begin_time,
    line_of,
    marked_points,
    oldest_first,
    open_lines,
)
from compactor.policy import Anchor, Policy, boundaries
from compactor.store import NoSuchKey
from compactor.windows import reaches
from ourdb.errors import DamageError, InvalidError
from ourdb.units import format_time


@dataclass(frozen=True, kw_only=True)
class LineVerdict:
    """Why a generation is kept, or goes. kept_to: its last seq that stays; None: nothing does."""

    generation: str
    goes: bool
    kept_to: int | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class Cuts:
    """after: the head without what goes. verdicts: one for each generation, the oldest first."""

    before: HeadView
    after: Shape
    verdicts: tuple[LineVerdict, ...]

    @property
    def generations(self) -> dict[str, Generation]:
        """Those that are different."""
        old = self.before.head.generations
        return {name: g for name, g in self.after.head.generations.items() if g != old[name]}

    @property
    def forget(self) -> tuple[str, ...]:
        return tuple(g for g in self.before.head.generations if g not in self.after.head.generations)

    @property
    def dropped(self) -> dict[str, SegmentEntry]:
        """The segments that leave, by key."""
        kept = {entry.key for entry in self.after.segments}
        return {entry.key: entry for entry in self.before.segments if entry.key not in kept}


def plan_cuts(
    view: HeadView, policy: Policy, anchor: Anchor, points: IndexPoints, *, drop: str | None = None
) -> Cuts:
    """What goes. anchor: if it is not trusted, nothing ages out. drop: a generation whose line is dead: it
    goes at once. points: answers what a time means, where the head does not.

    Raises InvalidError if `drop` is the only line that is open, or has pins; NotFoundError (`no_generation`).
    """
    return _Cutter(view, policy, anchor, points).plan(drop)


class _Cutter:
    def __init__(self, view: HeadView, policy: Policy, anchor: Anchor, points: IndexPoints) -> None:
        self._before, self._policy, self._anchor, self._points = view, policy, anchor, points
        self._shape = Shape(view.head, view.segments)
        self._reasons: dict[str, tuple[bool, str]] = {}

    def plan(self, drop: str | None) -> Cuts:
        if drop is not None:
            self._drop(drop)
        while any(self._age(generation) for generation in oldest_first(self._shape.head)):
            pass  # what went may have been the reason for something older
        return Cuts(before=self._before, after=self._shape, verdicts=tuple(self._verdicts()))

    def _verdicts(self) -> Iterator[LineVerdict]:
        after = self._shape.head.generations
        for generation in oldest_first(self._before.head):
            goes, reason = self._reasons[generation.id]
            left = after.get(generation.id)
            yield LineVerdict(
                generation=generation.id, goes=goes, kept_to=left.end_seq if left else None, reason=reason
            )

    # -- a line that is dead

    def _drop(self, name: str) -> None:
        head = self._shape.head
        if any(one.generation == name for one in head.forgotten):
            return  # done already
        generation = line_of(head, name)
        assert generation is not None
        if open_lines(head) == [generation]:
            raise InvalidError(f"generation {name} is the only line that is open: it cannot be dropped")
        pins = sorted(pin.name for pin in head.pins if pin.generation == name)
        if pins:
            raise InvalidError(f"generation {name} has pins: {', '.join(pins)} (unpin them first)", pins=pins)
        cut = cut_behind_marks(self._shape, generation, self._points)
        if cut is self._shape:
            return
        self._shape = cut
        self._reasons[name] = True, "dropped by --drop-generation"

    # -- a line that ages out

    def _age(self, generation: Generation) -> bool:
        """Whether something of it goes now."""
        if generation.id not in self._shape.head.generations:
            return False
        if generation.open:
            self._reasons[generation.id] = False, self._why_open()
            return False
        cut = cut_behind_marks(self._shape, generation, self._points)
        if cut is self._shape:
            self._reasons.setdefault(generation.id, (False, self._why_marked(generation)))
            return False
        why = self._why_needed(generation, cut)
        if why:
            self._reasons.setdefault(generation.id, (False, why))
            return False
        self._shape = cut
        self._reasons[generation.id] = True, "superseded, and no time that is kept means its points"
        return True

    def _why_open(self) -> str:
        if self._policy.window_ms is None:
            return "an open line, and the policy has no window: all is kept"
        rules = len(boundaries(self._policy, self._anchor.time_ms))
        states = f", and the state at {rules} times of keep rules" if rules else ""
        return (
            f"an open line: every write since {format_time(max(self._window_start, 0))}{states}; what else "
            "lies before goes with the next compact"
        )

    @property
    def _window_start(self) -> int:
        return self._anchor.time_ms - (self._policy.window_ms or 0)

    def _why_marked(self, generation: Generation) -> str:
        marks = marked_points(self._shape.head, generation.id).values()
        return f"kept up to its last marked point: {', '.join(marks)}"

    def _why_needed(self, generation: Generation, cut: Shape) -> str | None:
        """Why a superseded generation cannot be cut yet."""
        if not self._policy.drops:
            return "superseded, and the policy has no window: all is kept"
        if not self._anchor.trusted:
            return f"{self._anchor.why}: nothing ages out (--force)"
        until = self._until(generation)
        if self._window_start < until:
            times = f"times before {format_time(until)} mean it"
            return f"superseded, but {times}, and the window begins at {format_time(self._window_start)}"
        if generation.end_seq == generation.last_seq and self._window_start <= generation.last_time:
            # Its writer went on after the successor began: what it reported is asked for by its name.
            wrote, begins = format_time(generation.last_time), format_time(self._window_start)
            return f"superseded, but it was written until {wrote}, and the window begins at {begins}"
        return self._why_boundary(until, cut) or self._why_minimum()

    def _until(self, generation: Generation) -> int:
        """From this time on nothing means a point of this generation, unless it is asked for by name; where a
        line ends in it, that is the only way to ask."""
        if generation.successor is None and generation.end_seq == generation.last_seq:
            return max(generation.as_of, generation.last_time) + 1
        until = generation.known_to + 1
        if generation.successor is None:
            return until
        begins = begin_time(self._shape, self._shape.head.generations[generation.successor])
        return until if begins is None else min(begins, until)

    def _why_boundary(self, until: int, cut: Shape) -> str | None:
        """Whether a keep rule's time would mean another point, or none, on any line."""
        times = [time for time in boundaries(self._policy, self._anchor.time_ms) if time < until]
        if not times:
            return None
        for end in (g for g in self._shape.head.generations.values() if g.successor is None):
            left = cut.head.generations.get(end.id)
            before = Times(self._shape, self._points, end)
            after = Times(cut, self._points, left) if left else None
            for time in times:
                try:
                    if not _same(before.find(time), after, time):
                        return f"superseded, but a keep rule keeps the state at {format_time(time)}"
                except (NoSuchKey, DamageError) as error:
                    return f"superseded, but what it held at {format_time(time)} cannot be told: {error}"
        return None

    def _why_minimum(self) -> str | None:
        least = self._policy.newest
        for end in open_lines(self._shape.head):
            try:
                count = self._count(end, least)
            except (NoSuchKey, DamageError) as error:
                return f"superseded, but the points of {end.id} cannot be counted: {error}"
            if count < least:
                return f"superseded, but the open line {end.id} has {count} points, fewer than {least}"
        return None

    def _count(self, end: Generation, enough: int) -> int:
        """How many points a line has, or `enough`, whichever is less. An exact range has one at least."""
        found, below, sure = [], end.last_seq + 1, 0
        for owner, upto in ancestry(self._shape.head, end.id):
            for reach in sorted(reaches(self._shape, owner, upto), key=lambda r: -r.last_seq):
                if reach.first_seq < below:
                    found.append(replace(reach, last_seq=min(reach.last_seq, below - 1)))
                    below = reach.first_seq
                    sure += found[-1].last_seq == reach.run.last_seq
                    if sure >= enough:
                        return enough
        count = 0
        for reach in found:
            count += self._points.count(reach)
            if count >= enough:
                return enough
        return count


def _same(before: Point | None, after: Times | None, time: int) -> bool:
    """Whether a time means what it meant. What it did not mean before is not lost."""
    if before is None:
        return True
    found = after.find(time) if after else None
    return found is not None and (found.seq, found.time) == (before.seq, before.time)
