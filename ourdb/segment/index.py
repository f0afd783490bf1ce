"""The index: pages of columns, each encoded and checksummed by itself, and their directory
(docs/format.md#index)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import zstandard
from crc32c import crc32c

from ourdb.errors import DamageError, UnknownFormatError
from ourdb.record import SEQ_MAX, Buffer
from ourdb.segment.block import BlockTable, decompress
from ourdb.segment.columns import Columns

PAGE_RECORDS_MAX = 65_536

PLAIN, STEP, SHUFFLED, DELTA = 0, 1, 2, 3  # low half of a column's encoding; the high half is the width
_WIDTHS = (1, 2, 4, 8)

Array = npt.NDArray[np.unsignedinteger[Any]]


class Layout(NamedTuple):
    """A column of a page: its type, how it is packed unless it is an arithmetic progression, and of what."""

    dtype: np.dtype[Any]
    packing: int
    of_blocks: bool = False


# In the order in which they lie in a page. What a merge needs comes first, and the record checksums, which do
# not compress and are half of the index, come last: most readers need one range that ends before them.
LAYOUTS = {
    "id": Layout(np.dtype("<u4"), SHUFFLED),
    "seq": Layout(np.dtype("<u8"), DELTA),
    "flags": Layout(np.dtype("<u2"), SHUFFLED),
    "time": Layout(np.dtype("<u8"), DELTA),
    "length": Layout(np.dtype("<u4"), SHUFFLED),
    "block_codec": Layout(np.dtype("<u1"), SHUFFLED, True),
    "block_encryption": Layout(np.dtype("<u1"), SHUFFLED, True),
    "block_stored_bytes": Layout(np.dtype("<u4"), SHUFFLED, True),
    "block_raw_bytes": Layout(np.dtype("<u4"), SHUFFLED, True),
    "block_records": Layout(np.dtype("<u4"), SHUFFLED, True),
    "block_crc": Layout(np.dtype("<u4"), PLAIN, True),
    "crc": Layout(np.dtype("<u4"), PLAIN),
}
_NUMBERS = {name: number for number, name in enumerate(LAYOUTS)}
_PAGE = struct.Struct("<QQQQIIII")
_PAGE_FIELDS = (
    "first_seq",
    "last_seq",
    "place",
    "first_block_offset",
    "records",
    "blocks",
    "lowest_id",
    "highest_id",
)
_COLUMN = struct.Struct("<IIB")
PAGE_ENTRY_BYTES = _PAGE.size + _COLUMN.size * len(LAYOUTS)


class ColumnEntry(NamedTuple):
    """crc: crc32c of the stored bytes. encoding: kind, and width << 4."""

    stored_bytes: int
    crc: int
    encoding: int


@dataclass(frozen=True)
class PageEntry:
    """What the directory says of a page. place: where its columns begin in the file; first_block_offset:
    where the first of its blocks does. Range and ids are inclusive, and are those of its records."""

    first_seq: int
    last_seq: int
    place: int
    first_block_offset: int
    records: int
    blocks: int
    lowest_id: int
    highest_id: int
    columns: tuple[ColumnEntry, ...]

    @property
    def stored_bytes(self) -> int:
        return sum(column.stored_bytes for column in self.columns)

    def column(self, name: str) -> ColumnEntry:
        return self.columns[_NUMBERS[name]]

    def column_place(self, name: str) -> int:
        """Where the stored bytes of a column begin in the file."""
        return self.place + sum(column.stored_bytes for column in self.columns[: _NUMBERS[name]])

    def encode(self) -> bytes:
        fixed = _PAGE.pack(*(getattr(self, name) for name in _PAGE_FIELDS))
        return fixed + b"".join(_COLUMN.pack(*column) for column in self.columns)


def encode_page(
    columns: Columns,
    blocks: BlockTable,
    *,
    place: int,
    first_block_offset: int,
    compressor: zstandard.ZstdCompressor,
) -> tuple[bytes, PageEntry]:
    """The stored bytes of a page of 1 to PAGE_RECORDS_MAX records in whole blocks, and its entry."""
    parts, entries = [], []
    for name, layout in LAYOUTS.items():
        source = blocks if layout.of_blocks else columns
        values = getattr(source, name.removeprefix("block_") if layout.of_blocks else name)
        encoding, stored = encode_column(values.astype(layout.dtype, copy=False), layout.packing, compressor)
        parts.append(stored)
        entries.append(ColumnEntry(len(stored), crc32c(stored), encoding))
    entry = PageEntry(
        first_seq=int(columns.seq[0]),
        last_seq=int(columns.seq[-1]),
        place=place,
        first_block_offset=first_block_offset,
        records=len(columns),
        blocks=len(blocks),
        lowest_id=int(columns.id.min()),
        highest_id=int(columns.id.max()),
        columns=tuple(entries),
    )
    return b"".join(parts), entry


def encode_directory(pages: Sequence[PageEntry]) -> bytes:
    """The directory: PAGE_ENTRY_BYTES for each page."""
    return b"".join(page.encode() for page in pages)


def decode_directory(buf: Buffer) -> tuple[PageEntry, ...]:
    """The pages of a directory whose checksum was compared. DamageError for impossible entries."""
    return tuple(
        _decode_page_entry(memoryview(buf)[start : start + PAGE_ENTRY_BYTES])
        for start in range(0, len(buf), PAGE_ENTRY_BYTES)
    )


def _decode_page_entry(buf: memoryview) -> PageEntry:
    columns = tuple(ColumnEntry._make(fields) for fields in _COLUMN.iter_unpack(buf[_PAGE.size :]))
    entry = PageEntry(
        **dict(zip(_PAGE_FIELDS, _PAGE.unpack(buf[: _PAGE.size]), strict=True)), columns=columns
    )
    span = entry.last_seq - entry.first_seq + 1
    if not 1 <= entry.first_seq <= entry.last_seq <= SEQ_MAX or entry.lowest_id > entry.highest_id:
        raise DamageError(f"page of the index with an impossible range, from seq {entry.first_seq}")
    if not 1 <= entry.blocks <= entry.records <= min(PAGE_RECORDS_MAX, span):
        raise DamageError(f"page of the index with {entry.records} records, from seq {entry.first_seq}")
    return entry


def encode_column(values: Array, packing: int, compressor: zstandard.ZstdCompressor) -> tuple[int, bytes]:
    """The encoding and the stored bytes of a column with at least one value."""
    step = _find_step(values)
    if step is not None:
        pair = np.array([int(values[0]), step], np.uint64)
        width = _width(int(pair.max()))
        return STEP | width << 4, pair.astype(f"<u{width}").tobytes()
    width = _width(int(values.max()))
    plain = PLAIN | width << 4
    if packing == PLAIN:
        return plain, values.astype(f"<u{width}", copy=False).tobytes()
    packed_width, prefix, packed = width, b"", values
    if packing == DELTA:
        packed = np.diff(values, prepend=values[:1])
        packed_width, prefix = _width(int(packed.max())), int(values[0]).to_bytes(8, "little")
    stored = prefix + compressor.compress(_shuffle(packed.astype(f"<u{packed_width}", copy=False)))
    if len(stored) < len(values) * width:
        return packing | packed_width << 4, stored
    return plain, values.astype(f"<u{width}", copy=False).tobytes()


def decode_column(entry: ColumnEntry, stored: Buffer, name: str, count: int, *, offset: int) -> Array:
    """The `count` values of the column `name`, checked against its entry. offset: place in the file.

    DamageError, or UnknownFormatError for an encoding of a newer version; what is allocated is bounded by
    `count`, not by what the bytes say.
    """
    dtype = LAYOUTS[name].dtype
    kind, width = entry.encoding & 15, entry.encoding >> 4
    if len(stored) != entry.stored_bytes or crc32c(stored) != entry.crc:
        raise DamageError(f"checksum of index column {name} does not match at {offset}", offset=offset)
    if kind > DELTA or width not in _WIDTHS or width > dtype.itemsize:
        raise UnknownFormatError(f"unknown encoding {entry.encoding:#04x} of column {name}", offset=offset)
    narrow = np.dtype(f"<u{width}")
    if kind in (PLAIN, STEP):
        if len(stored) != (count if kind == PLAIN else 2) * width:
            raise DamageError(f"wrong size of index column {name} at offset {offset}", offset=offset)
        values = np.frombuffer(stored, narrow).astype(dtype, copy=False)
        return values if kind == PLAIN else values[:1] + values[1:] * np.arange(count, dtype=dtype)
    prefix = 8 if kind == DELTA else 0
    planes = decompress(memoryview(stored)[prefix:], count * width, offset=offset)
    values = _unshuffle(planes, narrow, count).astype(dtype, copy=False)
    if kind == SHUFFLED:
        return values
    first = np.frombuffer(stored, "<u8", 1).astype(dtype)
    summed: Array = np.cumsum(values, dtype=dtype) + first
    return summed


def _find_step(values: Array) -> int | None:
    """The common difference (modulo the type's range) of three values or more, else None."""
    if len(values) < 3:
        return None
    step = values[1:2] - values[:1]
    if (values[-1:] - values[-2:-1] != step)[0] or not (values[1:] - values[:-1] == step).all():
        return None
    return int(step[0])


def _width(highest: int) -> int:
    return next(width for width in _WIDTHS if highest < 1 << 8 * width)


def _shuffle(values: Array) -> bytes:
    """Byte planes: all lowest bytes, then all second ones, and so on."""
    width = values.dtype.itemsize
    return values.view(np.uint8).reshape(-1, width).T.tobytes() if width > 1 else values.tobytes()


def _unshuffle(planes: bytes, dtype: np.dtype[Any], count: int) -> Array:
    matrix = np.frombuffer(planes, np.uint8).reshape(dtype.itemsize, count)
    return np.ascontiguousarray(matrix.T).reshape(-1).view(dtype)
