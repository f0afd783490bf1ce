"""Random schedules of runs that overlap request by request, of one directory, of copies and of restored ones;
they sleep, die and lose replies, and somebody deletes what no head names. What was reported is restorable."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import backup
import ourdb
from compactor.entries import made_of
from compactor.follow import Change, Writer, follow
from compactor.head import Head, encode_head
from compactor.host import Host
from compactor.namespace import Namespace
from compactor.publish import publish
from compactor.store.memory import shared_bucket
from compactor.url import parse_url
from ourdb.errors import Error, FencedError
from ourdb.units import now_ms
from tests.backup_tools import Machine, Shop, Write, records
from tests.interleaving import ENDS, Killed, Run, land

STEPS = 110
_buckets = count()


class World:
    """machines: directories that are written. runs: under way; asleep: those of them that nobody steps.
    promises: the records of every point that was reported."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.shop = Shop(folder)
        self.shop.url = parse_url(f"memory://interleaved{next(_buckets)}/shelf/notes")
        self.shop.bucket = shared_bucket(self.shop.url.bucket)
        self.machines = [Machine(self.shop).write(3)]
        self.runs: dict[Run, Machine] = {}
        self.asleep: set[Run] = set()
        self.landing: list[Callable[[], Any]] = []
        self.promises: dict[tuple[str, int], list[Write]] = {}
        self.faulty, self.sleepy = self.rng.choice((0, 0.05, 0.2)), self.rng.choice((0, 0.1, 0.3))
        self.later_ms = 0

    def act(self) -> None:
        acts = (self.step, self.write, self.begin, self.restore, self.copy, self.kill, self.land, self.sweep)
        self.rng.choices(acts, (16, 2, 3, 0.8, 0.8, 0.3, 0.6, 0.3))[0]()

    def step(self) -> None:
        awake = [run for run in self.runs if run not in self.asleep or self.rng.random() < 0.03]
        if awake:
            run = self.rng.choice(awake)
            self.asleep.discard(run)
            if not run.step(self.rng.choice(ENDS) if self.rng.random() < self.faulty else "ok"):
                self.end(run)
            elif self.rng.random() < self.sleepy:
                self.asleep.add(run)

    def write(self) -> None:
        machine = self.rng.choice(self.machines)
        self.rng.choice((machine.write, machine.write_batch))(self.rng.randrange(1, 5))

    def begin(self, machine: Machine | None = None, how: str | None = None) -> Run:
        chosen = machine or self.rng.choice(self.machines)
        self.later_ms += self.rng.choice((0, 0, 100_000, 700_000))
        options: dict[str, Any] = {
            "how": how or self.rng.choice((None, None, None, "fork", "take-over")),
            "segment_bytes": self.rng.choice((1 << 30, 120, 300)),
            "commit_seconds": self.rng.choice((0.0, 900.0)),
            "wait_seconds": 60.0,
            "clock_ms": lambda later_ms=self.later_ms: now_ms() + later_ms,
        }
        run = Run(self.shop.store().inner, lambda store: chosen.run(store, **options), self.landing)
        self.runs[run] = chosen
        return run

    def end(self, run: Run) -> None:
        machine = self.runs.pop(run)
        self.asleep.discard(run)
        if run.report:
            last = run.report.last_seq
            self.promises[run.report.generation, last] = machine.log[:last]
        else:
            assert isinstance(run.error, (Killed, FencedError, Error)), run.error
            assert isinstance(run.error, (Killed, FencedError)) or run.error.exit_code == 75, run.error

    def restore(self) -> None:
        if self.promises and len(self.machines) < 5:
            (generation, seq), log = self.rng.choice(list(self.promises.items())[-5:])
            name = f"restored-{len(self.machines)}"
            path, meta = self.shop.folder / name, self.shop.folder / f"{name}-meta.db"
            backup.restore(self.shop.url.display, path, seq=seq, generation=generation, meta=meta)
            with ourdb.open(path) as db:
                assert dict(db.items()) == {id_: value for id_, value in log if value is not None}
            copy = Machine(self.shop, name)
            copy.log = list(log)
            self.machines.append(copy)

    def copy(self) -> None:
        machine = self.rng.choice(self.machines)
        if len(self.machines) < 5 and machine not in self.runs.values():
            twin = machine.twin()
            twin.meta = self.rng.choice((machine.meta, twin.meta))  # on the same machine, or on another
            self.machines.append(twin)

    def kill(self) -> None:
        for run in self.rng.sample(list(self.runs), min(1, len(self.runs))):
            run.kill()
            self.end(run)

    def land(self) -> None:
        if self.landing:
            land(self.landing.pop(self.rng.randrange(len(self.landing))))

    def sweep(self) -> None:
        """As prune does without any grace: what no head names is let go of, deleted, and forgotten."""
        store = self.shop.store()
        namespace = Namespace(store, host=Host(None))
        view = namespace.read(required=False)
        if view is None:
            return
        named = {entry.key for entry in view.segments} | {*view.head.list_keys, "head"}
        loose = [stat.key for page in store.list() for stat in page.entries if made_of(stat.key) is not None]
        head = view.head
        writer = Writer(uuid=head.uuid, namespace=namespace.name, config=head.config, host=head.host)
        change = Change(let_go=[key for key in loose if key not in named])
        held = publish(namespace, follow(view, writer, change))
        assert held is not None
        store.delete_many(held.gone_keys)
        store.put_if_match("head", encode_head(self.forgotten(held.head, held.gone_keys)), held.etag)

    def forgotten(self, head: Head, keys: frozenset[str]) -> Head:
        floor = max([head.floor, *(1 + (made_of(key) or 0) for key in keys)])
        run = f"{self.rng.getrandbits(64):016x}"
        return replace(head, revision=head.revision + 1, run=run, gone=(), gone_lists=(), floor=floor)

    def settle(self) -> None:
        """Without faults all runs end, and then everybody ships, if need be by a fork."""
        while self.landing:
            land(self.landing.pop(0))
        self.asleep.clear()
        self.faulty = self.sleepy = 0
        while self.runs:
            self.step()
        for machine in self.machines:
            machine.write(1)
            try:
                report = machine.run()
            except FencedError:
                report = machine.run(how="fork")
            assert report.last_seq == len(machine.log)
            assert machine.line.uploads == ()
            self.promises[report.generation, report.last_seq] = list(machine.log)

    def check(self) -> None:
        view = self.shop.view()
        for (generation, seq), log in self.promises.items():
            assert records(self.shop.store(), view, generation, seq) == log


@pytest.fixture
def world(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    made = World(tmp_path, request.param)
    yield made
    for run in made.runs:  # of a test that failed: their threads end
        run.kill()


@pytest.mark.parametrize("world", range(12), indirect=True)
def test_what_overlapping_runs_reported_stays_restorable(world: World) -> None:
    for _ in range(STEPS):
        world.act()
    world.settle()
    world.check()
    assert backup.verify(world.shop.url.display, data=True, meta=world.shop.folder / "fresh.db").ok
