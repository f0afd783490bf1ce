"""What the active file holds after whatever happened: pure functions of its bytes.

A torn record at the very end is normal after a crash and is dropped. Damage anywhere else is an error:
a bad record at or below the seq up to which the log was durable, or, if the machine was not restarted
since, one behind which a later write was begun.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from mmap import mmap
from struct import Struct
from typing import Any

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from ourdb.config import Config
from ourdb.directory import FileList, Trust
from ourdb.errors import DamageError, UnknownFormatError
from ourdb.files import File
from ourdb.record import (
    BATCH_GOES_ON,
    KNOWN_FLAGS,
    RECORD_HEADER_BYTES,
    TIME_MAX,
    Record,
    decode_record,
    gather_headers,
)
from ourdb.segment.columns import Columns, columns_at, columns_of
from ourdb.segment.header import HEADER_BYTES, Header

PIECE_RECORDS = 1 << 16
READ_BYTES = 1 << 20
_UNPROVEN_RECORDS = 64  # of the newest ones the checksum is compared even when the page cache is whole
_SEARCH_BYTES = 1 << 20
_CANDIDATES_MAX = 10_000
_CRC_LENGTH = Struct("<II")
_COVERED = Struct("<IIQQQ")
Places = NDArray[np.uint32]


@dataclass(frozen=True, kw_only=True)
class Point:
    """A place in the log: everything up to `seq` lies before `offset`; time_ms is that of its record."""

    offset: int
    seq: int
    time_ms: int


@dataclass(frozen=True, kw_only=True)
class Walk:
    """Records that were read one by one. places: of all of them; the first `whole` are of whole batches.
    end: behind these. stop: behind all: where the next record should begin and none does."""

    places: list[int]
    whole: int
    end: Point
    stop: Point


def check_header(file: File, files: FileList, uuid: bytes) -> Header:
    """The active file's header; DamageError if it is not the file that the list names."""
    entry = files.active
    try:
        header = Header.decode(file.pread(HEADER_BYTES, 0))
    except DamageError as error:
        raise type(error)(f"{entry.name}: {error}", file=entry.name, offset=0, seq=entry.first_seq) from error
    if (header.uuid, header.file_id, header.first_seq) != (uuid, entry.file_id, entry.first_seq):
        raise DamageError(
            f"{entry.name} is not the file that the list of files names",
            file=entry.name,
            offset=0,
            seq=entry.first_seq,
        )
    return header


def walk_records(buf: bytes | mmap, start: Point, limit: int, config: Config) -> Walk:
    """Follow valid records from `start` on, checking each byte, as far as there are any before `limit`.

    Safe beside a process that writes: a record is copied and checked before it is parsed, its length too.
    """
    places: list[int] = []
    whole, end = 0, start
    offset, seq, time_ms = start.offset, start.seq, start.time_ms
    value_max, id_max = config.record_size_max, config.record_nr_max
    while limit - offset >= RECORD_HEADER_BYTES:
        crc, length = _CRC_LENGTH.unpack_from(buf, offset)
        behind = offset + RECORD_HEADER_BYTES + length
        if length > value_max or behind > limit:
            break
        body = buf[offset + 4 : behind]
        if crc32c(body) != crc:
            break
        length_again, id_, flags_time, found, prev = _COVERED.unpack_from(body)
        if length_again != length or found != seq + 1 or id_ > id_max or prev >= found:
            break
        if flags_time & TIME_MAX < time_ms:
            break
        flags = flags_time >> 48
        if flags & ~KNOWN_FLAGS:
            raise UnknownFormatError(
                f"unknown flags {flags:#06x} of record {found}", offset=offset, seq=found
            )
        places.append(offset)
        offset, seq, time_ms = behind, found, flags_time & TIME_MAX
        if not flags & BATCH_GOES_ON:
            whole, end = len(places), Point(offset=offset, seq=seq, time_ms=time_ms)
    return Walk(places=places, whole=whole, end=end, stop=Point(offset=offset, seq=seq, time_ms=time_ms))


def walk_file(file: File, start: Point, config: Config) -> Iterator[tuple[bytes, int, Walk]]:
    """As `walk_records`, by reads of the file and not through a mapping: pieces of it, the offset of each in
    the file, and the records in it, with places and offsets from the start of the piece."""
    size = READ_BYTES
    while True:
        piece = file.pread(size, start.offset)
        here = Point(offset=0, seq=start.seq, time_ms=start.time_ms)
        walk = walk_records(piece, here, len(piece), config)
        stop = walk.stop
        if walk.places:
            yield piece, start.offset, walk
        length = int.from_bytes(piece[stop.offset + 4 : stop.offset + 8], "little")
        whole = stop.offset + RECORD_HEADER_BYTES + length <= len(piece)
        if len(piece) < size or (not stop.offset and whole) or length > config.record_size_max:
            return
        size = max(READ_BYTES, RECORD_HEADER_BYTES + length)
        start = Point(offset=start.offset + stop.offset, seq=stop.seq, time_ms=stop.time_ms)


def follow_file(
    file: File, start: Point, config: Config
) -> Iterator[tuple[Columns, NDArray[np.int64], Point]]:
    """The whole batches of a file from `start` on, read and checked piece by piece: columns, places, and
    where the last whole batch that was seen ends. A batch without its end is not given out."""
    pending: list[tuple[Columns, NDArray[np.int64]]] = []
    for piece, base, walk in walk_file(file, start, config):
        at = np.array(walk.places, np.int64)
        columns = columns_at(piece, at)
        pending.append((columns[: walk.whole], at[: walk.whole] + base))
        if walk.whole:
            end = Point(offset=base + walk.end.offset, seq=walk.end.seq, time_ms=walk.end.time_ms)
            for some, places in pending:
                if len(some):
                    yield some, places, end
            pending = []
        pending.append((columns[walk.whole :], at[walk.whole :] + base))


def skim_file(
    file: File, places: NDArray[np.int64], start: Point, config: Config
) -> Iterator[tuple[Columns, NDArray[np.int64], Point]]:
    """As `follow_file`, where cached places say where records begin: their headers are proven, as in
    `prove_places`, and values are not checked. Stops where the places are wrong."""
    at, limit = 0, file.size()
    while at < len(places) and places[at] == start.offset:
        here = places[at : at + PIECE_RECORDS]
        here = here[: max(1, int(np.searchsorted(here, here[0] + READ_BYTES)))]
        size = int(here[-1] - here[0]) + RECORD_HEADER_BYTES
        if not 0 < size <= 2 * READ_BYTES:
            return
        raw = file.pread(size, start.offset)
        here = here[(here >= start.offset) & (here - start.offset <= len(raw) - RECORD_HEADER_BYTES)]
        columns = columns_of(gather_headers(raw, here - start.offset))
        inside = here + columns.raw_sizes <= limit
        good = columns[: _count_true(_follows(columns, here, start, config) & inside)]
        ends = np.flatnonzero((good.flags & np.uint16(BATCH_GOES_ON)) == 0)
        if not len(ends):
            return
        count = int(ends[-1]) + 1
        offset = int(here[count - 1] + columns.raw_sizes[count - 1])
        start = Point(offset=offset, seq=int(columns.seq[count - 1]), time_ms=int(columns.time[count - 1]))
        yield columns[:count], here[:count], start
        at += count


def usable_places(cached: Places, first_seq: int, trust: Trust) -> NDArray[np.int64]:
    """Of cached places those of records that need no second look: all but the newest if the machine was not
    restarted, else the durable ones."""
    used = len(cached) if cached.all() else int(np.argmin(cached != 0))
    count = used - _UNPROVEN_RECORDS if trust.same_boot else min(used, trust.durable_seq - first_seq + 1)
    return cached[: max(0, count)].astype(np.int64)


def pieces_at(buf: mmap, places: Places) -> Iterator[Columns]:
    """The columns of the records at these places, some at a time."""
    for start in range(0, len(places), PIECE_RECORDS):
        yield columns_of(gather_headers(buf, places[start : start + PIECE_RECORDS]))


def prove_places(buf: mmap, places: Places, start: Point, limit: int, config: Config) -> int:
    """How many of `places` are where records begin that follow one another from `start`, by their headers
    alone: dense seqs, each beginning where the one before ends."""
    proven, point = 0, start
    for first in range(0, len(places), PIECE_RECORDS):
        here = places[first : first + PIECE_RECORDS].astype(np.int64)
        here = here[: _count_true(here <= limit - RECORD_HEADER_BYTES)]
        if not len(here):
            break
        columns = columns_of(gather_headers(buf, here))
        ends = here + columns.raw_sizes
        count = _count_true(_follows(columns, here, point, config) & (ends <= limit))
        proven += count
        if count < min(PIECE_RECORDS, len(places) - first):
            break
        point = Point(offset=int(ends[-1]), seq=int(columns.seq[-1]), time_ms=int(columns.time[-1]))
    return proven


def _follows(columns: Columns, places: NDArray[np.int64], start: Point, config: Config) -> NDArray[np.bool_]:
    """Which records follow the one before: dense seqs, each beginning where the one before ends, in
    bounds."""
    ends = places + columns.raw_sizes
    good: NDArray[np.bool_] = columns.seq == np.arange(
        start.seq + 1, start.seq + 1 + len(places), dtype=np.uint64
    )
    good &= places == np.concatenate((np.array([start.offset], np.int64), ends[:-1]))
    good &= (columns.length <= config.record_size_max) & (columns.id <= config.record_nr_max)
    good &= (columns.flags & ~np.uint16(KNOWN_FLAGS)) == 0
    good &= columns.time >= np.concatenate((np.array([start.time_ms], np.uint64), columns.time[:-1]))
    return good


def _count_true(mask: NDArray[np.bool_]) -> int:
    """How many are true before the first that is not."""
    return len(mask) if mask.all() else int(np.argmin(mask))


def trusted_places(
    buf: mmap, places: Places, start: Point, limit: int, config: Config, trust: Trust
) -> tuple[Places, Point]:
    """As many of the cached places as need no second look, up to a batch end, and where that is.

    If the machine was not restarted these are all but the newest; else those that were durable.
    """
    count = prove_places(buf, places, start, limit, config)
    if trust.same_boot:
        count = max(count - _UNPROVEN_RECORDS, 0)
    else:
        count = min(count, max(trust.durable_seq - start.seq, 0))
    while count:
        first = max(0, count - PIECE_RECORDS)
        columns = columns_of(gather_headers(buf, places[first:count]))
        ends = np.flatnonzero((columns.flags & np.uint16(BATCH_GOES_ON)) == 0)
        if len(ends):
            last = int(ends[-1])
            offset = int(places[first + last]) + int(columns.raw_sizes[last])
            point = Point(offset=offset, seq=int(columns.seq[last]), time_ms=int(columns.time[last]))
            return places[: first + last + 1], point
        count = first
    return places[:0], start


def refuse_damage(
    buf: mmap, walk: Walk, ranges: list[tuple[int, int]], trust: Trust, config: Config, name: str
) -> None:
    """DamageError if what ends the log is no torn tail. ranges: where bytes other than 0 may lie behind."""
    stop = walk.stop
    where: dict[str, Any] = {"file": name, "offset": stop.offset, "seq": stop.seq + 1}
    if walk.end.seq < trust.durable_seq:
        raise DamageError(
            f"no valid record {stop.seq + 1} in {name} at offset {stop.offset}, "
            f"but the log was durable up to {trust.durable_seq}",
            **where,
        )
    if not trust.same_boot:
        return
    bad = bytes(buf[stop.offset : stop.offset + RECORD_HEADER_BYTES])
    later = None
    for begin, end in ranges:
        later = later or find_later_write(buf, max(begin, stop.offset + 1), end, stop.seq + 1, bad, config)
    if later is not None:
        raise DamageError(
            f"record {stop.seq + 1} in {name} at offset {stop.offset} is damaged: {later} lies behind it",
            **where,
        )


def find_later_write(
    buf: mmap | bytes, start: int, limit: int, seq: int, bad: bytes, config: Config
) -> int | None:
    """The seq of a record that was begun after the write of `seq` had ended, None if there is none.

    Records of the same torn batch may be whole behind a torn one: bytes of one copy land in any order.
    """
    flags = int.from_bytes(bad[18:20], "little") if len(bad) == RECORD_HEADER_BYTES else 0
    ended = any(bad) and not flags & BATCH_GOES_ON and int.from_bytes(bad[20:28], "little") == seq
    for record in _valid_records(buf, start, limit, seq, config):
        if ended:
            return record.seq
        ended = not record.flags & BATCH_GOES_ON
    return None


def _valid_records(buf: mmap | bytes, start: int, limit: int, seq: int, config: Config) -> Iterator[Record]:
    """Whole records with a seq above `seq` at any byte of [start, limit), by place."""
    seq_max = seq + (limit - start) // RECORD_HEADER_BYTES + 1
    tried = 0
    for first in range(start, limit - RECORD_HEADER_BYTES + 1, _SEARCH_BYTES):
        count = min(_SEARCH_BYTES, limit - RECORD_HEADER_BYTES + 1 - first)
        seqs: NDArray[np.uint64] = np.ndarray((count,), "<u8", buf, first + 20, (1,))
        for index in np.flatnonzero((seqs > seq) & (seqs <= seq_max)).tolist():
            tried += 1
            length = int.from_bytes(buf[first + index + 4 : first + index + 8], "little")
            if tried > _CANDIDATES_MAX or length > config.record_size_max:
                continue
            try:
                yield decode_record(buf, first + index, limit=limit)
            except DamageError:
                continue
