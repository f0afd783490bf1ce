"""All that was ever written, and what of it a namespace still has to give back: the model of its tests.

The promise is a lower bound: a point leaves it when a compaction or a prune was allowed to give it up, by the
rules as people read them (window, keep rules, pins, branch points, newest points), whether it did or not.
What is there besides has to be right as well; only it need not be there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from compactor.policy import Policy

State = dict[int, bytes]
Pairs = Sequence[tuple[int, bytes | None]]


class Clock:
    """Milliseconds of all machines and of the store, which tells whole seconds; they go on when told to.
    skew_ms: how far the clock of the machine that compacts and prunes is ahead of the others."""

    def __init__(self, ms: int) -> None:
        self.ms = ms
        self.skew_ms = 0

    def store_ms(self) -> int:
        return self.ms // 1000 * 1000

    def engine_ns(self) -> int:
        return self.ms * 1_000_000

    def local_ms(self) -> int:
        return self.ms + self.skew_ms


class Write(NamedTuple):
    """A record: value None deletes. ends: it is the last of its batch."""

    id: int
    value: bytes | None
    time: int
    ends: bool


class Point(NamedTuple):
    """A seq, and the generation that owns it."""

    generation: str
    seq: int


class History:
    """Every record of a database directory, in order of seq."""

    def __init__(self, writes: Iterable[Write] = ()) -> None:
        self.writes = list(writes)

    def __len__(self) -> int:
        return len(self.writes)

    def commit(self, pairs: Pairs, time_ms: int) -> None:
        """One batch."""
        self.writes += [
            Write(id_, value, time_ms, at == len(pairs)) for at, (id_, value) in enumerate(pairs, 1)
        ]

    def copy(self, upto: int | None = None) -> History:
        return History(self.writes[:upto])

    def time(self, seq: int) -> int:
        return self.writes[seq - 1].time

    def ends(self, first: int = 1, last: int | None = None) -> list[int]:
        """The batch ends of a range of seq, ends included."""
        upto = len(self) if last is None else last
        return [seq for seq in range(first, upto + 1) if self.writes[seq - 1].ends]

    def state(self, seq: int) -> State:
        newest = {write.id: write.value for write in self.writes[:seq]}
        return {id_: value for id_, value in newest.items() if value is not None}


@dataclass
class Owner:
    """A generation. history: of the directory that writes it, from seq 1. last: shipped up to there."""

    id: str
    history: History
    parent: Point | None
    last: int = 0
    successor: str | None = None

    @property
    def first(self) -> int:
        return self.parent.seq + 1 if self.parent else 1

    @property
    def ends(self) -> list[int]:
        """The points that it owns and that were shipped."""
        return self.history.ends(self.first, self.last)

    def last_end(self, time_ms: int) -> int | None:
        """Its last point up to this time."""
        return next((seq for seq in reversed(self.ends) if self.history.time(seq) <= time_ms), None)

    @property
    def first_time(self) -> int:
        """The time of its first record."""
        return self.history.time(self.first)


@dataclass
class Promises:
    """generations: by id. released: what may be gone; what else was shipped is asked for. dead: generations
    that somebody dropped."""

    generations: dict[str, Owner] = field(default_factory=dict)
    pins: dict[str, Point] = field(default_factory=dict)
    released: set[Point] = field(default_factory=set)
    dead: set[str] = field(default_factory=set)
    policy: Policy = Policy()  # noqa: RUF009

    def shipped(self, generation: str, history: History, last: int, parent: Point | None) -> None:
        """A backup of this directory reported this seq."""
        owner = self.generations.setdefault(generation, Owner(generation, history, parent))
        owner.history, owner.last = history, max(owner.last, last)

    def kept(self) -> Iterator[Point]:
        """Every point that has to be restorable now."""
        pinned = set(self.pins.values())
        for owner in self.generations.values():
            for seq in owner.ends:
                point = Point(owner.id, seq)
                if point not in self.released or point in pinned:
                    yield point

    def names_of(self, point: Point) -> Iterator[str]:
        """The generations on whose lines this point lies: the one that owns it, and those that left later."""
        for owner in self.generations.values():
            if point in (Point(at.id, point.seq) for at, upto in self.line(owner.id) if point.seq <= upto):
                yield owner.id

    def line(self, generation: str) -> Iterator[tuple[Owner, int]]:
        """A generation and its ancestors, each with the last of its seqs that counts."""
        at: Owner | None = self.generations[generation]
        upto = at.last if at else 0
        while at is not None:
            yield at, upto
            upto = min(upto, at.first - 1)
            at = self.generations[at.parent.generation] if at.parent else None

    def marked(self, generation: str, children: Iterable[Point]) -> set[int]:
        """Its single points that stay: pins, and where others left it."""
        return {point.seq for point in (*self.pins.values(), *children) if point.generation == generation}

    def pinned(self, name: str, point: Point) -> None:
        """A pin was reported: the point is there, and stays."""
        self.pins[name] = point
        self.released.discard(point)

    def compacted(
        self,
        anchor_ms: int,
        window_ms: int | None,
        offered: Mapping[str, Sequence[int]],
        children: Sequence[Point],
    ) -> None:
        """A compaction may have dropped what is not protected. offered: the points that were there before, by
        generation. children: where lines left others."""
        if window_ms is None:
            return
        for owner in self.generations.values():
            keep = self.marked(owner.id, children)
            keep.update(sorted(offered.get(owner.id, ()))[-max(self.policy.last, self.policy.minimum) :])
            keep.update(self._at_times(owner, [anchor_ms - window_ms, *period_ends(self.policy, anchor_ms)]))
            start = anchor_ms - window_ms
            keep.update(seq for seq in owner.ends if owner.history.time(seq) > start)
            self.released.update(Point(owner.id, seq) for seq in owner.ends if seq not in keep)

    def pruned(self, anchor_ms: int, children: Sequence[Point]) -> None:
        """A prune may have cut lines that others took over, where nothing asks for more than their marks."""
        if self.policy.window_ms is None:
            return
        start = anchor_ms - self.policy.window_ms
        times = [start, *period_ends(self.policy, anchor_ms)]
        for owner in self.generations.values():
            if owner.successor is None:
                continue
            until = self._until(owner)
            top = max(self.marked(owner.id, children), default=0)
            behind = [seq for seq in owner.ends if seq > top]
            asked = self._at_times(owner, [time for time in times if time < until])
            if not any(owner.history.time(seq) > start or seq in asked for seq in behind):
                self.released.update(Point(owner.id, seq) for seq in behind)

    def _until(self, owner: Owner) -> int:
        """Times before this mean points of a line that another took over."""
        taker = self.generations.get(owner.successor or "")
        while taker and taker.id in self.dead:
            taker = self.generations.get(taker.successor or "")
        return taker.first_time if taker else owner.history.time(owner.last) + 1

    def dropped(self, generation: str, children: Sequence[Point]) -> None:
        """A dead line was let go, up to its marks."""
        self.dead.add(generation)
        top = max(self.marked(generation, children), default=0)
        owner = self.generations[generation]
        self.released.update(Point(generation, seq) for seq in owner.ends if seq > top)

    def _at_times(self, owner: Owner, times: Iterable[int]) -> set[int]:
        """The points that answer for these times."""
        return {seq for time in times if (seq := owner.last_end(time)) is not None}


def period_ends(policy: Policy, anchor_ms: int) -> list[int]:
    """The ends of the hours, days, weeks, months and years that a policy names, counted by the calendar."""
    now = datetime.fromtimestamp(anchor_ms // 1000, UTC)
    hour = now.replace(minute=0, second=0)
    day = hour.replace(hour=0)
    found: list[datetime] = [hour - timedelta(hours=n) for n in range(policy.hourly)]
    found += [day - timedelta(days=n) for n in range(policy.daily)]
    found += [day - timedelta(days=day.weekday(), weeks=n) for n in range(policy.weekly)]
    found += [_months_back(day, n) for n in range(policy.monthly)]
    found += [day.replace(month=1, day=1, year=day.year - n) for n in range(policy.yearly)]
    return [int(begin.timestamp()) * 1000 - 1 for begin in found]


def _months_back(day: datetime, count: int) -> datetime:
    months = day.year * 12 + day.month - 1 - count
    return day.replace(year=months // 12, month=months % 12 + 1, day=1)
