"""Indexes of segments, kept as files so that the next reader of a store asks for values alone.

Segments never change, so neither does what is kept of them. Nothing here has to be believed: every byte is
covered by the checksums of the segment's own format, whoever finds one wrong calls `drop` and fetches anew.
So files are not synced; one that a power cut left half is found like any other damage.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from compactor.entries import SegmentEntry
from compactor.fetch import INDEX_BYTES_MAX, SegmentFetcher
from compactor.store import Store
from ourdb.segment.footer import FOOTER_BYTES
from ourdb.segment.reader import TAIL_BYTES
from ourdb.units import MIB

CACHE_BYTES_MAX = 512 * MIB
_TAIL = "tail"
_TEMPORARY = ".tmp"
_STALE_NS = 3600 * 10**9


class IndexCache:
    """The files `{generation}/{segment's name}.{piece}` of a folder, at most about `bytes_max` bytes: those
    go first that were not used for longest. For many threads and processes: a file appears whole under
    its name or not at all, and may go at any time. folder: made when it is first needed; None, or one that
    cannot be written: nothing is kept."""

    def __init__(self, folder: Path | None, *, bytes_max: int = CACHE_BYTES_MAX) -> None:
        self.folder, self._bytes_max = folder, bytes_max
        self._untrimmed = 0  # bytes written since `trim`
        self._lock = threading.Lock()

    def get(self, entry: SegmentEntry, piece: str, length: int) -> bytes | None:
        """What was kept under this name, None if there is nothing of this length (any more)."""
        if self.folder is None:
            return None
        path = self._path(self.folder, entry, piece)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        with suppress(OSError):
            os.utime(path)  # it was used now
        return data if len(data) == length else None

    def put(self, entry: SegmentEntry, piece: str, data: bytes) -> None:
        """Keeps it, if that is possible."""
        if self.folder is None or len(data) > self._bytes_max:
            return
        path = self._path(self.folder, entry, piece)
        with suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write_whole(path, data)
            with self._lock:
                self._untrimmed += len(data)
                full = self._untrimmed > self._bytes_max // 8
            if full:
                self.trim()

    def drop(self, entry: SegmentEntry) -> bool:
        """Lets go of all that is kept of a segment; returns whether there was something."""
        dropped = False
        for path, _ in self._files(entry.generation):
            if path.name.startswith(entry.file_name):
                with suppress(OSError):
                    path.unlink()
                    dropped = True
        return dropped

    def trim(self) -> None:
        """Removes what was not used for longest, until the rest is small enough, and what killed processes
        left."""
        with self._lock:
            if not self._untrimmed:
                return
            self._untrimmed = 0
        found = [(stat.st_mtime_ns, stat.st_size, path) for path, stat in self._files("*")]
        excess = sum(size for _, size, _ in found) - self._bytes_max
        stale = time.time_ns() - _STALE_NS
        for used, size, path in sorted(found):
            if excess > 0 or (path.suffix == _TEMPORARY and used < stale):
                excess -= size
                with suppress(OSError):
                    path.unlink()

    def _files(self, generation: str) -> Iterator[tuple[Path, os.stat_result]]:
        if self.folder is not None:
            for path in self.folder.glob(f"{generation}/*"):
                with suppress(OSError):
                    yield path, path.stat()

    def _path(self, folder: Path, entry: SegmentEntry, piece: str) -> Path:
        return folder / entry.generation / f"{entry.file_name}.{piece}"


def _write_whole(path: Path, data: bytes) -> None:
    """A reader sees all of it or nothing."""
    handle, name = tempfile.mkstemp(suffix=_TEMPORARY, dir=path.parent)
    try:
        with open(handle, "wb") as file:
            file.write(data)
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


class CachedFetcher(SegmentFetcher):
    """Fetches segments, each piece of an index only if the cache has it not. Blocks are not kept, but for
    those of a segment that comes whole with its tail."""

    def __init__(
        self, store: Store, uuid: str, cache: IndexCache, on_bytes: Callable[[int], None] | None = None
    ) -> None:
        super().__init__(store, uuid, on_bytes)
        self._cache = cache

    def read_tail(self, entry: SegmentEntry) -> bytes:
        """As of a SegmentFetcher; from the cache without blocks, unless the segment is a small one."""
        length = _kept_bytes(entry)
        kept = self._cache.get(entry, _TAIL, length)
        if kept is not None:
            return kept
        tail = super().read_tail(entry)
        self._cache.put(entry, _TAIL, tail[-length:])
        return tail

    def read(self, entry: SegmentEntry, offset: int, length: int) -> bytes:
        if offset < entry.bytes - FOOTER_BYTES - entry.index_bytes:
            return super().read(entry, offset, length)
        piece = f"{offset:x}-{length:x}"
        kept = self._cache.get(entry, piece, length)
        if kept is None:
            kept = super().read(entry, offset, length)
            self._cache.put(entry, piece, kept)
        return kept


def _kept_bytes(entry: SegmentEntry) -> int:
    """How many of a segment's last bytes are kept as one piece, of those that a tail read gets."""
    if entry.bytes <= TAIL_BYTES:
        return entry.bytes
    with_index = entry.index_bytes + FOOTER_BYTES
    return with_index if with_index <= INDEX_BYTES_MAX else TAIL_BYTES
