"""A sealed data file: a segment whose blocks are raw, mapped when it is first read."""

# ruff: noqa: A002  (an id is called id)

from __future__ import annotations

import os
from collections.abc import Iterator
from mmap import mmap

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from ourdb.directory import Directory, FileEntry
from ourdb.errors import DamageError, StorageError
from ourdb.files import File
from ourdb.recovery import Places
from ourdb.segment.columns import Columns
from ourdb.segment.header import HEADER_BYTES
from ourdb.segment.index import Array
from ourdb.segment.reader import SegmentReader
from ourdb.segment.source import Fetch
from ourdb.segment.summary import Summary

Seqs = NDArray[np.uint64]
Opened = tuple[mmap, "memoryview[int]", Seqs | None]


def open_segment(directory: Directory, entry: FileEntry, uuid: bytes) -> tuple[File, SegmentReader]:
    """The file and a reader of it. FileNotFoundError if it is gone; DamageError if it is not what the list
    of files says."""
    path = directory.data_path(entry)
    file = directory.fs.open(path)
    try:
        size = file.size()
        if size < entry.bytes:
            raise DamageError(
                f"{path} has {size} bytes, not {entry.bytes}: it was cut off", file=entry.name, offset=size
            )
        reader = _reader(entry, uuid, lambda offset, length: file.pread(length, offset))
    except BaseException:
        file.close()
        raise
    return file, reader


def visit_segment(directory: Directory, entry: FileEntry, uuid: bytes) -> SegmentReader:
    """As open_segment, but the file is opened for each read: a process may have fewer descriptors than a
    database has files. For the writer, whose files do not go away under it."""

    def fetch(offset: int, length: int) -> bytes:
        with directory.fs.open(directory.data_path(entry)) as file:
            return file.pread(length, offset)

    file, _ = open_segment(directory, entry, uuid)
    file.close()
    return _reader(entry, uuid, fetch)


def _reader(entry: FileEntry, uuid: bytes, fetch: Fetch) -> SegmentReader:
    # Behind the footer lies preallocated space if the machine died between commit and cut.
    reader = SegmentReader(entry.bytes, fetch, expect_uuid=uuid, where=entry.name)
    check_reader(reader, entry)
    return reader


def check_reader(reader: SegmentReader, entry: FileEntry) -> None:
    summary = reader.summary
    found = (reader.footer.random, summary.first_seq, summary.last_seq, summary.records)
    if found != (entry.file_id, entry.first_seq, entry.last_seq, entry.records):
        raise DamageError(
            f"{entry.name} is not the file that the list of files names: its footer says seq "
            f"{summary.first_seq} to {summary.last_seq}, id {reader.footer.random:016x}",
            file=entry.name,
            offset=entry.bytes,
            seq=entry.first_seq,
        )


class SealedFile:
    """Reads of one sealed file. `opened`: its mapping, the place of each record, and, if records were
    dropped, their seqs; None while it is not mapped. Any thread; `open` under the database's lock."""

    __slots__ = ("_directory", "_summary", "_uuid", "entry", "first_seq", "opened")

    def __init__(self, directory: Directory, entry: FileEntry, uuid: bytes) -> None:
        self._directory, self._uuid = directory, uuid
        self.entry, self.first_seq = entry, entry.first_seq
        self.opened: Opened | None = None
        self._summary: Summary | None = None

    @property
    def summary(self) -> Summary:
        """Exact runs, times and chains, from the footer; read once."""
        if self._summary is None:
            file, reader = open_segment(self._directory, self.entry, self._uuid)
            file.close()
            self._summary = reader.summary
        return self._summary

    def arrays(self, *names: str) -> Iterator[tuple[Array, ...]]:
        """Columns of the index, page by page."""
        file, reader = open_segment(self._directory, self.entry, self._uuid)
        with file:
            yield from reader.arrays(*names)

    def columns(self, first_seq: int = 1) -> Iterator[Columns]:
        """All columns, page by page, of pages that reach `first_seq`."""
        file, reader = open_segment(self._directory, self.entry, self._uuid)
        with file:
            for number in reader.find_pages(first_seq=first_seq):
                yield reader.page(number).columns()

    def find_ids(self, id: int, before_seq: int) -> int:
        """The newest seq below `before_seq` of a record of this id, 0 if there is none."""
        file, reader = open_segment(self._directory, self.entry, self._uuid)
        with file:
            for number in reversed(reader.find_pages(last_seq=before_seq - 1, id=id)):
                page = reader.page(number)
                page.load("id", "seq")
                seqs = page.column("seq")[page.column("id") == id]
                below = seqs[seqs < before_seq]
                if len(below):
                    return int(below[-1])
        return 0

    def open(self, *, rebuild: bool = False) -> Opened:
        """Map the file and its places. `rebuild`: do not trust the cached places."""
        if rebuild or self.opened is None:
            with self._directory.fs.open(self._directory.data_path(self.entry)) as file:
                if file.size() < self.entry.bytes:
                    raise DamageError(
                        f"{self.entry.name} was cut off", file=self.entry.name, offset=file.size()
                    )
                mapping = file.map(self.entry.bytes)
            places = None if rebuild else self._cached_places()
            self.opened = (mapping, *(places or self._build_places()))
        return self.opened

    def _cached_places(self) -> tuple[memoryview[int], Seqs | None] | None:
        """From the cache, unless it has not the right size. Whether a place is right a read will show; a
        wrong seq would only look like a record that was dropped, and so seqs have a checksum."""
        count, dense = self.entry.records, self.entry.dense
        size = 4 * count if dense else 12 * count + 4
        try:
            with self._directory.fs.open(self._directory.places_path(self.entry)) as file:
                if file.size() != size:
                    return None
                view = memoryview(file.map(size))
        except FileNotFoundError:
            return None
        if not dense and crc32c(view[:-4]) != int.from_bytes(view[-4:], "little"):
            return None
        seqs = None if dense else np.frombuffer(view, "<u8", count, 4 * count)
        return view[: 4 * count].cast("I"), seqs

    def _build_places(self) -> tuple[memoryview[int], Seqs | None]:
        lengths, seqs = zip(*self.arrays("length", "seq"), strict=True)
        sizes = np.concatenate(lengths).astype(np.int64) + 36
        places: Places = (np.cumsum(sizes) - sizes + HEADER_BYTES).astype(np.uint32)
        sparse = None if self.entry.dense else np.concatenate(seqs).astype("<u8")
        if self._directory.cache.is_dir():
            body = places.tobytes() + (b"" if sparse is None else sparse.tobytes())
            self._keep(body if sparse is None else body + crc32c(body).to_bytes(4, "little"))
        return memoryview(places.tobytes()).cast("I"), sparse

    def _keep(self, body: bytes) -> None:
        """Into the cache, if that is possible: a reader may have no right to write there."""
        path = self._directory.places_path(self.entry)
        beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            with self._directory.fs.open(beside, write=True, create=True) as file:
                file.ftruncate(0)
                file.pwrite(body, 0)
            self._directory.fs.rename(beside, path)
        except (StorageError, FileNotFoundError):
            return

    def place(self, seq: int) -> tuple[mmap, int] | None:
        """The mapping and where the record of a seq begins, None if it was dropped. ValueError if the file is
        not mapped: whoever maps it has to see to it that it is let go again."""
        if self.opened is None:
            raise ValueError(f"{self.entry.name} is not mapped")
        mapping, places, seqs = self.opened
        if seqs is None:
            return mapping, places[seq - self.first_seq]
        at = int(np.searchsorted(seqs, np.uint64(seq)))
        return (mapping, places[at]) if at < len(seqs) and int(seqs[at]) == seq else None
