"""Backup and restore of a database, beside a raw copy of the same bytes to the same store and back.

The raw copy moves the data files as they are. Backup also checks every checksum, compresses and makes
durable; restore also decodes, checks and builds the database. Rounds are interleaved; medians count.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import backup
import ourdb
from benchmarks.raw import RawStore

VALUE_BYTES = 1_000
ROUNDS = 3
TASKS = ("backup", "raw copy out", "restore", "raw copy back")
_WORDS = ("the", "database", "keeps", "every", "version", "of", "a", "value", "until", "told", "otherwise")
T = TypeVar("T")


@dataclass(frozen=True)
class Transfer:
    """raw_bytes: of the data files. stored_bytes: of the segments. seconds: median for each of `TASKS`."""

    store: str
    raw_bytes: int
    stored_bytes: int
    seconds: dict[str, float]


def build_database(path: Path, raw_bytes: int) -> None:
    """A database of so many bytes of values: JSON of words and random hex digits."""
    chance = random.Random(1)
    values = [_value(chance) for _ in range(4_096)]
    with ourdb.open(path, mode="incremental", sync="never") as db:
        written = 0
        while written < raw_bytes:
            with db.batch() as batch:
                for value in chance.choices(values, k=4_096):
                    batch.set(value)
                    written += len(value)


def measure(database: Path, raw: RawStore, scratch: Path) -> Transfer:
    """Backup and restore once each round, to a namespace and with an index of its own: all is new."""
    times: dict[str, list[float]] = defaultdict(list)
    files, stored = sorted(database.glob("*.db")), 0
    for number in range(ROUNDS):
        url, meta = raw.url(number), scratch / f"meta{number}.db"
        done, seconds = _timed(partial(backup.backup, database, url, meta=meta))
        times["backup"].append(seconds)
        stored = done.bytes_uploaded
        times["raw copy out"].append(_timed(lambda: raw.put(files))[1])
        restore = partial(backup.restore, url, scratch / "one", meta=meta)
        times["restore"].append(_timed(restore)[1])
        times["raw copy back"].append(_timed(lambda: raw.get(scratch / "two"))[1])
        for left in ("one", "two"):
            shutil.rmtree(scratch / left)
        raw.clear()
    size = sum(file.stat().st_size for file in files)
    return Transfer(raw.name, size, stored, {task: median(found) for task, found in times.items()})


def _value(chance: random.Random) -> bytes:
    fields: dict[str, Any] = {"key": chance.randbytes(120).hex(), "text": ""}
    while len(json.dumps(fields)) < VALUE_BYTES:
        fields["text"] += chance.choice(_WORDS) + " "
    return json.dumps(fields).encode()


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    began = time.perf_counter()
    done = work()
    return done, time.perf_counter() - began
