"""The indexes along a path while values are looked up: fetched ahead of their use, and what was used lately
stays in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from compactor.entries import SegmentEntry
from compactor.fetch import SegmentFetcher
from ourdb.segment.page import BLOCK_COLUMNS, Page
from ourdb.segment.reader import SegmentReader
from ourdb.units import MIB

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
T = TypeVar("T")
L = TypeVar("L")

READERS_BYTES_MAX = 64 * MIB  # of tails and directories in memory
PAGES_BYTES_MAX = 64 * MIB  # of decoded columns
FINDING = ("id", "seq", "flags", "time")  # columns that tell which records are meant
READING = ("length", *BLOCK_COLUMNS)  # and where they lie
_OBJECT_BYTES = 1500  # that a reader or page needs besides
_RECORD_BYTES = 40  # of all columns together


class RecentlyUsed(Generic[K, V]):
    """Values that were used lately, of together at most `bytes_max`. For several threads."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max, self._bytes = bytes_max, 0
        self._found: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        with self._lock:
            if key not in self._found:
                return None
            self._found.move_to_end(key)
            return self._found[key][0]

    def put(self, key: K, value: V, size: int) -> None:
        """size: bytes that it takes."""
        with self._lock:
            _, before = self._found.pop(key, (None, 0))
            self._found[key] = value, size
            self._bytes += size - before
            while self._bytes > self._bytes_max and len(self._found) > 1:
                _, (_, freed) = self._found.popitem(last=False)
                self._bytes -= freed

    def clear(self) -> None:
        with self._lock:
            self._found.clear()
            self._bytes = 0


class Indexes:
    """Readers of segments and pages of their indexes, asked for as futures: what is in memory is there at
    once. Whatever is fetched may raise NoSuchKey and DamageError (with `key`). For several threads."""

    def __init__(self, fetcher: SegmentFetcher, pool: ThreadPoolExecutor) -> None:
        self._fetcher, self._pool = fetcher, pool
        self._readers: RecentlyUsed[str, SegmentReader] = RecentlyUsed(READERS_BYTES_MAX)
        self._pages: RecentlyUsed[tuple[str, int], Page] = RecentlyUsed(PAGES_BYTES_MAX)

    def reader(self, entry: SegmentEntry) -> Future[SegmentReader]:
        """Of a segment: one read of its tail."""
        reader = self._readers.get(entry.key)
        return self._pool.submit(self._open, entry) if reader is None else _done(reader)

    def page(self, entry: SegmentEntry, reader: SegmentReader, number: int, *columns: str) -> Future[Page]:
        """A page with these columns: nothing is read where the tail has them, else one range for them."""
        page = self._pages.get((entry.key, number))
        if page is not None and page.has(*columns):
            return _done(page)
        return self._pool.submit(self._load, entry, reader, number, columns)

    def forget(self) -> None:
        """Nothing of what was read stays."""
        self._readers.clear()
        self._pages.clear()

    def _open(self, entry: SegmentEntry) -> SegmentReader:
        reader = self._fetcher.open(entry)
        self._readers.put(entry.key, reader, min(entry.bytes, max(entry.index_bytes, _OBJECT_BYTES)) * 2)
        return reader

    def _load(
        self, entry: SegmentEntry, reader: SegmentReader, number: int, columns: tuple[str, ...]
    ) -> Page:
        page = self._pages.get((entry.key, number)) or reader.page(number)
        page.load(*columns)
        self._pages.put((entry.key, number), page, _OBJECT_BYTES + _RECORD_BYTES * len(page))
        return page


Asked = tuple[L, int, Callable[[], Future[T]]]  # a label, bytes that the answer takes, how to ask for it


def ahead(
    asked: Iterable[Asked[L, T]], *, count: int, bytes_max: int, wary: bool = False
) -> Iterator[tuple[L, T]]:
    """The answers in order, each with its label, while up to `count` more are on their way, of together at
    most `bytes_max` (or one that is larger). wary: at first none, and with each answer one more, for whoever
    may need no other. Who stops early cancels what has not begun."""
    running: deque[tuple[L, int, Future[T]]] = deque()
    in_flight, allowed = 0, 0 if wary else count
    try:
        for label, size, ask in asked:
            while running and (len(running) > allowed or in_flight + size > bytes_max):
                done, freed, future = running.popleft()
                yield done, future.result()
                in_flight, allowed = in_flight - freed, min(allowed + 1, count)
            running.append((label, size, ask()))
            in_flight += size
        while running:
            done, _, future = running.popleft()
            yield done, future.result()
    finally:
        for _, _, future in running:
            future.cancel()


def _done(value: T) -> Future[T]:
    future: Future[T] = Future()
    future.set_result(value)
    return future
