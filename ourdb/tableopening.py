"""Opening the lookup table on disk: what its last sync left, or, where that cannot be used, a new table of
what the data files hold. And reading it in a process that does not write."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ourdb.directory import Directory, FileEntry, FileList
from ourdb.disklookup import DiskLookup, build_table
from ourdb.errors import DamageError
from ourdb.files import File
from ourdb.history import alive_of
from ourdb.lookup import SHAPES, Ids, Lookup, Seqs, wholes, width_for
from ourdb.pagetable import (
    check_table_file,
    open_table,
    read_frame,
    read_manifest,
    read_rows,
    remove_others,
    table_files,
)
from ourdb.sealed import SealedFile
from ourdb.tableformat import (
    BODY_BYTES,
    Frame,
    Layout,
    Pages,
    Rows,
    TableState,
    found_crcs,
    page_crcs,
    redo,
    table_name,
)
from ourdb.tablepages import TableDamage

_TRIES = 16
_PIECE_PAGES = 1024


def open_lookup(
    directory: Directory, files: FileList, uuid: bytes, id_max: int, notes: list[str]
) -> tuple[DiskLookup, int]:
    """The table with what the sealed files hold, and the seq up to where it is on disk. Notes a table that
    could not be used: it is rebuilt."""
    try:
        state = find_state(directory, files, uuid, id_max)
        if state is not None:
            lookup = DiskLookup(directory, open_table(directory, state))
            remove_others(directory, state)
            _catch_up(directory, files, uuid, lookup)
            return lookup, lookup.table.state.seq
        if table_files(directory):
            notes.append("the lookup table on disk was not whole: it was built from the data files")
    except TableDamage as damage:
        note_rebuilt(notes, damage)
    return build_lookup(directory, files, uuid, id_max), files.active.first_seq - 1


def note_rebuilt(notes: list[str], damage: TableDamage) -> None:
    notes.append(f"the lookup table on disk is not usable ({damage}): it was rebuilt from the data files")


def build_lookup(directory: Directory, files: FileList, uuid: bytes, id_max: int) -> DiskLookup:
    """A new table of what the sealed files hold, on disk when this returns."""
    end = files.active.first_seq - 1
    entries = (piece for entry in files.sealed for piece in _entries(directory, entry, uuid, 0))
    layout = Layout(width_for(end), id_max)
    table = build_table(directory, layout, entries, uuid=uuid, seq=end, file_id=files.active.file_id)
    return DiskLookup(directory, table)


def find_state(directory: Directory, files: FileList, uuid: bytes, id_max: int) -> TableState | None:
    """What the manifest says, if it is about this log; None: there is no manifest, and so no table, or one
    that was not finished. TableDamage otherwise."""
    state = read_manifest(directory)
    if state is None:
        return None
    if (state.uuid, state.layout.id_max) != (uuid, id_max):
        raise TableDamage("it belongs to another database")
    named = [entry for entry in files.files if entry.file_id == state.file_id]
    if not named or state.seq < named[0].first_seq - 1:
        raise TableDamage(f"it is of a log that has seq {state.seq} in another data file")
    return state


def _catch_up(directory: Directory, files: FileList, uuid: bytes, lookup: DiskLookup) -> None:
    """Put what the sealed files hold beyond the last sync; syncs where memory has no room for more."""
    state, end = lookup.table.state, files.active.first_seq - 1
    if end > lookup.seq_max:
        lookup.widen(width_for(end), seq=state.seq, file_id=state.file_id)
    for entry in files.sealed:
        if entry.last_seq <= state.seq:
            continue
        for ids, seqs, alive in _entries(directory, entry, uuid, state.seq):
            lookup.put_many(ids, seqs, alive)
            if lookup.crowded:
                lookup.full_sync(seq=int(seqs[-1]), file_id=entry.file_id, durable_seq=entry.last_seq)


def _entries(
    directory: Directory, entry: FileEntry, uuid: bytes, after_seq: int
) -> Iterator[tuple[Ids, Seqs, NDArray[np.bool_]]]:
    """Ids, seqs, and which of them are no tombstones, of the records of a sealed file behind a seq."""
    for columns in SealedFile(directory, entry, uuid).columns(first_seq=after_seq + 1):
        new = columns[int(np.searchsorted(columns.seq, np.uint64(after_seq), "right")) :]
        if len(new):
            yield new.id, new.seq, alive_of(new)


# -- beside a writer ------------------------------------------------------------------------------


def copy_lookup(directory: Directory, files: FileList, uuid: bytes, id_max: int) -> tuple[Lookup, int] | None:
    """A table in memory as the last sync left the one on disk, and the seq that it covers; None: there is
    none. A writer may be at work. TableDamage if there is no telling what a sync left."""
    for attempt in range(_TRIES):
        state = find_state(directory, files, uuid, id_max)
        if state is None:
            return None
        try:
            lookup = Lookup(id_max, seq=state.seq)
            for numbers, rows in read_pages(directory, state):
                _load(lookup, state.layout, numbers, rows)
        except TableDamage:
            if attempt == _TRIES - 1 or read_manifest(directory) == state:
                raise
            continue
        if read_manifest(directory) == state:
            lookup.highest = state.highest
            return lookup, state.seq
    raise TableDamage("its writer syncs it faster than it can be read")


def _load(lookup: Lookup, layout: Layout, numbers: Pages, rows: Rows) -> None:
    """Of neighbouring pages, all of live bytes or all of slots."""
    first = int(numbers[0])
    body = np.ascontiguousarray(rows[:, :BODY_BYTES])
    if first < layout.first_slot:
        start = (first - layout.first_live) * BODY_BYTES
        lookup.put_live(start, body.reshape(-1)[: lookup.id_max + 1 - start])
    else:
        start = (first - layout.first_slot) * layout.slots_a_page
        slots = body.reshape(-1).view(SHAPES[layout.width])
        lookup.put_run(start, wholes(slots[: lookup.id_max + 1 - start]))


def read_pages(directory: Directory, state: TableState) -> Iterator[tuple[Pages, Rows]]:
    """All written pages of live bytes and slots as this sync made them, some neighbours at a time, each page
    once. They are this sync's if the manifest names it still when all were read. TableDamage."""
    frame = read_frame(directory, state)
    try:
        file = directory.fs.open(directory.cache / table_name(state.number))
    except FileNotFoundError as error:
        raise TableDamage(f"{table_name(state.number)} is missing") from error
    with file:
        check_table_file(file, state)
        yield from _read_pages(file, state, frame)


def _read_pages(file: File, state: TableState, frame: Frame) -> Iterator[tuple[Pages, Rows]]:
    layout = state.layout
    maps = _checked(file, state, np.setdiff1d(np.arange(1, layout.first_live), frame.numbers))
    written = np.zeros((layout.map_pages, BODY_BYTES), np.uint8)
    for numbers, rows in maps:
        written[numbers - 1] = rows[:, :BODY_BYTES]
    try:
        for numbers, rows in redo(frame, state, lambda numbers: read_rows(file, numbers)):
            is_map = (numbers > 0) & (numbers < layout.first_live)
            written[numbers[is_map] - 1] = rows[is_map, :BODY_BYTES]
            behind = numbers >= layout.first_live
            yield from _neighbours(layout, numbers[behind], rows[behind])
    except TableDamage:
        raise
    except DamageError as error:
        raise TableDamage(f"{file.path.name}: {error}") from error
    rest = np.flatnonzero(written.reshape(-1)[: layout.pages - layout.first_live]) + layout.first_live
    for numbers, rows in _checked(file, state, np.setdiff1d(rest, frame.numbers)):
        yield from _neighbours(layout, numbers, rows)


def _checked(file: File, state: TableState, wanted: Pages) -> Iterator[tuple[Pages, Rows]]:
    """Pages of the file. One that is being written is read again."""
    for at in range(0, len(wanted), _PIECE_PAGES):
        numbers = wanted[at : at + _PIECE_PAGES]
        rows = read_rows(file, numbers)
        for _ in range(_TRIES):
            wrong = np.flatnonzero(page_crcs(rows, numbers, state.key) != found_crcs(rows))
            if not len(wrong):
                break
            rows[wrong] = read_rows(file, numbers[wrong])
        else:
            raise TableDamage(f"checksum of page {numbers[wrong[0]]} of {file.path.name} does not match")
        yield numbers, rows


def _neighbours(layout: Layout, numbers: Pages, rows: Rows) -> Iterator[tuple[Pages, Rows]]:
    """Cut where a page is left out, and between live bytes and slots."""
    if len(numbers):
        breaks = (np.diff(numbers) != 1) | (np.diff(numbers >= layout.first_slot))
        cuts = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(numbers)]
        for begin, stop in pairwise(cuts):
            yield numbers[begin:stop], rows[begin:stop]
