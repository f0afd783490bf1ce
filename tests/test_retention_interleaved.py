"""Random schedules of backups, compactions, prunes, pins and restores that overlap request by request.

They sleep, some for longer than the grace time, die, and lose replies; what they sent takes effect late or
twice. After each request: what a head names is there, and never was deleted; nothing is deleted that a head
named within the grace time; a pin that was reported stays; each point that the policy protects in the head
that was followed is offered by the one that follows, and restores as it was written.

`OURDB_SCHEDULES` is the number of schedules, `OURDB_SCHEDULES_SEED` the first of them.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import backup
from backup.restoring.target import Wanted
from backup.retention.pins import pin_session, unpin_session
from backup.retention.policy import set_policy_session
from backup.retention.prune import prune_session
from compactor.compaction.options import CompactOptions, Wish
from compactor.compaction.run import compact_session
from compactor.policy import DAY_MS, HOUR_MS, Policy
from compactor.store.base import Store
from compactor.view import View
from ourdb.errors import Error, FencedError, UnreachableError
from tests.interleaving import ENDS, Killed, Run, Waiting, land
from tests.keeping import Directory, Yard, standing
from tests.promises import History, Point
from tests.shelf import Shelf, all_points, check_point, children_of, name_of

SCHEDULES = int(os.environ.get("OURDB_SCHEDULES", "12"))
FIRST = int(os.environ.get("OURDB_SCHEDULES_SEED", "0"))
FOUND = (1098, 2021)  # seeds that once found something
STEPS = 200
GRACE_MS = HOUR_MS
SPANS = (0, 1000, 60_000, HOUR_MS // 2, HOUR_MS + 400_000, 3 * HOUR_MS, DAY_MS)
WINDOWS = (None, 0, 60_000, HOUR_MS, DAY_MS)
TEMPORARY = 75
COMPACT = CompactOptions(threads=1, wait_seconds=60)
ALONE = backup.RestoreOptions(threads=1)
_numbers = count()


@dataclass
class Job:
    """A run under way. expected: exit codes of errors that it may end with besides. point, line: that it
    restores or pins, and how it asks for it; name: of the pin or directory; copy: what is to be in that."""

    kind: str
    run: Run
    expected: tuple[int, ...] = ()
    directory: Directory | None = None
    point: Point | None = None
    line: str = ""
    name: str = ""
    copy: History = field(default_factory=History)


class World:
    """jobs: runs under way; asleep: those of them that nobody steps. pins: that were reported, and that
    nobody has begun to take away."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.yard = Yard(folder)
        self.stack = ExitStack()
        self.stack.enter_context(standing(self.yard.clock))
        self.stack.enter_context(mock.patch("compactor.session.open_store", self.open_store))
        self.directories = [Directory(self.yard)]
        self.histories = [self.directories[0].history]
        self.jobs: list[Job] = []
        self.asleep: list[Job] = []
        self.landing: list[Callable[[], Any]] = []
        self.pins: dict[str, Point] = {}
        self.grace_ms = GRACE_MS
        self.dead: set[str] = set()  # generations that somebody let go of
        self.deleted: set[str] = set()
        self.faulty, self.sleepy = self.random.choice((0, 0.03, 0.1)), self.random.choice((0, 0.05, 0.15))
        self.shelf = Shelf(self.yard.shop.store())
        self.thread = threading.local()
        self.directories[0].commit([(1, b"first")])
        self.directories[0].run(clock_ms=self.yard.clock.local_ms)
        with self.yard.session() as session:
            set_policy_session(session, grace_ms=GRACE_MS)
        self.view = self.observe_first()

    def open_store(self, url: str, *, options: object = None) -> Store:
        """For commands that open their own: the one of the run whose thread this is."""
        return getattr(self.thread, "store", None) or self.yard.shop.store()

    # -- what happens

    def act(self) -> None:
        acts: dict[Callable[[], object], float] = {
            self.step: 24,
            self.write: 2,
            self.wait: 1,
            self.begin_backup: 2,
            self.begin_compaction: 1.5,
            self.begin_prune: 1,
            self.begin_policy: 0.4,
            self.begin_pin: 0.5,
            self.begin_unpin: 0.2,
            self.begin_drop: 0.05,
            self.begin_restore: 0.7,
            self.copy: 0.15,
            self.kill: 0.2,
            self.land: 0.5,
        }
        self.random.choices(list(acts), list(acts.values()))[0]()
        self.observe()

    def step(self) -> None:
        awake = [job for job in self.jobs if job not in self.asleep or self.random.random() < 0.03]
        if not awake:
            return
        job = self.random.choice(awake)
        if job in self.asleep:
            self.asleep.remove(job)
        if not job.run.step(self.random.choice(ENDS) if self.random.random() < self.faulty else "ok"):
            self.end(job)
        elif self.random.random() < self.sleepy:
            self.asleep.append(job)

    def write(self) -> None:
        directory = self.random.choice(self.directories)
        for _ in range(self.random.randrange(1, 4)):
            ids = [self.random.randrange(8) for _ in range(self.random.choice((1, 1, 1, 3)))]
            directory.commit([(id_, self.value()) for id_ in ids])
            self.yard.clock.ms += self.random.choice((0, 1, 1000))

    def value(self) -> bytes | None:
        return None if self.random.random() < 0.2 else b"value %d" % next(_numbers)

    def wait(self) -> None:
        self.yard.clock.ms += self.random.choice(SPANS)

    def begin(self, kind: str, body: Callable[[Waiting], object], **about: Any) -> Job:
        def live(store: Waiting) -> object:
            self.thread.store = store
            return body(store)

        job = Job(kind, Run(self.yard.shop.store().inner, live, self.landing), **about)
        self.jobs.append(job)
        return job

    def keeper(self, command: Callable[..., object], *args: Any, **options: Any) -> Callable[[Store], object]:
        """One of two machines that compact and prune."""
        meta = self.yard.meta.with_name(f"keeper-{self.random.randrange(2)}.db")

        def body(store: Store) -> object:
            with self.yard.session(store, meta) as session:
                return command(session, *args, **options)

        return body

    def begin_backup(self) -> None:
        directory = self.random.choice(self.directories)
        options: dict[str, Any] = {
            "how": self.random.choice((None, None, None, "fork", "take-over")),
            "segment_bytes": self.random.choice((1 << 30, 120, 300)),
            "commit_seconds": self.random.choice((0.0, 900.0)),
            "wait_seconds": 60.0,
            "threads": 1,
            "clock_ms": self.yard.clock.local_ms,
        }
        expected = (FencedError.exit_code,)
        self.begin(
            "backup", lambda store: directory.run(store, **options), directory=directory, expected=expected
        )

    def begin_compaction(self) -> None:
        name = self.random.choice(("auto", "levels", "log", "all", "all"))
        threshold = self.random.choice((2, 3)) if name in ("auto", "levels") else None
        self.begin(
            "compact",
            self.keeper(
                compact_session,
                Wish.of(strategy=name, threshold=threshold),
                options=COMPACT,
                clock_ms=self.yard.clock.local_ms,
            ),
        )

    def begin_prune(self) -> None:
        self.begin("prune", self.keeper(prune_session, clock_ms=self.yard.clock.local_ms))

    def begin_drop(self) -> None:
        name = self.random.choice(list(all_points(self.view, self.yard.promises)))
        self.dead.add(name)
        body = self.keeper(prune_session, drop_generation=name, clock_ms=self.yard.clock.local_ms)
        self.begin("drop", body, expected=(1, 2, 10, 16))

    def begin_policy(self) -> None:
        window = self.random.choice(WINDOWS)
        newest = self.random.choice((0, 0, 2))
        self.begin("policy", self.keeper(set_policy_session, window_ms=window, last=newest, hourly=newest))

    def begin_pin(self) -> None:
        point, line = self.somewhere()
        name = f"pin {next(_numbers)}"
        body = self.keeper(pin_session, name, Wanted.of(seq=point.seq), line)
        self.begin("pin", body, point=point, line=line, name=name, expected=(10, UnreachableError.exit_code))

    def begin_unpin(self) -> None:
        if self.pins:
            name = self.random.choice(sorted(self.pins))
            del self.pins[name]
            self.begin("unpin", self.keeper(unpin_session, name))

    def begin_restore(self) -> None:
        point, line = self.somewhere()
        path = self.yard.shop.folder / f"restored-{next(_numbers)}"
        meta = path.with_name(path.name + "-meta.db")

        def body(store: Store) -> object:
            return backup.restore(
                self.yard.url, path, seq=point.seq, generation=line, meta=meta, options=ALONE
            )

        history = self.yard.promises.generations[point.generation].history.copy(point.seq)
        expected = (10, UnreachableError.exit_code)
        self.begin("restore", body, point=point, line=line, name=path.name, copy=history, expected=expected)

    def somewhere(self) -> tuple[Point, str]:
        promises = self.yard.promises
        point = self.random.choice(list(promises.kept()))
        line = name_of(self.view, all_points(self.view, promises), promises, point)
        assert line is not None
        return point, line

    def copy(self) -> None:
        directory = self.random.choice(self.directories)
        if len(self.directories) < 5 and all(job.directory is not directory for job in self.jobs):
            self.add(directory.twin())

    def add(self, directory: Directory) -> None:
        self.directories.append(directory)
        self.histories.append(directory.history)

    def kill(self) -> None:
        for job in self.random.sample(self.jobs, min(1, len(self.jobs))):
            job.run.kill()
            self.end(job)

    def land(self) -> None:
        if self.landing:
            land(self.landing.pop(self.random.randrange(len(self.landing))))

    # -- how runs end

    def end(self, job: Job) -> None:
        self.observe()
        self.jobs.remove(job)
        if job in self.asleep:
            self.asleep.remove(job)
        error = job.run.error
        if isinstance(error, Killed):
            return
        if error is not None:
            assert isinstance(error, Error), f"{job.kind}: {error!r}"
            assert error.exit_code in (TEMPORARY, *job.expected), f"{job.kind}: {error!r}"
            if job.line in self.view.head.generations and error.exit_code != TEMPORARY:
                assert job.point not in set(self.yard.promises.kept()), f"{job.kind}: {error}"
            return
        ended = {"backup": self.end_backup, "pin": self.end_pin, "restore": self.end_restore}
        if job.kind in ended:
            ended[job.kind](job)

    def end_backup(self, job: Job) -> None:
        report, directory = job.run.report, job.directory
        assert directory is not None
        owner = self.yard.promises.generations[report.generation]
        assert owner.last >= report.last_seq
        assert owner.history.writes[: report.last_seq] == directory.history.writes[: report.last_seq]

    def end_pin(self, job: Job) -> None:
        assert job.point is not None
        self.pins[job.name] = job.point
        self.check_pins()

    def end_restore(self, job: Job) -> None:
        copy = Directory(self.yard, job.name, job.copy)
        assert job.point is not None
        assert copy.state() == job.copy.state(job.point.seq)
        if len(self.directories) < 5 and self.random.random() < 0.3:
            self.add(copy)

    # -- what always holds

    def observe_first(self) -> View:
        self.there = self.yard.keys()
        view = self.yard.watch()
        assert view is not None
        self.follow(None, view)
        return view

    def observe(self) -> None:
        """Looks at the store after each request."""
        yard = self.yard
        there = yard.keys()
        for key in self.there - there:
            held_ms = yard.clock.ms - yard.unnamed.get(key, yard.clock.ms)
            assert held_ms >= self.grace_ms or key.startswith("probe-"), f"deleted too early: {key}"
        self.deleted |= self.there - there
        etag = yard.shop.bucket.objects[f"{yard.shop.url.root}/head"].etag
        if there == self.there and etag == self.view.etag:
            return
        self.there = there
        view = yard.watch()
        assert view is not None
        assert not yard.named(view) & self.deleted, "a head names what was deleted once"
        if view.etag != self.view.etag:
            self.follow(self.view, view)
            self.view = view
            self.check_pins()

    def follow(self, old: View | None, new: View) -> None:
        """A head follows another: it may have given up what the policy of that one does not protect."""
        yard, promises = self.yard, self.yard.promises
        yard.learn(new, lambda name, last: self.history_of(new, name, last))
        if old:
            promises.policy = Policy.of(old.head)
            anchor, children = yard.anchor(old).time_ms, children_of(old)
            if {entry.key for entry in old.segments} - {entry.key for entry in new.segments}:
                window_ms = promises.policy.window_ms
                promises.compacted(anchor, window_ms, all_points(old, promises), children)
            cut = [name for name, was in old.head.generations.items() if kept_to(new, name) != was.kept_to]
            for name in self.dead & set(cut):
                promises.dropped(name, children)
            if cut:
                promises.pruned(anchor, children)
        self.learn_pins(new)
        points = all_points(new, promises)
        for point in promises.kept():
            assert name_of(new, points, promises, point), f"promised and not offered: {point}"
        offered = [Point(name, seq) for name, seqs in points.items() for seq in seqs]
        for point in self.random.sample(offered, min(2, len(offered))):
            check_point(self.shelf, new, *point, promises.generations[point.generation].history)

    def learn_pins(self, view: View) -> None:
        promises = self.yard.promises
        promises.pins.clear()
        for pin in view.head.pins:
            line = promises.line(pin.generation)
            owner = next(owner for owner, upto in line if owner.first <= pin.seq <= upto)
            promises.pinned(pin.name, Point(owner.id, pin.seq))

    def check_pins(self) -> None:
        pins = self.yard.promises.pins
        assert self.pins.items() <= pins.items(), f"pins were lost: {self.pins.keys() - pins.keys()}"

    def history_of(self, view: View, generation: str, last: int) -> History:
        """Who wrote what the head holds up to there."""
        records = self.shelf.records(view, generation, last)
        found = [(record.seq, record.id, record.value) for record in records]
        for history in self.histories:
            writes = history.writes
            if len(writes) >= last and found == [(seq, *writes[seq - 1][:2]) for seq, _, _ in found]:
                return history
        raise AssertionError(f"nobody has written what is shipped as {generation}, up to {last}")

    # -- the end

    def settle(self) -> None:
        """Without faults all runs end; then everybody ships, and all is compacted and pruned."""
        while self.landing:
            land(self.landing.pop(0))
            self.observe()
        self.asleep.clear()
        self.faulty = self.sleepy = 0
        while self.jobs:
            self.step()
            self.observe()
        for directory in self.directories:
            directory.commit([(1, b"the end")])
            directory.ship_anyhow()
            self.observe()
        with self.yard.session() as session:
            compact_session(session, Wish.of(strategy="all"), clock_ms=self.yard.clock.local_ms)
            self.observe()
            self.grace_ms = 0
            prune_session(session, grace_ms=0, clock_ms=self.yard.clock.local_ms)
            self.observe()

    def check(self) -> None:
        """All that is offered, and the store as it is left."""
        promises, view = self.yard.promises, self.yard.view()
        for name, seqs in all_points(view, promises).items():
            for seq in seqs:
                check_point(self.shelf, view, name, seq, promises.generations[name].history)
        assert self.yard.keys() == self.yard.named(view)
        assert backup.verify(self.yard.url, data=True, meta=self.yard.shop.folder / "fresh.db").ok


def kept_to(view: View, generation: str) -> int | None:
    found = view.head.generations.get(generation)
    return found.kept_to if found else 0


@pytest.fixture
def world(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    made = World(tmp_path, request.param)
    with made.stack:
        yield made
        for job in made.jobs:  # of a test that failed: their threads end
            job.run.kill()


@pytest.mark.parametrize("world", [*range(FIRST, FIRST + SCHEDULES), *FOUND], indirect=True)
def test_what_is_promised_stays_whatever_overlaps(world: World) -> None:
    for _ in range(STEPS):
        world.act()
    world.settle()
    world.check()
