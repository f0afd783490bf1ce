"""The bytes of the lookup table on disk: its pages, frames of its write-ahead log, slots of its manifest.

A page has 4,092 bytes of entries and a crc32c, which covers the page's number and whose file it is, so that
a page in another's place is found. The pages are, in this order: a header; the map, a byte for each page
(1: it was written); live, a byte for each id (1: it has a value); the slots, an entry for each id.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct
from typing import Any

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from ourdb.errors import DamageError

PAGE_BYTES, BODY_BYTES = 4096, 4092
MANIFEST = "lookup.manifest"
MANIFEST_SLOT_BYTES = 4096  # one each, so that no torn write reaches both
WALS = ("lookup.wal.0", "lookup.wal.1")
VERSION = 1
VALUE_BYTES = 6  # of a change: an entry of any width
_TABLE_MAGIC, _WAL_MAGIC, _MANIFEST_MAGIC = b"\x89OurTBL\n", b"\x89OurWAL\n", b"\x89OurMAN\n"
_HEADER = Struct("<8sHHI16sQQQ")
_SLOT = Struct("<8sHHI16sQQQQQQQ")
_FRAME = Struct("<8sHHI16sQQQIII")
FRAME_HEADER_BYTES = _FRAME.size + 4
_FULL = 0xFFFFFFFF
_PIECE_PAGES = 1024
_PAGE_ROW = np.dtype([("page", "<u4"), ("crc", "<u4"), ("changes", "<u4")])
_CHANGE = np.dtype([("slot", "<u2"), ("value", "u1", (VALUE_BYTES,))])

Pages = NDArray[np.int64]
Rows = NDArray[np.uint8]  # of 4,096 bytes each


def table_name(number: int) -> str:
    """Of the table's file: a wider one is a new file."""
    return f"lookup.{number}.tbl" if number else "lookup.tbl"


def _pages_for(entries: int, a_page: int) -> int:
    return -(-entries // a_page)


@dataclass(frozen=True)
class Layout:
    """Which page holds what. width: bytes of a slot, 2, 3, 4 or 6. id_max: the highest id."""

    width: int
    id_max: int

    @property
    def slots_a_page(self) -> int:
        return BODY_BYTES // self.width

    @property
    def map_pages(self) -> int:
        return _pages_for(self._live_pages + self._slot_pages, BODY_BYTES)

    @property
    def _live_pages(self) -> int:
        return _pages_for(self.id_max + 1, BODY_BYTES)

    @property
    def _slot_pages(self) -> int:
        return _pages_for(self.id_max + 1, self.slots_a_page)

    @property
    def first_live(self) -> int:
        """The map begins on page 1; what it tells of begins here."""
        return 1 + self.map_pages

    @property
    def first_slot(self) -> int:
        return self.first_live + self._live_pages

    @property
    def pages(self) -> int:
        return self.first_slot + self._slot_pages

    def unit(self, numbers: Pages) -> Pages:
        """Bytes of an entry on each of these pages."""
        return np.where(numbers < self.first_slot, 1, self.width)


@dataclass(frozen=True, kw_only=True)
class TableState:
    """What a sync commits. table: random id of the table's file, number: of its name. seq: up to where the
    table knows the log. file_id: of the data file that was active then. count: ids that have a value.
    highest: the highest id ever given, None: none."""

    uuid: bytes
    table: int
    number: int
    layout: Layout
    sync: int
    seq: int
    file_id: int
    count: int
    highest: int | None

    @property
    def key(self) -> int:
        """What the checksums of its pages begin with."""
        return crc32c(self.uuid + self.table.to_bytes(8, "little"))

    def encode_slot(self) -> bytes:
        """A slot of the manifest."""
        body = _SLOT.pack(
            _MANIFEST_MAGIC,
            VERSION,
            self.layout.width,
            self.number,
            self.uuid,
            self.table,
            self.sync,
            self.seq,
            self.file_id,
            self.layout.id_max,
            self.count,
            0 if self.highest is None else self.highest + 1,
        )
        return body + crc32c(body).to_bytes(4, "little")

    def encode_header(self) -> bytes:
        """What the header page begins with."""
        layout = self.layout
        return _HEADER.pack(
            _TABLE_MAGIC,
            VERSION,
            layout.width,
            self.number,
            self.uuid,
            self.table,
            layout.id_max,
            self.sync,
        )


def _decode_slot(data: bytes) -> TableState | None:
    body = data[: _SLOT.size]
    if len(body) < _SLOT.size or crc32c(body) != int.from_bytes(data[_SLOT.size : _SLOT.size + 4], "little"):
        return None
    magic, version, width, number, uuid, table, sync, seq, file_id, id_max, count, highest = _SLOT.unpack(
        body
    )
    if (magic, version) != (_MANIFEST_MAGIC, VERSION) or width not in (2, 3, 4, 6):
        return None
    return TableState(
        uuid=uuid,
        table=table,
        number=number,
        layout=Layout(width, id_max),
        sync=sync,
        seq=seq,
        file_id=file_id,
        count=count,
        highest=highest - 1 if highest else None,
    )


def encode_manifest(state: TableState) -> bytes:
    """A manifest that knows this sync and no other."""
    data = bytearray(2 * MANIFEST_SLOT_BYTES)
    place = slot_place(state.sync)
    slot = state.encode_slot()
    data[place : place + len(slot)] = slot
    return bytes(data)


def slot_place(sync: int) -> int:
    return (sync & 1) * MANIFEST_SLOT_BYTES


def decode_manifest(data: bytes) -> TableState | None:
    """The valid slot with the higher sync number, None if neither is valid."""
    slots = [data[place : place + _SLOT.size + 4] for place in (0, MANIFEST_SLOT_BYTES)]
    found = [(parity, _decode_slot(slot)) for parity, slot in enumerate(slots)]
    states = [state for parity, state in found if state is not None and state.sync & 1 == parity]
    return max(states, key=lambda state: state.sync, default=None)


def header_sync(page: bytes, state: TableState) -> int | None:
    """The number of the last sync that reached the header of this table; None: it is another's."""
    if page[: _HEADER.size - 8] != state.encode_header()[:-8]:
        return None
    return int.from_bytes(page[_HEADER.size - 8 : _HEADER.size], "little")


def page_crcs(rows: Rows, numbers: Pages, key: int) -> NDArray[np.uint32]:
    """Of the body of each page, as it should stand behind it."""
    data = np.ascontiguousarray(rows).data.cast("B")
    names = numbers.astype("<u4").data.cast("B")
    crcs = (
        crc32c(data[at * PAGE_BYTES : at * PAGE_BYTES + BODY_BYTES], crc32c(names[4 * at : 4 * at + 4], key))
        for at in range(len(numbers))
    )
    return np.fromiter(crcs, np.uint32, len(numbers))


def found_crcs(rows: Rows) -> NDArray[np.uint32]:
    """What stands behind each page's body."""
    return np.ascontiguousarray(rows[:, BODY_BYTES:]).view("<u4").reshape(-1).astype(np.uint32)


def set_crcs(rows: Rows, numbers: Pages, key: int) -> None:
    rows[:, BODY_BYTES:] = page_crcs(rows, numbers, key).astype("<u4").view(np.uint8).reshape(-1, 4)


# -- frames of the write-ahead log ----------------------------------------------------------------


def encode_frame(state: TableState, numbers: Pages, new: Rows, old: Iterator[Rows]) -> tuple[bytes, int]:
    """What leads from the sync before to this one, and how many entries it changes.

    numbers: ascending, of the pages that differ; new: as they will be, with their checksums; old: as they
    were, in pieces of `pieces(numbers)`. A page most of which changes is in the frame as a whole.
    """
    table = np.empty(len(numbers), _PAGE_ROW)
    table["page"], table["crc"] = numbers, found_crcs(new)
    changes: list[NDArray[Any]] = []
    bodies: list[Rows] = []
    slots = 0
    for piece, before in zip(pieces(len(numbers)), old, strict=True):
        counts, found = _diff(new[piece], before, state.layout.unit(numbers[piece]))
        slots += int(counts.sum())
        full = counts * _CHANGE.itemsize >= BODY_BYTES
        table["changes"][piece] = np.where(full, _FULL, counts)
        changes.append(found[~np.repeat(full, counts)])
        bodies.append(new[piece][full, :BODY_BYTES])
    changed = np.concatenate(changes) if changes else np.empty(0, _CHANGE)
    whole = sum(len(some) for some in bodies)
    body = b"".join([table.tobytes(), changed.tobytes(), *(some.tobytes() for some in bodies)])
    head = _FRAME.pack(
        _WAL_MAGIC,
        VERSION,
        state.layout.width,
        state.number,
        state.uuid,
        state.table,
        state.sync,
        len(body),
        len(numbers),
        len(changed),
        whole,
    )
    return b"".join([head, crc32c(body, crc32c(head)).to_bytes(4, "little"), body]), slots


def encode_empty(state: TableState) -> bytes:
    """The frame of a sync that made the table's file, and left nothing to do."""
    return encode_frame(state, np.empty(0, np.int64), np.empty((0, PAGE_BYTES), np.uint8), iter(()))[0]


def pieces(count: int) -> Iterator[slice]:
    """Some pages at a time, so that what they need meanwhile stays small."""
    for start in range(0, count, _PIECE_PAGES):
        yield slice(start, min(start + _PIECE_PAGES, count))


def _diff(new: Rows, old: Rows, units: Pages) -> tuple[Pages, NDArray[Any]]:
    """How many entries of each page differ, and those, page by page."""
    counts = np.zeros(len(new), np.int64)
    found: list[NDArray[Any]] = []
    for unit in np.unique(units).tolist():  # pages of one unit follow one another
        here = np.flatnonzero(units == unit)
        shape = (len(here), BODY_BYTES // unit, unit)
        after = new[here, :BODY_BYTES].reshape(shape)
        differ = (after != old[here, :BODY_BYTES].reshape(shape)).any(axis=2)
        rows, slots = np.nonzero(differ)
        some = np.zeros(len(rows), _CHANGE)
        some["slot"] = slots
        some["value"][:, :unit] = after[rows, slots]
        counts[here] = differ.sum(axis=1)
        found.append(some)
    return counts, np.concatenate(found) if found else np.empty(0, _CHANGE)


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """A decoded frame: pages by number, the checksum that each will have, how many changes (or all of it)."""

    numbers: Pages
    crcs: NDArray[np.uint32]
    counts: NDArray[np.uint32]
    changes: NDArray[Any]
    bodies: Rows


def frame_bytes(head: bytes) -> int:
    """How long the frame is that begins so, by what it says itself; 0: it is none."""
    if len(head) < FRAME_HEADER_BYTES or not head.startswith(_WAL_MAGIC):
        return 0
    return FRAME_HEADER_BYTES + int(_FRAME.unpack(head[: _FRAME.size])[7])


def decode_frame(data: bytes, state: TableState) -> Frame | None:
    """The frame of this sync; None: it is not whole, or another's."""
    head, body = data[: _FRAME.size], data[FRAME_HEADER_BYTES:]
    if len(head) < _FRAME.size:
        return None
    if crc32c(body, crc32c(head)) != int.from_bytes(data[_FRAME.size : FRAME_HEADER_BYTES], "little"):
        return None
    *found, length, count, changed, whole = _FRAME.unpack(head)
    expected = [_WAL_MAGIC, VERSION, state.layout.width, state.number, state.uuid, state.table, state.sync]
    sizes = [count * _PAGE_ROW.itemsize, changed * _CHANGE.itemsize, whole * BODY_BYTES]
    if found != expected or length != len(body) or sum(sizes) != length:
        return None
    table = np.frombuffer(body, _PAGE_ROW, count)
    frame = Frame(
        numbers=table["page"].astype(np.int64),
        crcs=table["crc"].astype(np.uint32),
        counts=table["changes"].astype(np.uint32),
        changes=np.frombuffer(body, _CHANGE, changed, sizes[0]),
        bodies=np.frombuffer(body, np.uint8, sizes[2], sizes[0] + sizes[1]).reshape(-1, BODY_BYTES),
    )
    return frame if _consistent(frame, state.layout) else None


def _consistent(frame: Frame, layout: Layout) -> bool:
    """Whether all that the frame says lies within the table."""
    full = frame.counts == _FULL
    counts = np.where(full, 0, frame.counts).astype(np.int64)
    if int(full.sum()) != len(frame.bodies) or int(counts.sum()) != len(frame.changes):
        return False
    if len(frame.numbers) and (int(frame.numbers[-1]) >= layout.pages or (np.diff(frame.numbers) <= 0).any()):
        return False
    units = np.repeat(layout.unit(frame.numbers), counts)
    return bool((frame.changes["slot"] < BODY_BYTES // units).all())


def redo(frame: Frame, state: TableState, read: Any) -> Iterator[tuple[Pages, Rows]]:
    """The pages as the sync made them, some at a time. read: gives pages by their numbers, whatever part of
    the sync has reached them. DamageError: that is not what the sync went out from."""
    full = frame.counts == _FULL
    counts = np.where(full, 0, frame.counts).astype(np.int64)
    ends, wholes = np.cumsum(counts), np.cumsum(full)
    for piece in pieces(len(frame.numbers)):
        numbers = frame.numbers[piece]
        rows = np.array(read(numbers))
        first = int(ends[piece.start] - counts[piece.start])
        changes = frame.changes[first : int(ends[piece.stop - 1])]
        _change(rows, np.repeat(np.arange(len(numbers)), counts[piece]), changes, state.layout.unit(numbers))
        begin = int(wholes[piece.start]) - int(full[piece.start])
        rows[full[piece], :BODY_BYTES] = frame.bodies[begin : int(wholes[piece.stop - 1])]
        set_crcs(rows, numbers, state.key)
        wrong = np.flatnonzero(found_crcs(rows) != frame.crcs[piece])
        if len(wrong):
            raise DamageError(f"page {numbers[wrong[0]]} is not what sync {state.sync} went out from")
        yield numbers, rows


def _change(rows: Rows, which: Pages, changes: NDArray[Any], units: Pages) -> None:
    """Write these entries into their pages."""
    unit = units[which]
    at = changes["slot"].astype(np.int64) * unit
    for byte in range(VALUE_BYTES):
        wide = unit > byte
        rows[which[wide], at[wide] + byte] = changes["value"][wide, byte]
