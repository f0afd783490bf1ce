"""A condensed log ships itself with the exactness that it has."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

import backup
import compactor
import ourdb
from ourdb import line as lines
from ourdb.errors import FencedError, UnreachableError
from tests.backup_tools import Machine, Shop, shop
from tests.test_backup_resume import killed_before_commit

__all__ = ["shop"]


def overwrite(path: Path, rounds: int) -> None:
    with ourdb.open(path, file_size=64 * 1024, record_size_max=2048) as db:
        for number in range(rounds * 20):
            db.set(b"%d" % number + b"x" * 100, number % 20)


def condense(path: Path) -> None:
    with ourdb.open(path) as db:
        db.rotate()
        db.condense(keep_versions=1)


def state(path: Path) -> dict[int, bytes]:
    with ourdb.open(path, readonly=True) as db:
        return dict(db.items())


def test_condensed_log_is_shipped_whole_and_restored_to_its_end(tmp_path: Path, file_url: str) -> None:
    path, meta = tmp_path / "db", tmp_path / "meta.db"
    overwrite(path, 40)
    condense(path)
    report = backup.backup(path, file_url, meta=meta)
    assert report.last_seq == 800
    assert sum(segment.records for segment in report.segments) < 800
    backup.restore(file_url, tmp_path / "copy", meta=meta)
    assert state(tmp_path / "copy") == state(path)
    with pytest.raises(UnreachableError):
        backup.restore(file_url, tmp_path / "early", seq=100, meta=meta)


def test_directory_that_condenses_between_backups_never_looks_like_a_fork(
    tmp_path: Path, file_url: str
) -> None:
    path, meta = tmp_path / "db", tmp_path / "meta.db"
    for _ in range(3):
        overwrite(path, 15)
        report = backup.backup(path, file_url, meta=meta)
        condense(path)
        overwrite(path, 10)
        condense(path)
    report = backup.backup(path, file_url, meta=meta)
    assert report.last_seq == 3 * 25 * 20
    backup.restore(file_url, tmp_path / "copy", meta=meta)
    assert state(tmp_path / "copy") == state(path)


def test_log_condensed_over_the_stores_end_is_refused_and_may_fork(tmp_path: Path, file_url: str) -> None:
    """The mark was forgotten, and condensing did not spare it: nothing proves one history."""
    path, meta = tmp_path / "db", tmp_path / "meta.db"
    overwrite(path, 15)
    backup.backup(path, file_url, meta=meta)
    overwrite(path, 15)
    lines.update(path, lambda line: lines.forget(line, next(iter(line.marks))))
    condense(path)
    with pytest.raises(FencedError) as caught:
        backup.backup(path, file_url, meta=meta)
    assert caught.value.kind == "fork"
    report = backup.backup(path, file_url, meta=meta, fork=True)
    assert report.last_seq == 600
    backup.restore(file_url, tmp_path / "copy", generation=report.generation, meta=meta)
    assert state(tmp_path / "copy") == state(path)


def test_upload_of_a_condensed_file_is_adopted(shop: Shop) -> None:
    machine = Machine(shop)
    overwrite(machine.path, 40)
    condense(machine.path)
    noted = killed_before_commit(shop, machine)
    report = machine.run()
    assert {segment.key for segment in report.adopted} == {upload.key for upload in noted}
    assert report.segments == ()


def test_upload_that_is_less_exact_than_the_log_is_not_adopted(shop: Shop) -> None:
    """A twin had condensed what it shipped; this directory has every point of it still."""
    machine = Machine(shop)
    overwrite(machine.path, 40)
    twin = machine.twin()
    condense(twin.path)
    noted = killed_before_commit(shop, twin)
    lines.update(machine.path, lambda line: replace(line, uploads=tuple(noted)))
    report = machine.run()
    assert all(segment.records == segment.last_seq - segment.first_seq + 1 for segment in report.adopted)
    assert all(entry.summary().exact for entry in shop.view().segments)


@pytest.mark.parametrize("pinned", [6, 40])
def test_fork_does_not_leave_inside_a_file_that_is_not_exact(
    tmp_path: Path, file_url: str, pinned: int
) -> None:
    """The copy has one file, exact at the pin and at its end, where the store has it no more. What lies
    behind the pin cannot be shipped without the rest of its file."""
    path, copy, meta = tmp_path / "db", tmp_path / "copy", tmp_path / "meta.db"
    overwrite(path, 2)
    backup.backup(path, file_url, meta=meta)
    backup.pin(file_url, "early", seq=pinned, meta=meta)
    compactor.compact(file_url, strategy="all", window=0, meta=meta)
    backup.restore(file_url, copy, meta=meta)
    overwrite(path, 1)
    backup.backup(path, file_url, meta=meta)
    compactor.compact(file_url, strategy="all", window=0, meta=meta)
    overwrite(copy, 1)
    with pytest.raises(FencedError):
        backup.backup(copy, file_url, meta=meta)
    report = backup.backup(copy, file_url, fork=True, meta=meta)
    generation = next(
        g
        for g in backup.points(file_url, generation=report.generation, meta=meta).generations
        if g.id == report.generation
    )
    assert (generation.parent and generation.parent.seq) == (40 if pinned == 40 else None)
    assert generation.began is None
    backup.restore(file_url, tmp_path / "again", generation=report.generation, meta=meta)
    assert state(tmp_path / "again") == state(copy)


@pytest.mark.parametrize("moves", [True, False])
def test_copy_that_the_store_has_no_more_is_not_reported_as_safe(
    tmp_path: Path, file_url: str, moves: bool
) -> None:
    """Nothing new was written to the copy; but a merge has given up its point."""
    path, copy, meta = tmp_path / "db", tmp_path / "copy", tmp_path / "meta.db"
    overwrite(path, 2)
    backup.backup(path, file_url, meta=meta)
    if moves:
        backup.restore(file_url, copy, meta=meta)
        overwrite(path, 1)
        backup.backup(path, file_url, meta=meta)
    else:
        overwrite(path, 1)
        backup.backup(path, file_url, meta=meta)
        backup.restore(file_url, copy, seq=40, meta=meta)
    assert backup.backup(copy, file_url, meta=meta).segments == ()
    compactor.compact(file_url, strategy="all", window=0, meta=meta)
    if moves:
        with pytest.raises(FencedError) as caught:
            backup.backup(copy, file_url, meta=meta)
        assert caught.value.kind == "moved"
    report = backup.backup(copy, file_url, fork=moves, meta=meta)
    assert report.last_seq == 40
    assert backup.backup(copy, file_url, meta=meta).segments == ()
    backup.restore(file_url, tmp_path / "again", generation=report.generation, meta=meta)
    assert state(tmp_path / "again") == state(copy)


@pytest.mark.parametrize("commit_seconds", [0.0, 900.0])
def test_copy_that_took_over_without_a_branch_point_does_not_answer_for_the_line_before(
    tmp_path: Path, file_url: str, commit_seconds: float
) -> None:
    """It left at 40, which the store had no more when it began. Until then the line held what was there."""
    path, copy, meta = tmp_path / "db", tmp_path / "copy", tmp_path / "meta.db"
    overwrite(path, 2)
    backup.backup(path, file_url, meta=meta)
    overwrite(path, 1)
    last = backup.backup(path, file_url, meta=meta)
    backup.restore(file_url, copy, seq=40, meta=meta)
    compactor.compact(file_url, strategy="all", window=0, meta=meta)
    overwrite(copy, 1)
    options = backup.BackupOptions(segment_bytes=1000, commit_seconds=commit_seconds)
    report = backup.backup(copy, file_url, meta=meta, options=options)
    found = backup.points(file_url, meta=meta)
    [taken, own] = found.generations
    assert (taken.successor, own.id, own.parent) == (own.id, report.generation, None)
    assert own.began is not None
    assert (own.began.seq, own.began.took_over) == (41, (41,))
    meant = backup.restore(file_url, tmp_path / "then", at=last.last_time, meta=meta)
    assert (meant.generation, meant.seq) == (taken.id, 60)
    assert backup.restore(file_url, tmp_path / "now", at=own.began.time, meta=meta).generation == own.id
    with ourdb.open(copy) as db:
        db.set(b"more", 1)
    backup.backup(copy, file_url, meta=meta)
    assert backup.points(file_url, meta=meta).generations[1].began == own.began
    elsewhere = file_url + "-elsewhere"
    backup.backup(copy, elsewhere, meta=meta, options=options)
    assert backup.points(elsewhere, meta=meta).generations[0].began is None


def test_older_take_overs_are_told_too_where_there_is_no_branch_point(tmp_path: Path, file_url: str) -> None:
    meta, paths = tmp_path / "meta.db", [tmp_path / f"db-{n}" for n in range(3)]
    overwrite(paths[0], 3)
    backup.backup(paths[0], file_url, meta=meta)
    for before, copy in itertools.pairwise(paths):
        end = backup.backup(before, file_url, meta=meta).last_seq
        backup.restore(file_url, copy, seq=end - 10, meta=meta)
        if copy is paths[2]:
            compactor.compact(file_url, strategy="all", window=0, meta=meta)
        overwrite(copy, 1)
        backup.backup(copy, file_url, meta=meta)
    newest = backup.points(file_url, meta=meta).generations[-1]
    assert newest.began is not None
    assert newest.began.took_over == (51, 61)
