"""The backup run against each kind of real store: the same budget, the same bytes, parts and all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import backup
import ourdb
from compactor.namespace import Namespace
from compactor.store import StoreOptions, open_store
from compactor.url import parse_url
from ourdb import line as lines
from ourdb.line import Line
from ourdb.units import MIB
from tests.backup_tools import records
from tests.faulty import FaultyStore

PARTS = backup.BackupOptions(
    store=StoreOptions(put_bytes_max=MIB, part_bytes=5 * MIB), segment_bytes=12 * MIB
)


def fill(path: Path, numbers: range) -> list[tuple[int, bytes | None]]:
    written: list[tuple[int, bytes | None]] = []
    with ourdb.open(path, record_size_max=MIB, file_size=64 * MIB) as db:
        for number in numbers:
            value = os.urandom(512 * 1024)
            db.set(value, number)
            written.append((number, value))
    return written


def stored(url: str, report: backup.BackupReport) -> list[tuple[int, bytes | None]]:
    store = FaultyStore(open_store(url))
    view = Namespace(store).read()
    assert view is not None
    try:
        return records(store, view, report.generation, report.last_seq)
    finally:
        store.close()


def test_requests_of_each_kind_of_run_are_in_budget(tmp_path: Path, store_url: str) -> None:
    path, meta = tmp_path / "db", tmp_path / "meta.db"
    with ourdb.open(path) as db:
        db.set(b"one", 1)
        first = backup.backup(path, store_url, meta=meta)
        idle = backup.backup(path, store_url, meta=meta)
        due = backup.backup(path, store_url, meta=meta, options=backup.BackupOptions(as_of_ms=0))
        db.set(b"two", 2)
        new = backup.backup(path, store_url, meta=meta)
    above = len(parse_url(store_url).prefix)
    assert sum(first.requests.values()) <= 12 + above
    assert sum(idle.requests.values()) == 1
    assert sum(due.requests.values()) == 2
    assert sum(new.requests.values()) == 3
    assert stored(store_url, new) == [(1, b"one"), (2, b"two")]


def test_segments_in_several_parts_several_at_a_time_are_whole(tmp_path: Path, store_url: str) -> None:
    path = tmp_path / "db"
    written = fill(path, range(60))
    report = backup.backup(path, store_url, meta=tmp_path / "meta.db", options=PARTS)
    assert len(report.segments) == 3
    assert report.requests["POST"] == 6
    assert stored(store_url, report) == written


def test_run_killed_between_parts_is_cleaned_up_and_repaired(tmp_path: Path, store_url: str) -> None:
    path, meta = tmp_path / "db", tmp_path / "meta.db"
    written = fill(path, range(40))
    update = lines.update

    def die_when_begun(path: Path, change: lines.Change, **more: Any) -> Line:
        done = update(path, change, **more)
        if done.multiparts:
            raise KeyboardInterrupt
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "update", die_when_begun)
        with pytest.raises(KeyboardInterrupt):
            backup.backup(path, store_url, meta=meta, options=PARTS)
    left = lines.load(path)
    assert left is not None
    assert left.multiparts
    report = backup.backup(path, store_url, meta=meta, options=PARTS)
    after = lines.load(path)
    assert after is not None
    assert after.multiparts == ()
    assert report.requests["DELETE"] >= len(left.multiparts)
    assert stored(store_url, report) == written
