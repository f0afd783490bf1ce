"""The columns of all sources of a merge, decoded once, in a temporary file: about 30 bytes a record.

They are needed several times (to tell what lives, to write the new index, to compare), and a thousand small
segments are read as fast as one large one, because a piece holds the records of many.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ourdb.files import File
from ourdb.liveness import Keys
from ourdb.segment.block import TABLE_NAMES, BlockTable
from ourdb.segment.columns import COLUMN_NAMES, Columns

PIECE_RECORDS = 32_768  # a piece is full with so many records or blocks; it holds a page more at most
_CACHED_PIECES = 4

# In the order in which they lie in the file: keys come first, and each array is aligned.
_KEYS = (("seq", "<u8"), ("id", "<u4"), ("flags", "<u2"))
_COLUMNS = (*_KEYS, ("time", "<u8"), ("length", "<u4"), ("crc", "<u4"))
_BLOCKS = (
    ("offset", "<i8"),
    ("source", "<u4"),
    *((name, "<u4") for name in ("stored_bytes", "raw_bytes", "records", "crc")),
    *((name, "<u1") for name in ("codec", "encryption")),
)
_Fields = tuple[tuple[str, str], ...]


@dataclass(frozen=True, eq=False)
class Blocks:
    """Some blocks: their table, and of each the number of its source and its place in that."""

    table: BlockTable
    source: npt.NDArray[np.uint32]
    offset: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True, eq=False)
class Piece:
    """Whole blocks and the columns of all of their records. starts: index of the first record of each block,
    and at last how many records there are."""

    columns: Columns
    blocks: Blocks
    starts: npt.NDArray[np.int64]


@dataclass(frozen=True)
class PieceEntry:
    """start: how many records all pieces before have. records: that count; extra: those of the last block
    that are behind the end of their source."""

    place: int
    start: int
    records: int
    extra: int
    blocks: int
    last_seq: int


@dataclass
class _Pending:
    columns: list[Columns] = field(default_factory=list)
    tables: list[BlockTable] = field(default_factory=list)
    sources: list[npt.NDArray[np.uint32]] = field(default_factory=list)
    offsets: list[npt.NDArray[np.int64]] = field(default_factory=list)
    records: int = 0
    blocks: int = 0


class Records:
    """Records of all sources, in order of seq. `add` and `close` from one thread, then reads from any."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._end = 0
        self._pending = _Pending()
        self._starts: list[int] = []
        self._last_seqs: list[int] = []
        self._cached: OrderedDict[int, Piece] = OrderedDict()
        self._lock = threading.Lock()
        self.pieces: list[PieceEntry] = []
        self.count = 0

    def add(self, source: int, columns: Columns, blocks: BlockTable, offset: int, extra: int = 0) -> None:
        """Whole blocks of a source, which begin at `offset`, with the columns of their records. extra: so
        many records at the end do not count: the source ends before them."""
        stored = blocks.stored_bytes.astype(np.int64)
        pending = self._pending
        pending.columns.append(columns)
        pending.tables.append(blocks)
        pending.sources.append(np.full(len(blocks), source, np.uint32))
        pending.offsets.append(np.cumsum(stored) - stored + offset)
        pending.records += len(columns)
        pending.blocks += len(blocks)
        if extra or max(pending.records, pending.blocks) >= PIECE_RECORDS:
            self._flush(extra)

    def close(self) -> None:
        """All were added."""
        self._flush(0)

    def keys(self, first_seq: int, last_seq: int, begin: int = 0, end: int | None = None) -> Iterator[Keys]:
        """Of the records `begin` to `end` (exclusive) those of a range of seq, and some around it."""
        for number, some in self._find(first_seq, last_seq, begin, self.count if end is None else end):
            keys = self._read(number, _KEYS)
            yield Keys(keys["id"][some], keys["seq"][some], keys["flags"][some])

    def columns(
        self, first_seq: int, last_seq: int, begin: int = 0, end: int | None = None
    ) -> Iterator[Columns]:
        """As `keys`; neighbours that ask one after the other read their piece once."""
        for number, some in self._find(first_seq, last_seq, begin, self.count if end is None else end):
            yield self.piece(number).columns[some]

    def blocks(self, number: int) -> Blocks:
        """The blocks of a piece."""
        return _as_blocks(self._read(number, _BLOCKS))

    def piece(self, number: int) -> Piece:
        """A whole piece."""
        with self._lock:
            found = self._cached.get(number)
            if found is not None:
                self._cached.move_to_end(number)
                return found
        blocks = self.blocks(number)
        starts = np.concatenate([[0], np.cumsum(blocks.table.records, dtype=np.int64)])
        piece = Piece(_as_columns(self._read(number, _COLUMNS)), blocks, starts)
        with self._lock:
            self._cached[number] = piece
            while len(self._cached) > _CACHED_PIECES:
                self._cached.popitem(last=False)
        return piece

    def _flush(self, extra: int) -> None:
        pending, self._pending = self._pending, _Pending()
        if not pending.records:
            return
        columns, table = Columns.concat(pending.columns), BlockTable.concat(pending.tables)
        arrays: dict[str, npt.NDArray[Any]] = {name: getattr(columns, name) for name in COLUMN_NAMES}
        data = _pack(arrays, _COLUMNS)
        arrays = {name: getattr(table, name) for name in TABLE_NAMES}
        arrays |= {"source": np.concatenate(pending.sources), "offset": np.concatenate(pending.offsets)}
        data += _pack(arrays, _BLOCKS)
        records = pending.records - extra
        last_seq = int(columns.seq[records - 1])
        self.pieces.append(PieceEntry(self._end, self.count, records, extra, len(table), last_seq))
        self._starts.append(self.count)
        self._last_seqs.append(last_seq)
        self._file.pwrite(data, self._end)
        self._end += len(data)
        self.count += records

    def _find(self, first_seq: int, last_seq: int, begin: int, end: int) -> Iterator[tuple[int, slice]]:
        """Pieces with records of these ranges, and which of their records are among `begin` to `end`."""
        number = max(bisect_left(self._starts, begin + 1) - 1, bisect_left(self._last_seqs, first_seq), 0)
        while number < len(self.pieces):
            piece = self.pieces[number]
            if piece.start >= end or (number and self._last_seqs[number - 1] >= last_seq):
                break
            yield number, slice(max(begin - piece.start, 0), min(end - piece.start, piece.records))
            number += 1

    def _read(self, number: int, fields: _Fields) -> dict[str, npt.NDArray[Any]]:
        entry = self.pieces[number]
        records = entry.records + entry.extra
        place, count = entry.place, records
        if fields is _BLOCKS:
            place, count = place + _size(_COLUMNS, records), entry.blocks
        data = self._file.pread(_size(fields, count), place)
        arrays, at = {}, 0
        for name, dtype in fields:
            arrays[name] = np.frombuffer(data, dtype, count, at)
            at += _aligned(arrays[name].nbytes)
        return arrays


def _as_columns(arrays: dict[str, npt.NDArray[Any]]) -> Columns:
    return Columns(*(arrays[name] for name in COLUMN_NAMES))


def _as_blocks(arrays: dict[str, npt.NDArray[Any]]) -> Blocks:
    table = BlockTable(*(arrays[name] for name in TABLE_NAMES))
    return Blocks(table, arrays["source"], arrays["offset"])


def _pack(arrays: dict[str, npt.NDArray[Any]], fields: _Fields) -> bytes:
    parts = []
    for name, dtype in fields:
        data = arrays[name].astype(dtype, copy=False).tobytes()
        parts += [data, bytes(_aligned(len(data)) - len(data))]
    return b"".join(parts)


def _size(fields: _Fields, count: int) -> int:
    return sum(_aligned(np.dtype(dtype).itemsize * count) for _, dtype in fields)


def _aligned(size: int) -> int:
    return (size + 7) & ~7
