"""Crashes at any call of the engine: killed processes, power cuts on two kinds of file systems, failing
calls. `OURDB_TORTURE` is the number of crash states, `OURDB_TORTURE_SEED` repeats one run."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

import pytest

from tests.power.examine import NAME, Examiner
from tests.power.faulty import FaultyRun
from tests.power.run import Run
from tests.power.world import boot, small_world

STATES = int(os.environ.get("OURDB_TORTURE", "2000"))
SEED = os.environ.get("OURDB_TORTURE_SEED")
PARTS = 4
TESTS = PARTS * 2 * 2  # that share the states: with and without failing calls, for each lookup table
STEPS = 40
SHARE = {Run: 0.1, FaultyRun: 0.06}


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where there is a place for that: nothing here outlives the test."""
    memory = Path("/dev/shm")
    path = Path(mkdtemp(prefix="ourdb-power-", dir=memory if os.access(memory, os.W_OK) else None))
    yield path
    rmtree(path)


def record(kind: type[Run], where: Path, seed: str, share: float, lookup: str) -> Run:
    """A run on a machine that was started for the first time."""
    where.mkdir()
    with boot(1):
        run = kind(where / NAME, seed, share=share, lookup=lookup)
        run.go(STEPS)
    return run


def torture(kind: type[Run], folder: Path, seed: str, lookup: str) -> tuple[Counter[str], Counter[str]]:
    """One recorded run, and all states that were taken from it: how many of each kind, and what failed."""
    where = folder / "run"
    with small_world(seed):
        run = record(kind, where, seed, SHARE[kind], lookup)
        examiner = Examiner(folder, run.mode, faulty=kind is FaultyRun)
        for number, state in enumerate(run.states):
            examiner.examine(state, random.Random(f"{seed} {number}"))
    rmtree(where)
    return examiner.counts, run.failures


@pytest.mark.parametrize("lookup", ["memory", "disk"])
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("kind", [Run, FaultyRun])
def test_crash_at_any_call_loses_nothing_that_was_kept(
    folder: Path, kind: type[Run], part: int, lookup: str
) -> None:
    states: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    seeds = iter([SEED] if SEED else (f"{part}.{number}" for number in count()))
    while states.total() < STATES // TESTS and (seed := next(seeds, None)):
        try:
            counts = torture(kind, folder, seed, lookup)
        except BaseException as error:
            error.add_note(f"OURDB_TORTURE_SEED={seed} repeats it")
            raise
        states, failures = states + counts[0], failures + counts[1]
    for what, found in (("states", states), ("failed calls", failures)):
        print(f"{found.total()} {what}:", ", ".join(f"{name} {found[name]}" for name in sorted(found)))


@pytest.mark.parametrize("lookup", ["memory", "disk"])
@pytest.mark.parametrize("part", range(PARTS))
def test_failing_call_is_said_and_repaired_by_the_next_opening(folder: Path, part: int, lookup: str) -> None:
    failures: Counter[str] = Counter()
    for number in range(STATES // 400 if SEED is None else 1):
        seed = SEED or f"failing {part}.{number}"
        try:
            with small_world(seed):
                failures += record(FaultyRun, folder / "run", seed, 0.0, lookup).failures
        except BaseException as error:
            error.add_note(f"OURDB_TORTURE_SEED={seed!r} repeats it")
            raise
        rmtree(folder / "run")
    print(
        f"{failures.total()} failed calls:",
        ", ".join(f"{name} {failures[name]}" for name in sorted(failures)),
    )
