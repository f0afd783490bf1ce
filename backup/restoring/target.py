"""Which point a restore means: a seq, a time, or the newest; exactly, or an error that names the nearest.

A seq means the line that is open (or the one that was named). A time before the first record of a
generation that took over is looked up on the line that it took over from, up to that line's `as_of`
(docs/protocols.md, "A restored copy that goes on").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from compactor.fetch import SegmentFetcher
from compactor.generations import Began, Generation, Parent
from compactor.index_points import IndexPoints, Point, best
from compactor.lineage import HeadView, ancestry, begin_time, line_of, predecessor, took_over
from compactor.windows import Reach, reaches
from ourdb.errors import InvalidError, UnreachableError
from ourdb.record import SEQ_MAX
from ourdb.units import When, format_time, to_ms


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A target as it was asked for. time_max: ms, inclusive. Neither seq nor time: the newest point.
    nearest_before: None where it cannot be asked for."""

    seq: int | None = None
    time_max: int | None = None
    nearest_before: bool | None = False

    @classmethod
    def of(
        cls,
        *,
        at: When | None = None,
        seq: int | None = None,
        before: When | None = None,
        nearest_before: bool | None = False,
    ) -> Wanted:
        """at: the last point up to this time, inclusive; before: exclusive. At most one of the three.

        nearest_before: what cannot be met exactly is answered by the nearest point before. InvalidError.
        """
        if sum(given is not None for given in (at, seq, before)) > 1:
            raise InvalidError("at, seq and before exclude each other")
        if nearest_before and at is None and seq is None and before is None:
            raise InvalidError("nearest_before needs at, seq or before")
        if seq is not None and not 1 <= seq <= SEQ_MAX:
            raise InvalidError(f"seq must be at least 1: {seq}")
        time_max = to_ms(at) if at is not None else to_ms(before) - 1 if before is not None else None
        return cls(seq=seq, time_max=time_max, nearest_before=nearest_before)

    def __str__(self) -> str:
        if self.seq is not None:
            return f"seq {self.seq}"
        return "the newest point" if self.time_max is None else format_time(max(self.time_max, 0))


def find_target(
    view: HeadView,
    fetcher: SegmentFetcher,
    wanted: Wanted,
    generation: str | None = None,
    *,
    whole: HeadView | None = None,
) -> Point | None:
    """The point that is meant, None: nothing was ever written, and the newest is wanted.

    whole: the head with those segments too that are not to be used: their names tell when a generation began.
    Only index data of the one segment that holds the target is fetched, and nothing where the head tells it.
    Raises UnreachableError, FencedError (`two_lines`), NotFoundError (`no_generation`), NoSuchKey and
    DamageError for an index that is missing or damaged.
    """
    end = line_of(view.head, generation)
    search = _Search(view, IndexPoints(fetcher), wanted, whole)
    if end is None or end.last_seq == 0:
        if wanted.seq is None and wanted.time_max is None:
            return None
        raise search.unreachable("nothing was written yet")
    if wanted.seq is not None:
        return search.by_seq(end, wanted.seq)
    if wanted.time_max is not None:
        return search.by_time(end, wanted.time_max)
    if end.end_seq < end.last_seq:
        return search.by_seq(end, end.end_seq)
    owner, seq = next(iter(ancestry(view.head, end.id)))
    return Point(seq, end.last_time, owner.id)


class Times:
    """What times mean on the line that ends in a generation. points: may be shared with other lines."""

    def __init__(self, view: HeadView, points: IndexPoints, end: Generation) -> None:
        self._search, self._end = _Search(view, points, Wanted()), end

    def find(self, time_max: int) -> Point | None:
        """The last point up to a time, None if it cannot be told exactly. Raises NoSuchKey, DamageError."""
        if time_max > max(self._end.as_of, self._end.last_time):
            return None
        found = self._search.at_time(self._end, self._end.last_seq, time_max)
        return found if isinstance(found, Point) else None


_Lookup = Callable[[], Point | None]


class _Search:
    def __init__(
        self, view: HeadView, points: IndexPoints, wanted: Wanted, whole: HeadView | None = None
    ) -> None:
        self._view, self._whole = view, whole or view
        self._head = view.head
        self._points = points
        self._wanted = wanted
        self._reaches: dict[tuple[str, int], list[Reach]] = {}

    def by_seq(self, end: Generation, seq: int) -> Point:
        """The point at `seq` of the line that ends in `end`."""
        line = [reach for owner, upto in ancestry(self._head, end.id) for reach in self._own(owner, upto)]
        holding = sorted((r for r in line if r.first_seq <= seq <= r.last_seq), key=_cheapest)
        found = best(self._points.at(reach, seq) for reach in holding[:1])
        if found:
            return found
        why = "it is inside a batch" if holding else "the store has it no more, or only merged"
        if seq > end.end_seq:
            why = "it was let go of" if seq <= end.last_seq else f"the line ends at seq {end.last_seq}"
        return self._nearest_or_fail(
            why,
            lambda: best(
                self._points.last(reach, seq_max=seq - 1)
                for reach in sorted(line, key=lambda r: -min(r.last_seq, seq - 1))
                if reach.first_seq < seq
            ),
            lambda: best(
                self._points.first(reach, seq_min=seq + 1)
                for reach in sorted(line, key=lambda r: max(r.first_seq, seq + 1))
                if reach.last_seq > seq
            ),
        )

    def by_time(self, end: Generation, time_max: int) -> Point:
        """The last point up to a time of the line that ends in `end`."""
        known_to = max(end.as_of, end.last_time)
        if time_max > known_to:
            found: Point | str = f"the store is complete up to {format_time(known_to)} only"
        else:
            found = self.at_time(end, end.last_seq, time_max)
        if isinstance(found, Point):
            return found
        return self._nearest_or_fail(
            found,
            lambda: self._last_up_to(end, end.last_seq, time_max),
            lambda: self._first_after(end, end.last_seq, time_max),
        )

    def at_time(self, owner: Generation, upto: int, time_max: int) -> Point | str:
        """The point that a time means on the line that ends here; or why there is none."""
        begin = begin_time(self._whole, owner)
        if begin is not None and time_max >= begin:
            served = self._served(self._own(owner, upto), time_max)
            return served or "the store has that time no more, or only merged"
        taken = predecessor(self._head, owner.id)
        if owner.began:
            return self._before_began(owner, owner.began, taken, upto, time_max, begin)
        if taken:
            return self._taken_over(owner, taken, time_max, begin)
        if owner.parent:
            return self._before_parent(owner, owner.parent, time_max, begin)
        return "it is before the first record"

    def _before_began(
        self,
        owner: Generation,
        began: Began,
        taken: Generation | None,
        upto: int,
        time_max: int,
        begin: int | None,
    ) -> Point | str:
        """A time before the first record that a generation wrote itself: on the line that it took over from,
        else among what a merge gave it. A child that left it before that record asks in the other order:
        whoever it took over from has no say there."""
        if taken is None or upto < began.seq:
            inherited = self._inherited(owner, began, upto, time_max)
            if taken is None or isinstance(inherited, Point):
                return inherited
        before = self._taken_over(owner, taken, time_max, begin)
        if isinstance(before, Point):
            return before
        inherited = self._inherited(owner, began, upto, time_max)
        return inherited if isinstance(inherited, Point) else before

    def _before_parent(
        self, owner: Generation, left: Parent, time_max: int, begin: int | None
    ) -> Point | str:
        """A time before a generation began, on the one that it left."""
        before = self.at_time(self._head.generations[left.generation], left.seq, time_max)
        if (
            isinstance(before, Point)
            and (before.generation, before.seq) == (left.generation, left.seq)
            and took_over(self._head, owner.id)
        ):
            return _let_go(before, owner.id, begin)
        return before

    def _taken_over(
        self, owner: Generation, taken: Generation, time_max: int, begin: int | None
    ) -> Point | str:
        """A time before a generation began, on the line that it took over from."""
        if time_max <= taken.known_to:
            return self.at_time(taken, taken.last_seq, time_max)
        begins = "later" if begin is None else f"at {format_time(begin)}"
        return (
            f"generation {taken.id} is known up to {format_time(taken.known_to)}, and {owner.id}, "
            f"which took over from it, begins {begins}"
        )

    def _inherited(self, owner: Generation, began: Began, upto: int, time_max: int) -> Point | str:
        """A time before the first record that a generation wrote itself, among those that a merge gave it."""
        found = self._served(self._own(owner, min(upto, began.seq - 1)), time_max)
        if found is None:
            return "the store has that time no more, or only merged"
        if found.seq < upto and found.seq + 1 in began.took_over:
            return _let_go(found, owner.id, began.time if found.seq + 1 == began.seq else None)
        return found

    def _served(self, own: list[Reach], time_max: int) -> Point | None:
        serving = sorted((reach for reach in own if reach.serves(time_max)), key=_cheapest)
        return best(self._points.last(reach, time_max=time_max) for reach in serving)

    def _last_up_to(self, owner: Generation, upto: int, time_max: int) -> Point | None:
        """The newest point that is not later than a time, on the line that ends here."""
        own = [reach for reach in self._own(owner, upto) if reach.first_time <= time_max]
        newest_first = sorted(own, key=lambda reach: (-reach.last_seq, _cheapest(reach)))
        found = best(self._points.last(reach, time_max=time_max) for reach in newest_first)
        begin = begin_time(self._whole, owner)
        if found and begin is not None and time_max >= begin:
            return found
        before = self._before(owner)
        other = self._last_up_to(*before, time_max) if before else None
        return max((one for one in (other, found) if one), key=lambda point: point.time, default=None)

    def _first_after(self, owner: Generation, upto: int, time_max: int) -> Point | None:
        """The oldest point that is later than a time, on the line that ends here."""
        begin, before = begin_time(self._whole, owner), self._before(owner)
        if before and (begin is None or time_max < begin):
            found = self._first_after(*before, time_max)
            if found:
                return found
        return self._first_above(self._own(owner, upto), time_max)

    def _before(self, owner: Generation) -> tuple[Generation, int] | None:
        """Where a line held what it held before this generation, and up to which seq."""
        taken = predecessor(self._head, owner.id)
        if taken:
            return taken, taken.last_seq
        left = owner.parent
        return (self._head.generations[left.generation], left.seq) if left else None

    def _first_above(self, own: list[Reach], time_max: int) -> Point | None:
        above = [reach for reach in own if reach.last_time is None or reach.last_time > time_max]
        return best(self._points.first(reach, time_above=time_max) for reach in above)

    def _own(self, owner: Generation, upto: int) -> list[Reach]:
        if (owner.id, upto) not in self._reaches:
            self._reaches[owner.id, upto] = reaches(self._view, owner, upto)
        return self._reaches[owner.id, upto]

    def _nearest_or_fail(self, why: str, before: _Lookup, after: _Lookup) -> Point:
        if self._wanted.nearest_before and (found := before()):
            return found
        raise self.unreachable(why, before(), after())

    def unreachable(
        self, why: str, before: Point | None = None, after: Point | None = None
    ) -> UnreachableError:
        """The error that names the nearest points."""
        named = [
            f"nearest {side}: seq {point.seq}, {format_time(point.time)}"
            for side, point in (("before", before), ("after", after))
            if point
        ]
        offered = before is not None and self._wanted.nearest_before is not None
        hint = "; --nearest-before takes the one before" if offered else ""
        return UnreachableError(
            f"cannot restore {self._wanted} exactly: {why} ({'; '.join(named) or 'no point is there'}{hint})",
            nearest_before=before.as_json() if before else None,
            nearest_after=after.as_json() if after else None,
        )


def _let_go(found: Point, owner: str, begin: int | None) -> str:
    until = f", which begins at {format_time(begin)}" if begin is not None else ""
    return (
        f"after {format_time(found.time)} the line held what a generation had written that was let go of, "
        f"until {owner} took over{until}"
    )


def _cheapest(reach: Reach) -> tuple[bool, int]:
    """Those first that need no request, then the smaller index."""
    return reach.last_time is None, reach.segment.index_bytes
