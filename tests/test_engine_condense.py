"""Condensing: what is kept, what may be told of the past afterwards, and what marks protect."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ourdb
from ourdb import condense as condensing
from ourdb import line
from ourdb.active import ActiveFile
from ourdb.check import check
from ourdb.directory import IDENTITY
from ourdb.errors import (
    DamageError,
    InvalidError,
    StorageError,
    TemporaryError,
    UnreachableError,
    UnusableError,
)
from ourdb.names import SegmentName, segment_key

pytestmark = pytest.mark.usefixtures("each_lookup")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "db"


def fill(db: ourdb.OurDB, rounds: int, ids: int = 10, size: int = 50) -> None:
    for number in range(rounds):
        db.set(b"%d" % db.last_seq * size, number % ids)


def mark(path: Path, seq: int, store: str = "s3:x") -> None:
    known = line.Mark(url=store, generation="1" * 16, seq=seq, chain=1, revision=1, run="0" * 16)
    line.update(path, lambda old: line.raise_mark(old, store, known))


def states(db: ourdb.OurDB) -> dict[int, dict[int, bytes]]:
    """The state at each seq that can be told."""
    found = {}
    for seq in range(db.last_seq + 1):
        try:
            found[seq] = dict(db.items(seq=seq))
        except UnreachableError:
            continue
    return found


def test_condensing_without_a_window_merges_files_and_keeps_every_state(path: Path) -> None:
    with ourdb.open(path) as db:
        for _ in range(5):
            fill(db, 12)
            db.rotate()
        before = states(db)
        report = db.condense()
        assert (report.files_before, report.files_after, report.records_after) == (5, 1, 60)
        assert states(db) == before
        assert len(before) == 61
        assert db.condense().files_after == 1


def test_keep_versions_drops_the_past_but_for_so_many_of_each_id(path: Path) -> None:
    with ourdb.open(path) as db:
        fill(db, 100)
        db.delete(3)
        last = dict(db)
        foreseen = db.condense(keep_versions=2, dry_run=True)
        assert db._list.sealed == ()
        assert foreseen.records_before == 101
        report = db.condense(keep_versions=2)
        assert (report.records_after, report.files_after) == (foreseen.records_after, foreseen.files_after)
        assert dict(db) == last
        assert sorted(states(db)) == [0, 101]
        assert [len(db.get_history(id_)) for id_ in range(10)] == [2] * 10
        assert next(version.value for version in db.get_history(3)) is None
        with pytest.raises(UnreachableError) as caught:
            db.get(1, seq=50)
        assert caught.value.fields["nearest_after"]["seq"] == 101
    with ourdb.open(path) as db:
        assert dict(db) == last
        assert 3 not in db
    assert check(path).records == report.records_after


def test_tombstone_goes_when_nothing_older_is_kept(path: Path) -> None:
    with ourdb.open(path) as db:
        db.set(b"x", 1)
        db.delete(1)
        db.set(b"y", 2)
        db.condense(keep_versions=1)
        db.set(b"z", 1)
        assert [version.value for version in db.get_history(1)] == [b"z"]
        assert dict(db) == {1: b"z", 2: b"y"}


def test_window_keeps_every_state_inside_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_700_000_000_000]
    monkeypatch.setattr("ourdb.database._clock", lambda: now[0] * 1_000_000)
    with ourdb.open(path) as db:
        for _ in range(20):
            now[0] += 1000
            fill(db, 1, ids=1)
        before = states(db)
        with pytest.raises(InvalidError):
            db.condense(window_ms=-1)
        db.condense(window_ms=5000)
        after = states(db)
        assert sorted(after) == [0, *range(15, 21)]
        assert all(after[seq] == before[seq] for seq in after)
        assert db.get(0, at=now[0] - 5000) == before[15][0]
        assert db.get(0, at=now[0] - 4500) == before[15][0]
        with pytest.raises(UnreachableError) as caught:
            db.get(0, at=now[0] - 5001)
        assert caught.value.fields["nearest_after"]["seq"] == 15
        fill(db, 1, ids=1)
        db.condense(window_ms=10**12)
        assert sorted(states(db)) == [0, *range(15, 22)]


def test_clock_that_is_ahead_does_not_shorten_the_window(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ourdb.open(path) as db:
        fill(db, 20)
        monkeypatch.setattr("ourdb.condense.now_ms", lambda: db.last_time + 10**11)
        db.condense(window_ms=60_000)
        assert len(states(db)) == 21


def test_what_was_not_shipped_stays_whole_and_no_merge_crosses_a_mark(path: Path) -> None:
    with ourdb.open(path) as db:
        for _ in range(6):
            fill(db, 10)
            db.rotate()
        fill(db, 5)
        mark(path, 30, "a")
        mark(path, 45, "b")
        before = states(db)
        db.condense(keep_versions=1)
        after = states(db)
        assert sorted(after) == [0, *range(30, 66)]
        assert all(after[seq] == before[seq] for seq in after)
        ranges = [(entry.first_seq, entry.last_seq) for entry in db._list.sealed]
        assert ranges == [(1, 30), (31, 40), (41, 50), (51, 65)]
        spared = db.condense(keep_versions=1, dry_run=True)
        foreseen = db.condense(keep_versions=1, dry_run=True, without="a")
        assert foreseen.records_after < spared.records_after
        db.forget("a")
        assert db.condense(keep_versions=1, dry_run=True) == foreseen
        db.condense(keep_versions=1)
        assert sorted(states(db))[1] == 40
        with pytest.raises(InvalidError):
            db.forget("a")


@pytest.mark.parametrize("size", [20, 200])
def test_stretch_that_is_larger_than_a_file_is_cut_into_parts(path: Path, size: int) -> None:
    with ourdb.open(path, file_size=9 * 1024, record_size_max=4000) as db:
        fill(db, 100, ids=40, size=size)
        last = dict(db)
        report = db.condense(keep_versions=1)
        assert report.records_after == 40
        stretches = [file.summary.stretch for file in db._files[1]]
        assert (None not in stretches and len(stretches) > 1) == (size == 200)
        assert dict(db) == last
        assert sorted(states(db)) == [0, 100]
        sizes = [(path / entry.name).stat().st_size for entry in db._list.sealed]
        assert max(sizes) <= 9 * 1024
        fill(db, 40, ids=40, size=size)
        db.condense(keep_versions=1)
        last = dict(db)
        assert sorted(states(db)) == [0, 140]
    with ourdb.open(path) as db:
        assert dict(db) == last
    assert check(path).problems == []


def test_numbers_of_files_are_not_used_again_soon(path: Path) -> None:
    with ourdb.open(path) as db:
        for _ in range(3):
            fill(db, 5)
            db.rotate()
            db.condense()
        numbers = [entry.nr for entry in db._list.files]
        assert min(numbers) >= 3
        assert len(set(numbers)) == len(numbers)


def test_window_without_line_json_is_refused_and_plain_condensing_is_not(path: Path) -> None:
    with ourdb.open(path) as db:
        fill(db, 20)
        db.rotate()
        fill(db, 5)
        (path / line.FILE_NAME).unlink()
        with pytest.raises(DamageError) as caught:
            db.condense(keep_versions=1)
        assert caught.value.fields["file"] == line.FILE_NAME
        with pytest.raises(DamageError):
            db.condense(window_ms=0, dry_run=True)
        assert len(db._list.files) == 2
        db.rotate()
        assert db.condense().records_after == 25


def note_upload(path: Path, last_seq: int) -> None:
    name = SegmentName(
        last_seq=last_seq,
        first_seq=1,
        last_time=1,
        first_time=1,
        horizon=1,
        chain_before=0,
        chain_after=1,
        made=0,
        random=1,
    )
    upload = line.Upload(store="s3:x", key=segment_key("1" * 16, name), bytes=1)
    line.update(path, lambda old: replace(old, uploads=(*old.uploads, upload)))


def test_acknowledged_upload_protects_its_end_as_a_mark_does(path: Path) -> None:
    with ourdb.open(path) as db:
        fill(db, 20)
        db.rotate()
        fill(db, 20)
        note_upload(path, 20)
        db.condense(keep_versions=1)
        assert sorted(states(db)) == [0, *range(20, 41)]


@pytest.mark.parametrize("noted", [mark, note_upload])
def test_what_a_backup_ships_while_condensing_writes_is_planned_again(
    path: Path, monkeypatch: pytest.MonkeyPatch, noted: Callable[[Path, int], None]
) -> None:
    with ourdb.open(path) as db:
        fill(db, 20)
        db.rotate()
        fill(db, 20)
        written = condensing.write_merged

        def ship_beside(*args: Any) -> Any:
            if line.load(path).uploads == () and not line.load(path).marks:  # type: ignore[union-attr]
                noted(path, 20)
            return written(*args)

        monkeypatch.setattr(condensing, "write_merged", ship_beside)
        db.condense(keep_versions=1)
        assert sorted(states(db)) == [0, *range(20, 41)]
        assert {int(name.stem) for name in path.glob("*.db")} == {entry.nr for entry in db._list.files}
    assert check(path).problems == []


def test_backups_without_end_make_condensing_give_up_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ourdb.open(path) as db:
        for _ in range(12):
            fill(db, 10)
            db.rotate()
        before, files, written = states(db), db._list, condensing.write_merged
        seqs = iter(range(110, 0, -10))

        def ship_beside(*args: Any) -> Any:
            seq = next(seqs)
            mark(path, seq, f"s3:{seq}")
            return written(*args)

        monkeypatch.setattr(condensing, "write_merged", ship_beside)
        with pytest.raises(TemporaryError) as caught:
            db.condense(keep_versions=1)
        assert caught.value.kind == "busy"
        assert (db._list, states(db)) == (files, before)
        db.set(b"on", 1)
        db.rotate()
    assert check(path).problems == []


def test_running_backup_keeps_history_from_being_dropped_and_not_files_from_being_merged(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(condensing, "_RUN_WAIT_S", 0.0)
    with ourdb.open(path) as db:
        for _ in range(2):
            fill(db, 20)
            db.rotate()
        with (path / IDENTITY).open("r+b") as run:
            fcntl.flock(run, fcntl.LOCK_SH)
            with pytest.raises(TemporaryError) as caught:
                db.condense(keep_versions=1)
            assert caught.value.kind == "busy"
            assert {int(name.stem) for name in path.glob("*.db")} == {entry.nr for entry in db._list.files}
            assert db.condense().files_after == 1
        assert db.condense(keep_versions=1).records_after == 10


def test_condensing_leaves_no_checkpoint_of_files_that_are_gone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ourdb.logwriter._CHECKPOINT_BYTES_MIN", 1)
    with ourdb.open(path) as db:
        fill(db, 20)
        db.rotate()
        fill(db, 20)
        db.condense(keep_versions=1)
        last = dict(db)
        assert not (path / "cache" / "lookup.ckpt").exists()
    for _ in range(2):
        with ourdb.open(path) as db:
            assert db.notes == []
            assert dict(db) == last


def test_failed_commit_of_condensing_poisons(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ourdb.open(path) as db:
        fill(db, 20)
        db.rotate()
        last = dict(db)

        def fail(*_: Any) -> None:
            raise StorageError("no space left", kind="disk_full")

        with monkeypatch.context() as patch:
            patch.setattr(type(db._directory), "replace_list", fail)
            with pytest.raises(StorageError):
                db.condense(keep_versions=1)
        with pytest.raises(UnusableError):
            db.set(b"x", 1)
    with ourdb.open(path) as db:
        assert dict(db) == last
        db.rotate()
        assert db.condense(keep_versions=1).records_after == 10


def test_full_disk_is_no_reason_not_to_condense_what_is_sealed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ourdb.open(path) as db:
        fill(db, 40)
        db.rotate()
        fill(db, 20)

        def full(*_: Any) -> None:
            raise StorageError("no space left", kind="disk_full")

        monkeypatch.setattr(ActiveFile, "create", full)
        last = dict(db)
        assert db.condense(keep_versions=1).records_after == 10
        assert dict(db) == last
        db.set(b"on", 3)
        assert len(db.get_history(3)) == 4
