"""Compactions of real backups, on each kind of store: what is restored afterwards equals what was written."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import backup
import compactor
import ourdb
from compactor.store import StoreOptions
from ourdb.errors import UnreachableError
from ourdb.units import MIB

State = dict[int, bytes]


@pytest.fixture(autouse=True)
def meta(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURDB_META", str(tmp_path / "meta.db"))


def ship(path: Path, url: str, runs: int, *, value_bytes: int = 500) -> dict[int, State]:
    """Writes and deletes, a batch among them, and a backup after every few; the states by seq."""
    rng, states, held = random.Random(5), {}, State()
    with ourdb.open(path, file_size=64 * MIB, record_size_max=MIB) as db:
        for run in range(runs):
            for _ in range(3):
                id_, value = rng.randrange(6), rng.randbytes(rng.randrange(value_bytes))
                db.set(value, id_)
                held[id_] = value
                states[db.last_seq] = dict(held)
            gone = rng.choice(sorted(held))
            db.delete(gone)
            del held[gone]
            states[db.last_seq] = dict(held)
            with db.batch() as batch:
                for id_ in (7, 8):
                    held[id_] = b"run %d" % run
                    batch.set(held[id_], id_)
            states[db.last_seq] = dict(held)
            backup.backup(path, url)
    return states


def assert_restored(folder: Path, url: str, states: dict[int, State]) -> None:
    for seq, state in states.items():
        backup.restore(url, folder / f"at {seq}", seq=seq)
        with ourdb.open(folder / f"at {seq}", readonly=True) as db:
            assert dict(db.items()) == state, seq


@pytest.mark.parametrize("strategy", ["auto", "levels", "log", "all"])
def test_every_write_is_restored_from_merged_backups(tmp_path: Path, strategy: str) -> None:
    url = f"file://{tmp_path}/store/name"
    states = ship(tmp_path / "db", url, 11)
    report = compactor.compact(url, strategy=strategy)
    assert report.segments_after < report.segments_before == 11
    assert backup.verify(url, data=True).ok
    sample = dict(random.Random(3).sample(sorted(states.items()), 12))
    assert_restored(tmp_path, url, sample)


def test_pins_are_restored_and_what_else_is_old_is_refused(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/store/name"
    states = ship(tmp_path / "db", url, 11)
    last = max(states)
    backup.pin(url, "first", seq=1)
    backup.pin(url, "later", seq=25)
    compactor.compact(url, strategy="all", window=0)
    with pytest.raises(UnreachableError) as caught:
        backup.restore(url, tmp_path / "refused", seq=24)
    assert (caught.value.fields["nearest_before"]["seq"], caught.value.fields["nearest_after"]["seq"]) == (
        1,
        25,
    )
    assert_restored(tmp_path, url, {seq: states[seq] for seq in (1, 25, last)})
    with ourdb.open(tmp_path / "db") as db:
        db.set(b"goes on", 3)
    backup.backup(tmp_path / "db", url)
    assert_restored(tmp_path, url, {last + 1: {**states[last], 3: b"goes on"}})


@pytest.mark.s3
def test_merged_on_a_real_s3_server(tmp_path: Path, s3_url: str) -> None:
    states = ship(tmp_path / "db", s3_url, 9, value_bytes=100_000)
    options = compactor.CompactOptions(store=StoreOptions(put_bytes_max=MIB, part_bytes=5 * MIB))
    report = compactor.compact(s3_url, strategy="all", options=options)
    assert report.segments_after == 1
    assert report.requests["POST"] == 2  # to begin and to complete what goes in parts
    assert sum(compactor.compact(s3_url).requests.values()) == 1
    assert backup.verify(s3_url, data=True).ok
    assert_restored(tmp_path, s3_url, {seq: states[seq] for seq in (1, 20, 33, max(states))})
