"""Compactions of stores made by hand, at a time that the test says; and what can be restored from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from backup.common import open_segment
from backup.restoring.target import Wanted, find_target
from compactor.compaction.options import CompactOptions, Progress, Wish
from compactor.compaction.report import CompactReport
from compactor.compaction.run import compact_session
from compactor.entries import SegmentEntry
from compactor.fetch import SegmentFetcher
from compactor.follow import Change, Writer, follow
from compactor.generations import Pin
from compactor.lineage import segments_of
from compactor.meta.index import MetaIndex
from compactor.namespace import Namespace
from compactor.offers import offered
from compactor.path import route
from compactor.policy import Policy
from compactor.publish import publish
from compactor.session import Session
from compactor.store import open_store
from compactor.store.base import Store
from compactor.store.memory import shared_bucket
from compactor.view import View
from ourdb.errors import UnreachableError
from tests.segment_tools import Record, decoded
from tests.worlds import DAY_0, HOUR, UUID, Log, State, World, Write, memory_world

G1, G2, G3 = "1" * 16, "2" * 16, "3" * 16
DAY = 24 * HOUR
QUICK = CompactOptions(threads=2, wait_seconds=2.0)


class Bench:
    """A world whose store has the test's clock, and who compacts it. now_ms: by the store; skew_ms: how far
    the compactor's own clock is ahead."""

    def __init__(self, folder: Path, world: World | None = None) -> None:
        self.folder = folder
        self.world = world or memory_world()
        self.now_ms = DAY_0 + 365 * DAY
        self.skew_ms = 0
        self._read: dict[str, list[Record]] = {}
        if self.world.store.url.scheme == "memory":
            shared_bucket(self.world.store.url.bucket).clock_ms = lambda: self.now_ms

    def line(self, log: Log, cuts: int, **options: Any) -> Bench:
        """A line G1 with a segment for each `cuts` records."""
        self.world.line(G1, log, range(cuts, len(log), cuts), **options)
        self.world.publish()
        return self

    def session(self, store: Store | None = None, meta: str = "meta.db") -> Session:
        return Session(store or open_store(self.world.url), MetaIndex.open(self.folder / meta))

    def compact(
        self,
        strategy: str = "all",
        *,
        store: Store | None = None,
        meta: str = "meta.db",
        progress: Progress | None = None,
        options: CompactOptions = QUICK,
        **wish: Any,
    ) -> CompactReport:
        return compact_session(
            self.session(store, meta),
            Wish.of(strategy=strategy, **wish),
            progress=progress,
            options=options,
            clock_ms=lambda: self.now_ms + self.skew_ms,
        )

    @property
    def view(self) -> View:
        found = Namespace(self.world.store).read()
        assert found is not None
        return found

    def change(self, **members: Any) -> None:
        """The head as another run would change it."""
        namespace = Namespace(self.world.store)
        view = namespace.read()
        assert view is not None
        writer = Writer(
            uuid=UUID.hex(), namespace=view.head.namespace, config=view.head.config, host=view.head.host
        )
        assert publish(namespace, follow(view, writer, Change(**members)))

    def set_policy(self, **members: Any) -> None:
        self.change(policy=Policy(**members).validate().as_json())

    def pin(self, name: str, seq: int, generation: str = G1) -> None:
        time = self.world.logs[generation].time(seq)
        self.change(pins=(*self.view.head.pins, Pin(name=name, generation=generation, seq=seq, time=time)))

    def back_up(self, count: int, generation: str = G1) -> None:
        """Somebody else writes and commits so many records behind the end."""
        log = self.world.logs[generation]
        first, last_time = len(log) + 1, log.time(len(log))
        for number in range(count):
            log.append(Write(number % 5, b"later %d" % (first + number), last_time + (number + 1) * 1000))
        entry = self.world.segment(generation, first, len(log))
        end = self.view.head.generations[generation]
        grown = replace(
            end,
            last_seq=len(log),
            last_time=log.time(len(log)),
            chain=log.chains[-1],
            highest_id=log.highest[-1],
            as_of=log.time(len(log)),
        )
        self.change(add=[entry], generations={generation: grown})

    # -- what can be restored

    def segments(self, generation: str = G1) -> list[SegmentEntry]:
        return list(segments_of(self.view, generation))

    def points(self, generation: str = G1) -> list[int]:
        """The seqs of a generation that the head offers."""
        view, ends = self.view, set(self.world.logs[generation].ends())
        ranges = offered(view.head.generations[generation], segments_of(view, generation))
        return [seq for first, last in ranges for seq in range(first, last + 1) if seq in ends]

    def state(self, seq: int, generation: str = G1) -> State:
        """What a restore gives at a seq."""
        held: State = {}
        steps = route(self.view, generation, seq)
        assert steps is not None, f"no path to seq {seq}"
        for step in steps:
            for number, id_, value in self._records(step.segment):
                if step.after < number <= step.upto:
                    held.pop(id_, None)
                    if value is not None:
                        held[id_] = value
        return held

    def _records(self, entry: SegmentEntry) -> list[Record]:
        """What a segment holds; each is read once."""
        if entry.key not in self._read:
            self._read[entry.key] = list(decoded(open_segment(self.world.store, entry, UUID)))
        return self._read[entry.key]

    def find(self, generation: str | None = None, **wanted: Any) -> int:
        """The seq that a restore finds. wanted: seq or time_max (ms)."""
        fetcher = SegmentFetcher(self.world.store, UUID.hex())
        found = find_target(self.view, fetcher, Wanted(**wanted), generation)
        assert found is not None
        return found.seq

    def meant(self, time_ms: int, generation: str | None = None) -> int | None:
        """The seq that a restore to a time finds, None: it is refused."""
        try:
            return self.find(generation, time_max=time_ms)
        except UnreachableError:
            return None

    def assert_exact(self, generation: str = G1) -> list[int]:
        """Every point that is offered holds what was written; they are returned."""
        points, log = self.points(generation), self.world.logs[generation]
        for seq in points:
            assert self.state(seq, generation) == log.state(seq), seq
        return points

    def objects(self) -> set[str]:
        return {entry.key for page in self.world.store.list() for entry in page.entries}

    def garbage(self) -> set[str]:
        """What no head names, and what is not yet let go of."""
        view = self.view
        named = {"head", *view.head.list_keys, *(entry.key for entry in view.segments), *view.gone_keys}
        return self.objects() - named
