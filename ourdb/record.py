"""A record: one write of one id, the same bytes in every file and object (docs/format.md#record).

```
offset  0     4        8    12           20    28         36
        crc32c length  id   flags, time  seq   prev_seq   value
        u32    u32     u32  u64          u64   u64        length bytes
```

The checksum covers everything after itself. Nothing depends on where the record lies.
"""

from __future__ import annotations

import struct
from mmap import mmap
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from ourdb.errors import DamageError, InvalidError, UnknownFormatError

Buffer = bytes | bytearray | memoryview | mmap

RECORD_HEADER_BYTES = 36
VALUE_BYTES_MAX = 1 << 30
ID_MAX = 2**32 - 1
SEQ_MAX = 2**63 - 1
TIME_MAX = 2**48 - 1

TOMBSTONE = 1
BATCH_GOES_ON = 2
KNOWN_FLAGS = TOMBSTONE | BATCH_GOES_ON

HEADER_DTYPE = np.dtype(
    [
        ("crc", "<u4"),
        ("length", "<u4"),
        ("id", "<u4"),
        ("flags_time", "<u8"),
        ("seq", "<u8"),
        ("prev_seq", "<u8"),
    ]
)
Headers = npt.NDArray[np.void]

_HEADER = struct.Struct("<IIIQQQ")
_COVERED = struct.Struct("<IIQQQ")  # the header behind its checksum
_CRC = struct.Struct("<I")


class Record(NamedTuple):
    """time_ms: milliseconds since the epoch, UTC. prev_seq: of the id's version before this one, 0: none."""

    id: int
    value: bytes
    seq: int
    prev_seq: int
    time_ms: int
    flags: int
    crc: int

    @property
    def deleted(self) -> bool:
        return bool(self.flags & TOMBSTONE)


def encode_record(id: int, value: Buffer, *, seq: int, prev_seq: int, time_ms: int, flags: int = 0) -> bytes:  # noqa: A002
    """The bytes of one record. InvalidError for what a reader would refuse: ids above 2^32-1, seq outside
    1 to 2^63-1, prev_seq not below seq, times beyond 48 bits, values above 1 GiB, unknown flags, a
    tombstone with a value."""
    length = len(value)
    problem = _find_problem(id, length, seq, prev_seq, flags)
    if problem or not 0 <= id <= ID_MAX or not 0 <= time_ms <= TIME_MAX or flags & ~KNOWN_FLAGS:
        raise InvalidError(f"not a record: {problem or 'id, time or flags out of range'}, id {id}, seq {seq}")
    body = _COVERED.pack(length, id, flags << 48 | time_ms, seq, prev_seq) + value
    return _CRC.pack(crc32c(body)) + body


def decode_record(buf: Buffer, offset: int = 0, *, limit: int | None = None) -> Record:
    """The record at `offset`, checked. It has to end at `limit` (default: the end of `buf`) or before.

    Raises DamageError (field `offset`) if there is no whole, valid record, UnknownFormatError for flags
    of a newer version. The length is not trusted before it was compared with what is there.
    """
    end = len(buf) if limit is None else min(limit, len(buf))
    if offset < 0 or end - offset < RECORD_HEADER_BYTES:
        raise DamageError(f"no room for a record at offset {offset}", offset=offset)
    crc, length, id_, flags_time, seq, prev_seq = _HEADER.unpack_from(buf, offset)
    start = offset + RECORD_HEADER_BYTES
    if length > end - start:
        raise DamageError(f"record is cut off, or its length is wrong, at offset {offset}", offset=offset)
    value = bytes(memoryview(buf)[start : start + length])
    if crc32c(value, crc32c(bytes(memoryview(buf)[offset + 4 : start]))) != crc:
        raise DamageError(f"checksum of record does not match at offset {offset}", offset=offset)
    flags = flags_time >> 48
    if flags & ~KNOWN_FLAGS:
        raise UnknownFormatError(
            f"unknown record flags {flags:#06x} at offset {offset}", offset=offset, seq=seq
        )
    if problem := _find_problem(id_, length, seq, prev_seq, flags):
        raise DamageError(f"not a record: {problem}, at offset {offset}", offset=offset, seq=seq)
    return Record(id_, value, seq, prev_seq, flags_time & TIME_MAX, flags, crc)


def _find_problem(id_: int, length: int, seq: int, prev_seq: int, flags: int) -> str | None:
    if not 1 <= seq <= SEQ_MAX:
        return f"seq {seq} is not 1 to 2^63-1"
    if not 0 <= prev_seq < seq:
        return f"prev_seq {prev_seq} is not below seq {seq}"
    if length > VALUE_BYTES_MAX:
        return f"value of {length} bytes"
    if flags & TOMBSTONE and length:
        return f"tombstone of id {id_} has a value"
    return None


def gather_headers(buf: Buffer | npt.NDArray[Any], offsets: npt.NDArray[np.integer[Any]]) -> Headers:
    """The headers (HEADER_DTYPE) at these byte offsets of `buf`, in one pass; each has to lie inside.

    Nothing is checked but the bounds (IndexError). Up to some 256 Ki records at once is fastest.
    """
    size = buf.nbytes if isinstance(buf, memoryview | np.ndarray) else len(buf)
    count = size - RECORD_HEADER_BYTES + 1
    if count < 1 or len(offsets) == 0:
        if len(offsets):
            raise IndexError(f"no room for a record header in {size} bytes")
        return np.empty(0, HEADER_DTYPE)
    # One 36-byte item at each byte, overlapping. Index it with arrays only: take() would copy it whole.
    view: npt.NDArray[np.void] = np.ndarray((count,), f"V{RECORD_HEADER_BYTES}", buf, 0, (1,))
    headers: Headers = view[offsets].view(HEADER_DTYPE)
    return headers
