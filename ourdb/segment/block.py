"""Blocks: runs of whole records, compressed and checksummed as one unit (docs/format.md#record-area)."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import starmap
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import zstandard
from crc32c import crc32c

from ourdb.errors import DamageError, UnknownFormatError
from ourdb.record import (
    KNOWN_FLAGS,
    RECORD_HEADER_BYTES,
    TOMBSTONE,
    VALUE_BYTES_MAX,
    Buffer,
    gather_headers,
)
from ourdb.segment.columns import Columns, columns_of

BLOCK_RAW_TARGET = 128 << 10
BLOCK_RAW_MAX = 1 << 20  # of a block with more than one record
SINGLE_RAW_MAX = RECORD_HEADER_BYTES + VALUE_BYTES_MAX  # of a block with one record
CODEC_NONE = 0
CODEC_ZSTD = 1
ZSTD_LEVEL = 1
ENCRYPTION_NONE = 0

_local = threading.local()


@dataclass(frozen=True)
class Block:
    """stored: the bytes as they lie in the file; crc: crc32c of them; raw_bytes: size of the records."""

    codec: int
    raw_bytes: int
    records: int
    crc: int
    stored: Buffer


class BlockEntry(NamedTuple):
    """A block as the index knows it. offset: where its stored bytes begin in the file."""

    codec: int
    encryption: int
    stored_bytes: int
    raw_bytes: int
    records: int
    crc: int
    offset: int


@dataclass(frozen=True, eq=False)
class BlockTable:
    """The entries of many blocks as columns, in file order: codec, encryption (u1), stored_bytes, raw_bytes,
    records, crc (u4)."""

    codec: npt.NDArray[np.uint8]
    encryption: npt.NDArray[np.uint8]
    stored_bytes: npt.NDArray[np.uint32]
    raw_bytes: npt.NDArray[np.uint32]
    records: npt.NDArray[np.uint32]
    crc: npt.NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.codec)

    def __getitem__(self, index: slice) -> BlockTable:
        return BlockTable(*(getattr(self, name)[index] for name in TABLE_NAMES))

    @classmethod
    def of(cls, blocks: Sequence[Block]) -> BlockTable:
        """The table of these blocks."""
        return cls(
            codec=np.array([block.codec for block in blocks], np.uint8),
            encryption=np.zeros(len(blocks), np.uint8),
            stored_bytes=np.array([len(block.stored) for block in blocks], np.uint32),
            raw_bytes=np.array([block.raw_bytes for block in blocks], np.uint32),
            records=np.array([block.records for block in blocks], np.uint32),
            crc=np.array([block.crc for block in blocks], np.uint32),
        )

    @classmethod
    def raw(cls, records: npt.ArrayLike, sizes: npt.ArrayLike, crcs: npt.ArrayLike) -> BlockTable:
        """The table of raw blocks (codec 0), which are just their records: counts, bytes, crc32c of each."""
        size = np.asarray(sizes, np.uint32)
        none = np.zeros(len(size), np.uint8)
        return cls(
            codec=none,
            encryption=none,
            stored_bytes=size,
            raw_bytes=size,
            records=np.asarray(records, np.uint32),
            crc=np.asarray(crcs, np.uint32),
        )

    @classmethod
    def concat(cls, tables: Sequence[BlockTable]) -> BlockTable:
        """One table after the other."""
        if not tables:
            return cls.of(())
        return cls(*(np.concatenate([getattr(table, name) for table in tables]) for name in TABLE_NAMES))


TABLE_NAMES = ("codec", "encryption", "stored_bytes", "raw_bytes", "records", "crc")


def encode_block(raw: Buffer, records: int, compressor: zstandard.ZstdCompressor | None = None) -> Block:
    """A block of whole records. Stored as it is without a compressor, or where compression does not help.

    A compressor (level ZSTD_LEVEL) belongs to one thread at a time.
    """
    if compressor is not None:
        stored = compressor.compress(memoryview(raw))
        if len(stored) < len(raw):
            return Block(CODEC_ZSTD, len(raw), records, crc32c(stored), stored)
    return Block(CODEC_NONE, len(raw), records, crc32c(raw), raw)


def decode_block(
    entry: BlockEntry, stored: Buffer, *, raw_bytes_max: int = SINGLE_RAW_MAX, crc_known: bool = False
) -> Buffer:
    """The records of a block: `stored` itself for codec 0, else decompressed. Any thread.

    entry: from an index that was checked. raw_bytes_max: more is refused before it is allocated.
    crc_known: the caller has compared the checksum of `stored`. DamageError, UnknownFormatError.
    """
    at = entry.offset
    if entry.codec not in (CODEC_NONE, CODEC_ZSTD) or entry.encryption != ENCRYPTION_NONE:
        raise UnknownFormatError(
            f"unknown codec {entry.codec} or encryption {entry.encryption} of block at {at}", offset=at
        )
    if len(stored) != entry.stored_bytes:
        raise DamageError(f"block is cut off: {len(stored)} of {entry.stored_bytes} bytes", offset=at)
    if entry.raw_bytes > raw_bytes_max:
        raise DamageError(
            f"block of {entry.raw_bytes} bytes is larger than allowed: {raw_bytes_max}", offset=at
        )
    if not crc_known and crc32c(stored) != entry.crc:
        raise DamageError(f"checksum of block does not match at offset {at}", offset=at)
    if entry.codec == CODEC_ZSTD:
        return decompress(stored, entry.raw_bytes, offset=entry.offset)
    if entry.raw_bytes != entry.stored_bytes:
        raise DamageError(f"size of uncompressed block does not match at offset {at}", offset=at)
    return stored


def decompress(stored: Buffer, size: int, *, offset: int) -> bytes:
    """One zstd frame that holds exactly `size` bytes, or DamageError; nothing larger is ever allocated."""
    try:
        if zstandard.frame_content_size(memoryview(stored)) != size:
            raise DamageError(f"compressed bytes do not say their size at offset {offset}", offset=offset)
        decompressor: zstandard.ZstdDecompressor | None = getattr(_local, "decompressor", None)
        if decompressor is None:
            decompressor = _local.decompressor = zstandard.ZstdDecompressor()
        raw = decompressor.decompress(memoryview(stored), allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise DamageError(f"cannot decompress at offset {offset}: {error}", offset=offset) from error
    if len(raw) != size:
        raise DamageError(f"decompressed to {len(raw)} instead of {size} bytes at {offset}", offset=offset)
    return raw


def cut_blocks(
    lengths: npt.NDArray[np.integer[Any]], target: int = BLOCK_RAW_TARGET
) -> npt.NDArray[np.int64]:
    """Record counts of blocks for values of these lengths: each as many records as fit into `target` raw
    bytes, headers included, at least one; a larger record is a block of its own."""
    ends = np.cumsum(lengths.astype(np.int64) + RECORD_HEADER_BYTES)
    counts: list[int] = []
    start, base = 0, 0
    while start < len(ends):
        end = max(int(np.searchsorted(ends, base + target, "right")), start + 1)
        counts.append(end - start)
        start, base = end, int(ends[end - 1])
    return np.array(counts, np.int64)


def check_blocks(blocks: BlockTable, raw_sizes: npt.NDArray[Any]) -> None:
    """DamageError unless these blocks can hold records of these raw sizes; UnknownFormatError for a codec or
    an encryption of a newer version."""
    codec, raw, stored = blocks.codec, blocks.raw_bytes, blocks.stored_bytes
    if (codec > CODEC_ZSTD).any() or (blocks.encryption != ENCRYPTION_NONE).any():
        raise UnknownFormatError("unknown codec or encryption of a block")
    counts = blocks.records.astype(np.int64)
    if not len(counts) or not counts.all() or int(counts.sum()) != len(raw_sizes):
        raise DamageError(f"blocks hold {int(counts.sum())} records, not {len(raw_sizes)}")
    sums = np.add.reduceat(raw_sizes, np.cumsum(counts) - counts)
    limits = np.where(counts == 1, SINGLE_RAW_MAX, BLOCK_RAW_MAX)
    if (sums != raw).any() or (sums > limits).any():
        raise DamageError("size of a block is not that of its records, or too large")
    if (np.where(codec == CODEC_NONE, stored != raw, stored >= raw)).any():
        raise DamageError("stored size of a block does not fit its codec")


def verify_records(raw: Buffer, columns: Columns, *, offset: int = 0) -> None:
    """DamageError unless `raw` is exactly the records of `columns`, each with a matching checksum.

    offset: place of the block in its file, for the message.
    """
    ends = np.cumsum(columns.raw_sizes)
    if len(ends) == 0 or len(raw) != ends[-1]:
        raise DamageError(f"records do not fill their block at offset {offset}", offset=offset)
    starts = ends - columns.raw_sizes
    headers = gather_headers(raw, starts)
    _compare(columns_of(headers), columns, offset)
    if ((columns.flags & ~np.uint16(KNOWN_FLAGS)) != 0).any():
        raise UnknownFormatError(f"unknown record flags in block at offset {offset}", offset=offset)
    wrong = headers["prev_seq"] >= headers["seq"]
    wrong |= ((columns.flags & np.uint16(TOMBSTONE)) != 0) & (columns.length != 0)
    wrong |= _record_crcs(raw, starts, ends) != columns.crc
    _refuse(wrong, columns, offset, "record is damaged")


def _record_crcs(
    raw: Buffer, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint32]:
    # All of it runs inside map: no bytecode for a record. Slices cost most, equal sizes do without.
    size = int(ends[0])
    crcs: Iterator[int]
    if ends[-1] == size * len(ends) and (ends - starts == size).all():
        crcs = starmap(crc32c, struct.iter_unpack(f"4x{size - 4}s", raw))
    else:
        slices = map(slice, (starts + 4).tolist(), ends.tolist())
        crcs = map(crc32c, map(memoryview(raw).__getitem__, slices))
    return np.fromiter(crcs, np.uint32, len(starts))


def _compare(found: Columns, columns: Columns, offset: int) -> None:
    wrong = (found.id != columns.id) | (found.seq != columns.seq) | (found.length != columns.length)
    wrong |= (found.time != columns.time) | (found.flags != columns.flags) | (found.crc != columns.crc)
    _refuse(wrong, columns, offset, "record is not the one that the index has")


def _refuse(wrong: npt.NDArray[np.bool_], columns: Columns, offset: int, message: str) -> None:
    if wrong.any():
        seq = int(columns.seq[int(np.argmax(wrong))])
        raise DamageError(f"{message}: seq {seq}, block at offset {offset}", offset=offset, seq=seq)
