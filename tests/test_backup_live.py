"""Backups while others write, again and again, and in bounded memory."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import backup
import backup.every
import ourdb
from compactor.namespace import Namespace
from compactor.store import open_store
from ourdb.errors import FencedError, InvalidError, TemporaryError
from ourdb.units import KIB, MIB
from tests.backup_tools import records
from tests.faulty import FaultyStore

Write = tuple[int, bytes | None]


def stored(url: str, report: backup.BackupReport) -> list[Write]:
    store = FaultyStore(open_store(url))
    view = Namespace(store).read()
    assert view is not None
    return records(store, view, report.generation, report.last_seq)


WRITER = """
import sys, ourdb
with ourdb.open(sys.argv[1]) as db:
    number = 0
    while True:
        with db.batch() as batch:
            for _ in range(3):
                number += 1
                batch.set(b"%d" % number + b"x" * 200, number % 50)
"""


def test_every_point_reported_while_another_process_writes_is_in_the_store(
    tmp_path: Path, file_url: str
) -> None:
    path, meta = tmp_path / "db", tmp_path / "meta.db"
    ourdb.open(path, file_size=64 * KIB, record_size_max=KIB, sync="never").close()
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        reports = [backup.backup(path, file_url, meta=meta)]
        while len([1 for report in reports if report.segments]) < 12:
            reports.append(backup.backup(path, file_url, meta=meta))
            assert writer.poll() is None
    finally:
        writer.kill()
        writer.wait()
    assert len(list(path.glob("*.db"))) > 2  # it has rotated meanwhile
    for report in reports:
        assert report.last_seq % 3 == 0  # whole batches
        found = stored(file_url, report)
        expected = [(n % 50, b"%d" % n + b"x" * 200) for n in range(1, report.last_seq + 1)]
        assert found == expected


def test_runs_side_by_side_of_one_directory_all_succeed(tmp_path: Path, file_url: str) -> None:
    path, meta = tmp_path / "db", tmp_path / "meta.db"
    reports: list[backup.BackupReport] = []
    with ourdb.open(path) as db:
        db.set(b"0", 0)
        backup.backup(path, file_url, meta=meta)

        def run() -> None:
            for _ in range(4):
                reports.append(backup.backup(path, file_url, meta=meta))

        threads = [threading.Thread(target=run) for _ in range(3)]
        for thread in threads:
            thread.start()
        for number in range(1, 300):
            db.set(b"%d" % number, number)
        for thread in threads:
            thread.join()
    assert len(reports) == 12
    last = backup.backup(path, file_url, meta=meta)
    assert [value for _, value in stored(file_url, last)] == [b"%d" % number for number in range(300)]


# -- again and again


@pytest.fixture
def db_path(tmp_path: Path) -> Path:
    with ourdb.open(tmp_path / "db") as db:
        db.set(b"value", 1)
    return tmp_path / "db"


def test_every_goes_on_through_a_store_that_is_away_and_ends_when_told(
    db_path: Path, tmp_path: Path, file_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, reports, errors = threading.Event(), [], []
    real, calls = backup.every.backup, iter(range(100))

    def flaky(*args: object, **options: object) -> backup.BackupReport:
        if next(calls) in (0, 1, 3):
            raise TemporaryError("the store is away")
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(backup.every, "backup", flaky)

    def take(report: backup.BackupReport) -> None:
        reports.append(report)
        if len(reports) == 3:
            stop.set()

    backup.backup_every(
        db_path, file_url, 1, stop, on_report=take, on_error=errors.append, meta=tmp_path / "meta.db"
    )
    assert [report.last_seq for report in reports] == [1, 1, 1]
    assert [error.exit_code for error in errors] == [75, 75, 75]


def test_every_ends_with_an_error_that_waiting_does_not_mend(
    db_path: Path, tmp_path: Path, file_url: str
) -> None:
    other = tmp_path / "other"
    ourdb.open(other).close()
    backup.backup(other, file_url, meta=tmp_path / "meta.db")
    errors: list[object] = []
    with pytest.raises(FencedError):
        backup.backup_every(
            db_path, file_url, 1, threading.Event(), on_error=errors.append, meta=tmp_path / "meta.db"
        )
    assert errors == []


def test_every_answers_one_refusal_only(
    db_path: Path, tmp_path: Path, file_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    stop, real = threading.Event(), backup.every.backup

    def watch(*args: object, **options: object) -> backup.BackupReport:
        asked.append(options["fork"])
        if len(asked) == 1:
            raise TemporaryError("away")
        if len(asked) == 3:
            stop.set()
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(backup.every, "backup", watch)
    backup.backup_every(
        db_path, file_url, 1, stop, options=backup.BackupOptions(how="fork"), meta=tmp_path / "meta.db"
    )
    assert asked == [True, True, False]


def test_every_needs_a_time(db_path: Path, file_url: str) -> None:
    with pytest.raises(InvalidError, match="every_ms"):
        backup.backup_every(db_path, file_url, 0, threading.Event())


def test_options_out_of_range_are_refused() -> None:
    for options in ({"as_of_ms": -1}, {"segment_bytes": 0}, {"threads": 0}):
        with pytest.raises(InvalidError):
            backup.BackupOptions(**options).validate()


# -- memory


MEASURE = """
import sys, backup
options = backup.BackupOptions(segment_bytes=64 << 20)
backup.backup(sys.argv[1], sys.argv[2], meta=sys.argv[3], options=options)
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


def peak_bytes(path: Path, url: str, meta: Path) -> int:
    """Peak RSS of a process that backs up, as the system counts it (ru_maxrss would count ours in)."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), url, str(meta)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        check=True,
    )
    return int(done.stdout) * 1024


def test_memory_of_a_run_does_not_grow_with_the_database(tmp_path: Path, store_url: str) -> None:
    """The worst case: the largest values of which two segments are uploaded at a time."""
    path = tmp_path / "db"
    value = os.urandom(MIB)
    with ourdb.open(path, record_size_max=MIB, file_size=100 * MIB, sync="never") as db:
        for number in range(300):
            db.set(value, number)
    assert peak_bytes(path, store_url, tmp_path / "meta.db") < 250 * 10**6


def test_memory_of_a_run_is_at_most_four_times_the_largest_value_more(tmp_path: Path, file_url: str) -> None:
    path = tmp_path / "db"
    size = 48 * MIB
    with ourdb.open(path, record_size_max=size, file_size=1000 * MIB, sync="never") as db:
        for number in range(5):
            db.set(os.urandom(size), number)
    assert peak_bytes(path, file_url, tmp_path / "meta.db") < 250 * 10**6 + 4 * size
