"""The database as its users see it: a mapping with history, ids, limits, errors."""

from __future__ import annotations

import gc
import resource
import threading
from collections.abc import Iterator, MutableMapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ourdb
from ourdb.directory import FileEntry
from ourdb.errors import (
    ExistsError,
    InvalidError,
    LockedError,
    MissingIdError,
    NotFoundError,
    UnreachableError,
    UnusableError,
)

pytestmark = pytest.mark.usefixtures("each_lookup")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "données et clés" / "db"


@pytest.fixture
def db(path: Path) -> Iterator[ourdb.OurDB]:
    with ourdb.open(path, file_size=64 * 1024) as opened:
        yield opened


def test_database_is_a_mutable_mapping(db: ourdb.OurDB) -> None:
    assert isinstance(db, MutableMapping)
    db[3], db[1], db[2] = b"three", b"one", b""
    assert (list(db), list(db.items()), len(db)) == ([1, 2, 3], [(1, b"one"), (2, b""), (3, b"three")], 3)
    assert list(db.items(order="log")) == [(3, b"three"), (1, b"one"), (2, b"")]
    assert 2 in db
    assert 4 not in db
    assert "x" not in db
    assert -1 not in db
    assert (db.get(2), db.get(4), db.get(4, b"none"), db.get(2**40)) == (b"", None, b"none", None)
    assert db.pop(3) == b"three"
    assert db.setdefault(5, b"five") == b"five"
    db.update({6: b"six"})
    assert db.popitem()[0] == 1
    db.clear()
    assert not db
    assert dict(db) == {}


@pytest.mark.parametrize("act", [lambda db: db[9], lambda db: db.delete(9), lambda db: db.pop(9)])
def test_missing_id_is_a_key_error_of_ours(db: ourdb.OurDB, act: object) -> None:
    with pytest.raises(MissingIdError) as caught:
        act(db)  # type: ignore[operator]
    assert isinstance(caught.value, KeyError)
    assert caught.value.kind == "no_such_id"


def test_history_goes_on_over_files_deletions_and_reopening(path: Path) -> None:
    with ourdb.open(path) as db:
        for value in (b"a", b"b"):
            db.set(value, 7)
            db.rotate()
        db.delete(7)
        db.set(b"other", 8)
    with ourdb.open(path) as db:
        db.set(b"c", 7)
        versions = db.get_history(7)
        assert [(version.seq, version.value) for version in versions] == [
            (5, b"c"),
            (3, None),
            (2, b"b"),
            (1, b"a"),
        ]
        assert db.get_history(7, depth=2) == versions[:2]
        assert db.get_history(99) == []
        assert all(version.time_ms <= db.last_time for version in versions)


def test_reads_as_of_a_seq_or_time_give_that_state(db: ourdb.OurDB) -> None:
    db.set(b"old", 1)
    db.set_many({1: b"new", 2: b"two"})
    db.rotate()
    db.delete(1)
    assert [db.get(1, seq=seq) for seq in (0, 1, 3, 4)] == [None, b"old", b"new", None]
    assert dict(db.items(seq=3)) == {1: b"new", 2: b"two"}
    assert dict(db.items(seq=0)) == {}
    assert list(db.items("log", seq=3)) == [(1, b"new"), (2, b"two")]
    assert db.get(2, at="now") == b"two"
    assert db.get(2, at=0) is None
    assert db.resolve(at=db.last_time) == 4


def test_seq_inside_a_batch_or_beyond_the_end_is_unreachable_and_names_its_neighbours(
    db: ourdb.OurDB,
) -> None:
    db.set(b"x", 1)
    db.set_many({1: b"a", 2: b"b", 3: b"c"})
    with pytest.raises(UnreachableError) as inside:
        db.get(1, seq=3)
    assert [inside.value.fields[name]["seq"] for name in ("nearest_before", "nearest_after")] == [1, 4]
    with pytest.raises(UnreachableError) as beyond:
        db.items(seq=5)
    assert beyond.value.fields["nearest_before"]["seq"] == 4
    assert beyond.value.fields["nearest_after"] is None


def test_batch_sees_its_own_writes_and_is_kept_whole(db: ourdb.OurDB) -> None:
    db.set(b"old", 1)
    with db.batch() as batch:
        batch.set(b"new", 1)
        batch[2] = b"two"
        del batch[1]
        assert 1 not in batch
        assert batch[2] == b"two"
        assert batch.get(1, b"-") == b"-"
        assert db[1] == b"old"
        assert 2 not in db
        with pytest.raises(MissingIdError):
            batch.delete(1)
    assert dict(db) == {2: b"two"}
    assert db.last_seq == 4
    assert len({version.time_ms for version in db.get_history(1)[:2]}) == 1


def test_batch_that_ends_with_an_exception_writes_nothing(db: ourdb.OurDB) -> None:
    batch = db.batch()
    with pytest.raises(ZeroDivisionError), batch:
        batch[1], batch[2] = b"one", b"%d" % (1 // db.last_seq)
    assert db.last_seq == 0
    with pytest.raises(UnusableError):
        batch.set(b"x", 1)


def test_batch_that_fits_no_file_is_refused_and_one_that_fits_no_rest_rotates(db: ourdb.OurDB) -> None:
    with pytest.raises(InvalidError, match="file_size"):
        db.set_many([(id_, bytes(4000)) for id_ in range(20)])
    assert db.last_seq == 0
    for _ in range(3):
        db.set_many([(id_, bytes(4000)) for id_ in range(10)])
    assert len(db._list.files) == 3
    assert db.last_seq == 30


@pytest.mark.parametrize("many", [5, 1000])
def test_set_many_writes_ids_that_occur_twice_in_order(db: ourdb.OurDB, many: int) -> None:
    db.set(b"before", 3)
    db.set_many([(3, b"%d" % number) for number in range(many)])
    assert db[3] == b"%d" % (many - 1)
    assert [version.value for version in db.get_history(3)][-2:] == [b"0", b"before"]
    assert len(db.get_history(3)) == many + 1


def test_get_many_gives_values_in_order_from_all_files(db: ourdb.OurDB) -> None:
    for number in range(200):
        db.set(b"%d" % number, number)
        if number % 60 == 0:
            db.rotate()
    db.delete(150)
    ids = [*range(199, -1, -1), 150, 2**33, 5]
    expected = [None if id_ in (150, 2**33) else b"%d" % id_ for id_ in ids]
    assert db.get_many(ids) == expected
    assert db.get_many([150, 3], b"-") == [b"-", b"3"]


@pytest.mark.parametrize(
    ("value", "id_"),
    [(bytes(4097), 1), (b"", -1), (b"", 16_777_216), ("text", 1), (b"", "1"), (b"", None), (1, 1)],
)
def test_invalid_value_or_id_is_refused_before_anything_is_written(
    db: ourdb.OurDB, value: object, id_: object
) -> None:
    with pytest.raises(InvalidError):
        db.set(value, id_)  # type: ignore[arg-type]
    with pytest.raises(InvalidError):
        db.set_many([(1, b"good"), (id_, value)])  # type: ignore[list-item]
    assert db.last_seq == 0


def test_buffers_are_values_too(db: ourdb.OurDB) -> None:
    db.set(bytearray(b"one"), 1)
    db.set_many({2: memoryview(b"two")})
    assert dict(db) == {1: b"one", 2: b"two"}


def test_highest_id_is_usable_and_costs_no_memory(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with ourdb.open(tmp_path / "db", record_nr_max=2**32 - 1) as db:
        db.set(b"last", 2**32 - 1)
        db.set(b"first", 0)
        assert list(db.items()) == [(0, b"first"), (2**32 - 1, b"last")]
    with ourdb.open(tmp_path / "db") as db:
        assert db.get_many([2**32 - 1] * 20) == [b"last"] * 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB


def test_largest_value_is_kept(tmp_path: Path) -> None:
    size = 64 << 20
    with ourdb.open(tmp_path / "db", record_size_max=size, file_size=80 << 20) as db:
        db.set(b"\xa5" * size, 1)
        db.set(b"\x5a" * size, 1)
        assert len(db._list.files) == 2
    with ourdb.open(tmp_path / "db") as db:
        assert db[1] == b"\x5a" * size
        assert db.get(1, seq=1) == b"\xa5" * size


def test_incremental_ids_are_given_once_and_never_again(tmp_path: Path) -> None:
    with ourdb.open(tmp_path / "db", mode="incremental") as db:
        assert [db.set(b"a"), db.set(b"b"), db.set_many([(None, b"c"), (1, b"A")])] == [1, 2, [3, 1]]
        db.delete(3)
        assert db.get_next_id() == 4
        for id_ in (3, 4, 0):
            with pytest.raises(MissingIdError):
                db[id_] = b"new"
    with ourdb.open(tmp_path / "db") as db:
        with db.batch() as batch:
            assert batch.set(b"d") == 4
            assert batch.set(b"D", 4) == 4
        assert dict(db) == {1: b"A", 2: b"b", 4: b"D"}
        assert db.get_next_id() == 5


def test_new_ids_beside_imported_ones_are_above_them(tmp_path: Path) -> None:
    with ourdb.open(tmp_path / "db", mode="incremental") as db:
        with db.batch(importing=True) as batch:
            batch.set(b"one", 1)
            assert batch.set(b"two") == 2
        assert db.set_many([(None, b"a"), (20, b"b"), (None, b"c")], importing=True) == [3, 20, 21]
        assert dict(db.items()) == {1: b"one", 2: b"two", 3: b"a", 20: b"b", 21: b"c"}


def test_empty_incremental_database_takes_ids_in_imports_only(tmp_path: Path) -> None:
    with ourdb.open(tmp_path / "db", mode="incremental") as db:
        db.set_many([(7, b"seven")], importing=True)
        with db.batch(importing=True) as batch:
            batch.set(b"three", 3)
        assert db.set(b"next") == 8
        with pytest.raises(InvalidError):
            db.set_many([(5, b"late")], importing=True)


def test_all_ids_given_is_an_error(tmp_path: Path) -> None:
    with ourdb.open(tmp_path / "db", mode="incremental", record_nr_max=2) as db:
        assert [db.set(b""), db.set(b"")] == [1, 2]
        with pytest.raises(InvalidError, match="record_nr_max"):
            db.set(b"")


def test_second_writer_is_told_who_writes(db: ourdb.OurDB, path: Path) -> None:
    with pytest.raises(LockedError) as caught:
        ourdb.open(path)
    assert isinstance(caught.value.fields["pid"], int)
    assert caught.value.exit_code == 11


def test_options_that_contradict_the_database_are_named(db: ourdb.OurDB, path: Path) -> None:
    with pytest.raises(InvalidError, match="record_size_max"):
        ourdb.open(path, record_size_max=5, readonly=True)
    db.close()
    with pytest.raises(InvalidError, match="mode"):
        ourdb.open(path, mode="incremental")
    with ourdb.open(path, sync="always", file_size=64 * 1024) as again:
        again.set(b"x", 1)
        assert again._durable == 1


def test_directory_that_is_no_database_is_refused(tmp_path: Path) -> None:
    for readonly in (True, False):
        with pytest.raises(NotFoundError):
            ourdb.open(tmp_path / "none", create=False, readonly=readonly)
    assert not (tmp_path / "none").exists()
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(ExistsError):
        ourdb.open(tmp_path)
    with pytest.raises(NotFoundError):
        ourdb.open(tmp_path, create=False)
    assert (tmp_path / "letter.txt").read_text() == "mine"


def test_data_files_without_identity_are_not_overwritten(db: ourdb.OurDB, path: Path) -> None:
    db.set(b"precious", 1)
    db.close()
    (path / "ourdb.json").unlink()
    with pytest.raises(ExistsError):
        ourdb.open(path)
    assert b"precious" in (path / "0.db").read_bytes()


def test_creating_over_a_database_is_refused(db: ourdb.OurDB, path: Path) -> None:
    with pytest.raises(ExistsError):
        ourdb.create(path)


def test_options_of_an_existing_database_need_not_be_whole(path: Path) -> None:
    ourdb.open(path, file_size=2 << 30, record_size_max=600 << 20).close()
    with ourdb.open(path, record_size_max=600 << 20) as db:
        assert db.config.file_size == 2 << 30


def test_handle_that_was_forgotten_gives_its_lock_back(path: Path) -> None:
    db = ourdb.open(path)
    db.set(b"x", 1)
    del db
    gc.collect()
    with ourdb.open(path) as again:
        assert again[1] == b"x"


def test_reset_begins_anew(path: Path) -> None:
    with ourdb.open(path) as db:
        db.set(b"x", 1)
        uuid = db.uuid
    with ourdb.open(path, reset=True, record_size_max=10) as db:
        assert (len(db), db.last_seq, db.config.record_size_max) == (0, 0, 10)
        assert db.uuid != uuid


def test_destroy_removes_the_database_and_nothing_else(path: Path) -> None:
    db = ourdb.open(path)
    db.set(b"x", 1)
    db.rotate()
    db.destroy()
    assert not path.exists()
    other = ourdb.open(path)
    (path / "letter.txt").write_text("mine")
    other.destroy()
    assert [entry.name for entry in path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize(
    "act",
    [
        lambda db: db.set(b"x", 1),
        lambda db: db.get(1),
        lambda db: db.get_many(range(30)),
        lambda db: 1 in db,
        lambda db: len(db),
        lambda db: db.delete(1),
        lambda db: db.set_many({1: b""}),
        lambda db: db.sync(),
        lambda db: db.get_history(1),
        lambda db: list(db.items()),
        lambda db: db.rotate(),
        lambda db: db.info(),
    ],
)
def test_closed_database_says_so(db: ourdb.OurDB, act: object) -> None:
    db.set(b"x", 1)
    db.close()
    db.close()
    with pytest.raises(UnusableError) as caught:
        act(db)  # type: ignore[operator]
    assert caught.value.kind == "closed"


def test_lookup_table_grows_wider_as_seqs_need(tmp_path: Path) -> None:
    with ourdb.open(tmp_path / "db", sync="never") as db:
        many = [(number % 100, b"") for number in range(65_530)]
        db.set_many(many)
        assert db.info()["lookup_width"] == 2
        for number in range(10):
            db.set(b"%d" % number, number)
        assert db.info()["lookup_width"] == 3
        assert db.get_many(range(12)) == [*(b"%d" % number for number in range(10)), b"", b""]
        assert [version.seq for version in db.get_history(9, 2)] == [65_540, 65_510]
    with ourdb.open(tmp_path / "db") as db:
        assert db.info()["lookup_width"] == 3
        assert db[9] == b"9"
        assert len(db) == 100


def test_clock_that_jumps_back_is_held_and_noted_once(
    db: ourdb.OurDB, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db.set(b"x", 1)
    held = db.last_time
    monkeypatch.setattr("ourdb.database._clock", lambda: (held - 60_000) * 1_000_000)
    db.set(b"y", 1)
    db.set_many({2: b"z"})
    assert db.last_time == held
    assert len(db.notes) == 1
    assert (path / "notes.log").read_text().count("clock") == 1


def test_threads_share_a_database(db: ourdb.OurDB) -> None:
    wrong: list[object] = []

    def work(number: int) -> None:
        for turn in range(300):
            id_ = number * 10 + turn % 10
            db.set(b"%d-%d" % (id_, turn), id_)
            if not (db.get(id_) or b"").startswith(b"%d-%d" % (id_, turn)):
                wrong.append(id_)
            other = db.get((id_ * 7) % 40)
            if other is not None and not other.startswith(b"%d-" % ((id_ * 7) % 40)):
                wrong.append(other)
            if turn % 100 == 50:
                db.rotate()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert db.last_seq == 1200
    assert len(db) == 40


def test_small_databases_stay_small(path: Path) -> None:
    with ourdb.open(path) as db:
        db.set(b"x", 1)
    allocated = sum(entry.stat().st_blocks * 512 for entry in path.rglob("*") if entry.is_file())
    assert allocated < 1.5 * 2**20


def test_sealed_files_keep_to_file_size(db: ourdb.OurDB, path: Path) -> None:
    for number in range(5000):
        db.set(b"" if number % 2 else b"%d" % number, number * 7919 % 2**24)
    sizes = [(path / entry.name).stat().st_size for entry in db._list.sealed]
    assert len(sizes) > 2
    assert max(sizes) <= 64 * 1024


def test_items_and_values_are_views_as_of_a_dictionary(path: Path) -> None:
    with ourdb.open(path) as db:
        db.update({3: b"c", 1: b"a", 2: b"b"})
        items, values = db.items(), db.values()
        assert list(items) == list(items) == [(1, b"a"), (2, b"b"), (3, b"c")]
        assert (len(items), len(values), len(db.items(seq=1))) == (3, 3, 1)
        assert (2, b"b") in items
        assert (2, b"x") not in items
        assert "2b" not in items
        assert (3, b"c") in db.items(seq=1)
        assert (1, b"a") not in db.items(seq=1)
        assert items & {(1, b"a"), (9, b"")} == {(1, b"a")}
        assert b"b" in values
        assert b"x" not in values
        db[4] = b"d"
        assert (len(items), list(values)[-1]) == (4, b"d")


def test_database_equals_a_mapping_of_the_same_values(path: Path) -> None:
    with ourdb.open(path) as db:
        db.update({1: b"a", 2: b"b"})
        assert db == {1: b"a", 2: b"b"}
        assert db != {1: b"a", 2: b"x"}
        assert db != {1: b"a", 3: b"b"}
        assert db != {1: b"a"}
        assert db != [1, 2]
        with ourdb.open(path, readonly=True) as other:
            assert db == other


def test_walk_of_values_leaves_out_what_is_deleted_meanwhile(path: Path) -> None:
    with ourdb.open(path) as db:
        db.update({number: b"%d" % number for number in range(50_000)})
        walk = iter(db.values())
        first = next(walk)
        db.clear()
        assert first == b"0"
        assert len(list(walk)) < 50_000


def test_clear_of_more_than_a_file_holds_takes_several_batches(path: Path) -> None:
    with ourdb.open(path, file_size=64 * 1024) as db:
        for start in range(0, 3000, 1000):
            db.set_many([(number, b"x") for number in range(start, start + 1000)])
        db.clear()
        assert (len(db), db.last_seq) == (0, 6000)
    with ourdb.open(path) as db:
        assert dict(db) == {}


def test_popitem_gives_the_lowest_id_and_an_error_of_ours_when_there_is_none(path: Path) -> None:
    with ourdb.open(path) as db:
        db.update({7: b"a", 9: b"b"})
        assert [db.popitem(), db.popitem()] == [(7, b"a"), (9, b"b")]
        with pytest.raises(MissingIdError):
            db.popitem()


@pytest.mark.parametrize("options", [{"file_size": 1e9}, {"record_nr_max": "5"}, {"record_size_max": True}])
def test_size_that_is_no_int_is_refused_before_anything_is_made(path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidError):
        ourdb.open(path, **options)
    assert not path.exists()


def test_rotation_that_finds_no_number_leaves_the_database_usable(path: Path) -> None:
    with ourdb.open(path) as db:
        db[1] = b"x"
        db._list = replace(
            db._list, files=(*(FileEntry(nr=nr, file_id=1, first_seq=1) for nr in range(65_536)),)
        )
        with pytest.raises(InvalidError):
            db.rotate()
        db[1] = b"y"
        assert db[1] == b"y"
