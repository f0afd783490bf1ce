"""Crashes at any call of the engine: killed processes, power cuts on two kinds of file systems, failing
calls. `OURDB_TORTURE` is the number of crash states, `OURDB_TORTURE_SEED` repeats one run."""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

import pytest

from tests.power.examine import NAME, Examiner
from tests.power.run import Run
from tests.power.world import boot, small_world

STATES = int(os.environ.get("OURDB_TORTURE", "2000"))
SEED = os.environ.get("OURDB_TORTURE_SEED")
PARTS = 8


@pytest.fixture
def folder() -> Path:
    """In memory where there is a place for that: nothing here outlives the test."""
    memory = Path("/dev/shm")
    path = Path(mkdtemp(prefix="ourdb-power-", dir=memory if os.access(memory, os.W_OK) else None))
    yield path
    rmtree(path)


def torture(folder: Path, seed: str, counts: Counter[str]) -> None:
    """One recorded run, and all states that were taken from it."""
    where = folder / "run"
    where.mkdir()
    with small_world(seed):
        with boot(1):
            run = Run(where / NAME, seed, share=0.15)
            run.go(40, lambda db: None)
        examiner = Examiner(folder, run.mode)
        for number, state in enumerate(run.states):
            try:
                examiner.examine(state, random.Random(f"{seed} {number}"))
            except BaseException as error:
                error.add_note(
                    f"OURDB_TORTURE_SEED={seed} repeats it; state {number}, {state.kind} at {state.at}"
                )
                raise
    rmtree(where)
    counts.update(examiner.counts)


@pytest.mark.parametrize("part", range(PARTS))
def test_crash_at_any_call_loses_nothing_that_was_acknowledged(folder: Path, part: int) -> None:
    counts: Counter[str] = Counter()
    number = 0
    while counts.total() < (STATES // PARTS if SEED is None else 1):
        torture(folder, SEED or f"{part}.{number}", counts)
        number += 1
    print(dict(counts))
