"""The active file as a backup reads it: followed with pread, its places and chain in memory (4 bytes a
record). It stays readable through this handle when it is sealed, and when condensing removes it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from ourdb.config import Config
from ourdb.directory import Directory, FileEntry, FileList
from ourdb.errors import DamageError, UnknownFormatError
from ourdb.files import File
from ourdb.record import BATCH_GOES_ON, Buffer, gather_headers
from ourdb.recovery import PIECE_RECORDS, Point, check_header, follow_file, skim_file, usable_places
from ourdb.segment.block import cut_blocks, verify_records
from ourdb.segment.columns import Columns, columns_of
from ourdb.segment.header import HEADER_BYTES
from ourdb.segment.summary import Run, Summary

_READ_BYTES = 1 << 20
_PLACES_BYTES_MAX = 64 << 20  # 16 million records: more are read one by one


class LogTail:
    """end: behind the last whole batch that was read. chain, highest: there. Reading blocks is safe in any
    thread."""

    def __init__(
        self, file: File, entry: FileEntry, before: Summary | None, config: Config, start: Point
    ) -> None:
        self.file, self.entry, self.end = file, entry, start
        self._config = config
        self._chain_before = (before.chain_after or 0) if before else 0
        self._highest_before = before.highest_id if before else None
        self.chain, self.highest = self._chain_before, self._highest_before
        self._places: list[NDArray[np.uint32]] = []
        self._place_column: NDArray[np.uint32] = np.empty(0, np.uint32)

    def close(self) -> None:
        self.file.close()

    def follow(self) -> None:
        """Read what was appended since, checking each byte."""
        for columns, places, end in follow_file(self.file, self.end, self._config):
            self._take(columns, places, end)

    def skim(self, places: NDArray[np.int64]) -> None:
        """Take over records by their headers alone; their values are compared when they are shipped."""
        for columns, at, end in skim_file(self.file, places, self.end, self._config):
            self._take(columns, at, end)

    def _take(self, columns: Columns, places: NDArray[np.int64], end: Point) -> None:
        self.chain = crc32c(columns.crc.tobytes(), self.chain)
        top = int(columns.id.max())
        self.highest = top if self.highest is None else max(top, self.highest)
        self._places.append(places.astype(np.uint32))
        self.end = end

    def places(self) -> NDArray[np.uint32]:
        """Where each record begins that was read."""
        if len(self._places) > 1 or (self._places and not len(self._place_column)):
            self._place_column = np.concatenate(self._places)
            self._places = [self._place_column]
        return self._place_column

    def _columns_at(self, places: NDArray[np.int64]) -> Iterator[tuple[Columns, NDArray[np.int64]]]:
        """Columns of records that lie one behind the other, by reads of some 1 MiB."""
        start = 0
        while start < len(places):
            stop = int(np.searchsorted(places, places[start] + _READ_BYTES - 36, "right"))
            stop = max(start + 1, min(stop, start + PIECE_RECORDS))
            begin = int(places[start])
            raw = self.file.pread(int(places[stop - 1]) + 36 - begin, begin)
            yield columns_of(gather_headers(raw, places[start:stop] - begin)), places[start:stop]
            start = stop

    def columns(self, upto_seq: int, from_seq: int = 0) -> Iterator[Columns]:
        """The columns of the records up to a seq, in pieces."""
        first = max(0, from_seq - self.entry.first_seq)
        places = self.places()[first : max(0, upto_seq - self.entry.first_seq + 1)]
        for columns, _ in self._columns_at(places.astype(np.int64)):
            yield columns

    def run(self) -> Run:
        """The exact run from the file's start to the end that was read, for folding: its times are not
        set."""
        return Run(
            first_seq=self.entry.first_seq,
            last_seq=self.end.seq,
            first_time=0,
            last_time=self.end.time_ms,
            next_time=None,
            chain_before=self._chain_before,
            chain_after=self.chain,
            highest_before=self._highest_before,
        )

    def chain_at(self, seq: int) -> int:
        """The chain at a seq that was read."""
        if seq == self.end.seq:
            return self.chain
        chain = self._chain_before
        for columns in self.columns(seq):
            chain = crc32c(columns.crc.tobytes(), chain)
        return chain

    def batch_end_at_or_before(self, seq: int) -> int:
        """The last batch end at or before a seq of this file; the seq before the file ends one."""
        first = self.entry.first_seq
        while seq >= first:
            begin, found = max(first, seq - 4095), 0
            for columns in self.columns(seq, begin):
                ends = columns.seq[(columns.flags & np.uint16(BATCH_GOES_ON)) == 0]
                found = int(ends[-1]) if len(ends) else found
            if found:
                return found
            seq = begin - 1
        return first - 1

    def blocks(self, first_seq: int, last_seq: int) -> Iterator[tuple[Columns, Buffer]]:
        """The records of a range in blocks, each record compared with its checksum."""
        for columns in self.columns(last_seq, first_seq):
            at = int(self.places()[int(columns.seq[0]) - self.entry.first_seq])
            start = 0
            for count in cut_blocks(columns.length).tolist():
                block = columns[start : start + count]
                size = int(block.raw_sizes.sum())
                raw = self.file.pread(size, at)
                verify_block(raw, block, at, self.entry.name)
                yield block, raw
                start, at = start + count, at + size


def verify_block(raw: Buffer, columns: Columns, offset: int, name: str) -> None:
    """As verify_records; the error names the file."""
    try:
        verify_records(raw, columns, offset=offset)
    except DamageError as error:
        fields = {"offset": offset, "seq": int(columns.seq[0]), **error.fields}
        kind = UnknownFormatError if isinstance(error, UnknownFormatError) else DamageError
        raise kind(f"{name}: {error}", file=name, **fields) from error


def load_tail(
    directory: Directory,
    files: FileList,
    before: Summary | None,
    uuid: bytes,
    config: Config,
    known: tuple[int, int] | None,
) -> LogTail:
    """The active file of a list, opened; what is known of it taken over. FileNotFoundError if it is gone."""
    entry = files.active
    file = directory.fs.open(directory.data_path(entry))
    try:
        check_header(file, files, uuid)
        time_ms = files.sealed[-1].last_time if files.sealed else 0
        start = Point(offset=HEADER_BYTES, seq=entry.first_seq - 1, time_ms=time_ms)
        tail = LogTail(file, entry, before, config, start)
        trust = directory.load_trust(known[0] if known else 0)
        tail.skim(usable_places(cached_places(directory, entry), entry.first_seq, trust))
    except BaseException:
        file.close()
        raise
    return tail


def cached_places(directory: Directory, entry: FileEntry) -> NDArray[np.uint32]:
    """The cached places of the active file, as far as there are any; not to be believed unseen."""
    try:
        with directory.fs.open(directory.places_path(entry)) as file:
            data = file.pread(min(file.size(), _PLACES_BYTES_MAX), 0)
    except FileNotFoundError:
        data = b""
    return np.frombuffer(data[: len(data) // 4 * 4], np.uint32)
