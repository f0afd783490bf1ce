"""Columns: what is known of many records without their values, as numpy arrays in seq order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from ourdb.record import BATCH_GOES_ON, RECORD_HEADER_BYTES, TIME_MAX, Buffer, Headers, gather_headers

Index = slice | npt.NDArray[Any]
COLUMN_NAMES = ("id", "seq", "time", "length", "flags", "crc")


@dataclass(frozen=True, eq=False)
class Columns:
    """One entry a record: id, length, crc (u4), seq, time in ms (u8), flags (u2), all of one length."""

    id: npt.NDArray[np.uint32]
    seq: npt.NDArray[np.uint64]
    time: npt.NDArray[np.uint64]
    length: npt.NDArray[np.uint32]
    flags: npt.NDArray[np.uint16]
    crc: npt.NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.id)

    def __getitem__(self, index: Index) -> Columns:
        """The records of a slice (views), an index array or a mask (copies)."""
        return Columns(*(getattr(self, name)[index] for name in COLUMN_NAMES))

    @property
    def raw_sizes(self) -> npt.NDArray[np.int64]:
        """Bytes of each record, header included."""
        return self.length.astype(np.int64) + RECORD_HEADER_BYTES

    @classmethod
    def concat(cls, pieces: Sequence[Columns]) -> Columns:
        """One after the other; no piece: no records."""
        if len(pieces) == 1:
            return pieces[0]
        if not pieces:
            return columns_of(gather_headers(b"", np.empty(0, np.int64)))
        return cls(*(np.concatenate([getattr(piece, name) for piece in pieces]) for name in COLUMN_NAMES))


def columns_of(headers: Headers) -> Columns:
    """The columns of gathered record headers (HEADER_DTYPE); copies, each contiguous."""
    flags_time = headers["flags_time"]
    return Columns(
        id=np.ascontiguousarray(headers["id"]),
        seq=np.ascontiguousarray(headers["seq"]),
        time=flags_time & np.uint64(TIME_MAX),
        length=np.ascontiguousarray(headers["length"]),
        flags=(flags_time >> np.uint64(48)).astype(np.uint16),
        crc=np.ascontiguousarray(headers["crc"]),
    )


def columns_at(buf: Buffer, offsets: npt.NDArray[np.integer[Any]]) -> Columns:
    """The columns of the records that begin at these offsets of `buf`; nothing is checked."""
    return columns_of(gather_headers(buf, offsets))


def batch_ends(columns: Columns, *, closed: bool = True) -> npt.NDArray[np.bool_]:
    """A mask: which records end a batch. With `closed` the last one does, whatever its flag: it is the last
    of its segment, and segments are cut at batch ends."""
    ends: npt.NDArray[np.bool_] = (columns.flags & np.uint16(BATCH_GOES_ON)) == 0
    if closed and len(ends):
        ends[-1] = True
    return ends


def extend_chain(chain: int, crcs: npt.NDArray[np.uint32]) -> int:
    """The chain after the records that have these checksums, `chain` being the one before them."""
    return crc32c(np.ascontiguousarray(crcs, "<u4").data.cast("B"), chain) if len(crcs) else chain


def as_pieces(columns: Columns | Iterable[Columns]) -> Iterable[Columns]:
    """Columns as a whole or in pieces, always as pieces."""
    return [columns] if isinstance(columns, Columns) else columns
