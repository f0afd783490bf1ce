"""kill -9 of a writing process at random moments: what was acknowledged is there, batches are whole."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest

import ourdb
from ourdb.check import find_problems
from tests.engine_writer import value_of

WRITER = Path(__file__).with_name("engine_writer.py")
ROUNDS = 8
Batch = list[tuple[int, int, int]]  # seq, id, length


def write_and_kill(path: Path, sync: str, seed: int) -> list[Batch]:
    """The batches that the process acknowledged before it was killed; a last line that is torn counts not."""
    process = subprocess.Popen(
        [sys.executable, str(WRITER), str(path), sync, str(seed)],
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": str(WRITER.parents[1])},
    )
    assert process.stdout is not None
    lines = [process.stdout.readline()]  # it is under way
    time.sleep(random.Random(seed).random() * 0.05)
    process.kill()
    rest, _ = process.communicate()
    lines += rest.splitlines(keepends=True)
    assert process.returncode == -9, lines
    return [
        [tuple(map(int, record.split(b":"))) for record in line.split()]  # type: ignore[misc]
        for line in lines
        if line.endswith(b"\n")
    ]


@pytest.mark.parametrize("sync", ["never", "interval", "always"])
def test_killed_writer_loses_nothing_it_acknowledged(tmp_path: Path, sync: str) -> None:
    path = tmp_path / "db"
    acknowledged: list[Batch] = []
    for seed in range(ROUNDS):
        acknowledged += write_and_kill(path, sync, seed)
        last = max((batch[-1][0] for batch in acknowledged if batch), default=0)
        with ourdb.open(path) as db:
            found = db.last_seq
            assert found >= last
            extra = unacknowledged(db, last)
            acknowledged += extra
            compare(db, acknowledged)
        with ourdb.open(path) as again:
            assert (again.last_seq, again.notes) == (found, [])
        assert find_problems(path).problems == []


def unacknowledged(db: ourdb.OurDB, last: int) -> list[Batch]:
    """At most one write was under way: whole in the log, though nobody was told."""
    records = [db.record(seq) for seq in range(last + 1, db.last_seq + 1)]
    batch = [
        (record.seq, record.id, -1 if record.deleted else len(record.value))
        for record in records
        if record is not None
    ]
    ends = [record for record in records if record is not None and not record.flags & 2]
    assert len(ends) == (1 if batch else 0)
    return [batch]


def compare(db: ourdb.OurDB, batches: list[Batch]) -> None:
    state: dict[int, bytes] = {}
    history: dict[int, list[tuple[int, bytes | None]]] = defaultdict(list)
    for seq, id_, length in (record for batch in batches for record in batch):
        value = None if length < 0 else value_of(seq, length)
        history[id_].append((seq, value))
        if value is None:
            del state[id_]
        else:
            state[id_] = value
    assert dict(db.items()) == state
    for id_ in list(history)[::17]:
        versions = [(version.seq, version.value) for version in db.get_history(id_)]
        assert versions == history[id_][::-1]
