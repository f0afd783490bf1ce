"""A writer that backs up and pins, two compactors, a prune and a reader, at once, with real threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count, cycle
from pathlib import Path

import pytest

import backup
import ourdb
from compactor.compaction.run import compact
from ourdb.errors import UnreachableError

ROUNDS = 6
State = dict[int, bytes]


class Crowd:
    """One database, its namespace, and who works on it. states: of each seq that was reported. pins: of each
    name the seq, once it was reported."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        self.path = folder / "db"
        self.states: dict[int, State] = {}
        self.pins: dict[str, int] = {}
        self.over = threading.Event()
        self.restores = count()
        ourdb.open(self.path, file_size=16 * 1024).close()

    def meta(self, who: str) -> Path:
        return self.folder / f"{who}-meta.db"

    def write(self) -> None:
        state: State = {}
        for number in range(ROUNDS):
            with ourdb.open(self.path) as db, db.batch() as batch:
                for id_ in (number % 5, 7):
                    state[id_] = b"%d of %d" % (id_, number)
                    batch.set(state[id_], id_)
            report = backup.backup(self.path, self.url, meta=self.meta("writer"))
            self.states[report.last_seq] = dict(state)
            if number % 3 == 0:
                backup.pin(self.url, f"pin {number}", seq=report.last_seq, meta=self.meta("writer"))
                self.pins[f"pin {number}"] = report.last_seq

    def compact(self, who: str) -> None:
        for name in cycle(("all", "log", "levels", "all")):
            compact(self.url, strategy=name, meta=self.meta(who))
            if self.over.is_set():
                return

    def prune(self) -> None:
        while not self.over.is_set():
            backup.prune(self.url, meta=self.meta("pruner"))

    def read(self) -> None:
        while not self.over.is_set():
            seq = max(self.states, default=0)
            if seq:
                try:
                    self.compare(seq)
                except UnreachableError:
                    assert seq < max(self.states)  # it was the newest, and is so no more

    def compare(self, seq: int) -> None:
        path = self.folder / f"restored {next(self.restores)}"
        backup.restore(self.url, path, seq=seq, meta=self.meta("reader"))
        with ourdb.open(path, readonly=True) as db:
            assert dict(db.items()) == self.states[seq]

    def work(self) -> None:
        """All of them, until the writer is done."""
        others: list[Callable[[], None]] = [
            lambda: self.compact("one"),
            lambda: self.compact("two"),
            self.prune,
            self.read,
        ]
        with ThreadPoolExecutor(len(others)) as pool:
            running = [pool.submit(other) for other in others]
            try:
                self.write()
            finally:
                self.over.set()
        for done in running:
            done.result()


@pytest.mark.parametrize("window", [None, 0])
def test_two_compactors_and_a_backup_at_once_lose_nothing(
    tmp_path: Path, store_url: str, window: int | None
) -> None:
    crowd = Crowd(tmp_path, store_url)
    backup.backup(crowd.path, store_url, meta=crowd.meta("writer"))
    backup.set_policy(store_url, window_ms=window, meta=crowd.meta("pruner"))
    crowd.work()
    kept = {*crowd.pins.values(), max(crowd.states)} if window == 0 else set(crowd.states)
    for seq in kept:
        crowd.compare(seq)
    compact(store_url, strategy="all", meta=crowd.meta("one"))
    backup.prune(store_url, grace_ms=0, meta=crowd.meta("pruner"))
    report = backup.verify(store_url, data=True, meta=crowd.meta("fresh"))
    assert report.ok
    assert (report.segments_checked, report.unnamed) == (1, 0)
    for seq in kept:
        crowd.compare(seq)
