"""Pages of the lookup table as its writer has them in memory: mapped, checked when first needed, and marked
when they are about to change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from mmap import mmap

import numpy as np
from numpy.typing import NDArray

from ourdb.directory import Directory
from ourdb.errors import DamageError
from ourdb.files import File
from ourdb.tableformat import (
    BODY_BYTES,
    PAGE_BYTES,
    Layout,
    Pages,
    Rows,
    TableState,
    found_crcs,
    page_crcs,
    set_crcs,
    table_name,
)

_PIECE_PAGES = 1024
_BLANK = bytes(PAGE_BYTES)
_RUN_PAGES = 16  # of a new table: so many get their space at once
CHANGED_PAGES_MAX = 4096  # 16 MiB are held in memory until a sync is due, and redone by an opening


class TableDamage(DamageError):
    """A file of the lookup table is not as it was written: the table has to be built anew. It is a cache, so
    that nothing is lost."""

    def __init__(self, message: str, table: object = None) -> None:
        super().__init__(message)
        self.table = table


def runs_of(numbers: Pages) -> Iterator[tuple[int, int]]:
    """Indexes of the first page of each run of neighbours, and behind its last."""
    if not len(numbers):
        return
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
    starts = [0, *breaks.tolist()]
    yield from zip(starts, [*starts[1:], len(numbers)], strict=True)


class TablePages:
    """known: a byte for each page, 1: it is as it was written, or has been changed since. dirty: 1: it was
    changed since the last sync. Any thread may make a page known; one at a time changes pages."""

    __slots__ = (
        "changed",
        "dirty",
        "dirty_column",
        "known",
        "known_column",
        "layout",
        "mapping",
        "path",
        "rows",
    )

    def __init__(self, file: File, layout: Layout, mapping: mmap) -> None:
        self.path, self.layout, self.mapping = file.path, layout, mapping
        self.rows: Rows = np.frombuffer(mapping, np.uint8).reshape(-1, PAGE_BYTES)
        self.known, self.dirty = bytearray(layout.pages), bytearray(layout.pages)
        self.known_column: NDArray[np.uint8] = np.frombuffer(self.known, np.uint8)
        self.dirty_column: NDArray[np.uint8] = np.frombuffer(self.dirty, np.uint8)
        self.changed = 0  # pages that are dirty

    def check(self, page: int) -> None:
        """Make a page known. TableDamage if it is not as it was written."""
        self.known[page] = 1

    def check_all(self, numbers: Pages) -> None:
        """Make these pages known, which may name one more than once."""
        for page in np.unique(numbers[self.known_column[numbers] == 0]).tolist():
            self.check(page)

    def touch(self, page: int) -> None:
        """A known page is about to change."""
        self.dirty[page] = 1
        self.changed += 1

    def touch_all(self, numbers: Pages) -> None:
        """Known pages, of which one may be named more than once, are about to change."""
        for page in np.unique(numbers[self.dirty_column[numbers] == 0]).tolist():
            self.touch(page)

    def retire(self) -> None:
        """Another table has taken this one's place: whoever wants to change a page of it meets `touch`."""
        self.dirty[:] = bytes(len(self.dirty))

    def there(self, first: int, stop: int) -> list[int]:
        """Which pages of a range may have anything in them."""
        begin = self.layout.first_live
        found = self.dirty_column[first:stop] != 0  # in this order: a sync notes a page, and then cleans it
        found |= self.rows[1:begin, :BODY_BYTES].reshape(-1)[first - begin : stop - begin] != 0
        pages: list[int] = (np.flatnonzero(found) + first).tolist()
        return pages


class NewTable(TablePages):
    """A table that is being built, in a file that no manifest names: what is stored may reach the disk at any
    time, and memory need not hold it. Space is taken before it is stored into."""

    __slots__ = ("_allocated", "_directory", "_file")

    def __init__(self, directory: Directory, layout: Layout, number: int) -> None:
        self._directory = directory
        path = directory.cache / table_name(number)
        directory.fs.unlink(path)
        self._file = directory.fs.open(path, write=True, create=True, exclusive=True)
        self._file.ftruncate(layout.pages * PAGE_BYTES)
        super().__init__(self._file, layout, self._file.map(layout.pages * PAGE_BYTES, write=True))
        self.known[:] = b"\1" * layout.pages
        self._allocated = bytearray(layout.pages // _RUN_PAGES + 1)

    def touch(self, page: int) -> None:
        run = page // _RUN_PAGES
        if not self._allocated[run]:
            first = run * _RUN_PAGES
            count = min(_RUN_PAGES, self.layout.pages - first)
            self._file.fallocate(first * PAGE_BYTES, count * PAGE_BYTES)
            self._allocated[run] = 1
        super().touch(page)

    def finish(self, state: TableState) -> None:
        """Header, map and checksums; the file and its name are durable when this returns."""
        layout = self.layout
        written = np.flatnonzero(self.dirty_column)
        for page in range(layout.first_live):
            self.touch(page)
        header = state.encode_header()
        self.rows[0, : len(header)] = np.frombuffer(header, np.uint8)
        mark_written(self.rows, layout, written)
        numbers = np.flatnonzero(self.dirty_column)
        for begin, stop in runs_of(numbers):
            first, end = int(numbers[begin]), int(numbers[stop - 1]) + 1
            for start in range(first, end, _PIECE_PAGES):
                some = np.arange(start, min(start + _PIECE_PAGES, end))
                set_crcs(self.rows[start : start + len(some)], some, state.key)
        self._file.fdatasync()
        self._file.close()
        self._directory.fs.sync_directory(self._directory.cache)

    def discard(self) -> None:
        """It will not be finished."""
        self._file.close()
        self._directory.fs.unlink(self._file.path)


def mark_written(rows: Rows, layout: Layout, numbers: Pages) -> Pages:
    """Note in the map that these pages of live bytes and slots were written; returns the pages of the map
    that this changes."""
    at = numbers[numbers >= layout.first_live] - layout.first_live
    page, place = 1 + at // BODY_BYTES, at % BODY_BYTES
    new = rows[page, place] == 0
    rows[page[new], place[new]] = 1
    return np.unique(page[new])


class CheckedPages(TablePages):
    """Pages of a file that a manifest names, privately mapped: what is stored stays in this process, in
    copies that the kernel makes of each page, until a sync has written them."""

    __slots__ = ("_key", "crowded")

    def __init__(self, file: File, state: TableState) -> None:
        layout = state.layout
        self.crowded: Callable[[], None] = lambda: None  # called when memory has no room for more changes
        super().__init__(file, layout, file.map_private(layout.pages * PAGE_BYTES))
        self._key = state.key
        for page in range(layout.first_live):
            self._check_written(page)

    def check(self, page: int) -> None:
        at = page - self.layout.first_live
        if self.rows[1 + at // BODY_BYTES, at % BODY_BYTES]:
            self._check_written(page)
        elif self._copy(page) != _BLANK and not self.known[page]:
            raise TableDamage(f"page {page} of {self.path.name} was never written, and is not blank", self)
        else:
            self.known[page] = 1

    def touch(self, page: int) -> None:
        super().touch(page)
        if self.changed > CHANGED_PAGES_MAX:
            self.crowded()

    def _check_written(self, page: int) -> None:
        row = np.frombuffer(self._copy(page), np.uint8).reshape(1, PAGE_BYTES)
        crc = page_crcs(row, np.array([page]), self._key)
        # Another thread may have checked it meanwhile, and changed it since.
        if crc[0] != found_crcs(row)[0] and not self.known[page]:
            raise TableDamage(f"checksum of page {page} of {self.path.name} does not match", self)
        self.known[page] = 1

    def _copy(self, page: int) -> bytes:
        """In one step, as other threads see it."""
        return self.mapping[page * PAGE_BYTES : (page + 1) * PAGE_BYTES]
