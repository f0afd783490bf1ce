"""The indexes of many segments, fetched ahead of their use and kept in a temporary file."""

from __future__ import annotations

import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from compactor.fetch import INDEX_BYTES_MAX, SegmentFetcher
from compactor.path import Step
from compactor.store.base import Etag
from ourdb.files import File, FileSystem
from ourdb.segment.footer import FOOTER_BYTES
from ourdb.segment.reader import TAIL_BYTES, SegmentReader

_READERS_MAX = 8


@dataclass(frozen=True)
class _Kept:
    """The last `length` bytes of an object, at a place in the spool."""

    place: int
    length: int
    etag: Etag


class IndexSpool:
    """The readers of a path's segments. The indexes are fetched a few steps ahead and kept in a temporary
    file, because they are needed three times: to lay out, to copy, and to write the new index. It is about
    8 bytes a record; of segments up to 64 KiB it is all. For several threads; a context manager."""

    def __init__(
        self,
        fetcher: SegmentFetcher,
        steps: Sequence[Step],
        folder: Path,
        pool: ThreadPoolExecutor,
        *,
        ahead: int,
        fs: FileSystem,
    ) -> None:
        self._fetcher, self._steps, self._pool, self._ahead = fetcher, steps, pool, ahead
        self._file = temporary_file(folder, fs)
        self._end = 0
        self._asked = 0  # steps whose index was asked for
        self._fetching: dict[int, Future[_Kept]] = {}
        self._kept: dict[int, _Kept] = {}
        self._readers: OrderedDict[int, SegmentReader] = OrderedDict()
        self._lock = threading.Lock()

    def __enter__(self) -> IndexSpool:
        return self

    def __exit__(self, *_: object) -> None:
        fetching = list(self._fetching.values())
        for future in fetching:
            future.cancel()
        wait(fetching)  # none of them may write once the descriptor can be another file's
        self._file.close()

    def reader(self, number: int) -> SegmentReader:
        """The reader of the segment of a step. Raises NoSuchKey, DamageError."""
        entry = self._steps[number].segment
        with self._lock:
            if number in self._readers:
                self._readers.move_to_end(number)
                return self._readers[number]
        kept = self._find(number)
        length = min(kept.length, TAIL_BYTES)
        tail = self._file.pread(length, kept.place + kept.length - length)
        reader = self._fetcher.open(
            entry, tail=tail, fetch=lambda offset, length: self.read(number, offset, length)
        )
        with self._lock:
            self._readers[number] = reader
            while len(self._readers) > _READERS_MAX:
                self._readers.popitem(last=False)
        return reader

    def read(self, number: int, offset: int, length: int) -> bytes:
        """Bytes of the segment of a step: from the spool as far as it has them, the others by one request.
        Raises NoSuchKey, DamageError."""
        entry, kept = self._steps[number].segment, self._find(number)
        start = entry.bytes - kept.length
        missing = min(max(start - offset, 0), length)
        fetched = self._fetcher.read(entry, offset, missing) if missing else b""
        if missing == length:
            return fetched
        rest = self._file.pread(length - missing, kept.place + offset + missing - start)
        return fetched + rest if missing else rest

    def start(self, number: int) -> int:
        """From which offset on the spool has the bytes of the segment of a step."""
        return self._steps[number].segment.bytes - self._find(number).length

    def etag(self, number: int) -> Etag:
        """Of the object of a step, as its tail was read."""
        return self._find(number).etag

    def _find(self, number: int) -> _Kept:
        with self._lock:
            if number + 1 + self._ahead // 2 > self._asked:  # not one by one: threads wake each other less so
                self._ask(number + 1 + self._ahead)
            if number in self._kept:
                return self._kept[number]
            future = self._fetching[number]
        kept = future.result()
        with self._lock:
            self._kept[number] = kept
            self._fetching.pop(number, None)
        return kept

    def _ask(self, upto: int) -> None:
        for number in range(self._asked, min(upto, len(self._steps))):
            self._fetching[number] = self._pool.submit(self._fetch, self._steps[number])
            self._asked = number + 1

    def _fetch(self, step: Step) -> _Kept:
        entry = step.segment
        tail, _, etag = self._fetcher.read_end(entry)
        wanted = min(max(entry.index_bytes + FOOTER_BYTES, len(tail)), entry.bytes)
        with self._lock:
            place, self._end = self._end, self._end + wanted
        self._file.pwrite(tail, place + wanted - len(tail))
        start = entry.bytes - wanted
        for offset in range(start, entry.bytes - len(tail), INDEX_BYTES_MAX):
            length = min(INDEX_BYTES_MAX, entry.bytes - len(tail) - offset)
            self._file.pwrite(self._fetcher.read(entry, offset, length), place + offset - start)
        return _Kept(place, wanted, etag)


def temporary_file(folder: Path, fs: FileSystem) -> File:
    """A file without a name: it goes with its last descriptor."""

    def create() -> int:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.dup(file.fileno())

    return File(fs, fs.call("create", folder, create), folder)
