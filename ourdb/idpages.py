"""Entries of ids in the pages of a lookup table: which page and where in it, one by one and by the column."""

# ruff: noqa: A002  (an id is called id)

from __future__ import annotations

from collections.abc import Callable, Iterator
from struct import Struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ourdb.lookup import SHAPES, Ids, Seqs, Wide, wholes
from ourdb.tableformat import BODY_BYTES, PAGE_BYTES, Pages
from ourdb.tablepages import TableDamage, TablePages

_PAGE_SHIFT = 12
_PARTS = {2: (Struct("<BB"), 8), 3: (Struct("<HB"), 16), 4: (Struct("<HH"), 16), 6: (Struct("<IH"), 32)}
_PIECE_PAGES = 256


class IdPages:
    """The ids of one table. `mend` is called with a TableDamage, and returns the table that takes this one's
    place: whatever was asked is asked of that one.

    A thread may go on with a table that another has replaced: it reads what held at that moment.
    """

    __slots__ = (
        "_first_live",
        "_first_slot",
        "_live_rows",
        "_mend",
        "_slot_rows",
        "following",
        "pages",
        "wide",
    )

    def __init__(self, pages: TablePages, mend: Callable[[TableDamage], IdPages]) -> None:
        self.pages, self._mend = pages, mend
        self.following: IdPages | None = None
        layout = pages.layout
        self._first_live, self._first_slot = layout.first_live, layout.first_slot
        self._live_rows = pages.rows[:, :BODY_BYTES]
        width, count = layout.width, layout.slots_a_page
        self._slot_rows: NDArray[Any] = np.ndarray(
            (layout.pages, count), SHAPES[width], pages.mapping, 0, (PAGE_BYTES, width)
        )
        self.wide: Wide = (self._loader(), self._storer(), None, 1, _PARTS[width][1])

    # -- one id -----------------------------------------------------------------------------------

    def _loader(self) -> Callable[[None, int], tuple[int, int]]:
        """Reads the two parts of an entry; called as an unpack_from whose place is the id."""
        known, mapping = self.pages.known, self.pages.mapping
        per_page, first, width = self.pages.layout.slots_a_page, self._first_slot, self.pages.layout.width
        unpack = _PARTS[width][0].unpack_from

        def load(_: None, id: int) -> Any:
            page, slot = divmod(id, per_page)
            page += first
            if not known[page] and (other := self.check(page)) is not self:
                return other.wide[0](None, id)
            return unpack(mapping, (page << _PAGE_SHIFT) + slot * width)

        return load

    def _storer(self) -> Callable[[None, int, int, int], None]:
        dirty, mapping, touch = self.pages.dirty, self.pages.mapping, self.pages.touch
        per_page, first, width = self.pages.layout.slots_a_page, self._first_slot, self.pages.layout.width
        pack = _PARTS[width][0].pack_into

        def store(_: None, id: int, low: int, high: int) -> None:
            page, slot = divmod(id, per_page)
            page += first
            if not dirty[page]:
                if self.following is not None:
                    self.following.wide[1](None, id, low, high)
                    return
                touch(page)
            pack(mapping, (page << _PAGE_SHIFT) + slot * width, low, high)

        return store

    def storing(self) -> Wide:
        """As `wide`, for a write: what is read first is all that the write will need, so that nothing can go
        wrong between."""
        load, store, _, one, shift = self.wide
        known, per_page = self.pages.known, self.pages.layout.slots_a_page
        first_live, first_slot = self._first_live, self._first_slot

        def prepare(_: None, id: int) -> Any:
            if known[first_live + id // BODY_BYTES] and known[first_slot + id // per_page]:
                return load(None, id)
            now = self.check_all(np.array([first_live + id // BODY_BYTES, first_slot + id // per_page]))
            return now.wide[0](None, id)

        return (prepare, store, None, one, shift)

    def check(self, page: int) -> IdPages:
        """Make a page known. Returns the table to ask, which is another one if this is damaged."""
        try:
            self.pages.check(page)
        except TableDamage as damage:
            return self._mend(damage)
        return self

    def check_all(self, pages: Pages) -> IdPages:
        try:
            self.pages.check_all(pages)
        except TableDamage as damage:
            return self._mend(damage)
        return self

    def replace(self, other: IdPages) -> None:
        """Another table has taken this one's place."""
        self.following = other
        self.pages.retire()

    # -- many -------------------------------------------------------------------------------------

    def _slots(self, ids: Ids) -> tuple[Pages, Pages]:
        page, slot = np.divmod(ids.astype(np.int64), self.pages.layout.slots_a_page)
        return page + self._first_slot, slot

    def _lives(self, ids: Ids) -> tuple[Pages, Pages]:
        page, place = np.divmod(ids.astype(np.int64), BODY_BYTES)
        return page + self._first_live, place

    def seqs(self, ids: Ids) -> Seqs:
        page, slot = self._slots(ids)
        other = self.check_all(page)
        return wholes(self._slot_rows[page, slot]) if other is self else other.seqs(ids)

    def living(self, ids: Ids) -> NDArray[np.bool_]:
        page, place = self._lives(ids)
        other = self.check_all(page)
        return self._live_rows[page, place] != 0 if other is self else other.living(ids)

    def reach(self, ids: Ids) -> IdPages:
        """Make known what a write of these ids needs; returns the table to write to."""
        other = self.check_all(np.append(self._slots(ids)[0], self._lives(ids)[0]))
        return self if other is self else other.reach(ids)

    def put(self, ids: Ids, seqs: Seqs, alive: NDArray[np.bool_]) -> None:
        """Write entries whose pages are known; of an id that stands there twice the last one wins."""
        page, slot = self._slots(ids)
        self.pages.touch_all(page)
        shift = self.wide[4]
        if self._slot_rows.dtype.names is None:
            self._slot_rows[page, slot] = seqs
        else:
            self._slot_rows["low"][page, slot] = seqs & np.uint64((1 << shift) - 1)
            self._slot_rows["high"][page, slot] = seqs >> np.uint64(shift)
        page, place = self._lives(ids)
        self.pages.touch_all(page)
        self._live_rows[page, place] = alive

    def alive(self, start: int = 0) -> Iterator[NDArray[np.int64]]:
        """The ids from `start` on that have a value, ascending, some at a time."""
        for page in self.pages.there(self._first_live + start // BODY_BYTES, self._first_slot):
            first = (page - self._first_live) * BODY_BYTES
            other = self if self.pages.known[page] else self.check(page)
            if other is not self:
                yield from other.alive(max(start, first))
                return
            found = np.flatnonzero(self._live_rows[page].copy())  # numpy counts, and then looks again
            if len(found):
                yield found + first

    def entries(self) -> Iterator[tuple[NDArray[np.int64], Seqs]]:
        """Ids and seqs of all that were ever written, ascending, some at a time. TableDamage."""
        pages = self.pages
        there = np.array(pages.there(self._first_slot, pages.layout.pages), np.int64)
        for at in range(0, len(there), _PIECE_PAGES):
            numbers = there[at : at + _PIECE_PAGES]
            pages.check_all(numbers)
            seqs = wholes(self._slot_rows[numbers])
            row, slot = np.nonzero(seqs)
            yield (numbers[row] - self._first_slot) * pages.layout.slots_a_page + slot, seqs[row, slot]


class Live:
    """One byte for each id: 1 if it has a value. As the memory table's mapping, whose place it takes."""

    __slots__ = ("_dirty", "_first", "_id_max", "_ids", "_known", "_mapping")

    def __init__(self, ids: IdPages) -> None:
        self._ids = ids
        pages = ids.pages
        self._known, self._dirty, self._mapping = pages.known, pages.dirty, pages.mapping
        self._first, self._id_max = pages.layout.first_live, pages.layout.id_max

    def __getitem__(self, id: int) -> int:
        if id > self._id_max:
            raise IndexError(id)
        page, place = divmod(id, BODY_BYTES)
        page += self._first
        if not self._known[page] and (other := self._ids.check(page)) is not self._ids:
            return Live(other)[id]
        return self._mapping[(page << _PAGE_SHIFT) + place]

    def __setitem__(self, id: int, value: int) -> None:
        """Of an id that a `prepare` has seen."""
        page, place = divmod(id, BODY_BYTES)
        page += self._first
        if not self._dirty[page]:
            self._ids.pages.touch(page)
        self._mapping[(page << _PAGE_SHIFT) + place] = value
