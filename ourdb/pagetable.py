"""The lookup table's pages on disk, and the three phases of a sync.

```
begin_sync   copies of the pages that changed, and the frame: in memory only
write_wal    the frame into the write-ahead log of this number's parity, durable
commit_sync  the sync before has ended; the manifest's slot of this parity, durable: the commit.
             Then, perhaps beside what follows, the pages into the table's file, durable
```

A crash before the commit leaves sync N, after it N + 1: opening does the frame again. After an error the
table takes no sync any more until it is opened again: what an fsync did that failed nobody knows.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ourdb.directory import Directory
from ourdb.errors import DamageError, InvalidError, UnusableError
from ourdb.files import File
from ourdb.tableformat import (
    FRAME_HEADER_BYTES,
    MANIFEST,
    MANIFEST_SLOT_BYTES,
    PAGE_BYTES,
    WALS,
    Frame,
    Pages,
    Rows,
    TableState,
    decode_frame,
    decode_manifest,
    encode_empty,
    encode_frame,
    encode_manifest,
    frame_bytes,
    header_sync,
    pieces,
    redo,
    set_crcs,
    slot_place,
    table_name,
)
from ourdb.tablepages import CheckedPages, TableDamage, mark_written, runs_of
from ourdb.units import KIB

WAL_BYTES_MIN = 64 * KIB  # preallocated; a larger frame takes more


@dataclass(frozen=True, kw_only=True)
class SyncPlan:
    """One sync, as `begin_sync` decided it. sync: its number. seq: up to where it knows the log. pages: the
    numbers of those that changed. slots: how many entries changed in them. wal_bytes: of the frame."""

    sync: int
    seq: int
    pages: tuple[int, ...]
    slots: int
    wal_bytes: int
    state: TableState = field(repr=False)
    frame: bytes = field(repr=False)
    content: Rows = field(repr=False, compare=False)

    def as_json(self) -> dict[str, Any]:
        return {
            "sync": self.sync,
            "seq": self.seq,
            "pages": len(self.pages),
            "slots": self.slots,
            "wal_bytes": self.wal_bytes,
        }


class PageTable(CheckedPages):
    """An open table: one process, under the database's lock; `known` pages may be read by any thread."""

    __slots__ = (
        "_begun",
        "_clean",
        "_file",
        "_finishing",
        "_manifest",
        "_old",
        "_thread",
        "_wals",
        "failure",
        "state",
    )

    def __init__(self, directory: Directory, state: TableState) -> None:
        """A table to which the frame of its last sync was applied. Use `open_table`, or `write_files`."""
        self.state = state
        fs, cache = directory.fs, directory.cache
        self._file: File = fs.open(cache / table_name(state.number), write=True)
        self._wals = [fs.open(cache / name, write=True) for name in WALS]
        self._manifest: File = fs.open(cache / MANIFEST, write=True)
        self.failure: BaseException | None = None
        self._begun: SyncPlan | None = None  # and not yet committed
        self._finishing: SyncPlan | None = None  # committed; its pages may not all be in the file
        self._clean: list[Pages] = []  # pages that the file has, and we have copies of
        self._thread: threading.Thread | None = None
        super().__init__(self._file, state)
        size = state.layout.pages * PAGE_BYTES
        self._old: Rows = np.frombuffer(self._file.map(size), np.uint8).reshape(-1, PAGE_BYTES)

    # -- a sync -----------------------------------------------------------------------------------

    def begin_sync(self, *, seq: int, file_id: int, count: int, highest: int | None) -> SyncPlan:
        """What leads from the last sync to the table as it is now. In memory only. seq, file_id, count,
        highest: as in TableState. UnusableError (`poisoned`) after an error."""
        self._require_sound()
        if self._begun is not None:
            raise InvalidError(f"sync {self._begun.sync} was begun and is not committed")
        self._drop_copies()
        layout, number = self.layout, self.state.sync + 1
        state = replace(self.state, sync=number, seq=seq, file_id=file_id, count=count, highest=highest)
        mapped = mark_written(self.rows, layout, np.flatnonzero(self.dirty_column))
        self.touch_all(np.append(mapped, 0))
        header = state.encode_header()
        self.rows[0, : len(header)] = np.frombuffer(header, np.uint8)
        numbers = np.flatnonzero(self.dirty_column)
        content = self.rows[numbers]
        set_crcs(content, numbers, state.key)
        frame, slots = encode_frame(state, numbers, content, self._before(numbers))
        content.flags.writeable = False
        plan = SyncPlan(
            sync=number,
            seq=seq,
            pages=tuple(numbers.tolist()),
            slots=slots,
            wal_bytes=len(frame),
            state=state,
            frame=frame,
            content=content,
        )
        self.dirty_column[numbers] = 0
        self.changed = 0
        self._begun = plan
        return plan

    def write_wal(self, plan: SyncPlan, *, durable_seq: int) -> None:
        """The frame is durable when this returns. durable_seq: up to where the log is, `plan.seq` at least:
        else a table could know of records that a power cut takes away."""
        self._require_begun(plan)
        if durable_seq < plan.seq:
            raise InvalidError(f"the log is durable to {durable_seq}, and sync {plan.sync} knows {plan.seq}")
        with _Poisoning(self):
            wal = self._wals[plan.sync & 1]
            if wal.size() < plan.wal_bytes:
                wal.fallocate(0, plan.wal_bytes)
            wal.pwrite(plan.frame, 0)
            wal.fdatasync()

    def commit_sync(self, plan: SyncPlan, *, background: bool = False) -> None:
        """The plan's state is the table's when this returns, whatever happens then; its pages are in the
        table's file, durable, or with `background` will be. Waits for the sync before."""
        self._require_begun(plan)
        self.wait()
        with _Poisoning(self):
            self._manifest.pwrite(plan.state.encode_slot(), slot_place(plan.sync))
            self._manifest.fdatasync()
            self.state, self._begun, self._finishing = plan.state, None, plan
            if not background:
                self._write_pages(plan)
        if background:
            self._thread = threading.Thread(target=self._finish, args=(plan,), name="ourdb-table")
            self._thread.start()

    def full_sync(
        self,
        *,
        seq: int,
        file_id: int,
        count: int,
        highest: int | None,
        durable_seq: int,
        background: bool = False,
    ) -> SyncPlan:
        """All phases, one after the other; returns the plan that was carried out."""
        plan = self.begin_sync(seq=seq, file_id=file_id, count=count, highest=highest)
        self.write_wal(plan, durable_seq=durable_seq)
        self.commit_sync(plan, background=background)
        return plan

    def wait(self) -> None:
        """Until the last commit's pages are durable. UnusableError if they cannot be."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._require_sound()

    def _finish(self, plan: SyncPlan) -> None:
        """In a thread: an error is found by the next sync."""
        try:
            self._write_pages(plan)
        except BaseException as error:
            self.failure = error

    def _write_pages(self, plan: SyncPlan) -> None:
        write_rows(self._file, np.array(plan.pages), plan.content)
        self._file.fdatasync()
        self._finishing = None
        self._clean.append(np.array(plan.pages))

    def _before(self, numbers: Pages) -> Iterator[Rows]:
        """These pages as the sync before left them, in pieces; also where it has not written all of them."""
        plan = self._finishing
        known = np.array(plan.pages if plan else (), np.int64)
        for piece in pieces(len(numbers)):
            wanted = numbers[piece]
            rows = self._old[wanted]
            if plan:
                here = np.isin(wanted, known)
                rows[here] = plan.content[np.searchsorted(known, wanted[here])]
            yield rows

    def _drop_copies(self) -> None:
        """Of pages that the file has as they are in memory, and that did not change since."""
        while self._clean:
            pages = self._clean.pop()
            clean = pages[self.dirty_column[pages] == 0]
            for begin, stop in runs_of(clean):
                first, size = int(clean[begin]) * PAGE_BYTES, (stop - begin) * PAGE_BYTES
                self.mapping.madvise(mmap.MADV_DONTNEED, first, size)

    def _require_sound(self) -> None:
        if self.failure is not None:
            raise UnusableError(
                f"an earlier sync of the lookup table failed: {self.failure} (open the database again)",
                kind="poisoned",
            ) from self.failure

    def _require_begun(self, plan: SyncPlan) -> None:
        self._require_sound()
        if self._begun is not plan:
            raise InvalidError(f"sync {plan.sync} is not the one that was begun")

    def close(self) -> None:
        """Let the files go, once the last commit's pages are written, or cannot be: opening does it again."""
        if self._thread is not None:
            self._thread.join()
        for file in (self._file, *self._wals, self._manifest):
            file.close()


class _Poisoning:
    """Whatever goes wrong within leaves a table that takes no sync any more."""

    __slots__ = ("_table",)

    def __init__(self, table: PageTable) -> None:
        self._table = table

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if error is not None:
            self._table.failure = error


def write_rows(file: File, numbers: Pages, rows: Rows) -> None:
    """Pages in order, neighbours by one call."""
    for begin, stop in runs_of(numbers):
        file.pwrite(rows[begin:stop].data, int(numbers[begin]) * PAGE_BYTES)


def read_rows(file: File, numbers: Pages) -> Rows:
    """Pages of a file that has them."""
    rows = np.empty((len(numbers), PAGE_BYTES), np.uint8)
    for begin, stop in runs_of(numbers):
        data = file.pread((stop - begin) * PAGE_BYTES, int(numbers[begin]) * PAGE_BYTES)
        rows[begin:stop] = np.frombuffer(data, np.uint8).reshape(-1, PAGE_BYTES)
    return rows


# -- opening, making ------------------------------------------------------------------------------


def read_manifest(directory: Directory) -> TableState | None:
    """What the last sync committed, None: there is no manifest. TableDamage if no slot of it is valid."""
    try:
        data = directory.fs.read(directory.cache / MANIFEST, bytes_max=2 * MANIFEST_SLOT_BYTES)
    except FileNotFoundError:
        return None
    state = decode_manifest(data)
    if state is None:
        raise TableDamage(f"{MANIFEST} is damaged")
    return state


def read_frame(directory: Directory, state: TableState) -> Frame:
    """The frame of a sync. TableDamage if it is not whole."""
    name = WALS[state.sync & 1]
    try:
        with directory.fs.open(directory.cache / name) as file:
            size = frame_bytes(file.pread(FRAME_HEADER_BYTES, 0))
            frame = decode_frame(file.pread(min(size, file.size()), 0), state)
    except FileNotFoundError:
        frame = None
    if frame is None:
        raise TableDamage(f"{name} does not hold sync {state.sync}")
    return frame


def check_table_file(file: File, state: TableState) -> None:
    """TableDamage unless the file is the table's, as the last sync or the one before left it."""
    if file.size() != state.layout.pages * PAGE_BYTES:
        raise TableDamage(f"{file.path.name} has {file.size()} bytes, not {state.layout.pages * PAGE_BYTES}")
    found = header_sync(file.pread(PAGE_BYTES, 0), state)
    if found not in (state.sync, state.sync - 1):
        raise TableDamage(f"{file.path.name} is not the file of sync {state.sync}")


def open_table(directory: Directory, state: TableState) -> PageTable:
    """The table as its last sync committed it: the frame is done again, durably. state: of the manifest,
    which fits the log. TableDamage if any of the files is not as it should be."""
    frame = read_frame(directory, state)
    _make_durable(directory, state)
    try:
        file = directory.fs.open(directory.cache / table_name(state.number), write=True)
    except FileNotFoundError as error:
        raise TableDamage(f"{table_name(state.number)} is missing") from error
    with file:
        check_table_file(file, state)
        try:
            for numbers, rows in redo(frame, state, lambda numbers: read_rows(file, numbers)):
                write_rows(file, numbers, rows)
        except TableDamage:
            raise
        except DamageError as error:
            raise TableDamage(f"{file.path.name}: {error}") from error
        file.fdatasync()
    try:
        return PageTable(directory, state)
    except FileNotFoundError as error:
        raise TableDamage(f"{error.filename} is missing") from error


def _make_durable(directory: Directory, state: TableState) -> None:
    """Its writer may have died, or failed, between the write of the commit and its sync: before pages of this
    sync reach the table it has to be on the disk. It is written again, for a system whose sync has failed
    takes it for clean."""
    with directory.fs.open(directory.cache / MANIFEST, write=True) as file:
        file.pwrite(state.encode_slot(), slot_place(state.sync))
        file.fdatasync()


def write_files(directory: Directory, state: TableState) -> PageTable:
    """Manifest and logs for a new table whose file is finished: it counts when this returns."""
    fs, cache = directory.fs, directory.cache
    for parity, name in enumerate(WALS):
        with fs.open(cache / name, write=True, create=True) as file:
            file.fallocate(0, WAL_BYTES_MIN)
            if parity == state.sync & 1:
                file.pwrite(encode_empty(state), 0)
            file.fsync()
    fs.replace(cache / MANIFEST, encode_manifest(state))  # and with it the directory is synced
    return PageTable(directory, state)


def remove_files(directory: Directory) -> bool:
    """Remove the table's files, the manifest first, durably: without it there is none. Returns whether there
    were any."""
    fs, cache = directory.fs, directory.cache
    names = table_files(directory)
    if MANIFEST in names:
        fs.unlink(cache / MANIFEST)
        fs.sync_directory(cache)
    for name in names:
        fs.unlink(cache / name)
    return bool(names)


def remove_others(directory: Directory, state: TableState) -> None:
    """Tables that the manifest does not name: half-built wider ones, or those that one has replaced."""
    for name in directory.fs.names(directory.cache):
        if name.startswith("lookup.") and name.endswith(".tbl") and name != table_name(state.number):
            directory.fs.unlink(directory.cache / name)


def table_files(directory: Directory) -> list[str]:
    """Names of what belongs to a table, whether it is used or not."""
    try:
        names = directory.fs.names(directory.cache)
    except FileNotFoundError:
        return []
    return [
        name
        for name in names
        if name in (MANIFEST, *WALS) or (name.startswith("lookup.") and name.endswith(".tbl"))
    ]


def adopt_table(directory: Directory, old: PageTable, state: TableState) -> PageTable:
    """A wider table, whose file is finished, takes the place of the old one: it counts when this returns."""
    old.wait()
    with _Poisoning(old):
        wal = old._wals[state.sync & 1]
        wal.pwrite(encode_empty(state), 0)
        wal.fdatasync()
        old._manifest.pwrite(state.encode_slot(), slot_place(state.sync))
        old._manifest.fdatasync()
        wider = PageTable(directory, state)
    old.close()
    remove_others(directory, state)
    return wider
