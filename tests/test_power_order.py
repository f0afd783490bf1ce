"""What a power cut must not undo, once for each defect that the simulator has found."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

import ourdb
from ourdb.errors import StorageError
from tests.power.crash import evicted, unsynced_lost
from tests.power.disk import Disk, Image, build
from tests.power.recorder import Call, Fault, Killed, WatchedSystem
from tests.power.world import boot


class Machine:
    """One disk, and processes on it. `hook` sees each call."""

    def __init__(self, root: Path) -> None:
        root.mkdir()
        self.root, self.disk = root, Disk(root)
        self.path = root / "db"
        self.hook: Callable[[Call], Fault | None] = lambda _: None

    def process(self) -> WatchedSystem:
        return WatchedSystem(self.disk, lambda call: self.hook(call))

    def open(self, **options: object) -> ourdb.OurDB:
        return ourdb.open(self.path, sync="never", fs=self.process(), **options)  # type: ignore[arg-type]

    def kill_at(self, what: str, name: str) -> None:
        def hook(call: Call) -> None:
            if (call.what, call.path.name) == (what, name):
                raise Killed

        self.hook = hook

    def fail_at(self, what: str, name: str = "") -> None:
        self.hook = lambda call: (
            Fault(errno.EIO) if call.what == what and call.path.name.endswith(name) else None
        )

    def heal(self) -> None:
        self.hook = lambda _: None


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "machine")


def after_power_cut(tmp_path: Path, image: Image) -> dict[int, bytes]:
    """What a database has when the machine is started again."""
    build(tmp_path / "again", image)
    with boot(7), ourdb.open(tmp_path / "again" / "db", create=False) as db:
        return dict(db.items())


@pytest.mark.parametrize("change", ["rotate", "condense"])
def test_list_whose_rename_was_not_synced_before_a_kill_is_synced_before_it_is_used(
    machine: Machine, tmp_path: Path, change: str
) -> None:
    db = machine.open()
    for number in range(3):
        db.set(b"%d" % number, 1)
        db.rotate()
    db.set(b"last", 2)
    renamed: list[str] = []

    def hook(call: Call) -> None:
        renamed.append(call.path.name if call.what == "rename" else "")
        if "files.json" in renamed and (call.what, call.path.name) == ("fsync", "db"):
            raise Killed

    machine.hook = hook
    with pytest.raises(Killed):
        db.rotate() if change == "rotate" else db.condense(keep_versions=1)
    db._let_go()
    machine.heal()
    with machine.open() as again:
        again.set(b"more", 3)
        again.sync()
    assert after_power_cut(tmp_path, unsynced_lost(machine.disk)) == {1: b"2", 2: b"last", 3: b"more"}


def test_database_whose_creation_was_killed_at_its_end_is_durable_once_it_is_used(
    machine: Machine, tmp_path: Path
) -> None:
    renamed: list[str] = []

    def hook(call: Call) -> None:
        renamed.append(call.path.name if call.what == "rename" else "")
        if "ourdb.json" in renamed and call.what == "fsync":
            raise Killed

    machine.hook = hook
    with pytest.raises(Killed):
        machine.open()
    machine.heal()
    with machine.open() as db:
        db.set(b"kept", 1)
        db.sync()
    assert after_power_cut(tmp_path, unsynced_lost(machine.disk)) == {1: b"kept"}


def test_directory_whose_creation_was_killed_at_once_is_durable_once_it_is_used(
    machine: Machine, tmp_path: Path
) -> None:
    machine.kill_at("fsync", "machine")
    with pytest.raises(Killed):
        machine.open()
    machine.heal()
    with machine.open() as db:
        db.set(b"kept", 1)
        db.sync()
    assert after_power_cut(tmp_path, unsynced_lost(machine.disk)) == {1: b"kept"}


def test_each_new_parent_directory_is_durable(machine: Machine) -> None:
    machine.path = machine.root / "far" / "below" / "db"
    machine.open().close()
    found = unsynced_lost(machine.disk)["far"]["below"]["db"]  # type: ignore[index,call-overload]
    assert "ourdb.json" in found


@pytest.mark.parametrize("cut", [unsynced_lost, evicted])
def test_what_a_failed_sync_left_behind_is_written_again(
    machine: Machine, tmp_path: Path, cut: Callable[[Disk], Image]
) -> None:
    db = machine.open()
    db.set(b"durable", 1)
    db.sync()
    for number in range(200):
        db.set(bytes(100), number + 2)
    machine.fail_at("fdatasync")
    with pytest.raises(StorageError):
        db.sync()
    machine.heal()
    db.close()
    with machine.open() as again:
        state = dict(again.items())
        again.set(b"more", 1)
        again.sync()
    assert len(state) == 201
    assert after_power_cut(tmp_path, cut(machine.disk)) == state | {1: b"more"}


def test_sync_mark_that_cannot_be_written_is_done_without(machine: Machine, tmp_path: Path) -> None:
    db = machine.open(file_size=2 << 20)
    machine.fail_at("write", "synced")
    for number in range(900):
        db.set(bytes(4000), number % 5)
    db.rotate()
    db.set(b"more", 1)
    db.sync()
    db.close()
    assert not (machine.path / "cache" / "synced").exists()
    assert after_power_cut(tmp_path, unsynced_lost(machine.disk))[1] == b"more"
