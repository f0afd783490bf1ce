"""Reading while files come and go: other threads and processes write, rotate and condense meanwhile."""

from __future__ import annotations

import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import ourdb
from ourdb.errors import DamageError, UnreachableError
from ourdb.sealed import SealedFile
from ourdb.segment.columns import Columns


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "db"


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (96, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def fill(db: ourdb.OurDB, files: int, ids: int = 10) -> None:
    for file in range(files):
        db.set_many([(id_, b"%d/%d" % (file, id_)) for id_ in range(file % 3, ids)])
        db.rotate()


def test_database_of_more_files_than_descriptors_is_read_and_condensed(
    path: Path, few_descriptors: None
) -> None:
    with ourdb.open(path, sync="never") as db:
        fill(db, 100)
        versions = db.get_history(5)
        assert len(versions) == 100
        assert len(dict(db.items(seq=versions[50].seq + 4))) == 10
        assert [db.record(version.seq).value for version in versions] == [  # type: ignore[union-attr]
            version.value for version in versions
        ]
        with ourdb.open(path, readonly=True) as beside:
            assert beside.get_history(5) == versions
        assert db.condense(window_ms=0).files_after == 1
        assert db[5] == b"99/5"


@pytest.mark.parametrize("readonly", [False, True])
def test_walk_in_log_order_goes_on_when_files_are_condensed_away(path: Path, readonly: bool) -> None:
    with ourdb.open(path) as db:
        for id_ in range(40):
            db.set(b"%d" % id_, id_)
            if id_ % 5 == 4:
                db.rotate()
        walker = ourdb.open(path, readonly=True) if readonly else db
        walk = iter(walker.items("log"))
        first = next(walk)
        db.condense()
        assert dict([first, *walk]) == dict(db)
        assert dict(walker.items(seq=17)) == {id_: b"%d" % id_ for id_ in range(17)}
        walker.close()


@pytest.mark.parametrize("readonly", [False, True])
def test_past_state_that_is_condensed_away_while_it_is_walked_is_unreachable(
    path: Path, readonly: bool
) -> None:
    with ourdb.open(path) as db:
        fill(db, 6)
        walker = ourdb.open(path, readonly=True) if readonly else db
        walk = iter(walker.items(seq=19))
        db.condense(keep_versions=1)
        with pytest.raises(UnreachableError):
            list(walk)
        assert dict(walker) == dict(db)
        walker.close()


def test_reader_that_met_a_vanishing_file_misses_no_record(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ourdb.open(path) as db:
        db.set(b"old", 1)
        with ourdb.open(path, readonly=True) as reader:
            assert reader[1] == b"old"
            db.rotate()
            db.set(b"new", 1)
            db.rotate()
            db.set(b"else", 2)
            columns, failures = SealedFile.columns, [1]

            def vanish(file: SealedFile, first_seq: int = 1) -> Iterator[Columns]:
                if failures:
                    failures.pop()
                    raise FileNotFoundError(file.entry.name)
                return columns(file, first_seq)

            monkeypatch.setattr(SealedFile, "columns", vanish)
            assert reader[1] == b"new"
            assert failures == []
            assert reader.last_seq == 3


def test_reader_keeps_the_file_open_that_another_thread_reads(path: Path) -> None:
    with ourdb.open(path) as db, ourdb.open(path, readonly=True) as reader:
        db.set(b"x", 1)
        assert reader[1] == b"x"
        looked_at = reader._open_file  # type: ignore[attr-defined]
        db.rotate()
        db.set(b"y", 1)
        assert reader[1] == b"y"
        assert looked_at.pread(4, 0)


def test_file_that_is_really_gone_is_damage(path: Path) -> None:
    with ourdb.open(path) as db:
        fill(db, 3)
        (path / "1.db").unlink()
        for ask in (lambda: list(db.items("log")), lambda: db.items(seq=27), lambda: db.get_history(5)):
            with pytest.raises(DamageError) as caught:
                ask()
            assert caught.value.fields["file"] == "1.db"


def test_ids_are_walked_while_others_write(path: Path) -> None:
    failed: list[BaseException] = []
    done = threading.Event()
    with ourdb.open(path, sync="never") as db:
        db.set_many([(id_, b"x") for id_ in range(0, 3000, 2)])

        def write() -> None:
            number = 1
            while not done.is_set():
                db.set(b"y", number)
                db.delete(number)
                number = (number + 2) % 3000

        def walk() -> None:
            try:
                for _ in range(60):
                    assert len([id_ for id_ in db if not id_ % 2]) == 1500
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=walk) for _ in range(3)]
        writer = threading.Thread(target=write)
        for thread in [writer, *threads]:
            thread.start()
        for thread in threads:
            thread.join()
        done.set()
        writer.join()
    assert failed == []


def test_wrong_places_do_not_stop_condensing(path: Path) -> None:
    with ourdb.open(path) as db:
        fill(db, 3)
    for places in (path / "cache").glob("*.places"):
        places.write_bytes(bytes(places.stat().st_size))
    with ourdb.open(path) as db:
        assert db.condense(window_ms=3_600_000).files_after == 1
        assert db[5] == b"2/5"


def test_reader_of_a_file_that_was_cut_off_says_so(path: Path) -> None:
    with ourdb.open(path) as db:
        for number in range(200):
            db.set(b"x" * 100, number)
    with (path / "0.db").open("r+b") as file:
        file.truncate(file.read().rindex(b"x" * 100) + 50)
    with pytest.raises(DamageError) as caught:
        ourdb.open(path, readonly=True)
    assert (caught.value.fields["file"], caught.value.fields["seq"]) == ("0.db", 200)
