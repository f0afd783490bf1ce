"""What leads to a target in a store: a point is found, a path planned, and planned anew when that fails.

What is missing or damaged in the store is gone around, if another path leads to the point. An object that is
not there (404) may have been replaced since the head was read: the head is read again and all is planned
anew; it is damage only if that head names it still (protocol rule 7).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from backup.restoring.target import Wanted, find_target
from compactor.entries import SegmentEntry
from compactor.fetch import SegmentFetcher, missing_segment
from compactor.generations import Generation
from compactor.index_points import Point
from compactor.lineage import HeadView, Shape, ancestry, line_of
from compactor.path import Step, route
from compactor.session import Session
from compactor.store import NoSuchKey
from compactor.view import View
from compactor.windows import lost_range
from ourdb.errors import DamageError, TemporaryError, UnreachableError
from ourdb.units import format_time

T = TypeVar("T")

PLANS_MAX = 50  # each time without one more segment, or on a newer head


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The path to a point. end: of the line that was meant, None: there is none yet. point: None: nothing was
    ever written, and the newest is wanted; then there are no steps either."""

    view: View
    end: Generation | None
    point: Point | None
    steps: Sequence[Step]

    @property
    def seq(self) -> int:
        return self.point.seq if self.point else 0


class Planner:
    """Plans for one target of one namespace; reads the head when it is made. For several threads.

    fetcher: of the database's uuid, for the index of the segment that holds the target. stays: once a point
    was found it is kept, whatever is written meanwhile. doubt: is told the key of a segment that seems
    damaged; whether that may be the fault of a copy of it, which was let go of now. left_out: segments that
    are damaged or missing.
    """

    def __init__(
        self,
        session: Session,
        wanted: Wanted,
        generation: str | None,
        fetcher: Callable[[str], SegmentFetcher],
        *,
        stays: bool = False,
        doubt: Callable[[SegmentEntry], bool] = lambda _: False,
    ) -> None:
        self._session, self._wanted, self._generation = session, wanted, generation
        self._stays, self._doubt = stays, doubt
        self._view = session.read()
        self.fetcher = fetcher(self._view.head.uuid)
        self._plan: Plan | None = None
        self._lines: list[str] = []  # generations on whose way the point lies, once it is known
        self._point: Point | None = None
        self._left_out: dict[str, DamageError] = {}
        self._lock = threading.RLock()

    @property
    def left_out(self) -> tuple[str, ...]:
        """Keys of segments that are damaged or missing, and were not needed."""
        return tuple(sorted(self._left_out))

    def persist(self, act: Callable[[Plan], T]) -> T:
        """What `act` makes of the plan; tried again on a newer head, or without what it found damaged."""
        for _ in range(PLANS_MAX):
            plan = self._plan
            try:
                plan = plan or self._make()
                return act(plan)
            except (NoSuchKey, DamageError) as error:
                self._recover(plan, error)
        raise self._restless()

    def resume(self, stream: Callable[[Plan], Iterator[T]]) -> Iterator[T]:
        """As `persist`, for what comes piece by piece: `stream` is called again to go on where it broke."""
        for _ in range(PLANS_MAX):
            plan = self._plan
            try:
                plan = plan or self._make()
                yield from stream(plan)
                return
            except (NoSuchKey, DamageError) as error:
                self._recover(plan, error)
        raise self._restless()

    def _restless(self) -> TemporaryError:
        return TemporaryError(
            f"the head or its segments change faster than they can be read: {self._session.url}"
        )

    def _recover(self, plan: Plan | None, error: NoSuchKey | DamageError) -> None:
        """Goes on without a segment that the head names; raises the error if that cannot help."""
        with self._lock:
            if self._plan is not plan:
                return  # another thread has seen to it
            self._plan = None
            if isinstance(error, NoSuchKey):
                self._view = self._session.read(uuid=self._view.head.uuid)
            entry = next((e for e in self._view.segments if e.key == error.fields.get("key")), None)
            if isinstance(error, NoSuchKey):
                if entry is None:
                    return  # replaced since
                error = missing_segment(entry.key)
            elif entry is not None and self._doubt(entry):
                return
            if entry is None or entry.key in self._left_out:
                raise error
            error.fields = {"first_seq": entry.first_seq, "last_seq": entry.last_seq} | error.fields
            self._left_out[entry.key] = error

    def _make(self) -> Plan:
        with self._lock:
            if self._plan is None:
                head = self._view.head
                live = Shape(
                    head, [entry for entry in self._view.segments if entry.key not in self._left_out]
                )
                self._plan = self._same(live) if self._point else self._first(live)
            return self._plan

    def _first(self, live: Shape) -> Plan:
        """Finds the point that is wanted."""
        view = self._view
        end = line_of(view.head, self._generation)
        try:
            point = find_target(live, self.fetcher, self._wanted, self._generation, whole=view)
        except UnreachableError:
            if self._left_out:
                raise self._lost() from None
            raise
        if point is None:
            return Plan(view=view, end=end, point=None, steps=[])
        steps = route(live, point.generation, point.seq)
        if steps is None:
            raise (
                self._lost() if self._left_out else lost_range(view, view.head.generations[point.generation])
            )
        if self._stays:
            self._point, self._lines = point, _lines_through(live, point, end)
        return Plan(view=view, end=end, point=point, steps=steps)

    def _same(self, live: Shape) -> Plan:
        """Another path to the point that was found before. A merge may have moved it into a generation that
        came from its own."""
        assert self._point is not None
        for line in self._lines:
            if line in live.head.generations:
                steps = route(live, line, self._point.seq)
                if steps is not None:
                    return Plan(
                        view=self._view, end=live.head.generations[line], point=self._point, steps=steps
                    )
        if self._left_out:
            raise self._lost()
        raise UnreachableError(
            f"the store has seq {self._point.seq} ({format_time(self._point.time)}) of generation "
            f"{self._point.generation} no more: it was merged away since it was opened",
            nearest_before=None,
            nearest_after=None,
        )

    def _lost(self) -> DamageError:
        """No path is left: what was found first, with the range that is lost."""
        key, found = next(iter(self._left_out.items()))
        fields = {**found.fields, "key": key, "left_out": sorted(self._left_out)}
        first, last = fields.get("first_seq"), fields.get("last_seq")
        return DamageError(
            f"{found.message}; no other path leads to {self._wanted}: seq {first} to {last} are lost",
            kind="store_damaged",
            **fields,
        )


def _lines_through(view: HeadView, point: Point, end: Generation | None) -> list[str]:
    """The point's own generation, and the one that was meant if the point is on the way to its end."""
    if end is None or end.id == point.generation:
        return [point.generation]
    owners = {owner.id: upto for owner, upto in ancestry(view.head, end.id)}
    return [point.generation, end.id] if owners.get(point.generation, 0) >= point.seq else [point.generation]
