"""Random schedules of writers, copies, restored copies and lost requests: whatever a run reported stays
restorable, and everybody gets on in the end, if need be by the way out that the error names."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from ourdb.errors import Error, FencedError
from ourdb.units import now_ms
from tests.backup_tools import Machine, Shop, records
from tests.test_backup_resume import Counting, Killed

HOWS = ("die before", "die after", "no answer before", "no answer after")
STEPS = 14


class World:
    """A shop with machines, and what was promised: the records of every point that was reported."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.shop = Shop(folder)
        self.machines = [Machine(self.shop).write(3)]
        self.promises: dict[tuple[str, int], list[tuple[int, bytes | None]]] = {}
        self.later_ms = 0

    def step(self) -> None:
        machine = self.rng.choice(self.machines)
        what = self.rng.choices(("write", "run", "fault", "twin", "restored"), (4, 3, 5, 1, 2))[0]
        if what == "write":
            machine.write(self.rng.randrange(1, 5))
        elif what in ("run", "fault"):
            self.run(machine, faulty=what == "fault")
        elif what == "twin" and len(self.machines) < 4:
            self.machines.append(machine.twin())
        elif what == "restored" and len(self.machines) < 4 and self.promises:
            mark = machine.mark
            if mark and (mark.generation, len(machine.log)) in self.promises:
                self.machines.append(machine.restored())

    def run(self, machine: Machine, *, faulty: bool) -> str | None:
        """A backup run, perhaps with a way out; the kind of its refusal. Time passes: `as_of` may be due."""
        self.later_ms += self.rng.choice((0, 100_000, 700_000))
        store = self.shop.store()
        if faulty:
            store = Counting(store.inner, self.rng.randrange(9), self.rng.choice(HOWS))
        how = self.rng.choice((None, None, None, "fork", "take-over"))
        segment_bytes = self.rng.choice((1 << 30, 120))
        try:
            report = machine.run(
                store,
                how=how,
                segment_bytes=segment_bytes,
                commit_seconds=self.rng.choice((0.0, 900.0)),
                clock_ms=lambda: now_ms() + self.later_ms,
            )
        except FencedError as error:
            return error.kind
        except (Killed, Error):
            assert faulty
            return None
        assert report.last_seq == len(machine.log)
        self.promises[report.generation, report.last_seq] = list(machine.log)
        return None

    def check(self) -> None:
        if self.promises:
            view = self.shop.view()
            for (generation, seq), expected in self.promises.items():
                assert records(self.shop.store(), view, generation, seq) == expected

    def settle(self) -> None:
        """Without faults everybody ships; who is refused takes the way out that is named."""
        for machine in self.machines:
            machine.write(1)
            try:
                report = machine.run()
            except FencedError:
                report = machine.run(how="fork")
            self.promises[report.generation, report.last_seq] = list(machine.log)
            assert machine.line.uploads == ()
        self.check()


@pytest.mark.parametrize("seed", range(24))
def test_what_was_reported_stays_restorable_whatever_is_lost(tmp_path: Path, seed: int) -> None:
    world = World(tmp_path, seed)
    for _ in range(STEPS):
        world.step()
    world.check()
    world.settle()
