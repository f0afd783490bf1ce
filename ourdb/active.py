"""The active file: preallocated in steps, and appended to by copies into a mapping.

Beside it lies its column of places (u32 for each record), a cache that is mapped and preallocated with
it, so that neither of the two can meet a full disk between two steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from mmap import mmap

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from ourdb.directory import Directory, FileEntry
from ourdb.files import File
from ourdb.record import Buffer
from ourdb.recovery import Places, pieces_at
from ourdb.segment.block import BlockTable, cut_blocks
from ourdb.segment.columns import Columns
from ourdb.segment.header import HEADER_BYTES, Header
from ourdb.segment.summary import Summary, unmerged_summary
from ourdb.segment.writer import FooterPlan, IndexBuilder
from ourdb.units import MIB

STEP_BYTES_MIN, STEP_BYTES_MAX = 1 * MIB, 64 * MIB
ENDING_BYTES = 3 << 10  # directory of pages, runs and footer of a file when it is sealed ...
ENDING_BYTES_A_RECORD = 16  # ... and what a record adds to the index at most
RECORD_BYTES_MIN = 36


def area_end(file_size: int, records: int) -> int:
    """Where the record area has to end so that a sealed file of this many records keeps to `file_size`."""
    return file_size - ENDING_BYTES - ENDING_BYTES_A_RECORD * records


class ActiveFile:
    """map: the file as far as it is allocated, `size` bytes. places: a slot for each record that fits."""

    __slots__ = ("_file_size", "entry", "file", "map", "places", "places_file", "size")

    def __init__(self, directory: Directory, entry: FileEntry, file_size: int) -> None:
        self.entry, self._file_size = entry, file_size
        fs = directory.fs
        self.file: File = fs.open(directory.data_path(entry), write=True)
        fs.make_directory(directory.cache)
        self.places_file: File = fs.open(directory.places_path(entry), write=True, create=True)
        self.size = 0
        self._allocate(max(self.file.size(), min(STEP_BYTES_MIN, file_size)))

    @classmethod
    def create(cls, directory: Directory, header: Header) -> ActiveFile:
        """A new, empty file whose header and directory entry are durable. It counts when the list names
        it."""
        entry = FileEntry(nr=header.file_nr, file_id=header.file_id, first_seq=header.first_seq)
        path = directory.data_path(entry)
        with directory.fs.open(path, write=True, create=True, exclusive=True) as file:
            try:
                file.fallocate(0, min(STEP_BYTES_MIN, header.config.file_size))
                file.pwrite(header.encode(), 0)
                file.fsync()
                directory.fs.sync_directory(directory.path)
                return cls(directory, entry, header.config.file_size)
            except BaseException:
                directory.fs.unlink(path)
                raise

    def grow(self, end: int) -> None:
        """Allocate up to `end` at least, in steps that double from 1 MiB to 64 MiB. StorageError
        (`disk_full`) if there is no space: nothing has changed then."""
        step = min(max(self.size, STEP_BYTES_MIN), STEP_BYTES_MAX)
        self._allocate(max(end, min(self.size + step, self._file_size)))

    def _allocate(self, size: int) -> None:
        places_bytes = 4 * (size // RECORD_BYTES_MIN + 1)
        self.file.fallocate(0, size)
        self.places_file.fallocate(0, places_bytes)
        places = memoryview(self.places_file.map(places_bytes, write=True)).cast("I")
        self.map: mmap = self.file.map(size, write=True)
        self.places: memoryview[int] = places
        self.size = size

    def place_column(self, records: int) -> Places:
        """The places of the first `records` records, as an array over the mapping."""
        column: Places = np.frombuffer(self.places, np.uint32, records)
        return column

    def columns(self, records: int) -> Iterator[Columns]:
        return pieces_at(self.map, self.place_column(records))

    def close(self) -> None:
        self.file.close()
        self.places_file.close()


def raw_blocks(buf: mmap | memoryview, columns: Columns, start: int) -> BlockTable:
    """The table of the blocks that these records make, as they lie in `buf` from `start` on."""
    counts = cut_blocks(columns.length)
    ends = np.cumsum(columns.raw_sizes)[np.cumsum(counts, dtype=np.int64) - 1]
    sizes = np.diff(ends, prepend=0)
    view = memoryview(buf)
    crcs = [crc32c(view[start + end - size : start + end]) for end, size in _pairs(ends, sizes)]
    return BlockTable.raw(counts, sizes, crcs)


def _pairs(ends: NDArray[np.int64], sizes: NDArray[np.int64]) -> list[tuple[int, int]]:
    return list(zip(ends.tolist(), sizes.tolist(), strict=True))


def summarize(active: ActiveFile, records: int, chain_before: int, highest_before: int | None) -> Summary:
    return unmerged_summary(active.columns(records), chain_before, highest_before)


def write_ending(active: ActiveFile, header: bytes, summary: Summary, end: int) -> int:
    """Append index and footer behind the record area, which ends at `end`; returns the size of the file.

    Nothing is durable yet, and nothing says that the file is sealed.
    """
    place = end

    def write(piece: Buffer) -> None:
        nonlocal place
        active.file.pwrite(memoryview(piece), place)
        place += len(piece)

    decoded = Header.decode(header)
    plan = FooterPlan(summary=summary, generation=decoded.generation, made=0, random=decoded.file_id)
    builder = IndexBuilder(header, plan, write)
    start = HEADER_BYTES
    for columns in active.columns(summary.records):
        builder.add(columns, raw_blocks(active.map, columns, start))
        start += int(columns.raw_sizes.sum())
    builder.finish()
    return place
