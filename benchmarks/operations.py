"""set, set_many, get, get_many and open after kill -9: seconds a record, for each engine in turn.

Rounds are interleaved (each engine once, then again), so that a slow minute of the machine hits all;
the median counts. Ids are random, each once; values of `VALUE_BYTES` do not compress.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from benchmarks.engines import ENGINES, Engine

VALUE_BYTES = 100
BATCH = 1_000
ROUNDS = 3
TASKS = ("set", "set_many", "get", "get_many", "open after kill")


def measure(records: int) -> dict[str, dict[str, float]]:
    """task -> engine -> seconds a record (of `open after kill`: seconds in all)."""
    taken: dict[str, dict[str, list[float]]] = {task: {name: [] for name in ENGINES} for task in TASKS}
    for _ in range(ROUNDS):
        for name in ENGINES:
            for task, seconds in _round(name, records):
                taken[task][name].append(seconds)
    return {task: {name: median(times) for name, times in found.items()} for task, found in taken.items()}


def _round(name: str, records: int) -> Iterator[tuple[str, float]]:
    ids, values = _data(records)
    order = random.Random(2).sample(ids, len(ids))
    with tempfile.TemporaryDirectory(prefix="ourdb-bench-") as directory:
        engine = ENGINES[name](Path(directory, "one"))
        yield "set", _time_set(engine, ids, values) / records
        yield "get", _time_get(engine, order) / records
        yield "get_many", _time_get_many(engine, order) / records
        engine.close()
        engine = ENGINES[name](Path(directory, "many"))
        yield "set_many", _time_set_many(engine, ids, values) / records
        engine.close()
        yield "open after kill", _time_open_after_kill(name, Path(directory, "killed"), records)


def _data(records: int) -> tuple[list[int], list[bytes]]:
    chance = random.Random(1)
    ids = chance.sample(range(1, 2 * records), records)
    return ids, [chance.randbytes(VALUE_BYTES) for _ in range(records)]


def _time_set(engine: Engine, ids: list[int], values: list[bytes]) -> float:
    write = engine.set
    began = time.perf_counter()
    for record_id, value in zip(ids, values, strict=True):
        write(record_id, value)
    return time.perf_counter() - began


def _time_set_many(engine: Engine, ids: list[int], values: list[bytes]) -> float:
    began = time.perf_counter()
    for first in range(0, len(ids), BATCH):
        engine.set_many(ids[first : first + BATCH], values[first : first + BATCH])
    return time.perf_counter() - began


def _time_get(engine: Engine, order: list[int]) -> float:
    read, missing = engine.get, 0
    began = time.perf_counter()
    for record_id in order:
        if read(record_id) is None:
            missing += 1
    taken = time.perf_counter() - began
    if missing:
        raise RuntimeError(f"{type(engine).__name__} lost {missing} records")
    return taken


def _time_get_many(engine: Engine, order: list[int]) -> float:
    missing = 0
    began = time.perf_counter()
    for first in range(0, len(order), BATCH):
        missing += engine.get_many(order[first : first + BATCH]).count(None)
    taken = time.perf_counter() - began
    if missing:
        raise RuntimeError(f"{type(engine).__name__} lost {missing} records")
    return taken


def _time_open_after_kill(name: str, path: Path, records: int) -> float:
    """A process writes everything and kills itself; another opens what is left and reads one record."""
    command = [sys.executable, "-m", "benchmarks.operations", name, str(path), str(records)]
    done = subprocess.run(command, check=False)
    if done.returncode != -signal.SIGKILL:
        raise RuntimeError(f"the writer with {name} ended by itself: {done.returncode}")
    ids, values = _data(records)
    began = time.perf_counter()
    engine = ENGINES[name](path)
    found = engine.get(ids[-1])
    taken = time.perf_counter() - began
    if found != values[-1]:
        raise RuntimeError(f"{name} lost the last record")
    engine.close()
    return taken


def _write_and_die(name: str, path: Path, records: int) -> None:
    engine = ENGINES[name](path)
    _time_set_many(engine, *_data(records))
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    _write_and_die(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
