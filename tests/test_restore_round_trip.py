"""From a database into a store and back: what the engine wrote, what backup shipped, what restore makes."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import ourdb
from backup import backup
from backup.points import points
from backup.restoring.restore import restore
from backup.verify import verify
from ourdb.errors import FencedError

State = dict[int, bytes]


@pytest.fixture(autouse=True)
def meta_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURDB_META", str(tmp_path_factory.mktemp("meta") / "meta.db"))


def write_some(db: ourdb.OurDB, rng: random.Random, states: dict[int, State], count: int) -> None:
    """Sets, deletes and batches; the state after each goes into `states` by seq."""
    held = dict(states[max(states)]) if states else {}
    for _ in range(count):
        with db.batch() as batch:
            for _ in range(rng.randint(1, 4)):
                id_ = rng.randrange(30)
                if id_ in held and rng.random() < 0.3:
                    batch.delete(id_)
                    del held[id_]
                else:
                    held[id_] = rng.randbytes(rng.choice([0, 5, 300, 3000]))
                    batch.set(held[id_], id_)
        states[db.last_seq] = dict(held)


def content(path: Path) -> State:
    with ourdb.open(path, readonly=True) as db:
        return dict(db.items())


def test_every_batch_end_of_a_database_that_was_backed_up_in_steps_is_restored(tmp_path):
    rng, states, url = random.Random(5), {}, f"file://{tmp_path}/store/name"
    with ourdb.open(tmp_path / "db", file_size=32 << 10) as db:
        for _ in range(6):
            write_some(db, rng, states, 12)
            backup(tmp_path / "db", url)
    assert verify(url, data=True).ok
    for number, seq in enumerate(rng.sample(sorted(states), 12)):
        path = tmp_path / f"restored{number}"
        assert restore(url, path, seq=seq).seq == seq
        assert content(path) == states[seq]
    report = restore(url, tmp_path / "newest")
    assert report.seq == max(states)
    assert content(tmp_path / "newest") == states[max(states)]


def test_a_restored_copy_takes_over_and_the_old_line_stays_restorable(tmp_path):
    rng, states, url = random.Random(6), {}, f"file://{tmp_path}/store/name"
    with ourdb.open(tmp_path / "db") as db:
        write_some(db, rng, states, 20)
    backup(tmp_path / "db", url)
    left_at = sorted(states)[10]
    restore(url, tmp_path / "copy", seq=left_at)
    old_end, new_states = max(states), {left_at: states[left_at]}
    with ourdb.open(tmp_path / "copy") as db:
        write_some(db, rng, new_states, 10)
    shipped = backup(tmp_path / "copy", url)
    assert all(segment.first_seq > left_at for segment in shipped.segments)
    found = points(url).as_json()
    first, second = found["generations"][0]["generation"], shipped.generation
    assert {row["generation"]: row["successor"] for row in found["generations"]} == {
        first: second,
        second: None,
    }
    restore(url, tmp_path / "a")
    assert content(tmp_path / "a") == new_states[max(new_states)]
    restore(url, tmp_path / "b", generation=first)
    assert content(tmp_path / "b") == states[old_end]
    with ourdb.open(tmp_path / "db") as db:
        db.set(b"late", 1)
    with pytest.raises(FencedError) as caught:
        backup(tmp_path / "db", url)
    assert caught.value.kind == "superseded"


def test_a_restored_copy_that_wrote_nothing_has_nothing_to_ship(tmp_path):
    rng, states, url = random.Random(7), {}, f"file://{tmp_path}/store/name"
    with ourdb.open(tmp_path / "db") as db:
        write_some(db, rng, states, 5)
    backup(tmp_path / "db", url)
    restore(url, tmp_path / "copy")
    report = backup(tmp_path / "copy", url)
    assert not report.committed
    with ourdb.open(tmp_path / "db") as db:
        write_some(db, rng, states, 5)
    assert backup(tmp_path / "db", url).last_seq == max(states)


def test_a_condensed_database_restores_what_it_still_has(tmp_path):
    rng, states, url = random.Random(8), {}, f"file://{tmp_path}/store/name"
    with ourdb.open(tmp_path / "db", file_size=32 << 10) as db:
        write_some(db, rng, states, 60)
        db.rotate()
        db.condense(keep_versions=1)
        write_some(db, rng, states, 10)
    backup(tmp_path / "db", url)
    assert verify(url, data=True).ok
    windows = points(url).windows
    exact = [seq for seq in states if any(w.first_seq <= seq <= w.last_seq for w in windows)]
    assert 1 < len(exact) < len(states)
    for number, seq in enumerate(sorted(exact)[:: max(1, len(exact) // 6)]):
        restore(url, tmp_path / f"restored{number}", seq=seq)
        assert content(tmp_path / f"restored{number}") == states[seq]


KILLED = """
import os, signal, sys
from backup.restoring.restore import restore
from ourdb import build

def die(self, *args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

setattr(getattr(build, sys.argv[3]), sys.argv[4], die)
restore(sys.argv[1], sys.argv[2])
"""


@pytest.mark.parametrize(
    ("holder", "moment"),
    [
        ("DirectoryBuilder", "file"),
        ("SealedFileBuilder", "put"),
        ("SealedFileBuilder", "finish"),
        ("DirectoryBuilder", "finish"),
    ],
)
def test_a_restore_that_is_killed_leaves_nothing_that_stays(tmp_path, holder, moment):
    rng, states, url = random.Random(9), {}, f"file://{tmp_path}/store/name"
    with ourdb.open(tmp_path / "db") as db:
        write_some(db, rng, states, 20)
    backup(tmp_path / "db", url)
    place = tmp_path / "place"
    place.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", KILLED, url, str(place / "copy"), holder, moment],
        cwd=Path(__file__).parent.parent,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert not (place / "copy").exists()
    assert len(list(place.iterdir())) == 1
    restore(url, place / "copy")
    assert [entry.name for entry in place.iterdir()] == ["copy"]
    assert content(place / "copy") == states[max(states)]


def test_a_restore_from_a_real_s3_server_uses_ranges(tmp_path, s3_environment):
    from tests.conftest import RUN

    url = f"s3://{s3_environment.bucket}/{RUN}/restore {tmp_path.name}/name"
    value = random.Random(10).randbytes(4000)
    with ourdb.open(tmp_path / "db") as db:
        db.set_many({n: value[n % 100 :] for n in range(3000)})
        db.delete(7)
        last = db.last_seq
    backup(tmp_path / "db", url)
    report = restore(url, tmp_path / "copy")
    assert report.seq == last
    assert content(tmp_path / "copy") == content(tmp_path / "db")
    assert report.requests["GET"] <= 6
    assert verify(url, data=True).ok
