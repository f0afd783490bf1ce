"""The lookup table on disk by itself: its three phases, crashes and failing calls at each step, its files."""

from __future__ import annotations

import dataclasses
import errno
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import mkdtemp
from unittest import mock

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import ourdb.idpages
import ourdb.pagetable
import ourdb.tableformat
import ourdb.tablepages
from ourdb.directory import Directory
from ourdb.disklookup import DiskLookup, PagedLookup, build_table
from ourdb.errors import InvalidError, StorageError, UnusableError
from ourdb.files import FileSystem
from ourdb.pagetable import SyncPlan, open_table, read_manifest
from ourdb.tableformat import MANIFEST, PAGE_BYTES, WALS, Layout, TableState
from ourdb.tablepages import TableDamage
from tests.power.crash import killed
from tests.power.disk import Disk, build
from tests.power.recorder import Call, Fault, Killed, WatchedSystem
from tests.power.run import KINDS, take

UUID = bytes(range(16))
ID_MAX = 9000
WIDTHS = (2, 3, 4, 6)
EXAMPLES = int(os.environ.get("OURDB_TORTURE", "2000")) // 20  # of several crashes each, for each width
BASE = {2: 0, 3: 1 << 20, 4: 1 << 30, 6: 1 << 44}  # seqs that need this width
FILE_ID = 77
Entries = dict[int, tuple[int, bool]]  # id to seq, and whether it has a value
IDS = st.integers(0, ID_MAX) | st.integers(0, 40)
PUTS = st.lists(st.tuples(IDS, st.booleans()), max_size=30)


@pytest.fixture(autouse=True)
def small_pieces() -> Iterator[None]:
    """So that few pages meet every limit."""
    with (
        mock.patch.object(ourdb.pagetable, "WAL_BYTES_MIN", 512),
        mock.patch.object(ourdb.tablepages, "_RUN_PAGES", 2),
        mock.patch.object(ourdb.tablepages, "_PIECE_PAGES", 2),
        mock.patch.object(ourdb.tableformat, "_PIECE_PAGES", 2),
        mock.patch.object(ourdb.idpages, "_PIECE_PAGES", 2),
    ):
        yield


class Bench:
    """One disk, one process on it, and a table. `hook` sees each call."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.root = folder / "0"
        self.root.mkdir()
        self.disk = Disk(self.root)
        self.hook: Callable[[Call], Fault | None] = lambda _: None
        self.lookup: DiskLookup
        self._begin()
        self.fs.make_directory(self.directory.cache)

    def _begin(self) -> None:
        self.fs = WatchedSystem(self.disk, lambda call: self.hook(call))
        self.directory = Directory(self.root / "db", self.fs)

    def make(self, width: int, id_max: int = ID_MAX) -> None:
        layout = Layout(width, id_max)
        table = build_table(self.directory, layout, [], uuid=UUID, seq=BASE[width], file_id=FILE_ID)
        self.lookup = DiskLookup(self.directory, table)

    def reopen(self) -> None:
        state = read_manifest(self.directory)
        assert state is not None
        self.lookup = DiskLookup(self.directory, open_table(self.directory, state))

    def leave(self) -> None:
        """Close, and go on without the simulated disk: a test changes files."""
        self.lookup.close()
        self.fs.end()
        self.directory = Directory(self.root / "db", FileSystem())

    def put(self, puts: list[tuple[int, bool]], seq: int, entries: Entries) -> int:
        """Records behind `seq`; returns the last seq."""
        if puts:
            ids = np.array([id_ for id_, _ in puts], np.uint32)
            seqs = np.arange(seq + 1, seq + 1 + len(puts), dtype=np.uint64)
            self.lookup.put_many(ids, seqs, np.array([alive for _, alive in puts], np.bool_))
            for (id_, alive), at in zip(puts, seqs.tolist(), strict=True):
                entries[id_] = (at, alive)
        return seq + len(puts)

    def sync(self, seq: int, *, background: bool = False) -> SyncPlan:
        return self.lookup.full_sync(seq=seq, file_id=FILE_ID, durable_seq=seq, background=background)

    def crash(self, kind: str, rng: random.Random) -> None:
        """The process is gone, and with a power cut what was not synced, perhaps; the rest is found below
        another root."""
        self.fs.end()
        if hasattr(self, "lookup"):
            self.lookup.close()
        self.use(take(kind, self.disk, rng))

    def use(self, left: Disk) -> None:
        shutil.rmtree(self.root)
        self.root = self._folder / str(int(self.root.name) + 1)
        self.disk = left.copy(self.root)
        build(self.root, killed(self.disk))
        self._begin()


def entries_of(lookup: PagedLookup) -> Entries:
    """All that a table says, by the column and one by one."""
    found: Entries = {}
    for ids, seqs in lookup.ids.entries():
        alive = lookup.living(ids)
        assert lookup.seqs(ids).tolist() == seqs.tolist()
        found |= {
            id_: (seq, bool(live))
            for id_, seq, live in zip(ids.tolist(), seqs.tolist(), alive.tolist(), strict=True)
        }
    living = sorted(id_ for id_, (_, alive) in found.items() if alive)
    assert [id_ for ids in lookup.alive() for id_ in ids.tolist()] == living
    assert lookup.count == len(living)
    assert lookup.highest == max(found, default=None)
    for id_, (seq, alive) in found.items():
        assert (lookup.seq(id_), lookup.live[id_]) == (seq, alive)
    return found


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(mkdtemp(prefix="ourdb-table-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def bench(folder: Path) -> Bench:
    return Bench(folder)


# -- a model of all of it -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Round:
    """puts, and a sync that is cut off at one of its calls (beyond the last: not at all), and the opening
    after that, which may be cut off, too."""

    puts: list[tuple[int, bool]]
    crash_at: int
    kind: str
    again_at: int
    again: str
    seed: int


ROUNDS = st.lists(
    st.builds(
        Round,
        PUTS,
        st.integers(0, 14),
        st.sampled_from(KINDS),
        st.integers(0, 12),
        st.sampled_from(KINDS),
        st.integers(0, 1 << 20),
    ),
    min_size=1,
    max_size=6,
)


class Cut:
    """Kills at a call, and knows which syncs may be found after it: a commit is a write of the manifest, and
    certain when that is durable."""

    def __init__(self, at: int) -> None:
        self._left = at
        self.committed: set[bool] = {False}

    def __call__(self, call: Call) -> Fault | None:
        self._left -= 1
        if self.committed == {False, True} and call.path.name != MANIFEST:
            self.committed = {True}
        if self._left < 0:
            raise Killed
        if (call.what, call.path.name) == ("write", MANIFEST):
            self.committed = {False, True}
        return None


@pytest.mark.parametrize("width", WIDTHS)
@settings(max_examples=EXAMPLES, deadline=None)
@given(rounds=ROUNDS)
def test_crash_at_any_step_leaves_what_the_protocol_says(width: int, rounds: list[Round]) -> None:
    folder = Path(mkdtemp(prefix="ourdb-table-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        bench = Bench(folder)
        bench.make(width)
        seq, synced = BASE[width], {}
        for step in rounds:
            seq, synced = go_round(bench, step, seq, synced)
    finally:
        shutil.rmtree(folder)


def go_round(bench: Bench, step: Round, seq: int, synced: Entries) -> tuple[int, Entries]:
    """Returns the seq and the entries that are on disk after it."""
    rng = random.Random(step.seed)
    number, entries = bench.lookup.table.state.sync, dict(synced)
    after = bench.put(step.puts, seq, entries)
    bench.hook = cut = Cut(step.crash_at)
    try:
        assert bench.sync(after).sync == number + 1
        cut.committed = {True}
    except Killed:
        pass
    bench.hook = lambda _: None
    bench.crash(step.kind, rng)
    bench.hook = Cut(step.again_at)
    try:
        bench.reopen()
    except Killed:
        bench.hook = lambda _: None
        bench.crash(step.again, rng)
    bench.hook = lambda _: None
    bench.reopen()
    state = bench.lookup.table.state
    assert (state.sync > number) in cut.committed
    if state.sync > number:
        seq, synced = after, entries
    assert (state.sync - number, state.seq) in ((0, seq), (1, seq))
    assert entries_of(bench.lookup) == synced
    return seq, synced


# -- each step ------------------------------------------------------------------------------------


def test_plan_can_be_inspected_and_nothing_of_it_is_written_before_its_phase(bench: Bench) -> None:
    bench.make(6)
    entries: Entries = {}
    seq = bench.put([(5, True), (6, True), (8000, False)], BASE[6], entries)
    calls: list[Call] = []
    bench.hook = lambda call: calls.append(call)
    plan = bench.lookup.table.begin_sync(seq=seq, file_id=FILE_ID, count=2, highest=8000)
    layout = plan.state.layout
    assert calls == []
    assert layout.slots_a_page == 682
    assert (plan.sync, plan.seq, plan.pages) == (
        2,
        seq,
        (0, 1, layout.first_live, layout.first_live + 1, layout.first_slot, layout.first_slot + 11),
    )
    # Slots: 3 seqs, 2 live bytes, 4 pages in the map, and bytes of the number in the header.
    assert plan.slots == 3 + 2 + 4 + 1
    assert plan.as_json() == {"sync": 2, "seq": seq, "pages": 6, "slots": 10, "wal_bytes": plan.wal_bytes}
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.sync = 3  # type: ignore[misc]
    with pytest.raises(InvalidError, match="durable"):
        bench.lookup.table.write_wal(plan, durable_seq=seq - 1)
    bench.lookup.table.write_wal(plan, durable_seq=seq)
    assert {(call.what, call.path.name) for call in calls} == {
        ("write", WALS[0]),
        ("fdatasync", WALS[0]),
        ("preallocate", WALS[0]),
    } - ({("preallocate", WALS[0])} if plan.wal_bytes <= 512 else set())
    calls.clear()
    bench.lookup.table.commit_sync(plan)
    order = [(call.what, call.path.name) for call in calls]
    assert order[:2] == [("write", MANIFEST), ("fdatasync", MANIFEST)]
    assert set(order[2:-1]) == {("write", "lookup.tbl")}
    assert order[-1] == ("fdatasync", "lookup.tbl")


def test_syncs_take_turns_and_only_the_one_that_was_begun_goes_on(bench: Bench) -> None:
    bench.make(2)
    table = bench.lookup.table
    first = table.begin_sync(seq=0, file_id=FILE_ID, count=0, highest=None)
    with pytest.raises(InvalidError, match="was begun"):
        table.begin_sync(seq=0, file_id=FILE_ID, count=0, highest=None)
    table.write_wal(first, durable_seq=0)
    table.commit_sync(first)
    with pytest.raises(InvalidError, match="not the one"):
        table.commit_sync(first)
    names: list[str] = []
    bench.hook = lambda call: names.append(call.path.name) if call.what == "write" else None
    for _ in range(3):
        bench.sync(0)
    assert [name for name in names if name in WALS] == [WALS[1], WALS[0], WALS[1]]


def test_next_sync_commits_only_when_the_pages_of_the_last_are_durable(bench: Bench) -> None:
    bench.make(3)
    entries: Entries = {}
    seq = bench.put([(1, True), (2, True)], BASE[3], entries)
    begun, go_on, order = threading.Event(), threading.Event(), []

    def hook(call: Call) -> None:
        order.append((call.what, call.path.name))
        if threading.current_thread().name == "ourdb-table" and not go_on.is_set():
            begun.set()
            assert go_on.wait(20)

    bench.hook = hook
    table = bench.lookup.table
    first = bench.sync(seq, background=True)
    assert begun.wait(20)
    committed = dict(entries)
    after = bench.put([(1, False), (2, True), (9000, True)], seq, entries)
    second = table.begin_sync(seq=after, file_id=FILE_ID, count=2, highest=9000)
    assert second.slots > 3  # against the pages as the first plan has them, which the file has not
    table.write_wal(second, durable_seq=after)
    left = bench.disk.copy(bench.root)
    wait = table.wait
    with mock.patch.object(type(table), "wait", side_effect=lambda: (go_on.set(), wait())):
        table.commit_sync(second)
    commits = [at for at, call in enumerate(order) if call == ("write", MANIFEST)]
    assert commits[0] < order.index(("fdatasync", "lookup.tbl")) < commits[1]
    bench.fs.end()
    bench.lookup.close()
    now = bench.disk
    bench.use(left)  # died while both were under way
    bench.reopen()
    assert bench.lookup.table.state.sync == first.sync
    assert entries_of(bench.lookup) == committed
    bench.use(now)
    bench.reopen()
    assert entries_of(bench.lookup) == entries


def test_live_byte_that_changes_back_before_the_file_has_it_is_in_the_frame(bench: Bench) -> None:
    bench.make(2)
    entries: Entries = {}
    seq = bench.put([(7, True)], 0, entries)
    bench.sync(seq)
    go_on = threading.Event()
    bench.hook = lambda _: (
        go_on.wait(20) and None if threading.current_thread().name == "ourdb-table" else None
    )
    seq = bench.put([(7, False)], seq, entries)
    bench.sync(seq, background=True)
    seq = bench.put([(7, True)], seq, entries)
    plan = bench.lookup.table.begin_sync(seq=seq, file_id=FILE_ID, count=1, highest=7)
    bench.lookup.table.write_wal(plan, durable_seq=seq)
    go_on.set()
    bench.lookup.table.wait()

    def kill_at_pages(call: Call) -> None:
        if (call.what, call.path.name) == ("write", "lookup.tbl"):
            raise Killed

    bench.hook = kill_at_pages
    with pytest.raises(Killed):
        bench.lookup.table.commit_sync(plan)
    bench.hook = lambda _: None
    bench.crash("killed", random.Random(0))
    bench.reopen()
    assert entries_of(bench.lookup) == entries


# -- calls that fail ------------------------------------------------------------------------------

FAULTS = (Fault(errno.EIO), Fault(errno.ENOSPC), Fault(errno.EIO, after=True), Fault(short=7))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_call_that_fails_poisons_the_table_until_it_is_opened_again(
    folder: Path, fault: Fault, kind: str
) -> None:
    calls = 0
    for at in range(20):
        bench = Bench(Path(mkdtemp(dir=folder)))
        bench.make(4)
        before: Entries = {}
        seq = bench.put([(1, True), (5000, True)], BASE[4], before)
        bench.sync(seq)
        entries = dict(before)
        after = bench.put([(1, False), (2, True), (8999, True)], seq, entries)
        cut, seen = Cut(1000), 0

        def hook(call: Call, at: int = at, cut: Cut = cut) -> Fault | None:
            nonlocal seen
            seen += 1
            cut(call)
            return fault if seen == at + 1 else None

        bench.hook = hook
        failed = False
        try:
            bench.sync(after)
            cut.committed = {True}
        except StorageError:
            failed = True
            if fault.after or seen > at + 1:
                cut.committed |= {False}
        bench.hook = lambda _: None
        calls = max(calls, seen)
        assert entries_of(bench.lookup) == entries  # in memory nothing is lost
        if failed:
            with pytest.raises(UnusableError, match="failed") as caught:
                bench.sync(after)
            assert caught.value.kind == "poisoned"
        bench.crash(kind, random.Random(at))
        bench.reopen()
        committed = bench.lookup.table.state.sync == 3
        assert committed in cut.committed
        assert entries_of(bench.lookup) == (entries if committed else before)
        bench.lookup.close()
        if at >= seen:
            break
    assert calls >= 8


# -- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", WIDTHS)
def test_every_byte_that_counts_is_covered(bench: Bench, width: int) -> None:
    bench.make(width, id_max=3000)
    entries: Entries = {}
    seq = bench.put([(id_, id_ % 5 > 0) for id_ in range(0, 2000, 70)], BASE[width], entries)
    bench.sync(seq)
    seq = bench.put([(9, False), (2500, True)], seq, entries)
    plan = bench.sync(seq)
    bench.leave()
    layout = plan.state.layout
    written = {*range(layout.first_live), *bench.lookup.table.there(layout.first_live, layout.pages)}
    for name in (MANIFEST, WALS[plan.sync & 1], "lookup.tbl"):
        file = bench.directory.cache / name
        whole = file.read_bytes()
        for at in [*range(0, 120, 3), *range(120, len(whole), 499)]:
            changed = bytearray(whole)
            changed[at] ^= 0x10
            file.write_bytes(changed)
            try:
                bench.reopen()
                found = entries_of(bench.lookup)
            except TableDamage:
                continue
            finally:
                file.write_bytes(whole)
            # Nothing depends on it, or the frame has put it right.
            assert found == entries, (name, at)
            if name == "lookup.tbl":
                page = at // PAGE_BYTES
                assert page in plan.pages or page not in written, (name, at)


def harm(how: str, whole: bytes, older: bytes) -> bytes:
    if how == "cut off":
        return whole[:100]
    if how == "zeroed":
        return bytes(len(whole))
    if how == "swapped":
        half = max(64, len(whole) // (2 * PAGE_BYTES) * PAGE_BYTES)
        return whole[half:] + whole[:half]
    return older


@pytest.mark.parametrize("how", ["cut off", "zeroed", "swapped", "of an older sync"])
@pytest.mark.parametrize("name", [MANIFEST, *WALS, "lookup.tbl"])
def test_file_that_is_not_what_the_others_say_is_damage(bench: Bench, name: str, how: str) -> None:
    bench.make(2)
    file = bench.directory.cache / name
    entries: Entries = {}
    seq = bench.put([(1, True), (4500, True)], 0, entries)
    bench.sync(seq)
    older = file.read_bytes()
    for _ in range(3):
        seq = bench.put([(1, True), (8999, False), (3, True)], seq, entries)
        plan = bench.sync(seq)
    bench.leave()
    file.write_bytes(harm(how, file.read_bytes(), older))
    if name == WALS[1 - (plan.sync & 1)]:  # the one that the next sync overwrites
        bench.reopen()
        assert entries_of(bench.lookup) == entries
        return
    with pytest.raises(TableDamage):
        bench.reopen()


def test_page_in_another_place_or_of_another_table_is_damage(bench: Bench) -> None:
    bench.make(6)
    entries: Entries = {}
    seq = bench.put([(id_, True) for id_ in range(0, 9000, 7)], BASE[6], entries)
    bench.sync(seq)
    bench.sync(seq)  # whose frame has the header only
    bench.leave()
    file = bench.directory.cache / "lookup.tbl"
    whole = file.read_bytes()
    page = bench.lookup.table.layout.first_slot + 3
    here, there = (slice(at * PAGE_BYTES, (at + 1) * PAGE_BYTES) for at in (page, page + 1))
    moved = bytearray(whole)
    moved[here] = whole[there]
    file.write_bytes(moved)
    bench.reopen()
    assert bench.lookup.seq(0) == entries[0][0]  # a page is looked at when it is needed
    with pytest.raises(TableDamage, match=f"page {page} of lookup.tbl"):
        entries_of(bench.lookup)


def test_blank_page_that_is_not_blank_and_written_page_that_is_are_damage(bench: Bench) -> None:
    bench.make(3)
    seq = bench.put([(1, True)], BASE[3], {})
    bench.sync(seq)
    bench.sync(seq)
    bench.leave()
    file = bench.directory.cache / "lookup.tbl"
    whole, layout = file.read_bytes(), bench.lookup.table.layout
    for page, id_, content in (
        (layout.first_slot, 1, bytes(PAGE_BYTES)),
        (layout.first_slot + 2, 3000, b"\1" + bytes(PAGE_BYTES - 1)),
    ):
        changed = bytearray(whole)
        changed[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = content
        file.write_bytes(changed)
        bench.reopen()
        with pytest.raises(TableDamage):
            bench.lookup.seq(id_)
        bench.lookup.close()


# -- bytes ----------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=600), cut=st.integers(0, 600), seed=st.integers(0, 1 << 16))
def test_decoders_take_any_bytes(data: bytes, cut: int, seed: int) -> None:
    state = TableState(
        uuid=UUID,
        table=5,
        number=0,
        layout=Layout(2, ID_MAX),
        sync=9,
        seq=8,
        file_id=1,
        count=0,
        highest=None,
    )
    rows = np.zeros((2, PAGE_BYTES), np.uint8)
    rows[0, :9] = np.arange(9)
    frame, _ = ourdb.tableformat.encode_frame(
        state, np.array([1, 5]), rows, iter([np.zeros((2, PAGE_BYTES), np.uint8)])
    )
    assert ourdb.tableformat.decode_frame(frame, state) is not None
    changed = bytearray(frame[: len(frame) - cut % len(frame)] + data)
    changed[seed % len(changed)] ^= 1 + seed % 255
    for some in (data, bytes(changed), frame[:cut]):
        assert ourdb.tableformat.decode_frame(some, state) is None or some == frame
        assert ourdb.tableformat.decode_manifest(some) is None
    manifest = ourdb.tableformat.encode_manifest(state)
    assert ourdb.tableformat.decode_manifest(manifest) == state


def test_wider_table_counts_from_its_commit_on(folder: Path) -> None:
    for at in range(40):
        bench = Bench(Path(mkdtemp(dir=folder)))
        bench.make(2)
        entries: Entries = {}
        seq = bench.put([(id_, id_ % 3 > 0) for id_ in range(0, 9000, 11)], 0, entries)
        bench.sync(seq)
        cut = Cut(at)
        bench.hook = cut
        done = False
        try:
            bench.lookup.widen(3, seq=seq, file_id=FILE_ID)
            done = True
        except Killed:
            pass
        bench.hook = lambda _: None
        if done:
            assert entries_of(bench.lookup) == entries
        bench.crash(KINDS[at % 3], random.Random(at))
        bench.reopen()
        assert bench.lookup.width in ({3} if cut.committed == {True} or done else {2, 3})
        assert entries_of(bench.lookup) == entries
        later = bench.put([(9000, True)], seq, entries)
        bench.sync(later)
        bench.lookup.close()
        if done:
            break
    else:
        raise AssertionError("never came to its end")
