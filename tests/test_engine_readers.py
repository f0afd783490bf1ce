"""Readers in other processes beside a writer, without a lock."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

import ourdb
from ourdb.errors import InvalidError, UnusableError

pytestmark = pytest.mark.usefixtures("each_lookup")

READER = """
import sys, ourdb
path, rounds = sys.argv[1], int(sys.argv[2])
last = [0] * 50
with ourdb.open(path, readonly=True) as db:
    print("ready", flush=True)
    for _ in range(rounds):
        for id in range(50):
            number = int((db.get(id) or b"0").split(b"/")[0])
            assert number >= last[id], (id, number, last[id])
            last[id] = number
        # A batch writes the same number under 100 to 109: never seen in half.
        seq = db.last_seq
        state = dict(db.items(seq=db.resolve(at="now")))
        assert len({state.get(id) for id in range(100, 110)}) == 1
        assert db.last_seq >= seq
        versions = db.get_history(7, 3)
        assert [v.seq for v in versions] == sorted((v.seq for v in versions), reverse=True)
print("done", flush=True)
"""


def test_reader_process_sees_whole_acknowledged_writes_while_files_rotate_and_are_condensed(
    tmp_path: Path,
) -> None:
    path = tmp_path / "db"
    with ourdb.open(path, file_size=64 * 1024, sync="never", record_nr_max=1000) as db:
        db.set(b"0", 0)
        reader = subprocess.Popen(
            [sys.executable, "-c", READER, str(path), "40"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PYTHONPATH": str(Path(ourdb.__file__).parents[1])},
        )
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"ready\n"
        number = 0
        while reader.poll() is None:
            number += 1
            db.set(b"%d/%s" % (number, b"x" * (number % 300)), number % 50)
            if number % 10 == 0:
                db.set_many(dict.fromkeys(range(100, 110), b"%d" % number))
            if number % 400 == 0:
                db.condense()
        out, err = reader.communicate()
        assert (out, reader.returncode) == (b"done\n", 0), err.decode()
        assert len(db._list.files) > 1


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "db"


def test_reader_sees_each_acknowledged_write_at_once(path: Path) -> None:
    with ourdb.open(path) as db, ourdb.open(path, readonly=True) as reader:
        for number in range(10):
            db.set(b"%d" % number, number)
            assert (reader[number], reader.last_seq, len(reader)) == (b"%d" % number, number + 1, number + 1)
            if number % 3 == 0:
                db.rotate()
        db.delete(3)
        assert 3 not in reader
        assert list(reader) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
        assert reader.get_many(range(20)) == db.get_many(range(20))
        assert reader.get_history(3) == db.get_history(3)
        assert reader.info()["records"] == db.info()["records"] == 11


def test_reader_follows_many_rotations_between_two_reads(path: Path) -> None:
    with ourdb.open(path) as db, ourdb.open(path, readonly=True) as reader:
        db.set(b"first", 1)
        assert reader[1] == b"first"
        for number in range(30):
            db.set(b"%d" % number, 2)
            db.rotate()
        db.condense(keep_versions=1)
        db.set(b"last", 3)
        assert (reader[1], reader[2], reader[3], reader.last_seq) == (b"first", b"29", b"last", 32)


def test_reader_survives_the_removal_of_files_that_it_has_not_read_yet(path: Path) -> None:
    with ourdb.open(path) as db:
        for number in range(10):
            db.set(b"%d" % number, number)
            db.rotate()
        with ourdb.open(path, readonly=True) as reader:
            db.condense()
            assert dict(reader.items()) == dict(db.items())
            assert [reader.get(id_) for id_ in range(10)] == [b"%d" % id_ for id_ in range(10)]


def test_reader_refuses_writes(path: Path) -> None:
    ourdb.open(path).close()
    with ourdb.open(path, readonly=True) as reader:
        for write in (
            lambda: reader.set(b"x", 1),
            lambda: reader.set_many({1: b"x"}),
            lambda: reader.delete(1),
            lambda: reader.rotate(),
            lambda: reader.condense(),
            lambda: reader.sync(),
            lambda: reader.destroy(),
        ):
            with pytest.raises(InvalidError, match="readonly"):
                write()
    with pytest.raises(UnusableError):
        reader.get(1)


def test_reader_needs_no_cache_and_no_right_to_write(path: Path) -> None:
    with ourdb.open(path) as db:
        db.set(b"a", 1)
        db.rotate()
        db.set(b"b", 2)
    for file in (path / "cache").iterdir():
        file.unlink()
    (path / "cache").rmdir()
    before = sorted(path.rglob("*"))
    with ourdb.open(path, readonly=True) as reader:
        assert dict(reader.items()) == {1: b"a", 2: b"b"}
    assert sorted(path.rglob("*")) == before


def test_threads_share_a_reader(path: Path) -> None:
    wrong: list[object] = []
    with ourdb.open(path, sync="never") as db, ourdb.open(path, readonly=True) as reader:

        def read() -> None:
            for turn in range(300):
                value = reader.get(turn % 20)
                if value is not None and not value.startswith(b"%d/" % (turn % 20)):
                    wrong.append(value)

        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        for number in range(600):
            db.set(b"%d/%d" % (number % 20, number), number % 20)
            if number % 150 == 0:
                db.rotate()
        for thread in threads:
            thread.join()
        assert not wrong
        assert reader.last_seq == 600
