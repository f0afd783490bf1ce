"""Where the bytes of a segment come from, and how errors say which file or object it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ourdb.errors import DamageError
from ourdb.record import Buffer

Fetch = Callable[[int, int], Buffer]


class Source:
    """`size` bytes that fetch(offset, length) reads, the last ones of which may be here already (`tail`)."""

    def __init__(self, size: int, fetch: Fetch, *, where: str | None, in_store: bool) -> None:
        self.size = size
        self.tail: Buffer = b""
        self._fetch = fetch
        self._where = where
        self._in_store = in_store

    def read(self, offset: int, length: int) -> Buffer:
        """Exactly these bytes, or DamageError: cut off."""
        tail_start = self.size - len(self.tail)
        if offset >= tail_start:
            found: Buffer = memoryview(self.tail)[offset - tail_start :][:length]
        else:
            found = self._fetch(offset, length)
        if len(found) != length:
            raise DamageError(f"cut off: {len(found)} of {length} bytes at {offset}", offset=offset)
        return found

    @contextmanager
    def located(self) -> Iterator[None]:
        """Adds to a DamageError which file or object it is, unless it says so already."""
        try:
            yield
        except DamageError as error:
            field = "key" if self._in_store else "file"
            if self._where is not None and field not in error.fields:
                error.fields[field] = self._where
                error.message = f"{error.message}: {self._where}"
            if self._in_store and error.kind == DamageError.default_kind:
                error.kind = "store_damaged"
            raise
