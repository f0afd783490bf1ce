"""The lookup table: the seq of the newest record of each id, 0 for none; and how it is held in memory.

An entry is 2, 3, 4 or 6 bytes wide, as the seqs need. Beside it stands a byte for each id that says
whether it has a value now (1) or was deleted or never written (0). How both are held on disk is in
ourdb/disklookup.py. In memory there is a coarse map of the ids used besides, a byte for each 65,536, and
all three are anonymous mappings without reserve: the kernel gives a page when it is first written, so
that id 2^32-1 costs a page and not 25 GB.
"""

# ruff: noqa: A002  (an id is called id)

from __future__ import annotations

import mmap
from collections.abc import Iterator
from struct import Struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ourdb.errors import StorageError
from ourdb.files import MAP_NORESERVE

WIDTHS = (2, 3, 4, 6)
CHUNK_IDS = 1 << 16
_BITS = {width: 8 * width for width in WIDTHS}
_HUGE_PAGES_IDS_MAX = 1 << 24  # scattered ids in a larger table would touch a huge page each
SHAPES: dict[int, np.dtype[Any]] = {
    2: np.dtype("<u2"),
    3: np.dtype([("low", "<u2"), ("high", "u1")]),
    4: np.dtype("<u4"),
    6: np.dtype([("low", "<u4"), ("high", "<u2")]),
}
_CASTS = {2: "H", 4: "I"}
_STRUCTS = {3: (Struct("<HB"), 16), 6: (Struct("<IH"), 32)}

Ids = NDArray[np.integer[Any]]
Seqs = NDArray[np.uint64]
Wide = tuple[Any, Any, Any, int, int]


def width_for(seq: int) -> int:
    """The narrowest entry that holds a seq: 2, 3, 4 or 6 bytes."""
    for width in WIDTHS:
        if seq < 1 << _BITS[width]:
            return width
    raise StorageError(f"the log is full: seq {seq} does not fit into 48 bits")


class LookupTable:
    """id -> seq for ids 0 to `id_max`, wherever it is held. One thread writes at a time; any number read.

    live: indexed by id, 1 if it has a value, 0 if it was deleted or never written. view, wide, storing: one
    of view (whole entries) and wide (how to unpack one) is read by get; set has `storing` for wide, by which
    it also packs one. count: ids that have a value. highest: the highest id ever written, None: none.
    """

    __slots__ = ("count", "highest", "id_max", "live", "storing", "view", "wide", "width")

    def __init__(self, id_max: int, width: int) -> None:
        self.id_max, self.width = id_max, width
        self.count = 0
        self.highest: int | None = None
        self.live: Any
        self.view: memoryview[int] = memoryview(b"")
        self.wide: Wide | None = None
        self.storing: Wide | None = None

    @property
    def seq_max(self) -> int:
        """The last seq that fits into an entry."""
        return (1 << _BITS[self.width]) - 1

    def seq(self, id: int) -> int:
        """The seq of the newest record of an id in range, 0 for none."""
        raise NotImplementedError

    def seqs(self, ids: Ids) -> Seqs:
        """As `seq`, of many ids."""
        raise NotImplementedError

    def living(self, ids: Ids) -> NDArray[np.bool_]:
        """Which ids have a value. IndexError if one is out of range."""
        raise NotImplementedError

    def prepare(self, ids: Ids) -> Seqs:
        """As `seqs`, for ids that are about to be written: what could go wrong goes wrong here."""
        return self.seqs(ids)

    def close(self) -> None:
        """Let go of what the table has open."""

    def note_new(self, id: int) -> None:
        """An id has a value that had none: what else has to be known of it. The caller stored the rest."""
        self.count += 1
        if self.highest is None or id > self.highest:
            self.highest = id

    def put_many(self, ids: Ids, seqs: Seqs, alive: NDArray[np.bool_], *, distinct: bool = False) -> None:
        """Records in seq order: of an id that stands there twice the last one wins. Widens the table if
        need be: whoever holds its views takes the new ones."""
        raise NotImplementedError

    def alive(self) -> Iterator[NDArray[np.int64]]:
        """The ids that have a value, ascending, some at a time."""
        raise NotImplementedError


def wholes(entries: NDArray[Any]) -> Seqs:
    """Entries of any width as numbers."""
    if entries.dtype.names is None:
        return entries.astype(np.uint64)
    shift = 16 if entries.dtype.itemsize == 3 else 32
    return entries["low"].astype(np.uint64) | (entries["high"].astype(np.uint64) << np.uint64(shift))


def _reserve(size: int, entries: int) -> mmap.mmap:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    try:
        mapping = mmap.mmap(-1, size, flags=flags)
    except (OSError, MemoryError) as error:
        raise StorageError(
            f"the system refuses {size} bytes of address space for the lookup table "
            "(ulimit -v, or vm.overcommit_memory=2): raise the limit or lower record_nr_max",
            kind="no_memory",
        ) from error
    if entries > _HUGE_PAGES_IDS_MAX:
        mapping.madvise(mmap.MADV_NOHUGEPAGE)
    return mapping


class Lookup(LookupTable):
    """The table in memory."""

    __slots__ = ("_table", "live_column", "used")

    def __init__(self, id_max: int, *, seq: int = 0) -> None:
        super().__init__(id_max, width_for(seq))
        self.live: mmap.mmap = _reserve(id_max + 1, id_max + 1)
        self.live_column: NDArray[np.uint8] = np.frombuffer(self.live, np.uint8)
        self.used = bytearray((id_max >> 16) + 1)
        self._allocate(self.width)

    def _allocate(self, width: int) -> None:
        entries = self.id_max + 1
        table = _reserve(entries * width, entries)
        self.width = width
        self._table: NDArray[Any] = np.frombuffer(table, SHAPES[width])
        # One of the two is read by get and set: a view of whole entries, or how to unpack one. A wide
        # entry is stored by one call, so that a reading thread never sees half of it.
        self.view, self.wide = memoryview(b""), None
        if width in _CASTS:
            self.view = memoryview(table).cast(_CASTS[width])  # type: ignore[call-overload]
        else:
            packing, shift = _STRUCTS[width]
            self.wide = (packing.unpack_from, packing.pack_into, table, width, shift)
        self.storing = self.wide

    def widen(self, seq: int) -> None:
        """Make room for entries as large as `seq`. Readers go on with the table that they have."""
        old, width = self._table, width_for(seq)
        chunks = [chunk for chunk, used in enumerate(self.used) if used]
        before = {chunk: wholes(old[chunk << 16 : (chunk + 1) << 16]) for chunk in chunks}
        self._allocate(width)
        for chunk, seqs in before.items():
            self._store(slice(chunk << 16, (chunk << 16) + len(seqs)), seqs)

    def _store(self, where: Ids | slice, seqs: Seqs) -> None:
        if self.wide is None:
            self._table[where] = seqs
            return
        shift = self.wide[4]
        self._table["low"][where] = seqs & np.uint64((1 << shift) - 1)
        self._table["high"][where] = seqs >> np.uint64(shift)

    def seq(self, id: int) -> int:
        if self.wide is None:
            return self.view[id]
        unpack_from, _, table, width, shift = self.wide
        low, high = unpack_from(table, id * width)
        return int(low | high << shift)

    def seqs(self, ids: Ids) -> Seqs:
        return wholes(self._table[ids])

    def living(self, ids: Ids) -> NDArray[np.bool_]:
        alive: NDArray[np.bool_] = self.live_column[ids] != 0
        return alive

    def note_new(self, id: int) -> None:
        self.count += 1
        self.used[id >> 16] = 1
        if self.highest is None or id > self.highest:
            self.highest = id

    def put_many(self, ids: Ids, seqs: Seqs, alive: NDArray[np.bool_], *, distinct: bool = False) -> None:
        if not len(ids):
            return
        if int(seqs[-1]) > self.seq_max:
            self.widen(int(seqs[-1]))
        touched = ids if distinct else np.unique(ids)
        before = int(self.live_column[touched].sum())
        self._store(ids, seqs)
        self.live_column[ids] = alive
        self.count += int(self.live_column[touched].sum()) - before
        for chunk in np.unique(ids >> 16).tolist():
            self.used[chunk] = 1
        top = int(ids.max())
        self.highest = top if self.highest is None else max(top, self.highest)

    def alive(self) -> Iterator[NDArray[np.int64]]:
        for chunk in self.used_chunks():
            start = chunk << 16
            live = self.live_column[start : start + CHUNK_IDS].copy()  # numpy counts, and then looks again
            found = np.flatnonzero(live)
            if len(found):
                yield found + start

    def used_chunks(self) -> list[int]:
        """Which runs of 65,536 ids hold a record."""
        return [chunk for chunk, used in enumerate(self.used) if used]

    def chunk(self, chunk: int) -> tuple[Seqs, NDArray[np.uint8]]:
        """Seqs and live bytes of one run of 65,536 ids."""
        where = slice(chunk << 16, (chunk + 1) << 16)
        return wholes(self._table[where]), self.live_column[where]

    def put_chunk(self, chunk: int, seqs: Seqs, live: NDArray[np.uint8]) -> None:
        """Load one run of 65,536 ids, as `chunk` gave it."""
        start = chunk << 16
        self._store(slice(start, start + len(seqs)), seqs)
        self.count += int(live.sum()) - int(self.live_column[start : start + len(live)].sum())
        self.live_column[start : start + len(live)] = live
        self.used[chunk] = 1

    def put_run(self, start: int, seqs: Seqs) -> None:
        """Load the entries of neighbouring ids."""
        self._store(slice(start, start + len(seqs)), seqs)
        for chunk in range(start >> 16, (start + len(seqs) - 1 >> 16) + 1):
            self.used[chunk] = 1

    def put_live(self, start: int, live: NDArray[np.uint8]) -> None:
        """Load the live bytes of neighbouring ids, of which none was loaded yet."""
        self.live_column[start : start + len(live)] = live
        self.count += int(live.sum(dtype=np.int64))
