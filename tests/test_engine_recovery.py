"""What recovery makes of a directory after a crash, and what it refuses."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import ourdb
from ourdb import directory as directory_module
from ourdb.check import check, find_problems
from ourdb.errors import DamageError, Error, StorageError, UnusableError
from ourdb.files import File, FileSystem, translate
from ourdb.segment.header import HEADER_BYTES


def crash(db: ourdb.OurDB) -> None:
    """Let go of the lock as a killed process does: nothing is synced, sealed or cut."""
    if db._syncer:
        db._syncer.stop()
    assert db._lock_file is not None
    db._lock_file.close()
    db._lock_file = None


def fill(path: Path, count: int = 30) -> dict[int, bytes]:
    """A database that was killed: `count` records in the active file, behind a sealed one."""
    db = ourdb.open(path, sync="never", record_nr_max=1000)
    db.set(b"sealed", 999)
    db.rotate()
    for number in range(count - 3):
        db.set(b"value %d" % number * (number % 5), number % 20)
    db.set_many({1: b"batch", 2: b"of", 3: b"three"})
    state = dict(db.items())
    crash(db)
    return state


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "db"


def active_file(path: Path) -> Path:
    return path / "1.db"


def places(path: Path) -> list[int]:
    """Where the records of the active file begin, and where the last one ends."""
    with ourdb.open(path, readonly=True) as db:
        first, _, column = db._active
        return [*list(column)[: db.last_seq - first + 1], db.active_bytes]  # type: ignore[call-overload]


def overwrite(file: Path, offset: int, data: bytes) -> None:
    with file.open("r+b") as stream:
        stream.seek(offset)
        stream.write(data)


def reboot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory_module, "boot_id", lambda: b"another boot's !")


def test_killed_database_reopens_with_everything(path: Path) -> None:
    state = fill(path)
    for _ in range(2):
        with ourdb.open(path) as db:
            assert (dict(db.items()), db.last_seq, db.notes) == (state, 31, [])


@pytest.mark.parametrize("lost", ["places", "synced", "lookup.ckpt", "everything"])
@pytest.mark.parametrize("how", ["removed", "flipped", "zeroed", "garbage"])
def test_lost_or_damaged_cache_changes_nothing(path: Path, lost: str, how: str) -> None:
    state = fill(path, 300)
    with ourdb.open(path) as db:
        db._write_checkpoint(db._list.active.file_id)
        crash(db)
    harm: dict[str, Callable[[bytes], bytes]] = {
        "flipped": lambda data: (
            bytes([data[0] ^ 1]) + data[1:40] + bytes(b ^ 4 for b in data[40:50]) + data[50:]
        ),
        "zeroed": lambda data: bytes(len(data)),
        "garbage": lambda data: (b"\x07\x01\x00\x00" * (len(data) // 4 + 1))[: len(data)],
    }
    for file in list((path / "cache").iterdir()):
        if lost == "everything" or file.name.endswith(lost):
            if how == "removed":
                file.unlink()
            else:
                file.write_bytes(harm[how](file.read_bytes()))
    for _ in range(2):
        with ourdb.open(path) as db:
            assert dict(db.items()) == state
            assert db.last_seq == 301
            assert [db.get(id_) for id_ in state] == list(state.values())
            assert [version.value for version in db.get_history(999)] == [b"sealed"]
    assert find_problems(path).problems == []


def test_record_torn_at_any_byte_is_dropped_kept_and_noted(path: Path, tmp_path: Path) -> None:
    state = fill(path)
    with ourdb.open(path) as db:
        db.set(b"the last record", 500)
        crash(db)
    start, end = places(path)[-2:]
    whole = active_file(path).read_bytes()
    for cut in range(start, end):
        copy = tmp_path / "copy"
        shutil.copytree(path, copy)
        overwrite(active_file(copy), cut, bytes(len(whole) - cut))
        with ourdb.open(copy) as db:
            assert dict(db.items()) == state
            assert db.last_seq == 31
            torn = whole[start:cut].rstrip(b"\0")
            assert len(db.notes) == (1 if torn else 0)
            assert [file.read_bytes() for file in (copy / "torn").iterdir()] == ([torn] if torn else [])
            db.set(b"new", 500)
        with ourdb.open(copy) as db:
            assert dict(db.items()) == state | {500: b"new"}
            assert db.notes == []
        shutil.rmtree(copy)


@pytest.mark.parametrize("missing", [1, 2])
def test_batch_without_its_end_is_dropped_whole(path: Path, missing: int) -> None:
    fill(path)
    where = places(path)
    overwrite(active_file(path), where[-1 - missing], bytes(where[-1] - where[-1 - missing]))
    with ourdb.open(path) as db:
        assert db.last_seq == 28
        assert db.get_history(3)[0].seq < 28


def test_torn_batch_whose_later_bytes_landed_first_is_no_corruption(path: Path) -> None:
    fill(path)
    overwrite(active_file(path), places(path)[-4], bytes(32))
    with ourdb.open(path) as db:
        assert db.last_seq == 28
        assert len(db.notes) == 1


@pytest.mark.parametrize("part", [0, 4, 8, 12, 19, 20, 28, 40])
def test_damage_before_the_end_is_an_error_that_says_where(path: Path, part: int) -> None:
    fill(path, 200)
    where = places(path)[170] if part < 36 else places(path)[169]
    data = active_file(path).read_bytes()
    overwrite(active_file(path), where + part, bytes([data[where + part] ^ 0x41]))
    with pytest.raises(DamageError) as caught:
        ourdb.open(path)
    seq = 172 if part < 36 else 171
    assert (caught.value.fields["file"], caught.value.fields["offset"], caught.value.fields["seq"]) == (
        "1.db",
        where,
        seq,
    )
    with pytest.raises(DamageError):
        check(path)


def test_bad_record_below_the_durable_mark_is_corruption_even_at_the_end(path: Path) -> None:
    fill(path)
    with ourdb.open(path) as db:
        db.set(b"durable", 5)
        db.sync()
        crash(db)
    where = places(path)[-2]
    overwrite(active_file(path), where, bytes(100))
    for readonly in (False, True):
        with pytest.raises(DamageError) as caught:
            ourdb.open(path, readonly=readonly)
        assert caught.value.fields["seq"] == 32
        assert caught.value.fields["offset"] == where


def test_after_a_power_cut_every_value_above_the_durable_mark_is_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(path, 200)
    where = places(path)
    overwrite(active_file(path), where[21] + 36, b"#")  # in the middle, valid records behind it
    reboot(monkeypatch)
    with ourdb.open(path) as db:
        assert db.last_seq == 22
        assert len(db.notes) == 1
        db.set(b"goes on", 1)
    with ourdb.open(path) as db:
        assert db.last_seq == 23
        assert db[1] == b"goes on"


def test_value_damaged_at_rest_is_an_error_when_it_is_read(path: Path) -> None:
    fill(path)
    overwrite(path / "0.db", HEADER_BYTES + 36, b"S")
    with ourdb.open(path) as db:
        for read in (lambda: db[999], lambda: db.get_many([999] * 20), lambda: db.get_history(999)):
            with pytest.raises(DamageError) as caught:
                read()
            assert caught.value.fields["file"] == "0.db"
            assert caught.value.fields["seq"] == 1
        assert db[1] == b"batch"
    with pytest.raises(DamageError):
        check(path)


@pytest.mark.parametrize("name", ["files.json", "ourdb.json", "0.db", "1.db", "line.json"])
def test_every_byte_of_small_files_is_covered(path: Path, name: str) -> None:
    fill(path)
    whole = (path / name).read_bytes()
    covered = HEADER_BYTES if name == "1.db" else len(whole)
    for at in range(0, covered, 1 if name == "1.db" else 7):
        overwrite(path / name, at, bytes([whole[at] ^ 1]))
        assert find_problems(path).problems, f"byte {at} of {name}"
        overwrite(path / name, at, whole[at : at + 1])
    assert find_problems(path).problems == []


def test_missing_data_file_is_an_error_that_names_it(path: Path) -> None:
    fill(path)
    (path / "0.db").unlink()
    for readonly in (False, True):
        with pytest.raises(DamageError, match=r"0\.db"):
            ourdb.open(path, readonly=readonly)


def test_files_that_no_list_names_are_removed_unless_they_have_newer_records(path: Path) -> None:
    state = fill(path)
    before = (path / "files.json").read_bytes()
    shutil.copy(path / "0.db", path / "7.db")
    (path / "9.db").write_bytes(b"")
    with ourdb.open(path) as db:
        assert dict(db.items()) == state
        assert sorted(path.glob("*.db")) == [path / "0.db", path / "1.db"]
        db.rotate()
        db.set(b"x", 1)
    (path / "files.json").write_bytes(before)
    with pytest.raises(DamageError):
        ourdb.open(path)
    assert (path / "2.db").exists()


def test_crash_between_commit_and_cut_of_a_rotation_is_repaired(path: Path) -> None:
    fill(path)
    with ourdb.open(path) as db:
        db.rotate()
    size = active_file(path).stat().st_size
    with active_file(path).open("ab") as stream:
        stream.truncate(size + 5000)
    with ourdb.open(path, readonly=True) as reader:
        assert reader[1] == b"batch"
    with ourdb.open(path) as db:
        assert db[1] == b"batch"
        assert active_file(path).stat().st_size == size


class Faulty(FileSystem):
    """Makes the calls that `pick` picks fail with an error number."""

    def __init__(self, error: OSError) -> None:
        self.error = error
        self.pick: Callable[[str, Path, int], bool] = lambda *_: False
        self.calls: list[tuple[str, str]] = []

    def call(self, what, path, function, *args):  # type: ignore[no-untyped-def]
        self.calls.append((what, path.name))
        if self.pick(what, path, len(self.calls)):
            raise translate(what, path, self.error)
        return super().call(what, path, function, *args)


def test_full_disk_is_an_error_that_leaves_the_database_usable(path: Path) -> None:
    fs = Faulty(OSError(28, "full"))
    with ourdb.open(path, fs=fs, file_size=4 << 20, record_size_max=1 << 20) as db:
        db.set(b"first", 1)
        fs.pick = lambda what, *_: what == "preallocate"
        for write in (
            lambda: db.set(bytes(1 << 20), 2),
            lambda: db.set_many({3: bytes(1 << 20)}),
            lambda: db.rotate(),
        ):
            with pytest.raises(StorageError) as caught:
                write()
            assert caught.value.kind == "disk_full"
        db.set(b"small", 3)
        fs.pick = lambda *_: False
        db.set(bytes(1 << 20), 2)
        db.rotate()
        assert db.last_seq == 3
    with ourdb.open(path) as db:
        assert dict(db.items()) == {1: b"first", 2: bytes(1 << 20), 3: b"small"}


@pytest.mark.parametrize("sync", ["always", "never"])
def test_failed_sync_poisons_until_the_database_is_opened_again(path: Path, sync: str) -> None:
    fs = Faulty(OSError(5, "broken"))
    db = ourdb.open(path, fs=fs, sync=sync)  # type: ignore[arg-type]
    db.set(b"good", 1)
    fs.pick = lambda what, *_: what == "fdatasync"
    with pytest.raises(StorageError):
        db.set(b"bad", 2) if sync == "always" else db.sync()
    fs.pick = lambda *_: False
    for write in (
        lambda: db.set(b"x", 1),
        lambda: db.sync(),
        lambda: db.rotate(),
        lambda: db.set_many({1: b""}),
    ):
        with pytest.raises(UnusableError) as caught:
            write()
        assert caught.value.kind == "poisoned"
    assert db[1] == b"good"
    db.close()
    with ourdb.open(path) as again:
        assert again[1] == b"good"
        again.set(b"goes on", 1)


def test_any_call_that_fails_during_rotation_or_condensing_loses_nothing(path: Path, tmp_path: Path) -> None:
    def work(fs: FileSystem, target: Path) -> None:
        with ourdb.open(target, fs=fs, sync="never") as db:
            db.set(b"more", 5)
            db.rotate()
            db.condense(keep_versions=1)
            db.set(b"last", 6)

    state = fill(path)
    counting = Faulty(OSError(5, "broken"))
    shutil.copytree(path, tmp_path / "0")
    work(counting, tmp_path / "0")
    for failing in range(1, len(counting.calls) + 1, 3):
        copy = tmp_path / "copy"
        shutil.copytree(path, copy)
        fs = Faulty(OSError(5, "broken"))
        fs.pick = lambda _what, _path, number, failing=failing: number == failing  # type: ignore[misc]
        with contextlib.suppress(Error):
            work(fs, copy)
        with ourdb.open(copy) as db:
            found = dict(db.items())
            kept = set(state) - {5, 6}
            assert {id_: found.get(id_) for id_ in kept} == {id_: state[id_] for id_ in kept}
            assert found.get(6) in (state[6], b"last")
            assert found.get(5) in (state.get(5), b"more")
            assert db.last_seq >= 31
        assert find_problems(copy).problems == []
        shutil.rmtree(copy)


def test_space_behind_the_log_is_zero_before_anything_is_appended(path: Path) -> None:
    fill(path)
    where = places(path)
    # A long record, torn; behind it stands an old record that would follow the next one.
    with ourdb.open(path) as db:
        db.set(bytes(64), 1)
        db.set(b"ghost", 2)
        crash(db)
    overwrite(active_file(path), where[-1], bytes(4))
    (path / "cache" / "synced").unlink()
    with ourdb.open(path) as db:
        assert db.last_seq == 31
        db.set(bytes(64), 3)
    with ourdb.open(path) as db:
        assert db.last_seq == 32
        assert db[2] != b"ghost"


def test_file_closed_twice_is_closed_once(tmp_path: Path) -> None:
    file: File = FileSystem().open(tmp_path / "x", write=True, create=True)
    file.close()
    file.close()
    assert file.fd == -1


def test_torn_list_of_the_records_that_were_kept_is_not_believed(path: Path) -> None:
    with ourdb.open(path, record_nr_max=1000) as db:
        for number in range(600):
            db.set(b"%d" % number, number % 30)
        db.condense(keep_versions=2)
        histories = [[version.seq for version in db.get_history(id_)] for id_ in range(30)]
    [cached] = [file for file in (path / "cache").glob("*.places") if file.stat().st_size < 1000]
    whole = cached.read_bytes()
    for start in range(0, len(whole), 16):
        cached.write_bytes(whole[:start] + bytes(16) + whole[start + 16 :])
        with ourdb.open(path) as db:
            assert [[version.seq for version in db.get_history(id_)] for id_ in range(30)] == histories
        assert cached.read_bytes() == whole


def test_unusable_checkpoint_is_noted_once(path: Path) -> None:
    state = fill(path)
    (path / "cache" / "lookup.ckpt").write_bytes(b"garbage")
    for notes in (1, 0):
        with ourdb.open(path) as db:
            assert dict(db.items()) == state
            assert len(db.notes) == notes
