"""A database whose lookup table is on disk: damage, failing syncs, the change from one place to the other."""

from __future__ import annotations

import gc
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import ourdb
from ourdb.check import find_problems
from ourdb.disklookup import DiskLookup
from ourdb.errors import DamageError, InvalidError
from ourdb.files import FileSystem
from ourdb.tableformat import MANIFEST, PAGE_BYTES, WALS
from tests.cli_runner import ok
from tests.test_engine_recovery import Faulty, crash

ID_MAX = 20_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "db"


def fill(path: Path, **options: object) -> ourdb.OurDB:
    """A database over several pages, whose table on disk has the first half of it."""
    db = ourdb.open(path, lookup="disk", record_nr_max=ID_MAX, sync="never", **options)  # type: ignore[arg-type]
    db.set_many({id_: b"first %d" % id_ for id_ in range(0, ID_MAX, 9)})
    for id_ in range(0, ID_MAX, 900):
        db.delete(id_)
    db.rotate()
    assert db._keeper
    db._keeper.sync(background=False)
    db.set_many({id_: b"second %d" % id_ for id_ in range(0, ID_MAX, 101)})
    return db


def table_of(db: ourdb.OurDB) -> DiskLookup:
    assert isinstance(db._lookup, DiskLookup)
    return db._lookup


def damage_slots(path: Path, db: ourdb.OurDB) -> None:
    """Of every page of live bytes and slots a byte in the middle."""
    layout = table_of(db).table.layout
    file = path / "cache" / "lookup.tbl"
    whole = bytearray(file.read_bytes())
    for page in range(layout.first_live, layout.pages):
        whole[page * PAGE_BYTES + 2000] ^= 0x20
    with file.open("r+b") as stream:
        stream.write(whole)


READS: dict[str, Callable[[ourdb.OurDB], object]] = {
    "get": lambda db: db.get(9),
    "in": lambda db: 9 in db,
    "get_many": lambda db: db.get_many(range(0, 900, 9)),
    "iteration": lambda db: list(db),
    "items": lambda db: dict(db.items()),
    "history": lambda db: [version.value for version in db.get_history(900)],
    "set": lambda db: db.set(b"new", 18),
    "set_many": lambda db: db.set_many({27: b"new", 36: b"new"}),
    "delete": lambda db: db.delete(45),
}


@pytest.mark.parametrize("name", READS)
def test_page_that_is_found_damaged_is_mended_where_it_is_met(path: Path, tmp_path: Path, name: str) -> None:
    db = fill(path)
    table_of(db).full_sync(seq=db.last_seq, file_id=db._list.active.file_id, durable_seq=db.last_seq)
    table_of(db).full_sync(seq=db.last_seq, file_id=db._list.active.file_id, durable_seq=db.last_seq)
    crash(db)
    shutil.copytree(path, tmp_path / "whole")
    damage_slots(path, db)
    assert "not usable" in find_problems(path).notes[0]
    with ourdb.open(path) as mended, ourdb.open(tmp_path / "whole") as whole:
        assert mended.notes == []  # nothing was looked at yet
        assert READS[name](mended) == READS[name](whole)
        assert "rebuilt" in mended.notes[0]
        assert dict(mended.items()) == dict(whole.items())
        assert (len(mended), len(mended.notes)) == (len(whole), 1)
        mended.set(b"goes on", 3)
        state = dict(mended.items())
    with ourdb.open(path) as again:
        assert (dict(again.items()), again.notes) == (state, [])


@pytest.mark.parametrize("name", [MANIFEST, *WALS, "lookup.tbl"])
@pytest.mark.parametrize("how", ["removed", "zeroed", "cut off"])
def test_damaged_file_of_the_table_leads_to_a_new_one_and_a_note(path: Path, name: str, how: str) -> None:
    db = fill(path)
    state, used = dict(db.items()), WALS[table_of(db).table.state.sync & 1]
    crash(db)
    file = path / "cache" / name
    whole = file.read_bytes()
    if how == "removed":
        file.unlink()
    else:
        file.write_bytes(bytes(len(whole)) if how == "zeroed" else whole[:50])
    with ourdb.open(path, readonly=True) as reader:
        assert (dict(reader.items()), len(reader)) == (state, len(state))
    with ourdb.open(path) as again:
        assert (dict(again.items()), len(again)) == (state, len(state))
        unused = name in WALS and name != used and how != "removed"
        assert len(again.notes) == (0 if unused else 1)
    with ourdb.open(path) as again:
        assert (dict(again.items()), again.notes) == (state, [])


def test_place_of_the_table_can_be_changed_at_any_opening(path: Path) -> None:
    db = fill(path)
    state = dict(db.items())
    crash(db)
    for lookup in ("disk", "memory", "memory", "disk"):
        with ourdb.open(path, lookup=lookup) as again:  # type: ignore[arg-type]
            assert (dict(again.items()), again.info()["lookup"], again.notes) == (state, lookup, [])
        assert (path / "cache" / MANIFEST).exists() == (lookup == "disk")
    with ourdb.open(path) as again:  # it stays as it was chosen
        assert again.info()["lookup"] == "disk"
    with pytest.raises(InvalidError, match="lookup"):
        ourdb.open(path, lookup="tape")  # type: ignore[arg-type]
    with pytest.raises(InvalidError, match="readonly"):
        ourdb.open(path, lookup="disk", readonly=True)


def test_damaged_settings_are_an_error_that_names_the_way_out(path: Path) -> None:
    crash(fill(path))
    (path / "settings.json").write_bytes(b"{}\n00000000\n")
    for readonly in (False, True):
        with pytest.raises(DamageError, match="lookup=disk"):
            ourdb.open(path, readonly=readonly)
    ourdb.open(path, lookup="disk").close()
    with ourdb.open(path, reset=True) as db:
        assert db.info()["lookup"] == "memory"


def test_init_takes_the_place_of_the_table(path: Path) -> None:
    ok("init", path, "--lookup", "disk")
    assert ok("info", path, "--json").json["lookup"] == "disk"


def test_table_that_cannot_be_synced_leaves_the_database_usable(path: Path) -> None:
    fs = Faulty(OSError(28, "full"))
    db = fill(path, fs=fs)
    assert db._keeper
    fs.pick = lambda what, path, _: what == "write" and path.name in WALS
    db.set(b"more", 1)
    db._keeper.sync(background=False)
    assert "not synced" in db.notes[0]
    fs.pick = lambda *_: False
    db.set(b"more", 2)
    db._keeper.sync(background=False)
    assert len(db.notes) == 1
    state = dict(db.items())
    db.close()
    with ourdb.open(path) as again:
        assert (dict(again.items()), again.notes) == (state, [])


def test_many_changed_pages_are_synced_beside_the_writes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ourdb.tablepages.CHANGED_PAGES_MAX", 4)
    with ourdb.open(path, lookup="disk", record_nr_max=ID_MAX, sync="never") as db:
        for number in range(400):
            db.set(b"%d" % number, number * 7919 % ID_MAX)
        assert table_of(db).table.state.sync > 10
        assert table_of(db).table.changed <= 6
        assert [db.get(number * 7919 % ID_MAX) for number in range(400)] == [b"%d" % n for n in range(400)]
        state = dict(db.items())
    with ourdb.open(path) as again:
        assert (dict(again.items()), again.notes) == (state, [])


def test_threads_read_beside_syncs_and_a_table_that_grows_wider(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ourdb.tablepages.CHANGED_PAGES_MAX", 3)
    monkeypatch.setattr("ourdb.lookup._BITS", {2: 9, 3: 10, 4: 11, 6: 48})
    wrong: list[object] = []
    with ourdb.open(path, lookup="disk", record_nr_max=ID_MAX, sync="never") as db:
        ids = range(0, ID_MAX, 500)
        db.set_many({id_: b"%d/0" % id_ for id_ in ids})
        done = threading.Event()

        def read() -> None:
            while not done.is_set():
                for id_ in ids:
                    value = db.get(id_)
                    if value is None or not value.startswith(b"%d/" % id_) or id_ not in db:
                        wrong.append((id_, value))
                if len(list(db)) != len(ids):
                    wrong.append("ids are missing")

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for number in range(2500):
            id_ = ids[number % len(ids)]
            db.set(b"%d/%d" % (id_, number), id_)
        done.set()
        for thread in threads:
            thread.join()
        assert (wrong, db._lookup.width) == ([], 6)


def test_reader_copies_the_table_beside_a_writer_that_syncs_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = fill(path)
    monkeypatch.setattr("ourdb.opening.load_table", None)  # the data files are not asked
    pread, synced = FileSystem.call, False

    def call(
        self: FileSystem, what: str, file: Path, function: Callable[..., object], *args: object
    ) -> object:
        nonlocal synced
        if what == "read" and file.name == "lookup.tbl" and not synced and self is not db._directory.fs:
            synced = True  # in the middle of the copy the writer syncs what it has changed
            db.set(b"meanwhile", 9)
            assert db._keeper
            db._keeper.sync(background=False)
        return pread(self, what, file, function, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(FileSystem, "call", call)
    with ourdb.open(path, readonly=True) as reader:
        assert synced
        assert dict(reader.items()) == dict(db.items())
        assert (len(reader), reader.notes, reader[9]) == (len(db), [], b"meanwhile")
        db.delete(9)
        assert 9 not in reader
    db.close()


def test_condensing_leaves_a_table_that_opens_without_the_data_files(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = fill(path)
    for _ in range(3):
        db.rotate()
        db.set_many(dict.fromkeys(range(0, 2000, 7), b"third"))
    db.condense(keep_versions=1)
    state = dict(db.items())
    crash(db)
    monkeypatch.setattr("ourdb.tableopening.build_table", None)
    with ourdb.open(path) as again:
        assert (dict(again.items()), again.notes) == (state, [])


def test_handle_that_is_forgotten_gives_its_lock_back(path: Path) -> None:
    db = fill(path)
    gc.disable()
    try:
        del db
        ourdb.open(path).close()
    finally:
        gc.enable()


def test_destroy_leaves_nothing(path: Path) -> None:
    fill(path).destroy()
    assert not path.exists()
